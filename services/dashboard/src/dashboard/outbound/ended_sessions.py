"""Sessions that have ended, in PostgreSQL (row D1, dashboard.postgres): what Redis may not know, or may have forgotten.

Only hashes are stored: who reads the table learns no session. A *name* is a session's id, or ``user:<id>`` for all of
an account. Every call is made under D1's policy; whoever asks waits a quarter of a second at most and then has to
decide alone, so that a frozen database costs a request little while its own read still has to find that out.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from dashboard.outbound.postgres import Database
from resilience import RowPolicy
from service_kit import logs

log = logs.get_logger("sessions")

ASK_SECONDS = 0.25
PRUNE_BATCH = 1000

_ADD = """INSERT INTO ended_sessions (id_hash, until)
    SELECT unnest($1::text[]), clock_timestamp() + make_interval(secs => $2::float8)
    ON CONFLICT (id_hash) DO UPDATE SET until = greatest(ended_sessions.until, excluded.until)"""
_ANY = "SELECT 1 FROM ended_sessions WHERE id_hash = ANY($1::text[]) AND until > clock_timestamp() LIMIT 1"
_PRUNE = """DELETE FROM ended_sessions WHERE id_hash IN (
    SELECT id_hash FROM ended_sessions WHERE until < clock_timestamp() LIMIT $1 FOR UPDATE SKIP LOCKED)"""


def hash_of(name: str) -> str:
    """How a name is stored, here and in Redis: SHA-256, in hexadecimal."""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()


class EndedSessions:
    """The table."""

    def __init__(self, database: Database, policy: RowPolicy) -> None:
        self._database = database
        self._policy = policy
        self._asking: dict[str, asyncio.Task[bool | None]] = {}

    async def add(self, names: Sequence[str], seconds: float) -> bool:
        """Notes that they have ended, for ``seconds``; False when it could not be noted."""
        hashes = sorted({hash_of(name) for name in names})  # in one order, so that two instances cannot deadlock
        try:
            await self._policy.call(lambda: self._database.fetch(_ADD, hashes, seconds))
        except Exception as error:  # noqa: BLE001 - whatever it is, the circuit has taken note, and it is tried again
            log.debug("not noted", error=type(error).__name__)
            return False
        return True

    async def any(self, names: Sequence[str]) -> bool | None:
        """Whether one of them has ended; None when the database did not say so in time. One question at a time for
        each first name: others who ask meanwhile get the same answer."""
        task = self._asking.get(names[0])
        if task is None:
            task = self._asking[names[0]] = asyncio.get_running_loop().create_task(self._ask(names))
            task.add_done_callback(lambda _: self._asking.pop(names[0], None))
        await asyncio.wait((task,), timeout=ASK_SECONDS)
        return task.result() if task.done() and not task.cancelled() else None

    async def _ask(self, names: Sequence[str]) -> bool | None:
        hashes = [hash_of(name) for name in names]
        try:
            return bool(await self._policy.call(lambda: self._database.fetch(_ANY, hashes)))
        except Exception as error:  # noqa: BLE001 - the circuit has taken note
            log.debug("not asked", error=type(error).__name__)
            return None

    async def prune(self) -> None:
        """Deletes a bounded number of those that nobody could use any more. Raises what the database does."""
        await self._policy.call(lambda: self._database.fetch(_PRUNE, PRUNE_BATCH))

    async def close(self) -> None:
        """Gives up what is being asked."""
        for task in list(self._asking.values()):
            task.cancel()
