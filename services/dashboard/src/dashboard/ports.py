"""What the Dashboard needs from outside, as interfaces; each is kept by one module of ``outbound``.

A method may raise its dependency's own errors; the policy of the row, wired around it, tells an outage from an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from dashboard.model import Agent, Credentials, Page, Reply, Room, RoomTicket, Session, User
from resilience import Operation, OperationRecord, Rung, Served

T = TypeVar("T")


class Users(Protocol):
    """Accounts in PostgreSQL. A write's operation id is recorded with it: repeating one changes nothing.

    ``unordered`` says that the queue could not be asked for older writes of the same entity, so that an older one
    drained later must not undo this one.
    """

    async def get(self, user_id: str) -> User:
        """Raises UserUnknown."""
        ...

    async def login(self, email: str) -> tuple[Credentials, User] | None:
        """The account of an address and what a login is checked against, in one read; None when there is none."""
        ...

    async def page(self, limit: int, cursor: str | None) -> Page[User]: ...

    async def create(self, operation: Operation) -> User:
        """Raises EmailTaken, KeyReused."""
        ...

    async def change(self, operation: Operation, *, unordered: bool) -> User:
        """Raises UserUnknown, KeyReused."""
        ...

    async def delete(self, operation: Operation, *, unordered: bool) -> None:
        """Raises UserUnknown, KeyReused."""
        ...

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """An operation that was applied or buried; its ``operation`` carries no payload."""
        ...


class Standby(Protocol):
    """The standby of PostgreSQL (row D6, dashboard.standby)."""

    def rung(self, read: Callable[[], Awaitable[T]]) -> Rung[T]:
        """The step of a ladder that reads there; what it serves says how old it is by the replication position."""
        ...


class Copies(Protocol):
    """Last known good copies of users, for the time without a database."""

    def keep(self, user: User) -> None:
        """Takes note of a fresh user; cheap, writes behind."""
        ...

    def keep_credentials(self, email: str, credentials: Credentials) -> None: ...

    async def forget(self, user_id: str) -> None:
        """Drops the copies of a deleted account; best effort."""
        ...

    def rungs(self, user_id: str) -> tuple[Rung[User], Rung[User]]:
        """The steps of a ladder that serve a copy: from Redis, then from this process's memory."""
        ...

    def local(self, user_id: str) -> tuple[User, float] | None:
        """The copy in this process's memory, and the unix time it was read from the database."""
        ...

    async def login(self, email: str) -> tuple[Credentials, User] | None:
        """Copies of an account and its credentials."""
        ...


class Sessions(Protocol):
    """Who is logged in."""

    async def create(self, session: Session, seconds: float) -> Served[None]: ...

    async def check(self, session_id: str) -> Served[None]:
        """Raises SessionUnknown."""
        ...

    async def end(self, session_id: str) -> Served[None]: ...


class LoginLimit(Protocol):
    """Failed logins are limited per address of the account; off while Redis is away."""

    async def check(self, email: str) -> None:
        """Raises TooManyLogins."""
        ...

    async def failed(self, email: str) -> None: ...


class Hasher(Protocol):
    """Slow password hashing, off the event loop."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, password: str, encoded: str) -> bool: ...

    async def verify_nothing(self, password: str) -> None:
        """Takes as long as verify, so that an unknown address cannot be told from a wrong password."""
        ...


class Rooms(Protocol):
    """The WebRTC service, called for the user of the current request."""

    async def create(self, name: str, max_participants: int) -> Served[Room]: ...
    async def get(self, room_id: str) -> Served[Room]: ...
    async def page(self, limit: int, cursor: str | None) -> Served[Page[Room]]: ...
    async def delete(self, room_id: str) -> Served[None]: ...
    async def ticket(self, room_id: str) -> Served[RoomTicket]: ...


class Agents(Protocol):
    """The AI Core service, called for the user of the current request."""

    async def create(self, name: str, prompt: str, model: str, key: str) -> Served[Agent]: ...
    async def get(self, agent_id: str) -> Served[Agent]: ...
    async def page(self, limit: int, cursor: str | None) -> Served[Page[Agent]]: ...
    async def change(self, agent_id: str, fields: dict[str, str]) -> Served[Agent]: ...
    async def delete(self, agent_id: str) -> Served[None]: ...
    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]: ...
