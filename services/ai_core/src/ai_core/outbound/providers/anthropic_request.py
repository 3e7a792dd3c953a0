"""A query in Anthropic's words. What has no words there is refused, never dropped: a chain that loses a response format
or a seed on the way breaks its callers just during an outage.

Sources: Anthropic API reference, "Create a Message", "Structured outputs", "Migrate to API version 2026-10-21".
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ai_core.outbound.providers.anthropic_messages import conversation
from ai_core.ports import CannotCarry
from ai_core.query import Query

Json = Mapping[str, Any]

SAMPLING_VERSION = "2023-06-01"
"""The last version of the API that takes temperature and top_p, for models that still know them."""
USER_LIMIT = 256
DEFAULT_TOKENS = 32_000
"""The limit of an answer when the query names none: more than anybody waits for, and room left in every window."""
FALLBACK_TOKENS = 8_192
"""The same for a model that the table does not know."""
_OUTPUT_LIMITS = (
    (re.compile(r"claude-(opus|sonnet|haiku)-4-5\b"), 64_000),
    (re.compile(r"claude-sonnet-4-6\b"), 64_000),
    (re.compile(r"claude-opus-4-[678]\b"), 128_000),
    (re.compile(r"claude-[a-z]+-5(-\d)?\b"), 128_000),
)
"""Tokens of an answer: Anthropic, "Models overview", November 2026."""
_SAMPLES = re.compile(r"claude-(opus|sonnet|haiku)-4-[56]\b")
_NO_EFFORT = re.compile(r"claude-(sonnet|haiku)-4-5\b")
_EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})

_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "temperature": (1,),
    "top_p": (1,),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "parallel_tool_calls": (True,),
}
"""Values that ask for what happens anyway."""
_ABOUT_NO_ANSWER = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "prediction"})
"""Bookkeeping and hints at speed: the answer does not depend on them."""


def translated(model: str, asked: Query, leave_out: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The body for the Messages API and headers beside the client's. Raises CannotCarry, naming all that is lost."""
    words = _Words(model, {name: value for name, value in asked.parameters.items() if _counts(name, value)})
    lost = words.lost()
    try:
        system, words.body["messages"] = conversation(asked.messages)
    except CannotCarry as error:
        lost += error.parameters
    if missing := [name for name in lost if name not in leave_out]:
        raise CannotCarry(*missing)
    if system:
        words.body["system"] = system
    sampled = "temperature" in words.body or "top_p" in words.body
    return words.body, {"anthropic-version": SAMPLING_VERSION} if sampled else {}


def _counts(name: str, value: object) -> bool:
    return value is not None and name not in _ABOUT_NO_ANSWER and value not in _WITHOUT_EFFECT.get(name, ())


class _Words:
    """The parameters of one request. Each method says one of them: members of the body, None when there is no way."""

    def __init__(self, model: str, given: Json) -> None:
        self._model = model
        self._given = given
        self.body: dict[str, Any] = {"model": model, "max_tokens": self._max_tokens()}

    def lost(self) -> list[str]:
        """Says all that can be said, and names the rest."""
        return [name for name, value in self._given.items() if not self._add(name, value)]

    def _add(self, name: str, value: Any) -> bool:
        say = _SAY.get(name)
        try:
            said = say(self, value) if say else None
        except (TypeError, KeyError, AttributeError, ValueError):
            said = None  # not of the documented shape: another provider may know it
        for key, part in (said or {}).items():
            self.body[key] = {**self.body[key], **part} if isinstance(self.body.get(key), dict) else part
        return said is not None

    def _max_tokens(self) -> int:
        """A limit is required there, and may not be above the model's own."""
        limit = next((tokens for pattern, tokens in _OUTPUT_LIMITS if pattern.match(self._model)), None)
        asked = self._given.get("max_completion_tokens") or self._given.get("max_tokens")
        if not isinstance(asked, int):
            return min(limit, DEFAULT_TOKENS) if limit else FALLBACK_TOKENS
        return min(asked, limit) if limit else asked

    def limit(self, value: Any) -> Json | None:
        return {} if isinstance(value, int) and value > 0 else None

    def temperature(self, value: Any) -> Json | None:
        return {"temperature": value} if _SAMPLES.match(self._model) and 0 <= value <= 1 else None

    def top_p(self, value: Any) -> Json | None:
        """Not beside a temperature: those models take one of the two."""
        alone = "temperature" not in self._given
        return {"top_p": value} if alone and _SAMPLES.match(self._model) and 0 < value <= 1 else None

    def stop(self, value: Any) -> Json | None:
        """Sequences of white space only are refused there."""
        stops = [value] if isinstance(value, str) else list(value)
        return {"stop_sequences": stops} if all(stop.strip() for stop in stops) else None

    def user(self, value: str) -> Json | None:
        return {"metadata": {"user_id": value}} if len(value) <= USER_LIMIT else None

    def effort(self, value: Any) -> Json | None:
        known = value in _EFFORTS and not _NO_EFFORT.match(self._model)
        return {"output_config": {"effort": value}} if known else None

    def format(self, value: Json) -> Json | None:
        """Strict schemas only, which keep to what both providers take; there is no JSON without a schema there."""
        if value["type"] != "json_schema" or value["json_schema"].get("strict") is not True:
            return None
        return {"output_config": {"format": {"type": "json_schema", "schema": value["json_schema"]["schema"]}}}

    def tools(self, value: Sequence[Json]) -> Json | None:
        if not all(tool["type"] == "function" for tool in value):
            return None
        return {"tools": [_tool(tool["function"]) for tool in value]}

    def tool_choice(self, value: Any) -> Json | None:
        if not self._given.get("tools"):
            return {} if value in ("none", "auto") else None
        if isinstance(value, str):
            return {"tool_choice": {"type": _CHOICES[value]}}
        if value["type"] != "function":
            return None
        return {"tool_choice": {"type": "tool", "name": value["function"]["name"]}}

    def one_call(self, value: Any) -> Json | None:
        """``parallel_tool_calls`` of false."""
        if value is not False:
            return None
        if not self._given.get("tools") or self._given.get("tool_choice") == "none":
            return {}
        chosen = self.tool_choice(self._given.get("tool_choice", "auto"))
        return {"tool_choice": {**chosen["tool_choice"], "disable_parallel_tool_use": True}} if chosen else None


def _tool(function: Json) -> Json:
    made = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    extra = {name: function[name] for name in ("description", "strict") if function.get(name)}
    return {**made, **extra}


_CHOICES = {"none": "none", "auto": "auto", "required": "any"}
_SAY: Mapping[str, Callable[[_Words, Any], Json | None]] = {
    "max_tokens": _Words.limit,
    "max_completion_tokens": _Words.limit,
    "temperature": _Words.temperature,
    "top_p": _Words.top_p,
    "stop": _Words.stop,
    "user": _Words.user,
    "safety_identifier": _Words.user,
    "reasoning_effort": _Words.effort,
    "response_format": _Words.format,
    "tools": _Words.tools,
    "tool_choice": _Words.tool_choice,
    "parallel_tool_calls": _Words.one_call,
}
