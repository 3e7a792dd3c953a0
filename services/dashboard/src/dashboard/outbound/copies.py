"""Copies of accounts, and of what a login is checked against, for the time without the database."""

from __future__ import annotations

import hashlib
from typing import Any

from dashboard.degradation import MEMORY_CACHE, REDIS_CACHE
from dashboard.model import Credentials, User
from dashboard.outbound import reading
from resilience import MISSING, Rung
from service_kit.copies import Copy, CopyStore

Login = tuple[Credentials, User] | None


class UserCopies:
    """See the port: accounts under their revision, and what a login is checked against."""

    def __init__(self, store: CopyStore) -> None:
        self._store = store

    def keep(self, user: User) -> None:
        """See the port."""
        self._store.keep(_user(user.id), user, user.revision)

    def keep_credentials(self, email: str, credentials: Credentials) -> None:
        """See the port. Credentials do not change, so any copy is as good as another."""
        self._store.keep(_credentials(email), credentials, 0)

    async def forget(self, user_id: str) -> None:
        """See the port."""
        await self._store.forget(_user(user_id))

    def rungs(self, user_id: str) -> tuple[Rung[User], Rung[User]]:
        """See the port."""
        return self._store.rungs(_user(user_id), reading.user_copy)

    async def newest(self, user_id: str) -> User | None:
        """See the port."""
        found = [_read(copy) for copy in (await self._store.soon(_user(user_id)), self._store.local(_user(user_id)))]
        users = [one[0] for one in found if one]
        return max(users, key=lambda user: user.revision, default=None)

    def login(self, email: str) -> tuple[Rung[Login], Rung[Login]]:
        """See the port."""

        async def from_redis(_: BaseException) -> Any:
            credentials = _credentials_of(await self._store.shared(_credentials(email)))
            if credentials is None:
                return MISSING
            return _login(credentials, await self._store.any(_user(credentials.user_id)))

        async def from_memory(_: BaseException) -> Any:
            credentials = _credentials_of(self._store.local(_credentials(email)))
            return (
                MISSING if credentials is None else _login(credentials, self._store.local(_user(credentials.user_id)))
            )

        return Rung(REDIS_CACHE, from_redis), Rung(MEMORY_CACHE, from_memory)


def _user(user_id: str) -> str:
    return f"user:{user_id}"


def _credentials(email: str) -> str:
    return f"credentials:{hashlib.sha256(email.encode()).hexdigest()}"


def _read(copy: Copy | None) -> tuple[User, float] | None:
    user = reading.user_copy(copy.value) if copy else None
    return (user, copy.as_of) if copy and user else None


def _credentials_of(copy: Copy | None) -> Credentials | None:
    return reading.credentials_copy(copy.value) if copy else None


def _login(credentials: Credentials, copy: Copy | None) -> Any:
    found = _read(copy)
    return MISSING if found is None else (credentials, found[0])
