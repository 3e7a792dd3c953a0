"""What the WebRTC service knows: rooms, join tickets and ICE servers as plain values, their limits, and its errors."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

NAME_LIMIT = 100
LEAST_PARTICIPANTS = 2
MOST_PARTICIPANTS = 100
DEFAULT_PARTICIPANTS = 10
PAGE_LIMIT = 100
DEFAULT_PAGE = 50
ROOMS_PER_OWNER = 1_000
MOST_MEASURED = 1e7
"""Milliseconds, kbit/s and frames per second beyond which a report is nonsense."""

VISIBLE_PATTERN = r"[^\x00]*[^\x00-\x20\x7f-\xa0][^\x00]*"
"""A text without NUL that has more than spaces and control characters in it."""

_VISIBLE = re.compile(VISIBLE_PATTERN)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PLACE = re.compile(r"[0-9]{16}:" + _UUID.pattern)


@dataclass(frozen=True, slots=True)
class Room:
    """A room; ``created_us`` is unix time in whole microseconds, by which an owner's rooms are ordered."""

    id: str
    name: str
    max_participants: int
    owner_id: str
    created_us: int

    @property
    def created_at(self) -> float:
        """Unix time in seconds."""
        return self.created_us / 1_000_000

    @property
    def place(self) -> str:
        """The room's place among its owner's: sorts like time, then id."""
        return f"{self.created_us:016d}:{self.id}"


@dataclass(frozen=True, slots=True)
class IceServer:
    """An RTCIceServer dictionary (W3C WebRTC); credentials are empty for STUN."""

    urls: tuple[str, ...]
    username: str = ""
    credential: str = ""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a participant needs to join a room; ``expires_in`` in seconds."""

    token: str
    ws_url: str
    ice_servers: tuple[IceServer, ...]
    expires_in: int


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of an owner's rooms, newest first; an empty ``next_cursor`` is the end."""

    items: list[Room]
    next_cursor: str = ""


class Close(IntEnum):
    """Why the service closed a WebSocket (RFC 6455, section 7.4: 4000 to 4999 are the application's own)."""

    NORMAL = 1000
    TOO_BIG = 1009
    RESTART = 1012
    MALFORMED = 4400
    TOKEN = 4401
    KICKED = 4403
    NO_ROOM = 4404
    HEARTBEAT = 4408
    FULL = 4409
    DELETED = 4410
    SLOW = 4420
    REPLACED = 4421
    FLOODING = 4429
    UNAVAILABLE = 4503


@dataclass(frozen=True, slots=True)
class Grants:
    """What a join token allows in its room."""

    publish: bool = True
    subscribe: bool = True
    data: bool = True
    moderate: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """A verified join token: who may join which room, and what is allowed there; ``expires_at`` in unix seconds."""

    user_id: str
    room_id: str
    name: str
    grants: Grants
    expires_at: float


@dataclass(frozen=True, slots=True)
class Member:
    """A participant as every instance knows it; the instance with its socket is the truth.

    ``joined_at`` in unix seconds; ``quality`` is excellent, good, poor, lost or empty (not known yet); ``version``
    grows with each change, so that of two copies the newer is known.
    """

    id: str
    user_id: str
    name: str
    joined_at: float
    instance: str
    audio: bool = False
    video: bool = False
    away: bool = False
    quality: str = ""
    version: int = 1
    publishes: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """From the second participant's join until the last leaves; ``started_at`` in unix seconds."""

    id: str
    started_at: float


@dataclass(frozen=True, slots=True)
class PastParticipant:
    """Somebody in a call of the history; times in unix seconds, ``left_at`` None while there. ``quality`` is the
    meter's summary."""

    id: str
    user_id: str
    name: str
    joined_at: float
    left_at: float | None = None
    quality: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call of the history; ``ended_at`` is None while it goes on."""

    id: str
    room_id: str
    room_name: str
    owner_id: str
    started_at: float
    ended_at: float | None
    participants: tuple[PastParticipant, ...] = ()

    @property
    def duration(self) -> float | None:
        """Seconds; None while it goes on."""
        return None if self.ended_at is None else max(0.0, self.ended_at - self.started_at)


@dataclass(frozen=True, slots=True)
class QuietCall:
    """A call that goes on as far as the history knows, though nothing was reported for a while. ``last_at``: the last
    moment that anything is known of; ``followed``: a later call of the same room has begun."""

    id: str
    room_id: str
    room_name: str
    owner_id: str
    started_at: float
    last_at: float
    followed: bool


@dataclass(frozen=True, slots=True)
class CallPage:
    """A stretch of a user's calls, newest first; an empty ``next_cursor`` is the end."""

    items: list[PastCall]
    next_cursor: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A room as the cluster knows it when this instance's first participant joins; ``mode`` is p2p or sfu."""

    room: Room
    members: tuple[Member, ...] = ()
    call: Call | None = None
    mode: str = "p2p"


@dataclass(frozen=True, slots=True)
class Report:
    """What a client measured over its last interval: milliseconds, ``loss`` 0..1, kbit/s, frames per second."""

    rtt_ms: float
    loss: float
    jitter_ms: float
    bitrate_kbps: float
    relayed: bool = False
    fps: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for figures that nobody can have measured."""
        figures = (self.rtt_ms, self.jitter_ms, self.bitrate_kbps, self.fps or 0.0)
        if not (0 <= self.loss <= 1 and all(0 <= figure <= MOST_MEASURED for figure in figures)):
            raise ValueError("out of range")


@dataclass(frozen=True, slots=True)
class IceGrant:
    """ICE servers made for one user; ``expires_in`` seconds (0: never); ``stun_only`` while TURN is away (row W2)."""

    servers: tuple[IceServer, ...]
    expires_in: int = 0
    stun_only: bool = False


@dataclass(frozen=True, slots=True)
class DegradedRow:
    """A row of the matrix whose fallback serves, as clients are told."""

    row: str
    fallback: str
    text: str


class DomainError(Exception):
    """The request cannot be granted; an answer, not a failure of a dependency."""


class Invalid(DomainError):
    """The request is wrong; ``fields`` says what is wrong with which field."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in fields.items()))
        self.fields = dict(fields)


class RoomUnknown(DomainError):
    """There is no such room."""


class NotOwner(DomainError):
    """The room belongs to somebody else."""


class RoomElsewhere(DomainError):
    """While Redis is away: only another instance holds the room's state. ``retry_after`` in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"try again in {retry_after:g} s")
        self.retry_after = retry_after


class NoSuchParticipant(DomainError):
    """There is no such participant in the room."""


class BadToken(DomainError):
    """The join token is forged, expired, malformed or for something else."""


class CallUnknown(DomainError):
    """There is no such call, or the user took no part in it."""


class TooManyRooms(DomainError):
    """The owner has as many rooms as one may have."""


def is_id(text: str) -> bool:
    """Whether a text is an id as we make them (a UUID in its canonical form)."""
    return _UUID.fullmatch(text) is not None


def checked_room(name: str, max_participants: int) -> int:
    """The number of participants, the default for 0. Raises Invalid with every problem at once."""
    problems = {}
    if not 1 <= len(name) <= NAME_LIMIT:
        problems["name"] = f"must have 1 to {NAME_LIMIT} characters"
    elif not _VISIBLE.fullmatch(name) or not _encodable(name):
        problems["name"] = "must not be blank nor contain NUL or half a surrogate pair"
    if max_participants != 0 and not LEAST_PARTICIPANTS <= max_participants <= MOST_PARTICIPANTS:
        problems["max_participants"] = f"must be {LEAST_PARTICIPANTS} to {MOST_PARTICIPANTS}"
    if problems:
        raise Invalid(problems)
    return max_participants or DEFAULT_PARTICIPANTS


def checked_name(name: str) -> str:
    """What other participants see; empty is allowed. Raises Invalid."""
    if len(name) > NAME_LIMIT:
        raise Invalid({"name": f"must have at most {NAME_LIMIT} characters"})
    if name and (not _VISIBLE.fullmatch(name) or not _encodable(name)):
        raise Invalid({"name": "must not be blank nor contain NUL or half a surrogate pair"})
    return name


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_page_size(size: int) -> int:
    """Rows of a page; 0 means the default. Raises Invalid."""
    if not 0 <= size <= PAGE_LIMIT:
        raise Invalid({"page_size": f"must be 1 to {PAGE_LIMIT}"})
    return size or DEFAULT_PAGE


def cursor_after(room: Room) -> str:
    """The opaque cursor of the place right after a room."""
    return base64.urlsafe_b64encode(room.place.encode()).decode()


def place_of(cursor: str) -> str:
    """The place that a cursor names; empty for the empty cursor. Raises Invalid."""
    if not cursor:
        return ""
    try:
        place = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii")
    except (UnicodeError, binascii.Error):
        place = ""
    if not _PLACE.fullmatch(place):
        raise Invalid({"cursor": "is not a cursor of this list"})
    return place
