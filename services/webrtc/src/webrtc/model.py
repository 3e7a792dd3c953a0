"""What the WebRTC service knows: rooms, join tickets and ICE servers as plain values, their limits, and its errors."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

NAME_LIMIT = 100
LEAST_PARTICIPANTS = 2
MOST_PARTICIPANTS = 100
DEFAULT_PARTICIPANTS = 10
PAGE_LIMIT = 100
DEFAULT_PAGE = 50
ROOMS_PER_OWNER = 1_000

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
