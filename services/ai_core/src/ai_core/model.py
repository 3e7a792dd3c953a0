"""What AI Core knows: agents and conversations as plain values, their limits, and the errors of its domain.

Every text is checked here, whichever door it came through: PostgreSQL stores neither NUL nor half of a surrogate pair,
and a limit that only one of two doors keeps is none.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NAME_LIMIT = 100
PROMPT_LIMIT = 20_000
MODEL_LIMIT = 100
MESSAGE_LIMIT = 20_000
KEY_LIMIT = 255
PAGE_LIMIT = 100
DEFAULT_PAGE = 50

AGENTS_PER_OWNER = 1_000
CONVERSATIONS_PER_AGENT = 100
HISTORY_TURNS = 20
"""Turns of a conversation that are kept and sent along, newest last."""
HISTORY_CHARACTERS = 40_000

MODEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"
VISIBLE_PATTERN = r"[^\x00]*[^\x00-\x20\x7f-\xa0][^\x00]*"
"""A text without NUL that has more than spaces and control characters in it."""
_MODEL = re.compile(MODEL_PATTERN)
_VISIBLE = re.compile(VISIBLE_PATTERN)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_LATEST_MICROSECOND = 253_402_300_800_000_000  # the year 10000, where datetime ends


@dataclass(frozen=True, slots=True)
class Agent:
    """Somebody's agent; times are unix seconds. An empty ``model`` means the first of the provider chain."""

    id: str
    owner_id: str
    name: str
    system_prompt: str
    model: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What a provider answered, and which one and which model it was."""

    text: str
    provider: str
    model: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An agent's answer. ``fallback_from`` names the provider that should have answered when another did."""

    reply: str
    provider: str
    model: str
    conversation_id: str
    simulated: bool
    cached: bool = False
    fallback_from: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of an owner's agents, newest first; an empty ``next_cursor`` is the end."""

    items: list[Agent]
    next_cursor: str = ""


class DomainError(Exception):
    """The request cannot be granted; an answer, not a failure of a dependency."""


class Invalid(DomainError):
    """The request is wrong; ``fields`` says what is wrong with which field."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in fields.items()))
        self.fields = dict(fields)


class AgentUnknown(DomainError):
    """There is no such agent, or it is somebody else's."""


class KeyReused(DomainError):
    """The idempotency key was used before for another agent, or for one that is deleted by now."""


class TooManyAgents(DomainError):
    """The owner has as many agents as one may have."""


class RequestRefused(DomainError):
    """The provider refused the request itself: it would be refused again. The text is safe to show."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list ordered by creation time and id; opaque text outside."""

    created_us: int
    id: str

    @classmethod
    def after(cls, agent: Agent) -> "Cursor":
        """The place right after an agent."""
        return cls(round(agent.created_at * 1_000_000), agent.id)

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """A cursor from its text; None for the empty text. Raises Invalid."""
        if not text:
            return None
        try:
            created, _, agent_id = base64.urlsafe_b64decode(text.encode("ascii")).decode("ascii").partition(":")
        except (UnicodeError, binascii.Error):
            raise Invalid({"cursor": "is not a cursor of this list"}) from None
        known = created.isascii() and created.isdigit() and len(created) < 20 and is_id(agent_id)
        if not known or int(created) >= _LATEST_MICROSECOND:
            raise Invalid({"cursor": "is not a cursor of this list"})
        return cls(int(created), agent_id)

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.created_us}:{self.id}".encode()).decode()


def is_id(text: str) -> bool:
    """Whether a text is an id as we make them (a UUID in its canonical form)."""
    return _UUID.fullmatch(text) is not None


def checked(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts, by field name, if all are acceptable. Raises Invalid with every problem at once."""
    problems = {field: problem for field, text in texts.items() if (problem := _problem(field, text))}
    if problems:
        raise Invalid(problems)
    return dict(texts)


_LIMITS = {
    "name": (1, NAME_LIMIT),
    "system_prompt": (0, PROMPT_LIMIT),
    "model": (0, MODEL_LIMIT),
    "message": (1, MESSAGE_LIMIT),
    "idempotency_key": (0, KEY_LIMIT),
}


def _problem(field: str, text: str) -> str:
    if field not in _LIMITS:
        return "is no field of this request"
    least, most = _LIMITS[field]
    if not least <= len(text) <= most:
        return f"must have {least} to {most} characters"
    if "\x00" in text or not _encodable(text):
        return "must not contain NUL or half a surrogate pair"
    if least and not _VISIBLE.fullmatch(text):
        return "must not be blank"
    if field == "model" and text and not _MODEL.fullmatch(text):
        return "must be a model's name: letters, digits and . _ : / @ + -"
    return ""


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


def recent(turns: Sequence[Turn]) -> list[Turn]:
    """The newest turns that fit both history limits, oldest first, beginning with the user's."""
    kept: list[Turn] = []
    room = HISTORY_CHARACTERS
    for turn in reversed(turns[-HISTORY_TURNS:]):
        room -= len(turn.content)
        if room < 0:
            break
        kept.append(turn)
    while kept and kept[-1].role != "user":
        kept.pop()
    return kept[::-1]
