"""What the Dashboard knows: users, sessions, rooms and agents as plain values, and the errors of its domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AI_CORE_ENTITY = "ai-core"
"""What an operation changes that waits in AI Core: which of its things, only AI Core knows."""


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What a write makes; ``operation_id`` finds the write again while it is still to be done, else empty."""

    value: T
    operation_id: str = ""


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

    @property
    def place(self) -> tuple[int, str]:
        """Its place among its owner's, by whole microseconds and id: lists are in falling order of it."""
        return round(self.created_at * 1e6), self.id


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
class Participant:
    """Somebody in a call: first and latest time of joining, latest of leaving (unix seconds; None: not known)."""

    user_id: str
    display_name: str = ""
    joined_at: float | None = None
    rejoined_at: float | None = None
    left_at: float | None = None
    quality: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the events tell of it; ``ended_at`` is None while it goes on, ``updated_at`` when a row changed."""

    id: str
    room_id: str
    room_name: str
    owner_id: str
    started_at: float
    ended_at: float | None
    participants: tuple[Participant, ...] = ()
    quality: dict[str, Any] | None = None
    updated_at: float = 0.0

    @property
    def duration(self) -> float | None:
        """Seconds; None while it goes on."""
        return None if self.ended_at is None else max(0.0, self.ended_at - self.started_at)

    def left_at(self, participant: Participant) -> float | None:
        """When a participant left for good, with the end of the call at the latest; None while still there."""
        left, came = participant.left_at, participant.rejoined_at
        return self.ended_at if left is None or (came is not None and came > left) else left


@dataclass(frozen=True, slots=True)
class Agent:
    """An AI agent of the AI Core service; ``pending``: its creation is accepted and not done yet."""

    id: str
    name: str
    system_prompt: str
    model: str
    created_at: float
    updated_at: float
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; ``role``: "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said to an agent, oldest first; without ``turns`` in lists. ``updated_at`` in unix seconds."""

    id: str
    updated_at: float
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; ``cost`` in US dollars, None when no price is known."""

    prompt_tokens: int
    completion_tokens: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Reply:
    """An agent's answer, and who really gave it; ``as_of``: when a cached one was given (unix seconds)."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str
    conversation_id: str
    simulated: bool
    as_of: float | None = None
    usage: Usage | None = None
    finish_reason: str = ""


class AnswerBroken(Exception):
    """An agent's answer broke off after ``sent`` characters; the text is for people, ``retry_after`` in seconds."""

    def __init__(self, message: str, sent: int, retry_after: float) -> None:
        super().__init__(message)
        self.message = message
        self.sent = sent
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Memory:
    """A text that AI Core remembers; ``pending``: accepted, and not handed to AI Core yet."""

    id: str
    text: str
    tags: tuple[str, ...]
    embedding: str
    created_at: float
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Memories and their scores, best first; ``search`` says how it was searched."""

    matches: list[tuple[Memory, float]]
    search: str


@dataclass(frozen=True, slots=True)
class Translation:
    """A text in another language, or as it came when ``translated`` is false."""

    text: str
    translated: bool
    provider: str = ""
    model: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Speech:
    """A text, and its audio if somebody could speak it."""

    text: str
    audio: bytes | None = None
    content_type: str = ""
    provider: str = ""
    model: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Analytics:
    """What one user did; None where it is not known. Times are unix seconds."""

    user_id: str
    calls_total: int | None = None
    minutes_total: float | None = None
    rooms_total: int | None = None
    last_active_at: float | None = None
    computed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a user asked for about the days ``first`` to ``last`` (ISO dates in UTC, both included), and how far it is.

    ``status``: queued, running, done or failed; ``progress`` from 0 to 1.
    """

    id: str
    owner_id: str
    kind: str
    first: str
    last: str
    status: str
    progress: float
    created_at: float
    updated_at: float
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make a report until its lease ends; ``attempt`` is the fencing token, ``days`` what is there."""

    report: Report
    attempt: int
    days: list[dict[str, Any]]
    next_day: str


@dataclass(frozen=True, slots=True)
class Zone:
    """What the price of a call minute in a zone is made of; ``updated_at`` (unix seconds) is that of ``active``."""

    zone: str
    base_fare: float
    capacity: int
    active: int
    updated_at: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item of a list that is stored and cannot be read; ``position`` counts from the first item of the page."""

    position: int
    error: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class SlowStatement:
    """A statement of the database that was slow ``slow`` of ``count`` times.

    Times in seconds; ``latest``: when slow executions ended (unix seconds), and how long they took, newest first.
    """

    text: str
    count: int
    slow: int
    total: float
    longest: float
    latest: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A stretch of a list; ``next_cursor`` is None at its end. ``unreadable``: what had to be left out of ``items``."""

    items: list[T]
    next_cursor: str | None = None
    unreadable: tuple[Unreadable, ...] = ()


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


class RoomUnknown(DomainError):
    """There is no such room; ``by`` is the fallback that says so, empty when WebRTC does."""

    def __init__(self, by: str = "") -> None:
        super().__init__("there is no such room")
        self.by = by


class CallUnknown(DomainError):
    """There is no such call, or the user took no part in it."""


class EventUnreadable(DomainError):
    """An event lacks what identifies what it is about; repeating it will not help. The text never quotes it."""


class CursorInvalid(DomainError):
    """The cursor is none that a list gave."""


class SessionUnknown(DomainError):
    """The token is no longer, or on this instance not yet, known."""


class KeyReused(DomainError):
    """An idempotency key was used for another request before."""


class WriteFailed(DomainError):
    """An accepted write could not be applied and is among the dead letters."""


class TooManyStreams(DomainError):
    """This instance serves as many live streams as it can."""


class LiveUpdatesOff(DomainError):
    """There are no live updates in this mode."""


class ReportUnknown(DomainError):
    """There is no such report, or it is somebody else's."""


class OperationUnknown(DomainError):
    """There is no such operation, or it is somebody else's."""
