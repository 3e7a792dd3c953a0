"""What is asked of the simulated providers and what they answer, whatever protocol it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Provider = Literal["openai", "anthropic", "elevenlabs"]
Kind = Literal["chat", "stream", "embeddings", "speech", "models"]
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are given. ``token_delay``: seconds between two tokens of a stream, and per token of a whole answer.
    ``answer_tokens``: chat answers are filled up to that many; 0 leaves them as they are."""

    token_delay: float = 0.0
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked. ``model`` is empty where the protocol names none."""

    provider: Provider
    kind: Kind
    model: str
    request: Any = None

    @property
    def name(self) -> str:
        """Under which it is counted."""
        return f"{self.provider}:{self.model}" if self.model else self.provider

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of faults that concern it, the most specific first."""
        return (self.name, f"{self.provider}:{self.kind}", self.provider)


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer that is sent whole. ``tokens``: how many a model would have needed for it."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Headers = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Events:
    """A stream of server-sent events: what comes before the first token, each token, what comes after the last."""

    opening: bytes
    tokens: list[bytes]
    closing: bytes
    headers: Headers = (("cache-control", "no-cache"),)


Answer = Plain | Events
Trouble = Literal[
    "rate_limit", "quota", "error", "overloaded", "unauthorized", "bad_request", "too_long", "policy", "unknown_model"
]
"""What a provider can say instead of an answer, in its own words."""


class Refused(Exception):
    """The request is not one that this protocol knows."""

    def __init__(self, answer: Plain) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Dialect(Protocol):
    """One provider's protocol."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        ...

    def parse(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Call:
        """A request; ``path`` begins with ``/v1``, names of headers are in lower case. Raises Refused."""
        ...

    def answer(self, call: Call, settings: Settings) -> Answer: ...

    def trouble(self, what: Trouble, call: Call | None = None) -> Plain:
        """An error answer."""
        ...

    def empty(self, call: Call) -> Answer:
        """An answer of 200 with nothing in it."""
        ...

    def broken(self) -> bytes:
        """The event that tells of an error in the middle of a stream."""
        ...

    def limits(self, remaining: int, reset: float, now: float) -> Headers:
        """Rate-limit headers: requests that are left, seconds until there are more, unix time now."""
        ...
