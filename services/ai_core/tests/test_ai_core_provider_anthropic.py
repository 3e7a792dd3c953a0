"""OpenAI's words in Anthropic's and back: what is carried, and what is refused rather than dropped."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from anthropic.types import Message, MessageCreateParams
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from ai_core.outbound.providers import AnthropicModels
from ai_core.outbound.providers.anthropic_answer import AnthropicEvents, finish_reason
from ai_core.outbound.providers.anthropic_request import DEFAULT_TOKENS, FALLBACK_TOKENS, SAMPLING_VERSION, translated
from ai_core.outbound.providers.sse import Splitter
from ai_core.ports import CannotCarry, ProviderFailed
from ai_core.query import Chunk, Query, Usage
from services.ai_core.tests.provider_server import AnthropicWords, Served, event, serving

MODEL = "claude-sonnet-5-5"
HI = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def query(*messages: dict[str, Any], **parameters: Any) -> Query:
    return Query(messages=messages or (HI,), tenant="t1", parameters=parameters)


def body_of(*messages: dict[str, Any], model: str = MODEL, **parameters: Any) -> dict[str, Any]:
    body, _ = translated(model, query(*messages, **parameters), ())
    TypeAdapter(MessageCreateParams).validate_python(body)
    return body


def lost(*messages: dict[str, Any], model: str = MODEL, **parameters: Any) -> tuple[str, ...]:
    with pytest.raises(CannotCarry) as raised:
        translated(model, query(*messages, **parameters), ())
    return raised.value.parameters


def blocks(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def test_system_messages_go_apart_and_neighbours_together() -> None:
    body = body_of(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        HI,
        {"role": "user", "content": [{"type": "text", "text": "there"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    )
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [
        {"role": "user", "content": blocks("Hi", "there")},
        {"role": "assistant", "content": blocks("Hello.")},
        {"role": "user", "content": blocks("Bye")},
    ]


def test_images_by_data_and_by_address() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
    ]
    assert body_of({"role": "user", "content": parts})["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    ]


def test_calls_of_tools_and_their_results() -> None:
    function = {"name": "weather", "arguments": '{"city": "Rio"}'}
    calls = [
        {"id": "a", "type": "function", "function": function},
        {"id": "b", "type": "function", "function": function},
    ]
    body = body_of(
        HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "sun"}]},
        {"role": "user", "content": "Well?"},
        tools=[{**TOOL, "function": {**TOOL["function"], "strict": True}}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    )
    use = {"type": "tool_use", "name": "weather", "input": {"city": "Rio"}}
    assert body["messages"][1:] == [
        {"role": "assistant", "content": [{**use, "id": "a"}, {**use, "id": "b"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": blocks("rain")},
                {"type": "tool_result", "tool_use_id": "b", "content": blocks("sun")},
                *blocks("Well?"),
            ],
        },
    ]
    schema = {"type": "object", "properties": {}}
    assert body["tools"] == [{"name": "weather", "input_schema": schema, "description": "Of a city", "strict": True}]
    assert body["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(("choice", "kind"), [("none", "none"), ("auto", "auto"), ("required", "any")])
def test_choices_of_tools(choice: str, kind: str) -> None:
    assert body_of(tools=[TOOL], tool_choice=choice)["tool_choice"] == {"type": kind}
    assert "tool_choice" not in body_of(tools=[TOOL])
    assert body_of(tools=[TOOL], parallel_tool_calls=False)["tool_choice"]["disable_parallel_tool_use"]


@pytest.mark.parametrize(
    ("model", "parameters", "tokens"),
    [
        (MODEL, {}, DEFAULT_TOKENS),
        ("claude-haiku-4-5-20251001", {"max_tokens": 900_000}, 64_000),
        ("claude-from-tomorrow", {}, FALLBACK_TOKENS),
        ("claude-from-tomorrow", {"max_tokens": 900_000}, 900_000),
        (MODEL, {"max_tokens": 5}, 5),
        (MODEL, {"max_completion_tokens": 7, "max_tokens": 5}, 7),
        (MODEL, {"max_tokens": 900_000}, 128_000),
    ],
)
def test_a_limit_of_tokens_is_always_given(model: str, parameters: dict[str, Any], tokens: int) -> None:
    assert body_of(model=model, **parameters)["max_tokens"] == tokens


def test_what_has_other_words_there() -> None:
    body = body_of(
        stop="END",
        user="u1",
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
    )
    assert body["stop_sequences"] == ["END"]
    assert body["metadata"] == {"user_id": "u1"}
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}
    assert body_of(stop=["a", "b"])["stop_sequences"] == ["a", "b"]


def test_what_asks_for_what_happens_anyway_is_left_out() -> None:
    plain = body_of()
    asked = body_of(
        n=1,
        temperature=1.0,
        top_p=1,
        seed=None,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        metadata={"a": "b"},
        service_tier="auto",
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        store=False,
    )
    assert asked == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("seed", 1),
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("logit_bias", {"1": 2}),
        ("temperature", 0.2),
        ("temperature", 2),
        ("temperature", "hot"),
        ("top_p", 0.1),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
        ("response_format", {}),
        ("reasoning_effort", "minimal"),
        ("stop", "\n"),
        ("stop", 7),
        ("max_tokens", 0),
        ("tools", [{"type": "custom", "custom": {"name": "a"}}]),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("modalities", ["text", "audio"]),
        ("user", "u" * 257),
        ("from_tomorrow", 1),
    ],
)
def test_what_has_no_words_there_is_refused(name: str, value: Any) -> None:
    assert lost(**{name: value}) == (name,)


def test_all_that_is_lost_is_named_and_an_operator_may_allow_it() -> None:
    assert lost(seed=1, temperature=0.2, logprobs=True) == ("seed", "temperature", "logprobs")
    asked = query(temperature=0.2, seed=1)
    body, _ = translated(MODEL, asked, {"temperature", "seed"})
    assert body == body_of()
    with pytest.raises(CannotCarry):
        translated(MODEL, asked, {"temperature"})


def test_sampling_goes_under_the_version_of_the_api_that_knows_it() -> None:
    body, headers = translated("claude-sonnet-4-6", query(temperature=0.2), ())
    assert (body["temperature"], headers) == (0.2, {"anthropic-version": SAMPLING_VERSION})
    assert translated("claude-sonnet-4-6", query(), ())[1] == {}
    assert lost(model="claude-sonnet-4-6", temperature=1.5) == ("temperature",)
    assert lost(model="claude-sonnet-4-6", temperature=0.5, top_p=0.5) == ("top_p",)


@pytest.mark.parametrize(
    ("messages", "name"),
    [
        ([], "messages"),
        ([{"role": "system", "content": "Be brief."}], "messages"),
        ([HI, {"role": "assistant", "content": "Hello, I"}], "messages"),
        ([{"role": "user", "content": ""}], "messages"),
        ([{"role": "user"}], "messages"),
        ([{"role": "robot", "content": "Hi"}], "messages"),
        ([{**HI, "name": "Ana"}], "messages.name"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages.input_audio"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://a"}}]}], "messages.image_url"),
        ([HI, {"role": "assistant", "function_call": {"name": "a"}}, HI], "messages.function_call"),
    ],
)
def test_messages_that_have_no_words_there(messages: list[dict[str, Any]], name: str) -> None:
    with pytest.raises(CannotCarry) as raised:
        translated(MODEL, Query(messages=messages, tenant="t1"), ())
    assert raised.value.parameters == (name,)


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("from_tomorrow", "stop"),
    ],
)
def test_reasons_to_stop(stopped: str, reason: str) -> None:
    assert finish_reason(stopped) == reason


@pytest.fixture
async def provider() -> AsyncIterator[Served]:
    async with serving(AnthropicWords()) as served:
        yield served


async def test_an_answer_is_openais_object(provider: Served) -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Let me "},
        {"type": "text", "text": "see."},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rio"}},
    ]
    usage = {"input_tokens": 5, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 4}
    message = {**AnthropicWords().answer(None, "tool_use"), "content": content, "stop_sequence": None, "usage": usage}
    Message.model_validate(message)
    provider.server.respond(message)
    completion = await provider.models.complete(MODEL, query(tools=[TOOL]))
    parsed = ChatCompletion.model_validate(completion.body)
    assert completion.usage == Usage(8, 4)
    assert parsed.choices[0].message.content == "Let me see."
    assert parsed.choices[0].finish_reason == "tool_calls"
    call = completion.message["tool_calls"][0]
    assert (call["id"], call["function"]["name"]) == ("a", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rio"}
    assert parsed.created == 1_700_000_000


async def test_only_calls_of_tools_are_an_answer_too(provider: Served) -> None:
    content = [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]
    provider.server.respond({**AnthropicWords().answer(None, "tool_use"), "content": content})
    completion = await provider.models.complete(MODEL, query(tools=[TOOL]))
    assert (completion.text, completion.finish_reason) == ("", "tool_calls")


async def test_the_official_clients_headers_and_address(provider: Served) -> None:
    await provider.models.complete(MODEL, query())
    assert provider.server.headers["anthropic-version"] == "2026-10-21"
    assert provider.server.headers["User-Agent"].startswith("AsyncAnthropic/")
    await provider.models.complete("claude-opus-4-6", query(temperature=0.5))
    assert provider.server.headers["anthropic-version"] == SAMPLING_VERSION
    provider.server.stream(AnthropicWords().begin(), AnthropicWords().token("a"), AnthropicWords().end())
    async with provider.models.stream("claude-opus-4-6", query(temperature=0.5)) as stream:
        async for _ in stream:
            assert provider.server.headers["anthropic-version"] == SAMPLING_VERSION
    assert provider.server.headers["Accept"] == "text/event-stream"


async def test_what_cannot_be_carried_is_never_sent(provider: Served) -> None:
    assert isinstance(provider.models, AnthropicModels)
    with pytest.raises(CannotCarry):
        await provider.models.complete(MODEL, query(seed=1))
    with pytest.raises(CannotCarry):
        async with provider.models.stream(MODEL, query(seed=1)):
            pass
    assert provider.server.calls == 0


def start(**members: Any) -> bytes:
    message = {**AnthropicWords().answer(None), "usage": {"input_tokens": 7, "output_tokens": 1}, **members}
    return event({"type": "message_start", "message": {**message, "stop_reason": None}}, "message_start")


def opened(index: int, **block: Any) -> bytes:
    return event({"type": "content_block_start", "index": index, "content_block": block}, "content_block_start")


def delta(index: int, **change: Any) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": change}, "content_block_delta")


def chunks_of(*parts: bytes) -> list[Chunk]:
    splitter, events = Splitter(), AnthropicEvents("anthropic", MODEL, 1_700_000_000)
    return [chunk for part in parts for one in splitter.feed(part) for chunk in events.chunks(one)]


def parsed(chunks: Sequence[Chunk]) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate_json(chunk.data) for chunk in chunks]


def test_a_stream_with_thinking_text_and_calls() -> None:
    chunks = chunks_of(
        start(simulated=True),
        event({"type": "ping"}, "ping"),
        opened(0, type="thinking", thinking=""),
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature="s"),
        opened(1, type="text", text=""),
        delta(1, type="text_delta", text="Let é"),
        opened(2, type="tool_use", id="a", name="weather", input={}),
        delta(2, type="input_json_delta", partial_json=""),
        delta(2, type="input_json_delta", partial_json='{"city":'),
        delta(2, type="input_json_delta", partial_json=' "Rio"}'),
        opened(3, type="tool_use", id="b", name="weather", input={}),
        AnthropicWords().end("tool_use"),
    )
    first, text, call, part, rest, second, finish, usage = parsed(chunks)
    assert [chunk.commits for chunk in chunks] == [False, True, True, True, True, True, False, False]
    assert json.loads(chunks[0].data)["simulated"] is True
    assert (first.choices[0].delta.role, text.choices[0].delta.content) == ("assistant", "Let é")
    called = [one.choices[0].delta.tool_calls for one in (call, part, rest, second)]
    assert [(made[0].index, made[0].id) for made in called if made] == [(0, "a"), (0, None), (0, None), (1, "b")]
    arguments = [made[0].function.arguments for made in called if made and made[0].function]
    assert arguments == ["", '{"city":', ' "Rio"}', ""]
    assert finish.choices[0].finish_reason == chunks[-2].finish_reason == "tool_calls"
    assert (usage.choices, chunks[-1].usage) == ([], Usage(7, 3))
    assert len({one.id for one in (first, text, call, finish, usage)}) == 1


@pytest.mark.parametrize(
    "part",
    [
        delta(0, type="text_delta", text="before the beginning"),
        start() + event({"type": "content_block_delta"}, "content_block_delta"),
        start() + delta(0, type="text_delta", text=True),
        start() + opened(0, type="tool_use", id="a", name="f") + delta(0, type="input_json_delta", partial_json=[1]),
        start() + event({"type": "content_block_start", "content_block": None}, "content_block_start"),
        start() + event({"type": "message_delta"}, "message_delta"),
        event({"type": "message_start"}, "message_start"),
        b"event: message_start\ndata: []\n\n",
    ],
)
def test_a_malformed_event_is_a_failure(part: bytes) -> None:
    with pytest.raises(ProviderFailed):
        chunks_of(part)


def test_kinds_of_events_that_are_newer_are_ignored() -> None:
    newer = event({"type": "from_tomorrow"}, "from_tomorrow")
    chunks = chunks_of(start(), newer, delta(0, type="from_tomorrow"), opened(0, type="from_tomorrow"))
    assert len(chunks) == 1
