"""What is asked of language models and what they answer, in the one form the platform uses: OpenAI's chat completions.

A provider that speaks another protocol is translated by its adapter; everything else handles these values only.
Source of the shapes: OpenAI API reference, "Create chat completion" and "The chat completion chunk object".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

Json = Mapping[str, Any]

KEY_VERSION = 1
"""To be raised when kept answers change their form: the old ones are then never found again."""


@dataclass(frozen=True, slots=True)
class Link:
    """One place in the provider chain: a model of a provider."""

    provider: str
    model: str

    @property
    def name(self) -> str:
        """As in AI_PROVIDER_CHAIN: the dependency's name in health, metrics and ``X-Fallback-Used``."""
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True, slots=True)
class Query:
    """A conversation to be continued.

    ``messages``: OpenAI's message objects. ``parameters``: the other members of the body that shape the answer
    (temperature, max_tokens, response_format, tools, ...), without ``model``, ``stream`` and ``stream_options``.
    ``tenant``: whose query it is; answers are never shared between tenants. ``prefer``: the model that the caller
    wants, as a link's name or a model's; empty: the chain's first. ``agent``: the agent that asks, if any.

    ``fresh_seconds``: an answer that is at most so old may be given without asking a provider. ``keep``: whether the
    answer may be kept at all (RFC 9111, section 5.2.1.5: no-store).
    """

    messages: Sequence[Json]
    tenant: str
    parameters: Json = field(default_factory=dict)
    prefer: str = ""
    agent: str = ""
    fresh_seconds: float = 0.0
    keep: bool = True

    def key(self) -> str:
        """The same for two queries only if everything that shapes the answer is the same, the tenant included.

        The model of the chain that happens to answer is no part of it.
        """
        shape = [KEY_VERSION, self.tenant, self.agent, self.prefer, self.messages, self.parameters]
        return hashlib.sha256(_canonical(shape)).hexdigest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the provider counted them; zero when it did not say."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. ``body`` is OpenAI's ``chat.completion`` object, checked: it has one useful choice at least.

    ``provider`` and ``model`` say who really answered (``simulated`` is a label beside them, not a provider's name).
    ``as_of``: unix seconds when a cached answer was given; None for a live one. ``fallback_from``: the link's name that
    should have answered, when another did; "" otherwise. ``cost``: US dollars of the call, None when no price is known.
    """

    body: Json
    provider: str
    model: str
    usage: Usage = Usage()
    simulated: bool = False
    as_of: float | None = None
    fallback_from: str = ""
    cost: float | None = None

    @property
    def cached(self) -> bool:
        return self.as_of is not None

    @property
    def message(self) -> Json:
        """The first choice's message object."""
        found: Json = self.body["choices"][0]["message"]
        return found

    @property
    def text(self) -> str:
        """The answer's text; a model's own refusal is an answer too; "" when it only calls tools."""
        for member in (self.message.get("content"), self.message.get("refusal")):
            if isinstance(member, str) and member.strip():
                return member
        return ""

    @property
    def finish_reason(self) -> str:
        return str(self.body["choices"][0].get("finish_reason") or "")

    def also(self, **changes: Any) -> Completion:
        """The same answer with other labels."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer. ``data``: the JSON bytes of OpenAI's ``chat.completion.chunk`` object.

    ``text``: what it adds to the first choice's text. ``commits``: it holds content or a part of a tool call; role
    announcements, pings and empty deltas do not. ``finish_reason`` and ``usage`` where it carries them.
    """

    data: bytes
    text: str = ""
    commits: bool = False
    finish_reason: str = ""
    usage: Usage | None = None


def _canonical(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # whole numbers over 64 bits and lone surrogates, which JSON can carry
        return json.dumps(value, sort_keys=True, default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is no part of a query")
