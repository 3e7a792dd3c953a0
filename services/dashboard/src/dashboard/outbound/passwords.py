"""Password hashing with argon2id, in threads: two at a time, so that logins leave the processors to the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

T = TypeVar("T")

# The first of OWASP's recommended settings (Password Storage Cheat Sheet): one pass over 46 MiB in one lane, as the
# threads are the parallelism. About 50 ms: a login must fit into a request that has lost a second to a dead database.
_HASHER = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)
_THREADS = 2


class Argon2Hasher:
    """See the port."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._decoy: str | None = None

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def hash(self, password: str) -> str:
        """Argon2's encoded form, salt and parameters included."""
        return await self._run(lambda: _HASHER.hash(password))

    async def verify(self, password: str, encoded: str) -> bool:
        """True when the password belongs to the hash."""
        return await self._run(lambda: _matches(password, encoded))

    async def verify_nothing(self, password: str) -> None:
        """See the port."""
        if self._decoy is None:
            self._decoy = await self.hash("decoy")
        await self.verify(password, self._decoy)

    async def close(self) -> None:
        """Lets running hashes end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _matches(password: str, encoded: str) -> bool:
    try:
        return _HASHER.verify(encoded, password)
    except (VerificationError, InvalidHashError):
        return False
