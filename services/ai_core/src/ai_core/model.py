"""What AI Core knows: agents, conversations and memories as plain values, their limits, and the errors of its domain.

Every text is checked here, whichever door it came through: PostgreSQL stores neither NUL nor half of a surrogate pair,
and a limit that only one of two doors keeps is none.
"""

import base64
import binascii
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

T = TypeVar("T")

NAME_LIMIT = 100
PROMPT_LIMIT = 20_000
MODEL_LIMIT = 100
MESSAGE_LIMIT = 20_000
KEY_LIMIT = 255
TEXT_LIMIT = 10_000
LANGUAGE_LIMIT = 35
TAG_LIMIT = 50
TAGS_PER_MEMORY = 20
QUERY_LIMIT = 500
VOICE_LIMIT = 50
PAGE_LIMIT = 100
DEFAULT_PAGE = 50

AGENTS_PER_OWNER = 1_000
CONVERSATIONS_PER_AGENT = 100
MEMORIES_PER_OWNER = 10_000
EMBEDDED_TEXTS = 256
"""Texts that one request may have embedded."""
HISTORY_TURNS = 20
"""Turns of a conversation that are kept and sent along, newest last."""
HISTORY_CHARACTERS = 40_000

MODEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"
VISIBLE_PATTERN = r"[^\x00]*[^\x00-\x20\x7f-\xa0][^\x00]*"
"""A text without NUL that has more than spaces and control characters in it."""
LANGUAGE_PATTERN = r"[A-Za-z]+([ -][A-Za-z0-9]+)*"
"""A language tag (BCP 47, RFC 5646) or the English name of a language."""
VOICE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL = re.compile(MODEL_PATTERN)
_LANGUAGE = re.compile(LANGUAGE_PATTERN)
_VOICE = re.compile(VOICE_PATTERN)
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
    """One message of a conversation. ``at``: when its exchange began (unix seconds); both turns of it have the same."""

    role: Literal["system", "user", "assistant"]
    content: str
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said to an agent, oldest first; ``turns`` is empty in lists. ``updated_at`` in unix seconds."""

    id: str
    updated_at: float
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """An agent's answer. ``fallback_from`` names the link of the chain that should have answered when another did.

    ``as_of``: when a cached answer was given (unix seconds); None for a live one. ``cost`` in US dollars, None when no
    price is known. ``finish_reason`` as OpenAI names it.
    """

    reply: str
    provider: str
    model: str
    conversation_id: str
    simulated: bool
    fallback_from: str = ""
    as_of: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    finish_reason: str = ""

    @property
    def cached(self) -> bool:
        """Whether it is a kept answer."""
        return self.as_of is not None


@dataclass(frozen=True, slots=True)
class Memory:
    """A text that somebody wants remembered; found by its words only while its embedding is pending.

    ``embedding_model``: the best model of which it has a vector; "" while pending.
    """

    id: str
    owner_id: str
    text: str
    tags: tuple[str, ...]
    embedding: Literal["pending", "ready"]
    created_at: float
    embedding_model: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A memory that was found; ``score`` from 0 to 1, comparable within one answer.

    By meaning it is the cosine of query and memory; one that holds all words of the query has 0.5 or more.
    """

    memory: Memory
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, best first, and how it was searched."""

    matches: list[Match]
    search: Literal["semantic", "full-text"]


@dataclass(frozen=True, slots=True)
class Translation:
    """A text in another language, or the original one when nobody could translate; then ``provider`` is empty."""

    text: str
    translated: bool
    provider: str = ""
    model: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Speech:
    """What was to be spoken; ``audio`` is None when nobody could speak it."""

    text: str
    audio: bytes | None = None
    content_type: str = ""
    provider: str = ""
    model: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A stretch of an owner's things, newest first; an empty ``next_cursor`` is the end."""

    items: list[T]
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


class MemoryUnknown(DomainError):
    """There is no such memory, or it is somebody else's."""


class KeyReused(DomainError):
    """The idempotency key was used before: for another request, for something deleted by now, or it was abandoned."""


class WriteFailed(DomainError):
    """The write was accepted into the queue before, and could not be applied; ``error``: why, as the queue has it."""

    def __init__(self, error: str = "") -> None:
        super().__init__(error)
        self.error = error


class ConversationUnknown(DomainError):
    """There is no such conversation with this agent."""


class OperationUnknown(DomainError):
    """There is no such operation, or it is somebody else's."""


class IdTaken(DomainError):
    """The id that the caller chose belongs to something else."""


class TooManyAgents(DomainError):
    """The owner has as many agents as one may have."""


class TooManyMemories(DomainError):
    """The owner has as many memories as one may have."""


class ModelNotOffered(DomainError):
    """The agent's model is not, or no longer, one that the provider has."""


class RequestRefused(DomainError):
    """The provider refused the request itself: it would be refused again. The text is safe to show."""


class TooLong(RequestRefused):
    """The request is too long for this model; one with a larger window might take it."""


class Listed(Protocol):
    """What a list is ordered by."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list ordered by creation time and id; opaque text outside."""

    created_us: int
    id: str

    @classmethod
    def after(cls, item: Listed) -> "Cursor":
        """The place right after an item."""
        return cls(round(item.created_at * 1_000_000), item.id)

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """A cursor from its text; None for the empty text. Raises Invalid."""
        if not text:
            return None
        try:
            created, _, item_id = base64.urlsafe_b64decode(text.encode("ascii")).decode("ascii").partition(":")
        except (UnicodeError, binascii.Error):
            raise Invalid({"cursor": "is not a cursor of this list"}) from None
        known = created.isascii() and created.isdigit() and len(created) < 20 and is_id(item_id)
        if not known or int(created) >= _LATEST_MICROSECOND:
            raise Invalid({"cursor": "is not a cursor of this list"})
        return cls(int(created), item_id)

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


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags, each once, in order. Raises Invalid."""
    unique = tuple(dict.fromkeys(tags))
    if len(unique) > TAGS_PER_MEMORY:
        raise Invalid({"tags": f"must be at most {TAGS_PER_MEMORY}"})
    for tag in unique:
        if problem := _problem("tag", tag):
            raise Invalid({"tags": f"each {problem}"})
    return unique


def chosen_id(text: str) -> str:
    """The id that the caller chose, or a new one when that is empty. Raises Invalid."""
    if not text:
        return str(uuid.uuid4())
    if not is_id(text):
        raise Invalid({"id": "must be a UUID in lower case"})
    return text


def checked_key(key: str) -> str:
    """An idempotency key that must be there. Raises Invalid."""
    if not key:
        raise Invalid({"idempotency_key": "is missing"})
    return checked({"idempotency_key": key})["idempotency_key"]


def fingerprint(request: Mapping[str, object]) -> str:
    """Tells whether a repeated idempotency key came with the same request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def page_of(
    found: Sequence[T], size: int, place: Callable[[Any], Cursor] = Cursor.after, *, complete: bool = True
) -> Page[T]:
    """A page of ``size``, made from one item more than that when there are as many; ``complete``: no others follow."""
    items = list(found[:size])
    more = len(found) > size or not complete
    return Page(items, str(place(items[-1])) if more and items else "")


def conversation_place(conversation: Conversation) -> Cursor:
    """Where a conversation is in a list."""
    return Cursor(round(conversation.updated_at * 1_000_000), conversation.id)


_LIMITS = {
    "name": (1, NAME_LIMIT),
    "system_prompt": (0, PROMPT_LIMIT),
    "model": (0, MODEL_LIMIT),
    "message": (1, MESSAGE_LIMIT),
    "idempotency_key": (0, KEY_LIMIT),
    "text": (1, TEXT_LIMIT),
    "tag": (1, TAG_LIMIT),
    "query": (1, QUERY_LIMIT),
    "target_language": (1, LANGUAGE_LIMIT),
    "source_language": (0, LANGUAGE_LIMIT),
    "voice": (0, VOICE_LIMIT),
}
_SHAPES = {
    "model": (_MODEL, "must be a model's name: letters, digits and . _ : / @ + -"),
    "target_language": (_LANGUAGE, "must be a language tag, for example pt-BR, or a name in English"),
    "source_language": (_LANGUAGE, "must be a language tag, for example pt-BR, or a name in English"),
    "voice": (_VOICE, "must be a voice's name: letters, digits and . _ -"),
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
    shape, hint = _SHAPES.get(field, (None, ""))
    return hint if shape and text and not shape.fullmatch(text) else ""


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
