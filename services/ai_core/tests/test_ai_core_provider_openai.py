"""OpenAI's protocol: what is passed on as it came, what is asked besides, and servers that are merely compatible."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ai_core.outbound.providers.openai import OpenAIEvents
from ai_core.outbound.providers.sse import Splitter
from ai_core.ports import ModelProvider, ProviderBusy, ProviderFailed
from ai_core.query import Chunk, Query, Usage
from services.ai_core.tests.provider_server import OpenAIWords, Served, event, serving

HI = {"role": "user", "content": "Hi"}


@pytest.fixture
async def provider() -> AsyncIterator[Served]:
    async with serving(OpenAIWords()) as served:
        yield served


def query(**parameters: Any) -> Query:
    return Query(messages=(HI,), tenant="t1", parameters=parameters)


def chunks_of(*parts: bytes, choices: int = 1) -> list[Chunk]:
    splitter, events = Splitter(), OpenAIEvents("openai", "gpt-4", choices)
    return [chunk for part in parts for one in splitter.feed(part) for chunk in events.chunks(one)]


def choice(delta: Any, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason}


async def test_the_query_is_sent_as_it_is(provider: Served) -> None:
    models: ModelProvider = provider.models
    await models.complete("gpt-4", query(temperature=0.2, tools=[]))
    assert provider.server.seen == {"model": "gpt-4", "messages": [HI], "temperature": 0.2, "tools": []}
    assert provider.server.headers["User-Agent"].startswith("AsyncOpenAI/")


async def test_a_stream_asks_for_the_count_of_tokens(provider: Served) -> None:
    words = OpenAIWords()
    sent = [words.begin(), words.token("a"), words.end()]
    provider.server.stream(*sent)
    chunks = []
    async with provider.models.stream("gpt-4", query(seed=1)) as stream:
        async for some in stream:
            chunks += some
    assert provider.server.seen["stream_options"] == {"include_usage": True}
    assert provider.server.seen["seed"] == 1
    assert b"".join(b"data: " + chunk.data + b"\n\n" for chunk in chunks) == b"".join(sent)[: -len(b"data: [DONE]\n\n")]
    assert (chunks[-1].usage, chunks[-1].text, chunks[-1].finish_reason) == (Usage(7, 3), "", "")


async def test_servers_that_do_not_know_stream_options_are_not_asked() -> None:
    async with serving(OpenAIWords(), ask_usage=False) as provider:
        provider.server.stream(OpenAIWords().begin(), OpenAIWords().token("a"), OpenAIWords().end())
        async with provider.models.stream("gpt-4", query()) as stream:
            async for _ in stream:
                pass
        assert "stream_options" not in provider.server.seen


async def test_a_refusal_and_calls_of_tools_are_answers(provider: Served) -> None:
    answer = OpenAIWords().answer(None)
    answer["choices"][0]["message"]["refusal"] = "I cannot."
    provider.server.respond(answer)
    assert (await provider.models.complete("gpt-4", query())).text == "I cannot."
    answer = OpenAIWords().answer(None, "tool_calls")
    answer["choices"][0]["message"]["tool_calls"] = [{"id": "a", "type": "function", "function": {"name": "f"}}]
    provider.server.respond(answer)
    assert (await provider.models.complete("gpt-4", query())).finish_reason == "tool_calls"


async def test_an_error_inside_an_answer_of_200(provider: Served) -> None:
    provider.server.respond({"error": {"code": 429, "message": "slow down"}})
    with pytest.raises(ProviderBusy):
        await provider.models.complete("gpt-4", query())


def test_an_event_of_several_lines_becomes_one() -> None:
    (chunk,) = chunks_of(b'data: {"choices":\ndata: [{"delta": {"content": "a"}}]}\n\n')
    assert (chunk.data, chunk.text) == (b'{"choices":[{"delta":{"content":"a"}}]}', "a")


def test_a_call_of_a_tool_commits_and_an_empty_delta_does_not() -> None:
    call = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}
    deltas = [{"role": "assistant"}, {"content": ""}, {"reasoning_content": "hm"}, {}, None, call, {"refusal": "No"}]
    chunks = chunks_of(*[event({"choices": [choice(delta)]}) for delta in deltas], event({"choices": []}))
    assert [chunk.commits for chunk in chunks] == [False] * 5 + [True, True, False]
    assert "".join(chunk.text for chunk in chunks) == "No"


def test_the_text_is_the_first_choices_and_all_must_finish() -> None:
    splitter, events = Splitter(), OpenAIEvents("openai", "gpt-4", 2)
    finished = []
    for body in (
        {"choices": [choice({"content": "b"}, index=1)]},
        {"choices": [choice({"content": "a"})]},
        {"choices": [choice({}, "stop", index=1)]},
        {"choices": [choice({}, "length")]},
    ):
        (one,) = splitter.feed(event(body))
        (chunk,) = events.chunks(one)
        finished.append((chunk.text, chunk.commits, chunk.finish_reason, events.finished))
    assert finished == [
        ("", True, "", False),
        ("a", True, "", False),
        ("", False, "", False),
        ("", False, "length", True),
    ]


@pytest.mark.parametrize("body", [[], 1, "a", {"choices": [1]}, {"choices": 7}, {"error": "out of memory"}])
def test_a_malformed_event_is_a_failure(body: Any) -> None:
    with pytest.raises(ProviderFailed):
        chunks_of(f"data: {json.dumps(body)}\n\n".encode())


def test_an_error_by_the_events_name() -> None:
    with pytest.raises(ProviderFailed):
        chunks_of(event({"message": "worker died"}, "error"))
