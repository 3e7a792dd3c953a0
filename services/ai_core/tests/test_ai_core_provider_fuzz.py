"""Whatever a provider sends, nothing but the port's errors comes out, and what comes out can be carried."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ai_core.model import RequestRefused
from ai_core.outbound.providers import payload
from ai_core.outbound.providers.anthropic_answer import AnthropicEvents, completion_body
from ai_core.outbound.providers.anthropic_request import translated
from ai_core.outbound.providers.errors import failure_inside, refusal
from ai_core.outbound.providers.openai import OpenAIEvents, completion
from ai_core.outbound.providers.sse import Splitter
from ai_core.outbound.providers.streams import Events
from ai_core.ports import CannotCarry, ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Completion, Query
from services.ai_core.tests.provider_server import AnthropicWords, OpenAIWords

PORT_ERRORS = (ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = st.integers(min_value=0, max_value=60)
OPENAI, ANTHROPIC = OpenAIWords(), AnthropicWords()
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of every object and list, as its holder and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def spoiled(value: Any, place: int, other: Any) -> Any:
    """The value with something else in one place."""
    value = copy.deepcopy(value)
    found = list(places(value))
    holder, key = found[place % len(found)]
    holder[key] = other
    return value


@given(PLACES, JSON)
def test_any_whole_answer(place: int, other: Any) -> None:
    message = ANTHROPIC.answer("Hello.")
    message["content"].append(CALL)
    ways: tuple[Callable[[], Completion], ...] = (
        lambda: completion("openai", "gpt-4", spoiled(OPENAI.answer("Hello."), place, other)),
        lambda: completion("anthropic", "c", completion_body(spoiled(message, place, other), "c", 1)),
    )
    for way in ways:
        with suppress(*PORT_ERRORS):
            answer = way()
            assert isinstance(answer.text, str)
            assert isinstance(answer.finish_reason, str)
            assert isinstance(answer.model, str)
            assert orjson.dumps(answer.body)


@given(PLACES, JSON, st.integers(0, 20))
def test_any_event_of_a_stream(place: int, other: Any, which: int) -> None:
    events: list[tuple[Any, Events]] = [
        (OPENAI, OpenAIEvents("openai", "gpt-4", 1)),
        (ANTHROPIC, AnthropicEvents("anthropic", "c", 1)),
    ]
    for words, made in events:
        sent = Splitter().feed(words.begin() + words.token("a") + words.end())
        for number, (name, data) in enumerate(sent):
            if number == which % len(sent) and data != b"[DONE]":
                data = orjson.dumps(spoiled(orjson.loads(data), place, other))
            try:
                chunks = made.chunks((name, data))
            except PORT_ERRORS:
                break
            assert all(isinstance(orjson.loads(chunk.data), dict) and isinstance(chunk.text, str) for chunk in chunks)


@given(st.binary(max_size=50) | JSON.map(orjson.dumps), st.integers(300, 599))
def test_any_error(body: bytes, status: int) -> None:
    assert isinstance(refusal("openai", "gpt-4", status, {"Retry-After": "x"}, body, 1.0), PORT_ERRORS)
    assert isinstance(failure_inside("openai", "gpt-4", {"error": body}), PORT_ERRORS)


@given(JSON, st.integers(300, 599))
def test_any_error_object(error: Any, status: int) -> None:
    for body in ({"error": error}, {"error": {"code": error, "type": error, "message": error}}):
        assert isinstance(refusal("openai", "gpt-4", status, {}, orjson.dumps(body), 1.0), PORT_ERRORS)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    with suppress(ProviderFailed):
        assert isinstance(payload.read(data), dict)


@given(PLACES, JSON)
def test_any_query_is_translated_or_refused(place: int, other: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "a", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ],
        "parameters": {
            "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
            "max_tokens": 5,
            "stop": ["a"],
            "temperature": 0.5,
            "response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {}}},
            "user": "u",
        },
    }
    asked = spoiled(whole, place, other)
    if not isinstance(asked["messages"], list) or not isinstance(asked["parameters"], dict):
        return
    with suppress(CannotCarry):
        body, _ = translated("claude-opus-4-6", Query(asked["messages"], "t1", asked["parameters"]), ())
        assert body["messages"]
