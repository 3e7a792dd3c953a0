"""Embeddings over the wire, from the simulated provider and from one that says anything."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from ai_core.model import RequestRefused
from ai_core.outbound.openai_embedding import OpenAIEmbedding, OpenAIEmbeddings
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed
from simulated_provider.app import App
from simulated_provider.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "text-embedding-3-small"
KEY = "sk-secret"
Answer = Callable[[web.Request], Awaitable[web.Response]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulated() -> AsyncIterator[OpenAIEmbedding]:
    server = Server(App())
    port = await server.start("127.0.0.1", 0)
    provider = OpenAIEmbeddings("openai", f"http://127.0.0.1:{port}/v1", "simulated")
    yield provider.named(MODEL)
    await provider.close()
    await server.stop()


class Scripted:
    """A provider that gives the answer it is told to give."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = {}
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[dict[str, Any], str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append((await request.json(), request.headers.get("Authorization", "")))
        body = self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)
        return web.Response(status=self.status, body=body, headers=self.headers, content_type="application/json")


@pytest_asyncio.fixture(loop_scope="module")
async def scripted() -> AsyncIterator[tuple[Scripted, OpenAIEmbeddings]]:
    script = Scripted()
    app = web.Application()
    app.router.add_post("/v1/embeddings", script.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    provider = OpenAIEmbeddings("openai", f"http://127.0.0.1:{port}/v1", KEY)
    yield script, provider
    await provider.close()
    await runner.cleanup()


async def test_the_simulated_provider_embeds(simulated: OpenAIEmbedding) -> None:
    made = await simulated.embed(["red apples", "green pears", "red apples"])
    assert (made.model, made.simulated) == ("openai:text-embedding-3-small", True)
    assert simulated.dimensions == 1536
    first, other, same = made.values
    assert first == same != other
    assert [math.hypot(*vector) for vector in made.values] == pytest.approx([1, 1, 1])
    await simulated.ping()


async def test_order_and_length_are_put_right(scripted: tuple[Scripted, OpenAIEmbeddings]) -> None:
    script, provider = scripted
    script.body = {
        "data": [{"index": 1, "embedding": [0, 3.0]}, {"index": 0, "embedding": [4, 3]}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    made = await provider.named("own-model", 2).embed(["a", "b"])
    assert made.values == [[0.8, 0.6], [0.0, 1.0]]
    assert (made.tokens, made.model, made.simulated) == (7, "openai:own-model@2", False)
    body, authorization = script.seen[-1]
    assert body == {"model": "own-model", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}
    assert authorization == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>nothing here</html>",
        b"",
        b"[1, 2]",
        {},
        {"data": []},
        {"data": "x"},
        {"data": [{"index": 0, "embedding": [1.0, 0.0]}, {"index": 1, "embedding": [1.0, 0.0]}]},
        {"data": [{"index": 3, "embedding": [1.0, 0.0]}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": [0.0, 0.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": ["1.0", 0.0]}]},
        {"data": [{"index": 0, "embedding": [None, 0.0]}]},
        {"data": [{"index": 0, "embedding": "AAAA"}]},
        {"data": [{"index": 0}]},
        {"data": [[1.0]]},
        {"error": {"message": "overloaded", "type": "server_error"}},
    ],
)
async def test_an_answer_of_200_without_vectors_is_a_failure(
    scripted: tuple[Scripted, OpenAIEmbeddings], body: Any
) -> None:
    script, provider = scripted
    script.body = body
    with pytest.raises(ProviderFailed) as raised:
        await provider.named("own-model", 2).embed(["a"])
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (500, {}, ProviderFailed),
        (503, {"message": "x"}, ProviderFailed),
        (401, {"code": "invalid_api_key", "message": f"wrong key {KEY}"}, ProviderFailed),
        (429, {"code": "insufficient_quota"}, ProviderFailed),
        (429, {"code": "rate_limit_exceeded"}, ProviderBusy),
        (404, {"code": "model_not_found"}, ModelUnknown),
        (400, {"code": "invalid_request_error"}, RequestRefused),
        (400, {"code": "context_length_exceeded"}, RequestRefused),
        (302, {}, ProviderFailed),
    ],
)
async def test_refusals_are_sorted(
    scripted: tuple[Scripted, OpenAIEmbeddings], status: int, error: dict[str, str], kind: type[Exception]
) -> None:
    script, provider = scripted
    script.status, script.body = status, {"error": error}
    script.headers = {"Retry-After": "7", "Location": "http://127.0.0.1:9/"}
    with pytest.raises(kind) as raised:
        await provider.named(MODEL).embed(["a"])
    assert KEY not in str(raised.value)
    if isinstance(raised.value, ProviderBusy):
        assert raised.value.retry_after == 7
    assert len(script.seen) == 1, "nothing retries"


async def test_nobody_there() -> None:
    provider = OpenAIEmbeddings("openai", "http://127.0.0.1:9/v1", "", connect_limit=0.5)
    with pytest.raises(ProviderFailed):
        await provider.named(MODEL).embed(["a"])
    await provider.close()


async def test_a_text_that_is_no_text_is_refused(scripted: tuple[Scripted, OpenAIEmbeddings]) -> None:
    _, provider = scripted
    with pytest.raises(RequestRefused):
        await provider.named(MODEL).embed(["half a \ud83d pair"])
