"""What the Dashboard knows: users, sessions, rooms and agents as plain values, and the errors of its domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class User:
    """An account as others may see it; times are unix seconds. ``revision`` grows by one with every change."""

    id: str
    email: str
    display_name: str
    role: str
    created_at: float
    updated_at: float
    revision: int

    def patched(self, payload: dict[str, Any]) -> User:
        """This user with the fields of a change that is accepted but not applied yet."""
        return replace(self, display_name=payload.get("display_name", self.display_name))


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a login is checked against; the hash is argon2's encoded form."""

    user_id: str
    password_hash: str
    role: str


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody logged in."""

    id: str
    user_id: str
    role: str


@dataclass(frozen=True, slots=True)
class Room:
    """A room of the WebRTC service."""

    id: str
    name: str
    max_participants: int
    owner_id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class IceServer:
    """An RTCIceServer dictionary (W3C WebRTC)."""

    urls: list[str]
    username: str = ""
    credential: str = ""


@dataclass(frozen=True, slots=True)
class RoomTicket:
    """What a participant needs to join a room."""

    token: str
    ws_url: str
    ice_servers: list[IceServer]
    expires_in: int


@dataclass(frozen=True, slots=True)
class Agent:
    """An AI agent of the AI Core service."""

    id: str
    name: str
    system_prompt: str
    model: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str
    conversation_id: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A stretch of a list; ``next_cursor`` is None at its end."""

    items: list[T]
    next_cursor: str | None = None


class DomainError(Exception):
    """The request cannot be granted; an answer, not a failure of a dependency."""


class EmailTaken(DomainError):
    """An account with this address exists."""


class UserUnknown(DomainError):
    """There is no such account."""


class NotAllowed(DomainError):
    """The account belongs to somebody else."""


class WrongLogin(DomainError):
    """Address and password do not belong together."""


class TooManyLogins(DomainError):
    """Too many failed logins; ``retry_after`` in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many failed logins")
        self.retry_after = retry_after


class CursorInvalid(DomainError):
    """The cursor is none that a list gave."""


class SessionUnknown(DomainError):
    """The token is no longer, or on this instance not yet, known."""


class KeyReused(DomainError):
    """An idempotency key was used for another request before."""


class WriteFailed(DomainError):
    """An accepted write could not be applied and is among the dead letters."""


class OperationUnknown(DomainError):
    """There is no such operation, or it is somebody else's."""
