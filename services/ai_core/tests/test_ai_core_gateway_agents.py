"""An agent's answer as it comes, through both doors, from a chat that the test holds in its hands."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import grpc
import pytest
import uvicorn

from ai_core.inbound import http
from ai_core.inbound.grpc import AgentService
from ai_core.model import AgentUnknown, Reply
from ai_core.usecases.streams import StreamBroken
from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from resilience import Degradation, Served
from resilience.deadline import current_deadline
from service_kit.context import bearer_token, report
from service_kit.errors import NotFound
from service_kit.http import create_app
from service_kit.provenance import from_metadata
from service_kit.rpc_client import channel
from service_kit.rpc_server import create_server
from service_kit.runtime import Phase, ServiceRuntime
from service_kit.settings import ServiceSettings
from service_kit.tokens import TokenIssuer, TokenVerifier

SECRET = "kJ8#vQ2!mZ5^xR7&tB4*wN9(pL3)cH6%"
FALLBACK = Degradation("ai_core.providers", "openai:gpt-3.5-turbo", "open", 12.0)
UNSAVED = Degradation("ai_core.postgres", "unsaved-history", "open", 4.0)
CONVERSATION = "0b5b3f06-6f5c-4e0e-8f0a-6d5b8f4f6c11"
PATH = "/api/v1/agents/a-1/chat"
OPENING = 1.7


class FakeReply:
    """See ``ReplyStream``: says what the test gives it."""

    def __init__(self, *pieces: str, error: Exception | None = None, forever: bool = False) -> None:
        self.reply = Reply("", "openai", "gpt-3.5-turbo", CONVERSATION, True, fallback_from="openai:gpt-4")
        self.degradations: tuple[Degradation, ...] = ()
        self.left = False
        self._pieces = pieces
        self._error = error
        self._forever = forever

    async def __aenter__(self) -> "FakeReply":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def __aiter__(self) -> AsyncIterator[str]:
        for piece in self._pieces:
            yield piece
        if self._forever:
            await asyncio.sleep(60)
        if self._error is not None:
            raise self._error
        counted: Any = {"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.25, "finish_reason": "stop"}
        labels: Any = {"fallback_from": "openai:gpt-4", "as_of": 1_700_000_000.0}
        self.reply = Reply("", "openai", "gpt-3.5-turbo", CONVERSATION, True, **labels, **counted)
        self.degradations = (UNSAVED,)


class FakeChat:
    def __init__(self) -> None:
        self.answer = FakeReply("Hel", "lo.")
        self.asked: list[tuple[str, ...]] = []
        self.time = 0.0

    async def stream(self, *asked: str) -> Served[FakeReply]:
        self.asked.append(asked)
        deadline = current_deadline()
        self.time = deadline.remaining() if deadline else 0.0
        if asked[1] == "unknown":
            raise AgentUnknown
        return Served(self.answer, (FALLBACK,))


class Door:
    """As ``Outcome``, without the policies."""

    def caller(self) -> str:
        return TokenVerifier(SECRET).verify(bearer_token()).user_id

    async def of(self, work: Any) -> Any:
        try:
            return report(await work)
        except AgentUnknown:
            raise NotFound("There is no such agent.") from None


class World(SimpleNamespace):
    chat: FakeChat
    base: str
    session: aiohttp.ClientSession
    stub: Any

    @property
    def bearer(self) -> str:
        return f"Bearer {TokenIssuer(SECRET).issue('alice', 'session')}"

    def ask(self, path: str = PATH) -> Any:
        headers = {"authorization": self.bearer, "accept": "text/event-stream"}
        return self.session.post(self.base + path, json={"message": "Hi"}, headers=headers)

    def call(self, agent: str = "a-1", timeout: float = 20.0) -> Any:
        request = ai_pb2.ChatStreamRequest(agent_id=agent, message="Hi", conversation_id=CONVERSATION)
        return self.stub.ChatStream(request, metadata=(("authorization", self.bearer),), timeout=timeout)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    settings: dict[str, Any] = {"jwt_secret": SECRET, "admin_token": "q7Hf-93kd-Pz12-vvXe-admn", "_env_file": None}
    runtime = ServiceRuntime("ai-core", ServiceSettings(**settings, access_log="off"))
    runtime.phase = Phase.READY
    chat: Any = FakeChat()
    door: Any = Door()
    nobody: Any = None
    service = AgentService(nobody, chat, nobody, door, opening_limit=OPENING)
    server = create_server(runtime, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(service, server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    app = create_app(runtime, routers=[http.create_router(nobody, chat, door)], title="AI Core")
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
    config.load()
    web = uvicorn.Server(config)
    web.lifespan = config.lifespan_class(config)
    await web.startup([listener])
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with aiohttp.ClientSession() as session, channel(f"127.0.0.1:{port}") as line:
        yield World(chat=chat, base=base, session=session, stub=ai_pb2_grpc.AgentServiceStub(line))
    for one in web.servers:
        one.close()
    for connection in list(web.server_state.connections):
        connection.shutdown()
    await server.stop(0)
    await runtime.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.005)


def read_events(raw: bytes) -> list[tuple[str, Any]]:
    lines = [block.split(b"\n") for block in raw.split(b"\n\n")[:-1]]
    return [(kind.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: "))) for kind, data in lines]


# --- HTTP


async def test_events_say_who_answers_what_and_at_what_price(world: World) -> None:
    async with world.ask() as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert response.headers["x-fallback-used"] == "openai:gpt-3.5-turbo"
        events = read_events(await response.read())
    assert [kind for kind, _ in events] == ["start", "delta", "delta", "end"]
    who = {"provider": "openai", "model": "gpt-3.5-turbo", "fallback_from": "openai:gpt-4", "simulated": True}
    start, end = events[0][1], events[-1][1]
    assert start == {**who, "conversation_id": CONVERSATION, "cached": False, "as_of": None}
    assert [data["text"] for kind, data in events if kind == "delta"] == ["Hel", "lo."]
    assert end == {
        **who,
        "conversation_id": CONVERSATION,
        "cached": True,
        "as_of": "2023-11-14T22:13:20.000Z",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.25},
        "finish_reason": "stop",
        "degraded": True,
        "fallbacks": ["openai:gpt-3.5-turbo", "unsaved-history"],
    }
    assert world.chat.asked == [("alice", "a-1", "Hi", "")]
    assert world.chat.answer.left


async def test_an_answer_that_breaks_off_ends_with_an_error(world: World) -> None:
    world.chat.answer = FakeReply("Hel", error=StreamBroken(3, 7.5))
    async with world.ask() as response:
        events = read_events(await response.read())
    assert [kind for kind, _ in events] == ["start", "delta", "error"]
    error = events[-1][1]
    assert (error["error"], error["sent_characters"], error["retry_after"]) == ("DEPENDENCY_UNAVAILABLE", 3, 7.5)
    assert world.chat.answer.left


async def test_what_fails_before_is_a_problem(world: World) -> None:
    async with world.ask("/api/v1/agents/unknown/chat") as response:
        assert (response.status, response.content_type) == (404, "application/problem+json")


async def test_a_reader_that_leaves_ends_the_answer(world: World) -> None:
    world.chat.answer = FakeReply("Hel", forever=True)
    async with world.ask() as response:
        await response.content.readuntil(b'"Hel"}\n\n')
        assert not world.chat.answer.left
        response.close()
    await until(lambda: world.chat.answer.left)


# --- gRPC


async def test_the_same_over_grpc(world: World) -> None:
    call = world.call()
    events = [one async for one in call]
    assert [one.WhichOneof("event") for one in events] == ["started", "delta", "delta", "finished"]
    started, finished = events[0].started, events[-1].finished
    assert (started.provider, started.fallback_from, started.conversation_id) == (
        "openai",
        "openai:gpt-4",
        CONVERSATION,
    )
    assert not started.HasField("usage")
    assert [one.delta for one in events[1:3]] == ["Hel", "lo."]
    assert (finished.usage.prompt_tokens, finished.usage.cost, finished.finish_reason) == (3, 0.25, "stop")
    assert finished.as_of.seconds == 1_700_000_000
    assert from_metadata(await call.initial_metadata()) == (FALLBACK,)
    assert from_metadata(await call.trailing_metadata()) == (FALLBACK, UNSAVED)
    assert world.chat.asked == [("alice", "a-1", "Hi", CONVERSATION)]
    assert 0 < world.chat.time <= OPENING, "the opening has less time than the whole stream"


async def test_broken_off_over_grpc(world: World) -> None:
    world.chat.answer = FakeReply("Hel", error=StreamBroken(3, 7.5))
    events = [one async for one in world.call()]
    assert [one.WhichOneof("event") for one in events] == ["started", "delta", "broken"]
    broken = events[-1].broken
    assert (broken.sent_characters, broken.retry_after_seconds) == (3, 7.5)
    assert broken.message


async def test_refused_over_grpc(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.call("unknown").read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_caller_that_leaves_ends_it_over_grpc(world: World) -> None:
    world.chat.answer = FakeReply("Hel", forever=True)
    call = world.call()
    assert (await call.read()).started.provider == "openai"
    call.cancel()
    await until(lambda: world.chat.answer.left)
