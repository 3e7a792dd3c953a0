"""How every kind of answer of a provider is sorted, over real HTTP against a server that misbehaves on request."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from ai_core.model import RequestRefused, Turn
from ai_core.outbound.openai import MAX_ANSWER, OpenAIProvider, retry_after
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-test-only"


class Misbehaving:
    """A server whose next answers are set by the test; ``seen`` is the last request."""

    def __init__(self) -> None:
        self.handler: Handler = self.completion
        self.seen: dict[str, Any] = {}
        self.authorization = ""
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.authorization = request.headers.get("Authorization", "")
        self.seen = await request.json() if request.can_read_body else {}
        return await self.handler(request)

    async def completion(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(answer_of("Hello."))

    def respond(self, body: str | dict[str, Any], status: int = 200, **headers: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)

        async def handler(_: web.Request) -> web.StreamResponse:
            return web.Response(text=text, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

        self.handler = handler


def answer_of(text: str | None, **members: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"model": "gpt-4-0613", "choices": [{**choice, **members.pop("choice", {})}], **members}


@pytest.fixture
async def server() -> AsyncIterator[Misbehaving]:
    misbehaving = Misbehaving()
    app = web.Application()
    app.router.add_route("*", "/v1/{path:.*}", misbehaving.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    misbehaving.url = f"http://127.0.0.1:{port}/v1"
    yield misbehaving
    await runner.cleanup()


@pytest.fixture
async def provider(server: Misbehaving) -> AsyncIterator[OpenAIProvider]:
    made = OpenAIProvider(server.url, KEY, limit=5, now=lambda: 1_700_000_000.0)
    yield made
    await made.close()


async def ask(provider: OpenAIProvider) -> Any:
    return await provider.complete("gpt-4", [Turn("system", "Be brief."), Turn("user", "Hi")])


async def test_asks_in_openais_words_and_names_who_answered(server: Misbehaving, provider: OpenAIProvider) -> None:
    completion = await ask(provider)
    assert (completion.text, completion.provider, completion.model) == ("Hello.", "openai", "gpt-4-0613")
    assert not completion.simulated
    assert server.seen == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }
    assert server.authorization == f"Bearer {KEY}"


async def test_a_simulated_answer_says_so(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond(answer_of("[simulated] Hello.", simulated=True))
    completion = await ask(provider)
    assert completion.simulated
    assert completion.provider == "simulated"


@pytest.mark.parametrize(
    "body",
    [
        "<html>please wait</html>",
        "",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [1]}',
        '{"choices": [{"message": null}]}',
        answer_of(""),
        answer_of(" \n"),
        answer_of(None),
        "[" * 50_000,
        "x" * (MAX_ANSWER + 1),
    ],
    ids=str,
)
async def test_an_answer_without_a_completion_is_a_failure(
    server: Misbehaving, provider: OpenAIProvider, body: str | dict[str, Any]
) -> None:
    server.respond(body)
    with pytest.raises(ProviderFailed):
        await ask(provider)


@pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 408, 409, 500, 502, 503, 529])
async def test_what_another_provider_could_survive_is_a_failure(
    server: Misbehaving, provider: OpenAIProvider, status: int
) -> None:
    server.respond({"error": {"message": f"secret {KEY}"}}, status, Location=server.url)
    with pytest.raises(ProviderFailed) as raised:
        await ask(provider)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (400, None, "refused this request"),
        (413, None, "refused this request"),
        (422, "weird", "refused this request"),
        (400, "context_length_exceeded", "too long"),
        (400, "content_filter", "content policy"),
    ],
)
async def test_the_requests_own_faults_go_straight_back(
    server: Misbehaving, provider: OpenAIProvider, status: int, code: str | None, text: str
) -> None:
    server.respond({"error": {"message": "internal words", "code": code}}, status)
    with pytest.raises(RequestRefused) as raised:
        await ask(provider)
    assert text in str(raised.value)
    assert "internal words" not in str(raised.value)


async def test_a_filtered_answer_is_refused_by_policy(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond(answer_of(None, choice={"finish_reason": "content_filter"}))
    with pytest.raises(RequestRefused):
        await ask(provider)


async def test_a_models_refusal_is_its_answer(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond(answer_of(None, choice={"message": {"content": None, "refusal": "I cannot."}}))
    assert (await ask(provider)).text == "I cannot."


async def test_a_missing_model_is_told_apart(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond({"error": {"code": "model_not_found"}}, 404)
    with pytest.raises(ModelUnknown):
        await ask(provider)


async def test_429_says_how_long_to_wait(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond("slow down", 429, Retry_After="20")
    with pytest.raises(ProviderBusy) as raised:
        await ask(provider)
    assert raised.value.retry_after == 20


async def test_what_nothing_can_carry_is_taken_out(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond('{"choices": [{"message": {"content": "a\\u0000b\\ud800c"}}]}')
    assert (await ask(provider)).text == "ab?c"


async def test_a_cut_answer_and_a_closed_port_are_failures(server: Misbehaving, provider: OpenAIProvider) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        assert request.transport is not None
        request.transport.abort()
        return response

    server.handler = cut
    with pytest.raises(ProviderFailed):
        await ask(provider)
    nobody = OpenAIProvider("http://127.0.0.1:1/v1", KEY, limit=5, now=lambda: 0.0)
    try:
        with pytest.raises(ProviderFailed):
            await ask(nobody)
        with pytest.raises(ProviderFailed):
            await nobody.ping()
    finally:
        await nobody.close()


async def test_a_silent_provider_is_given_up(server: Misbehaving) -> None:
    release = asyncio.Event()

    async def silent(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    server.handler = silent
    impatient = OpenAIProvider(server.url, KEY, limit=-0.9, now=lambda: 0.0)
    try:
        with pytest.raises(ProviderFailed):
            await ask(impatient)
    finally:
        release.set()
        await impatient.close()


async def test_the_probe_reads_the_model_list(server: Misbehaving, provider: OpenAIProvider) -> None:
    server.respond({"data": []})
    await provider.ping()
    server.respond("not here", 404)
    await provider.ping()
    for status in (401, 500, 503):
        server.respond("", status)
        with pytest.raises(ProviderFailed):
            await provider.ping()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20", 20.0),
        ("0.5", 0.5),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}, 1_700_000_000.0) == seconds
