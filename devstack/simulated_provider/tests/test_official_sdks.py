"""The unmodified official SDKs against the simulated provider."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from simulated_provider.testing import Simulator

CLAUDE = "claude-sonnet-5-5"
TOOL = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def gpt(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="simulated", max_retries=0, timeout=5) as client:
        yield client


@pytest.fixture
def claude(simulator: Simulator) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=f"{simulator.url}/anthropic", api_key="simulated", max_retries=0, timeout=5
    ) as client:
        yield client


def test_openai_chat(gpt: openai.OpenAI) -> None:
    made = gpt.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hello"}])
    assert (made.choices[0].message.content or "").startswith("[simulated]")
    assert made.usage is not None
    assert made.usage.total_tokens > 0
    cut = gpt.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hello"}], max_tokens=3)
    assert cut.choices[0].finish_reason == "length"


def test_openai_stream(gpt: openai.OpenAI) -> None:
    plain = gpt.chat.completions.create(model="gpt-3.5-turbo", messages=[{"role": "user", "content": "Hello"}])
    with gpt.chat.completions.create(
        model="gpt-3.5-turbo",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage


def test_openai_tools(gpt: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Hello"}]
    tools: Any = [{"type": "function", "function": TOOL}]
    left = gpt.chat.completions.create(model="gpt-4", messages=asked, tools=tools)
    assert left.choices[0].message.content
    made = gpt.chat.completions.create(model="gpt-4", messages=asked, tools=tools, tool_choice="required")
    forced: Any = made.choices[0]
    assert forced.finish_reason == "tool_calls"
    assert forced.message.tool_calls[0].function.name == "weather"
    with gpt.chat.completions.create(
        model="gpt-4",
        messages=asked,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        stream=True,
    ) as stream:
        deltas: list[Any] = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert [delta.tool_calls[0].function.name for delta in deltas if delta.tool_calls] == ["weather"]


def test_openai_embeddings(gpt: openai.OpenAI) -> None:
    texts = ["the cat sat on the mat", "a cat on a mat", "quarterly revenue forecast"]
    # Without a format the SDK asks for base64 and unpacks it.
    packed = gpt.embeddings.create(model="text-embedding-3-small", input=texts)
    floats = gpt.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")
    one, two, three = (item.embedding for item in packed.data)
    assert len(one) == 1536
    assert one == pytest.approx(floats.data[0].embedding, abs=1e-6)
    assert math.sqrt(sum(value * value for value in one)) == pytest.approx(1, abs=1e-4)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(one, two) > near(one, three) + 0.2
    again = gpt.embeddings.create(model="text-embedding-3-small", input=texts[0], dimensions=256)
    assert len(again.data[0].embedding) == 256


def test_openai_speech_and_models(gpt: openai.OpenAI) -> None:
    with gpt.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="Hello") as spoken:
        assert spoken.headers["x-simulated"] == "true"
        assert spoken.read()[:4] == b"RIFF"
    assert {"gpt-4", "gpt-3.5-turbo", "tts-1"} <= {model.id for model in gpt.models.list()}
    assert gpt.models.retrieve("gpt-4").id == "gpt-4"
    with pytest.raises(openai.NotFoundError) as unknown:
        gpt.chat.completions.create(model="gpt-nine", messages=[{"role": "user", "content": "Hello"}])
    assert unknown.value.code == "model_not_found"


def test_anthropic_messages(claude: anthropic.Anthropic) -> None:
    made = claude.messages.create(
        model=CLAUDE, max_tokens=500, system="Be short.", messages=[{"role": "user", "content": "Hello"}]
    )
    block = made.content[0]
    assert block.type == "text"
    assert block.text.startswith("[simulated]")
    assert made.stop_reason == "end_turn"
    assert made.usage.output_tokens > 0
    cut = claude.messages.create(model=CLAUDE, max_tokens=2, messages=[{"role": "user", "content": "Hello"}])
    assert cut.stop_reason == "max_tokens"
    assert CLAUDE in {model.id for model in claude.models.list()}


def test_anthropic_stream(claude: anthropic.Anthropic) -> None:
    asked: anthropic.types.MessageParam = {"role": "user", "content": "Hello"}
    plain = claude.messages.create(model=CLAUDE, max_tokens=500, messages=[asked])
    with claude.messages.stream(model=CLAUDE, max_tokens=500, messages=[asked]) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert {"content_block_start", "content_block_delta", "content_block_stop", "message_delta"} <= set(kinds)
    assert [block.to_dict()["text"] for block in whole.content] == [block.to_dict()["text"] for block in plain.content]
    assert whole.usage.output_tokens == plain.usage.output_tokens
    assert whole.stop_reason == "end_turn"


def test_anthropic_tools(claude: anthropic.Anthropic) -> None:
    tool: anthropic.types.ToolParam = {"name": "weather", "input_schema": {"type": "object"}}
    asked: anthropic.types.MessageParam = {"role": "user", "content": "Hello"}
    with claude.messages.stream(
        model=CLAUDE, max_tokens=500, messages=[asked], tools=[tool], tool_choice={"type": "any"}
    ) as stream:
        whole = stream.get_final_message()
    assert whole.stop_reason == "tool_use"
    assert whole.content[0].type == "tool_use"
    assert whole.content[0].name == "weather"


def test_errors_are_what_the_sdks_take_them_for(
    simulator: Simulator, gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    def complete() -> None:
        gpt.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hello"}])

    def message() -> None:
        claude.messages.create(model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": "Hello"}])

    for fault, error in (
        ("rate_limit", openai.RateLimitError),
        ("error", openai.InternalServerError),
        ("unauthorized", openai.AuthenticationError),
        ("bad_request", openai.BadRequestError),
        ("refuse", openai.APIConnectionError),
    ):
        simulator.order("openai:gpt-4", fault)
        with pytest.raises(error):
            complete()
    for fault, failed in (
        ("rate_limit", anthropic.RateLimitError),
        ("overloaded", anthropic.InternalServerError),
        ("unauthorized", anthropic.AuthenticationError),
        ("unknown_model", anthropic.NotFoundError),
        ("refuse", anthropic.APIConnectionError),
    ):
        simulator.order("anthropic", fault)
        with pytest.raises(failed):
            message()
    simulator.order("anthropic", "overloaded")
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        message()
    assert overloaded.value.status_code == 529
    assert overloaded.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
