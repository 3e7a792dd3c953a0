"""Logging in and out, and knowing who calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dashboard.degradation import REDIS_CACHE
from dashboard.model import Credentials, Session, WrongLogin
from dashboard.ports import Copies, Hasher, LoginLimit, Sessions, Users
from resilience import MISSING, Policy, Rung, Served


@dataclass(frozen=True, slots=True)
class Login:
    """A fresh session and its token; ``expires_in`` in seconds."""

    session: Session
    token: str
    expires_in: int


class Logins:
    """``issue(session, seconds)`` makes the token of a session."""

    def __init__(
        self,
        users: Users,
        copies: Copies,
        policy: Policy,
        sessions: Sessions,
        limit: LoginLimit,
        hasher: Hasher,
        *,
        issue: Callable[[Session, int], str],
        session_seconds: int,
    ) -> None:
        self._users = users
        self._copies = copies
        self._policy = policy
        self._sessions = sessions
        self._limit = limit
        self._hasher = hasher
        self._issue = issue
        self._session_seconds = session_seconds

    async def login(self, email: str, password: str) -> Served[Login]:
        """Raises WrongLogin, TooManyLogins."""
        await self._limit.check(email)
        found = await self._policy.serve(
            lambda: self._from_database(email), Rung(REDIS_CACHE, lambda _: self._from_copy(email))
        )
        credentials = await self._verified(email, password, found.value)
        session = Session(secrets.token_urlsafe(24), credentials.user_id, credentials.role)
        stored = await self._sessions.create(session, self._session_seconds)
        login = Login(session, self._issue(session, self._session_seconds), self._session_seconds)
        return Served(login, found.degradations + stored.degradations)

    async def _verified(self, email: str, password: str, credentials: Credentials | None) -> Credentials:
        if credentials is None:
            await self._hasher.verify_nothing(password)
        elif await self._hasher.verify(password, credentials.password_hash):
            return credentials
        await self._limit.failed(email)
        raise WrongLogin

    async def _from_database(self, email: str) -> Credentials | None:
        credentials = await self._users.credentials(email)
        if credentials:
            self._copies.keep_credentials(email, credentials)
        return credentials

    async def _from_copy(self, email: str) -> Any:
        """Without a copy nobody can tell whether the account exists: the failure stands."""
        return await self._copies.credentials(email) or MISSING

    async def logout(self, session_id: str) -> Served[None]:
        """Ends the session everywhere; on this instance at once, whatever is down."""
        return await self._sessions.end(session_id)
