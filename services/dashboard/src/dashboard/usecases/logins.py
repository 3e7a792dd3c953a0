"""Logging in and out, and knowing who calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from dashboard.model import Credentials, Session, User, UserUnknown, WrongLogin
from dashboard.ports import Copies, Hasher, LoginLimit, Sessions, Users
from dashboard.usecases.reads import Reads
from resilience import Served

Found = tuple[Credentials, User] | None


@dataclass(frozen=True, slots=True)
class Login:
    """A fresh session, its token and its account; ``expires_in`` in seconds."""

    session: Session
    user: User
    token: str
    expires_in: int


class Logins:
    """``issue(session, seconds)`` makes the token of a session."""

    def __init__(
        self,
        reads: Reads[Users],
        copies: Copies,
        sessions: Sessions,
        limit: LoginLimit,
        hasher: Hasher,
        *,
        issue: Callable[[Session, int], str],
        session_seconds: int,
    ) -> None:
        self._reads = reads
        self._copies = copies
        self._sessions = sessions
        self._limit = limit
        self._hasher = hasher
        self._issue = issue
        self._session_seconds = session_seconds

    async def login(self, email: str, password: str) -> Served[Login]:
        """Raises WrongLogin, TooManyLogins."""
        await self._limit.check(email)
        found = await self._reads.serve(
            lambda users: self._from_database(users, email),
            *self._copies.login(email),
            from_standby=lambda users: self._from_standby(users, email),
        )
        user = await self._verified(email, password, found.value)
        session = Session(secrets.token_urlsafe(24), user.id, user.role)
        stored = await self._sessions.create(session, self._session_seconds)
        login = Login(session, user, self._issue(session, self._session_seconds), self._session_seconds)
        return Served(login, found.degradations + stored.degradations)

    async def _verified(self, email: str, password: str, found: Found) -> User:
        if found is None:
            await self._hasher.verify_nothing(password)
        elif await self._hasher.verify(password, found[0].password_hash):
            return found[1]
        await self._limit.failed(email)
        raise WrongLogin

    async def _from_database(self, users: Users, email: str) -> Found:
        found = await users.login(email)
        if found:
            self._copies.keep_credentials(email, found[0])
            self._copies.keep(found[1])
        return found

    async def _from_standby(self, replica: Users, email: str) -> Found:
        """An address that is not there may be too new for the standby: the copies know more, or the failure stands."""
        found = await replica.login(email)
        if found is None:
            raise UserUnknown
        return found

    async def logout(self, session_id: str) -> Served[None]:
        """Ends the session everywhere; on this instance at once, whatever is down."""
        return await self._sessions.end(session_id)
