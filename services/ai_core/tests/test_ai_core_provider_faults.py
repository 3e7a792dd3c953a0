"""How every kind of answer is sorted, plain and streamed, of both protocols, over real HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ai_core.model import RequestRefused, TooLong
from ai_core.outbound.providers.wire import MAX_ANSWER
from ai_core.ports import ModelProvider, ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Chunk, Link, Query, Usage
from services.ai_core.tests.provider_server import (
    KEY,
    PROMPT,
    AnthropicWords,
    OpenAIWords,
    Served,
    Words,
    eventually,
    serving,
)

ASKED = Query(messages=[{"role": "user", "content": PROMPT}], tenant="t1")
SHAPES = ["plain", "streamed"]


@pytest.fixture(params=[OpenAIWords(), AnthropicWords()], ids=lambda words: words.name)
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serving(request.param) as served:
        yield served


async def read(provider: Served, chunks: list[Chunk], asked: Query = ASKED) -> None:
    models: ModelProvider = provider.models
    async with models.stream(provider.words.model, asked) as stream:
        async for some in stream:
            chunks += some


async def ask(provider: Served, shape: str, asked: Query = ASKED) -> Any:
    if shape == "plain":
        return await provider.models.complete(provider.words.model, asked)
    return await read(provider, [], asked)


def is_safe(error: BaseException) -> bool:
    """Whether the error and all that it would print hold nothing that must not leave."""
    causes: list[BaseException] = [error]
    while (below := causes[-1].__cause__) is not None:
        causes.append(below)
    said = " ".join(str(cause) + repr(cause) for cause in causes)
    return not any(word in said for word in (KEY, PROMPT, "org-123", "127.0.0.1"))


async def fails(provider: Served, shape: str, expected: type[Exception]) -> Exception:
    with pytest.raises(expected) as raised:
        await ask(provider, shape)
    assert is_safe(raised.value)
    return raised.value


async def test_a_whole_answer_and_who_gave_it(provider: Served) -> None:
    words = provider.words
    completion = await provider.models.complete(words.model, ASKED)
    assert (completion.text, completion.provider, completion.model) == ("Hello.", words.name, words.served)
    assert (completion.finish_reason, completion.usage, completion.simulated) == ("stop", Usage(7, 3), False)
    assert provider.server.seen["model"] == words.model
    assert provider.server.headers["Authorization"] == f"Bearer {KEY}"
    assert "stream" not in provider.server.seen


async def test_a_simulated_answer_says_so(provider: Served) -> None:
    provider.server.respond(provider.words.answer("[simulated] Hello.", simulated=True))
    completion = await provider.models.complete(provider.words.model, ASKED)
    assert completion.simulated
    assert completion.provider == provider.words.name


async def test_a_stream_commits_with_its_first_content(provider: Served) -> None:
    words = provider.words
    provider.server.stream(b": hello\n\n", words.begin(), words.token("Hel"), words.token("lo."), words.end())
    chunks: list[Chunk] = []
    await read(provider, chunks)
    assert [chunk.text for chunk in chunks if chunk.commits] == ["Hel", "lo."]
    assert not chunks[0].commits
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(7, 3)]
    assert provider.server.seen["stream"] is True


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_closed_port_a_reset_and_silence(provider: Served, shape: str) -> None:
    provider.server.handler = provider.server.reset
    await fails(provider, shape, ProviderFailed)
    provider.server.handler = provider.server.silent
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(provider, shape)
    await eventually(lambda: provider.server.connections == 0)
    await provider.server.runner.cleanup()
    await fails(provider, shape, ProviderFailed)
    with pytest.raises(ProviderFailed):
        await provider.models.ping()


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_another_provider_could_survive(provider: Served, shape: str) -> None:
    location = {"Location": provider.server.url}
    statuses = (301, 302, 401, 402, 403, 408, 409, 425, 500, 502, 503, 529)
    for status in statuses:
        provider.server.respond(provider.words.error(), status, location)
        await fails(provider, shape, ProviderFailed)
        provider.server.respond("<html>gateway</html>", status, location)
        await fails(provider, shape, ProviderFailed)
    assert provider.server.calls == 2 * len(statuses)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_account_without_money_is_the_providers_failure(provider: Served, shape: str) -> None:
    answers = [(429, "insufficient_quota", ""), (402, "billing_error", ""), (400, "", "Your credit balance is too low")]
    for status, kind, message in answers:
        provider.server.respond(provider.words.error(kind, message), status)
        await fails(provider, shape, ProviderFailed)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_model_that_is_not_there(provider: Served, shape: str) -> None:
    provider.server.respond(provider.words.error("not_found_error", "model: gpt-9"), 404)
    await fails(provider, shape, ModelUnknown)
    provider.server.respond(provider.words.error("model_not_found"), 403)
    await fails(provider, shape, ModelUnknown)
    provider.server.respond("<html>no such page</html>", 404)
    await fails(provider, shape, ProviderFailed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "20"}, 20.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({}, None),
    ],
)
async def test_429_says_how_long_to_wait(
    provider: Served, shape: str, headers: dict[str, str], seconds: float | None
) -> None:
    provider.server.respond(provider.words.error("rate_limit_exceeded"), 429, headers)
    busy = await fails(provider, shape, ProviderBusy)
    assert isinstance(busy, ProviderBusy)
    assert busy.retry_after == seconds
    assert provider.rested == []
    assert provider.server.calls == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "", "no", RequestRefused),
        (422, "weird", "no", RequestRefused),
        (400, "content_filter", "no", RequestRefused),
        (403, "content_policy_violation", "no", RequestRefused),
        (400, "context_length_exceeded", "no", TooLong),
        (400, "", "prompt is too long: 205000 tokens > 200000 maximum", TooLong),
        (400, "", "This model's maximum context length is 4096 tokens", TooLong),
        (413, "request_too_large", "no", TooLong),
    ],
)
async def test_the_requests_own_faults(
    provider: Served, shape: str, status: int, kind: str, message: str, expected: type[Exception]
) -> None:
    provider.server.respond(provider.words.error(kind, message), status)
    assert type(await fails(provider, shape, expected)) is expected


NO_ANSWERS: list[Any] = [
    "<html>please wait</html>",
    "",
    [],
    {},
    "null",
    {"choices": []},
    {"choices": [1]},
    {"choices": [{"message": None}]},
    {"type": "message", "content": [1]},
    {"type": "message", "content": [{"type": "text"}]},
    '{"choices": [{"mess',
    "[" * 50_000,
    "x" * (MAX_ANSWER + 1),
    {"error": {"message": "overloaded", "code": 502}},
]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_of_200_that_is_none(provider: Served, shape: str) -> None:
    for body in NO_ANSWERS:
        provider.server.respond(body)
        await fails(provider, shape, ProviderFailed)


async def test_an_answer_without_content(provider: Served) -> None:
    for text in ("", " \n", None):
        provider.server.respond(provider.words.answer(text))
        await fails(provider, "plain", ProviderFailed)
    filtered, short = {"openai": ("content_filter", "length"), "anthropic": ("refusal", "max_tokens")}[
        provider.words.name
    ]
    provider.server.respond(provider.words.answer(None, filtered))
    assert "policy" in str(await fails(provider, "plain", RequestRefused))
    provider.server.respond(provider.words.answer(None, short))
    assert "room" in str(await fails(provider, "plain", RequestRefused))


async def test_a_cut_answer(provider: Served) -> None:
    provider.server.stream(b'{"choices"', cut=True)
    await fails(provider, "plain", ProviderFailed)


EARLY = pytest.mark.parametrize("tokens", [0, 8], ids=["after the role", "after 8 tokens"])


@EARLY
@pytest.mark.parametrize("fault", ["cut", "end", "error", "bad json", "endless event", "html"])
async def test_a_stream_that_breaks(provider: Served, fault: str, tokens: int) -> None:
    words = provider.words
    begun = [words.begin(), *[words.token("a") for _ in range(tokens)]]
    after = {
        "error": [words.failed()],
        "bad json": [b'data: {"choices": [{"del\n\n'],
        "endless event": [b"data: " + b"x" * 600_000] * 2,
        "html": [b"<html>\n\n<body>gateway</body>\n\n</html>\n\n"],
    }
    provider.server.stream(*begun, *after.get(fault, []), cut=fault == "cut")
    for _ in range(3):
        chunks: list[Chunk] = []
        with pytest.raises(ProviderFailed) as raised:
            await read(provider, chunks)
        assert is_safe(raised.value)
        assert sum(chunk.commits for chunk in chunks) == tokens
    await eventually(lambda: provider.server.connections <= 1)


@EARLY
async def test_a_stream_that_stalls_is_left_by_the_caller(provider: Served, tokens: int) -> None:
    words = provider.words
    provider.server.stream(words.begin(), *[words.token("a") for _ in range(tokens)], hold=True)
    chunks: list[Chunk] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await read(provider, chunks)
    assert sum(chunk.commits for chunk in chunks) == tokens
    await eventually(lambda: provider.server.connections == 0)


async def test_a_stream_left_early_gives_its_connection_back(provider: Served) -> None:
    words = provider.words
    provider.server.stream(words.begin(), words.token("a"), hold=True)
    for _ in range(3):
        async with provider.models.stream(words.model, ASKED) as stream:
            async for some in stream:
                if any(chunk.commits for chunk in some):
                    break
    await eventually(lambda: provider.server.connections == 0)


async def test_the_callers_own_error_stays_its_own(provider: Served) -> None:
    words = provider.words
    provider.server.stream(words.begin(), words.token("a"), hold=True)
    with pytest.raises(TimeoutError, match="mine"):
        async with provider.models.stream(words.model, ASKED):
            raise TimeoutError("mine")
    await eventually(lambda: provider.server.connections == 0)


async def test_streams_that_end_well_use_one_connection(provider: Served) -> None:
    words = provider.words
    provider.server.stream(words.begin(), words.token("a"), words.end())
    for _ in range(5):
        await read(provider, [])
    assert provider.server.connections == 1


async def test_a_stream_that_is_complete_survives_a_broken_end(provider: Served) -> None:
    words = provider.words
    whole = words.begin() + words.token("a") + words.end()
    for end in (b"data: [DONE]", b"event: message_stop", b'data: {"model"'):
        whole = whole.split(end)[0]
    for rest in (b"", b"data: {not json\n\n"):
        provider.server.stream(whole, rest, cut=True)
        chunks: list[Chunk] = []
        await read(provider, chunks)
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]


async def test_a_stream_without_content(provider: Served) -> None:
    words = provider.words
    provider.server.stream(words.begin(), words.end())
    await fails(provider, "streamed", ProviderFailed)
    provider.server.stream(words.begin(), words.end({"openai": "content_filter"}.get(words.name, "refusal")))
    await fails(provider, "streamed", RequestRefused)


async def test_an_error_inside_a_stream_is_sorted_like_any_other(provider: Served) -> None:
    words = provider.words
    for kind, message, expected in (
        ("rate_limit_error", "", ProviderBusy),
        ("content_filter", "", RequestRefused),
        ("context_length_exceeded", "", TooLong),
    ):
        error = words.error(kind, message)
        provider.server.stream(words.begin(), b"event: error\ndata: " + str(error).replace("'", '"').encode() + b"\n\n")
        await fails(provider, "streamed", expected)


@pytest.mark.parametrize("shape", SHAPES)
async def test_nothing_left_of_a_limit_is_told_by_a_well_answer(provider: Served, shape: str) -> None:
    words = provider.words
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m30s",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:50Z",
    }
    provider.server.respond(words.answer("Hello."), 200, headers)
    if shape == "streamed":
        provider.server.stream(words.begin(), words.token("a"), words.end(), headers=headers)
    await ask(provider, shape)
    assert provider.rested == [(Link(words.name, words.model), 90.0)]
    provider.server.respond(words.error(), 503, {"Retry-After": "7"})
    await fails(provider, shape, ProviderFailed)
    assert provider.rested[1:] == [(Link(words.name, words.model), 7.0)]


async def test_what_nothing_can_carry_is_taken_out(provider: Served) -> None:
    words = provider.words
    provider.server.respond(words.answer("a\x00b\ud800c"))
    assert (await provider.models.complete(words.model, ASKED)).text == "ab?c"
    provider.server.stream(words.begin(), words.token("a\x00b\ud800c"), words.token("é😀"), words.end())
    chunks: list[Chunk] = []
    await read(provider, chunks)
    assert "".join(chunk.text for chunk in chunks) == "ab?cé😀"
    assert not any(b"\\u0000" in chunk.data or b"\\ud800" in chunk.data for chunk in chunks)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_prompt_that_is_no_text_is_refused(provider: Served, shape: str) -> None:
    asked = Query(messages=[{"role": "user", "content": "\ud800"}], tenant="t1")
    with pytest.raises(RequestRefused):
        await ask(provider, shape, asked)
    assert provider.server.calls == 0


async def test_the_probe_reads_the_list_of_models(provider: Served) -> None:
    provider.server.respond({"data": [], "has_more": False})
    await provider.models.ping()
    assert provider.server.headers["Authorization"] == f"Bearer {KEY}"
    provider.server.respond("<html>please log in</html>")
    with pytest.raises(ProviderFailed):
        await provider.models.ping()
    for status in (404, 429):
        provider.server.respond("not here", status)
        await provider.models.ping()
    for status in (401, 500, 503):
        provider.server.respond(provider.words.error(), status)
        before = provider.server.calls
        with pytest.raises(ProviderFailed) as raised:
            await provider.models.ping()
        assert is_safe(raised.value)
        assert provider.server.calls == before + 1


async def test_logs_hold_neither_key_nor_prompt(provider: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    words = provider.words
    await ask(provider, "plain")
    provider.server.stream(words.begin(), words.failed())
    await fails(provider, "streamed", ProviderFailed)
    provider.server.respond(words.error(), 401)
    await fails(provider, "plain", ProviderFailed)
    with pytest.raises(ProviderFailed):
        await provider.models.ping()
    assert not any(word in caplog.text for word in (KEY, PROMPT))


@pytest.mark.parametrize("words", [OpenAIWords(), AnthropicWords()], ids=lambda words: words.name)
async def test_connections_are_bounded_and_waiting_for_one_is_too(words: Words) -> None:
    async with serving(words, connections=1, connect_limit=0.2) as provider:
        provider.server.handler = provider.server.silent
        first = asyncio.ensure_future(ask(provider, "plain"))
        await eventually(lambda: provider.server.calls == 1)
        await fails(provider, "plain", ProviderFailed)
        assert provider.server.connections == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
