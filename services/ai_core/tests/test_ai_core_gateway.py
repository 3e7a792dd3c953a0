"""The gateway ``/v1`` in front of a chain that the tests hold in their hands, asked by OpenAI's own client."""

import asyncio
import base64
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import openai
import pytest
import uvicorn

from ai_core.inbound import openai_api, openai_wire
from ai_core.model import ModelNotOffered, RequestRefused, TooLong
from ai_core.ports import ProviderFailed
from ai_core.query import Chunk, Completion, Link, Query, Usage
from ai_core.usecases.embeddings import Embedded
from ai_core.usecases.streams import Recording, Stream
from resilience import Degradation, Served
from service_kit.context import bearer_token, report
from service_kit.errors import DependencyUnavailable
from service_kit.http import create_app
from service_kit.runtime import Phase, ServiceRuntime
from service_kit.settings import ServiceSettings
from service_kit.tokens import TokenIssuer, TokenVerifier

SECRET = "kJ8#vQ2!mZ5^xR7&tB4*wN9(pL3)cH6%"
LINKS = [Link("openai", "gpt-4"), Link("openai", "gpt-3.5-turbo"), Link("anthropic", "claude-sonnet-5-5")]
FALLBACK = Degradation("ai_core.providers", "openai:gpt-3.5-turbo", "open", 12.0)
ASKED: Any = [{"role": "user", "content": "Hi"}]


def completion(**labels: Any) -> Completion:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4-0613",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "odd": {"kept": True},
    }
    return Completion(body, "openai", "gpt-4-0613", Usage(3, 2), **labels)


def chunk(delta: dict[str, Any], finish: str = "", usage: Usage | None = None) -> Chunk:
    choices: list[Any] = [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish or None}]
    counted = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} if usage else None
    data = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4-0613",
        "choices": choices,
        "usage": counted,
    }
    text = str(delta.get("content", ""))
    return Chunk(json.dumps(data).encode(), text, commits=bool(text), finish_reason=finish, usage=usage)


class Tape(Recording):
    """A stream that goes on when the test says so."""

    def say(self, *batch: Chunk) -> None:
        self._add(batch)

    def end(self, error: Exception | None = None, cost: float | None = None) -> None:
        self.error, self.ended, self.cost = error, True, cost
        self._wake()


class FakeChain:
    """Answers what the test puts in, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Query] = []
        self.degradations: tuple[Degradation, ...] = ()
        self.answer = completion()
        self.failure: Exception | None = None
        self.tape = Tape()
        self.as_of: float | None = None

    def links(self) -> Sequence[Link]:
        return LINKS

    async def complete(self, asked: Query) -> Served[Completion]:
        self._asked(asked)
        return Served(self.answer, self.degradations, self.answer.as_of)

    async def stream(self, asked: Query) -> Served[Stream]:
        self._asked(asked)
        found = Stream(self.tape, provider="openai", model="gpt-4-0613", retry_after=lambda: 7.0, as_of=self.as_of)
        return Served(found, self.degradations)

    def _asked(self, asked: Query) -> None:
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure


class FakeEmbeddings:
    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[str], str]] = []
        self.model = "openai:text-embedding-3-small"
        self.models = [SimpleNamespace(name="local:MiniLM"), SimpleNamespace(name="openai:text-embedding-3-small")]

    async def of_texts(self, texts: Sequence[str], model: str = "") -> Served[Embedded]:
        self.asked.append((texts, model))
        return Served(Embedded([[0.6, 0.8, 0.0] for _ in texts], self.model, 4, simulated=True))


class Door:
    """As ``Outcome``, without the policies."""

    def caller(self) -> str:
        return TokenVerifier(SECRET).verify(bearer_token()).user_id

    async def of(self, work: Any) -> Any:
        return report(await work)


class Gateway:
    """The running gateway and a client of it."""

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.base = base
        self.session = session
        self.token = TokenIssuer(SECRET).issue("alice", "session")
        self.chain = FakeChain()
        self.embeddings = FakeEmbeddings()

    def client(self, token: str = "") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key=token or self.token, max_retries=0)

    async def raw(self, path: str, body: Any, **headers: str) -> tuple[int, Any, bytes]:
        given = {"authorization": f"Bearer {self.token}", "content-type": "application/json", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.base + path, data=data, headers=given) as response:
            return response.status, response.headers, await response.read()

    async def chat(self, **fields: Any) -> tuple[int, Any, bytes]:
        headers = fields.pop("headers", {})
        return await self.raw("/v1/chat/completions", {"model": "auto", "messages": ASKED, **fields}, **headers)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    settings: dict[str, Any] = {"jwt_secret": SECRET, "admin_token": "q7Hf-93kd-Pz12-vvXe-admn", "_env_file": None}
    runtime = ServiceRuntime("ai-core", ServiceSettings(**settings, access_log="off", max_body=100_000))
    runtime.phase = Phase.READY
    listener = socket.create_server(("127.0.0.1", 0))
    async with aiohttp.ClientSession() as session:
        found = Gateway(f"http://127.0.0.1:{listener.getsockname()[1]}", session)
        chain, embeddings, door = found.chain, found.embeddings, Door()
        router = openai_api.create_router(chain, embeddings, door)  # type: ignore[arg-type]
        shapes = {"/v1/": openai_wire.error_response}
        app = create_app(runtime, routers=[router], title="AI Core", error_shapes=shapes)
        config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        yield found
    for one in server.servers:
        one.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await runtime.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.005)


# --- whole answers


async def test_an_answer_is_the_providers_and_says_who_gave_it(gateway: Gateway) -> None:
    gateway.chain.answer = completion(cost=0.00012, simulated=True)
    client = gateway.client()
    raw = await client.chat.completions.with_raw_response.create(
        model="gpt-4", messages=ASKED, temperature=0.1, n=2, extra_body={"odd": [1]}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello."
    assert answer.usage
    assert answer.usage.total_tokens == 5
    extra = answer.model_extra or {}
    assert extra["odd"] == {"kept": True}
    assert extra["auralink"] == {
        "provider": "openai",
        "model": "gpt-4-0613",
        "cached": False,
        "as_of": None,
        "fallback_from": None,
        "simulated": True,
        "cost": 0.00012,
    }
    assert not {"x-degraded-mode", "x-fallback-used", "age", "cache-status"} & {name.lower() for name in raw.headers}
    asked = gateway.chain.asked[0]
    assert (asked.tenant, asked.prefer, asked.fresh_seconds, asked.keep) == ("alice", "gpt-4", 0.0, True)
    assert asked.parameters == {"temperature": 0.1, "n": 2, "odd": [1]}
    assert list(asked.messages) == ASKED


@pytest.mark.parametrize(
    ("model", "prefer"), [("auto", ""), ("openai:gpt-3.5-turbo", "openai:gpt-3.5-turbo"), ("gpt-4", "gpt-4")]
)
async def test_models_are_asked_for_by_three_kinds_of_names(gateway: Gateway, model: str, prefer: str) -> None:
    assert (await gateway.chat(model=model))[0] == 200
    assert gateway.chain.asked[0].prefer == prefer


async def test_a_kept_answer_of_an_outage_has_its_age(gateway: Gateway) -> None:
    gateway.chain.answer = completion(as_of=time.time() - 90.5, fallback_from="openai:gpt-4")
    gateway.chain.degradations = (Degradation("ai_core.providers", "response-cache", "open", 3.0),)
    status, headers, body = await gateway.chat()
    about = json.loads(body)["auralink"]
    assert (status, about["cached"], about["fallback_from"]) == (200, True, "openai:gpt-4")
    assert (headers["age"], headers["cache-status"]) == ("90", "ai-core; hit")
    assert (headers["x-degraded-mode"], headers["x-fallback-used"]) == ("true", "response-cache")
    assert (headers["x-circuit-state"], headers["x-retry-after"]) == ("open", "3")


@pytest.mark.parametrize(
    ("sent", "seconds", "keep"),
    [
        ("max-age=60", 60.0, True),
        ("no-store, max-age=5", 5.0, False),
        ("no-cache", 0.0, True),
        ("max-age=-1", 0.0, True),
        ("s-max-age=9", 0.0, True),
        ("max-age=99999999999999999999", 0.0, True),
    ],
)
async def test_a_fresh_kept_answer_only_for_who_asks_for_it(
    gateway: Gateway, sent: str, seconds: float, keep: bool
) -> None:
    await gateway.chat(headers={"cache-control": sent})
    asked = gateway.chain.asked[0]
    assert (asked.fresh_seconds, asked.keep) == (seconds, keep)


# --- errors


async def test_an_unknown_model_is_the_sdks_not_found(gateway: Gateway) -> None:
    gateway.chain.failure = ModelNotOffered()
    with pytest.raises(openai.NotFoundError) as caught:
        await gateway.client().chat.completions.create(model="gpt-9", messages=ASKED)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RequestRefused("The provider's policy does not allow this."), "validation_error"),
        (TooLong("This is too long."), "context_length_exceeded"),
    ],
)
async def test_what_the_provider_refuses_is_a_bad_request(gateway: Gateway, failure: Exception, code: str) -> None:
    gateway.chain.failure = failure
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.client().chat.completions.create(model="auto", messages=ASKED)
    assert caught.value.code == code
    assert str(failure) in caught.value.message


async def test_without_providers_the_sdk_is_told_when_to_come_back(gateway: Gateway) -> None:
    gateway.chain.failure = DependencyUnavailable("All AI providers unavailable", retry_after=11.2)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await gateway.client().chat.completions.create(model="auto", messages=ASKED, stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "12"
        body: Any = caught.value.body
        assert (body["message"], body["type"]) == ("All AI providers unavailable", "server_error")


async def test_a_wrong_key_is_the_sdks_authentication_error(gateway: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await gateway.client("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert gateway.chain.asked == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'"x"', None),
        (b"\xff", None),
        (b"", None),
        ({}, "model"),
        ({"model": 1, "messages": ASKED}, "model"),
        ({"model": "x" * 201, "messages": ASKED}, "model"),
        ({"model": "auto"}, "messages"),
        ({"model": "auto", "messages": []}, "messages"),
        ({"model": "auto", "messages": [1]}, "messages[0]"),
        ({"model": "auto", "messages": [{"content": "x"}]}, "messages[0]"),
        ({"model": "auto", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"model": "auto", "messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"model": "auto", "messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"model": "auto", "messages": ASKED, "stream": "yes"}, "stream"),
        ({"model": "auto", "messages": ASKED, "stream_options": []}, "stream_options"),
        ({"model": "auto", "messages": ASKED, "temperature": "hot"}, "temperature"),
        ({"model": "auto", "messages": ASKED, "max_tokens": True}, "max_tokens"),
        ({"model": "auto", "messages": ASKED, "tools": [1]}, "tools"),
        ({"model": "auto", "messages": [{"role": "user", "content": "a\u0000b"}]}, "body"),
    ],
)
async def test_bad_input_is_400_in_openais_shape(gateway: Gateway, body: Any, param: str | None) -> None:
    status, headers, answer = await gateway.raw("/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert gateway.chain.asked == []


async def test_nesting_that_could_not_be_written_again_is_refused(gateway: Gateway) -> None:
    deep = b'{"model":"auto","messages":[{"role":"user","content":"x"}],"metadata":{"a":' + b"[" * 300 + b"]" * 300
    status, _, answer = await gateway.raw("/v1/chat/completions", deep + b"}}")
    assert (status, "nested" in json.loads(answer)["error"]["message"]) == (400, True)
    wide = {"model": "auto", "messages": ASKED * 200}
    assert (await gateway.raw("/v1/chat/completions", wide))[0] == 200


async def test_what_fails_before_the_route_has_the_shape_too(gateway: Gateway) -> None:
    assert (await gateway.raw("/v1/chat/completions", b"x" * 200_000))[0] == 413
    status, _, answer = await gateway.raw("/v1/nothing", {})
    assert (status, json.loads(answer)["error"]["type"]) == (404, "invalid_request_error")
    status, _, answer = await gateway.raw("/v1/models", {})
    assert (status, json.loads(answer)["error"]["code"]) == (405, "validation_error")


# --- streams


async def test_a_stream_is_the_providers_chunks_and_ends_when_it_is_whole(gateway: Gateway) -> None:
    tape = gateway.chain.tape
    gateway.chain.degradations = (FALLBACK,)
    tape.say(chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}))
    client = gateway.client()
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=ASKED, stream=True)
    assert raw.headers["x-fallback-used"] == "openai:gpt-3.5-turbo"
    assert raw.headers["content-type"].startswith("text/event-stream")
    stream = raw.parse()
    first = await anext(stream)
    assert (first.model_extra or {})["auralink"]["provider"] == "openai"
    assert (await anext(stream)).choices[0].delta.content == "Hel"
    tape.say(chunk({"content": "lo."}), chunk({}, "stop"))
    tape.say(chunk({}, usage=Usage(3, 2)))
    tape.end(cost=0.5)
    rest = [one async for one in stream]
    assert [one.choices[0].delta.content for one in rest] == ["lo.", None]
    assert all("auralink" not in (one.model_extra or {}) for one in rest)
    await until(lambda: tape.readers == 0)


async def test_the_usage_is_for_who_asked_for_it_and_the_price_with_it(gateway: Gateway) -> None:
    tape = gateway.chain.tape
    tape.say(chunk({"content": "Hi."}), chunk({}, "stop"), chunk({}, usage=Usage(3, 2)))
    tape.end(cost=0.25)
    options: Any = {"include_usage": True}
    stream = await gateway.client().chat.completions.create(
        model="auto", messages=ASKED, stream=True, stream_options=options
    )
    found = [one async for one in stream]
    assert len(found) == 3
    assert found[-1].usage
    assert found[-1].usage.total_tokens == 5
    assert (found[-1].model_extra or {})["auralink"] == {"cost": 0.25}
    assert gateway.chain.asked[0].parameters == {}


async def test_the_chunks_of_one_read_are_one_write_and_the_end_is_said(gateway: Gateway) -> None:
    gateway.chain.tape.say(chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop"))
    gateway.chain.tape.end()
    given = {"authorization": f"Bearer {gateway.token}", "content-type": "application/json"}
    body = json.dumps({"model": "auto", "messages": ASKED, "stream": True})
    async with gateway.session.post(gateway.base + "/v1/chat/completions", data=body, headers=given) as response:
        writes = [data async for data, whole in response.content.iter_chunks() if whole]
    assert [write.count(b"data: ") for write in writes] == [3, 1]
    assert writes[-1] == b"data: [DONE]\n\n"


async def test_a_stream_that_breaks_off_is_no_clean_end(gateway: Gateway) -> None:
    tape = gateway.chain.tape
    tape.say(chunk({"content": "Hel"}))
    tape.say(chunk({"content": "lo"}))
    tape.end(ProviderFailed("cut"))
    stream = await gateway.client().chat.completions.create(model="auto", messages=ASKED, stream=True)
    chunks = aiter(stream)
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["Hel", "lo"]
    with pytest.raises(openai.APIError) as caught:
        await anext(chunks)
    error: Any = caught.value.body
    assert (error["code"], error["sent_characters"], error["retry_after"]) == ("stream_broken", 5, 7.0)
    _, _, body = await gateway.chat(stream=True)
    assert b"[DONE]" not in body
    assert "cut" not in body.decode()


async def test_a_client_that_leaves_leaves_the_provider_too(gateway: Gateway) -> None:
    tape = gateway.chain.tape
    tape.say(chunk({"content": "Hel"}))
    stream = await gateway.client().chat.completions.create(model="auto", messages=ASKED, stream=True)
    await anext(aiter(stream))
    assert tape.readers == 1
    await stream.close()
    await until(lambda: tape.readers == 0)


# --- embeddings and models


async def test_embeddings_as_the_sdk_asks_for_them(gateway: Gateway) -> None:
    made = await gateway.client().embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert [one.index for one in made.data] == [0, 1]
    assert made.data[1].embedding == pytest.approx([0.6, 0.8, 0.0])
    assert (made.usage.prompt_tokens, made.model) == (4, "text-embedding-3-small")
    assert gateway.embeddings.asked == [(["a", "b"], "text-embedding-3-small")]


async def test_embeddings_in_both_forms_and_cut(gateway: Gateway) -> None:
    path, asked = "/v1/embeddings", {"model": "auto", "input": "a"}
    _, _, plain = await gateway.raw(path, asked)
    assert json.loads(plain)["data"][0]["embedding"] == [0.6, 0.8, 0.0]
    about = {"provider": "openai", "model": "text-embedding-3-small", "simulated": True}
    assert json.loads(plain)["auralink"] == about
    _, _, packed = await gateway.raw(path, {**asked, "encoding_format": "base64"})
    numbers = struct.unpack("<3f", base64.b64decode(json.loads(packed)["data"][0]["embedding"]))
    assert numbers == pytest.approx((0.6, 0.8, 0.0))
    _, _, cut = await gateway.raw(path, {**asked, "dimensions": 1})
    assert json.loads(cut)["data"][0]["embedding"] == [1.0]
    gateway.embeddings.model = "local:MiniLM"
    assert (await gateway.raw(path, {**asked, "dimensions": 1}))[0] == 400
    assert (await gateway.raw(path, {**asked, "dimensions": 3}))[0] == 200
    assert gateway.embeddings.asked[0] == (["a"], "")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "auto"}, "input"),
        ({"model": "auto", "input": []}, "input"),
        ({"model": "auto", "input": [""]}, "input"),
        ({"model": "auto", "input": [1, 2]}, "input"),
        ({"model": "auto", "input": ["x"] * 257}, "input"),
        ({"model": "auto", "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"model": "auto", "input": "x", "dimensions": "3"}, "dimensions"),
        ({"input": "x"}, "model"),
    ],
)
async def test_bad_requests_for_embeddings(gateway: Gateway, body: Any, param: str) -> None:
    status, _, answer = await gateway.raw("/v1/embeddings", body)
    assert (status, json.loads(answer)["error"]["param"]) == (400, param)
    assert gateway.embeddings.asked == []


async def test_the_models_are_the_chains(gateway: Gateway) -> None:
    client = gateway.client()
    listed = (await client.models.list()).data
    chat, embed = ["gpt-4", "gpt-3.5-turbo", "claude-sonnet-5-5"], ["local", "text-embedding-3-small"]
    assert [one.id for one in listed] == ["auto", *chat, *embed]
    for name, owner in (
        ("auto", "auralink"),
        ("gpt-4", "openai"),
        ("anthropic:claude-sonnet-5-5", "anthropic"),
        ("text-embedding-3-small", "openai"),
    ):
        found = await client.models.retrieve(name)
        assert (found.id, found.owned_by) == (name, owner)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")
