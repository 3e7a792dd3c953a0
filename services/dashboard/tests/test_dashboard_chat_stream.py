"""An agent's answer as a browser gets it, whole and as it comes, from an AI Core that the test holds in its hands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
import uvicorn

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from dashboard.degradation import AI_CORE
from dashboard.inbound.http import agents as routes
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound import ai_core, ai_stream
from dashboard.outbound.ai_core import GrpcAiCore
from dashboard.usecases.assistant import Agents
from resilience import Bulkhead, BulkheadFull, CircuitBreaker, Degradation, RowPolicy, Served
from service_kit import context
from service_kit.errors import DependencyUnavailable, NotFound
from service_kit.http import create_app
from service_kit.rpc_client import channel, is_dependency_failure
from service_kit.rpc_server import create_server
from service_kit.runtime import Phase, ServiceRuntime
from service_kit.settings import ServiceSettings
from service_kit.tokens import TokenIssuer, TokenVerifier

SECRET = "a-secret-of-more-than-thirty-two-bytes"
PLACES = 2
REQUEST_SECONDS = 0.3
"""What a request may usually take."""
CALL_SECONDS = 1.0
"""What AI Core may take for an answer."""
PATH = "/api/v1/agents/a-1/chat"
FALLBACK = Degradation("ai_core.providers", "openai:gpt-3.5-turbo", "open", 12.0)
UNSAVED = Degradation("ai_core.postgres", "unsaved-history", "open", 4.0)
CONVERSATION = "0b5b3f06-6f5c-4e0e-8f0a-6d5b8f4f6c11"


def told(**more: Any) -> Any:
    return ai_pb2.ChatResponse(
        provider="openai",
        model="gpt-3.5-turbo",
        fallback_from="openai:gpt-4",
        conversation_id=CONVERSATION,
        simulated=True,
        **more,
    )


class AiCore(ai_pb2_grpc.AgentServiceServicer):
    """Answers as the message asks."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.users: list[str] = []

    async def Chat(self, request: Any, _context: Any) -> Any:
        try:
            await asyncio.sleep({"slow": 2 * REQUEST_SECONDS, "silent": 60}.get(request.message, 0))
        finally:
            self.ended.append(request.message)
        usage = ai_pb2.Usage(prompt_tokens=3, completion_tokens=2, cost=0.25)
        return told(reply="Hello.", usage=usage, finish_reason="stop")

    async def ChatStream(self, request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        state = context.current()
        self.users.append(TokenVerifier(SECRET).verify(state.bearer if state else "").user_id)
        try:
            async for one in self._answer(request.message):
                yield one
        finally:
            self.ended.append(request.message)

    async def _answer(self, kind: str) -> AsyncIterator[Any]:
        if kind == "unknown":
            raise NotFound("There is no such agent.")
        if kind == "gone":
            raise DependencyUnavailable("All AI providers unavailable", row="ai_core.providers", retry_after=9.0)
        if kind == "silent":
            await asyncio.sleep(60)
        context.degrade(FALLBACK)
        yield ai_pb2.ChatStreamResponse(started=told())
        yield ai_pb2.ChatStreamResponse(delta="Hel")
        if kind == "stall":
            await asyncio.sleep(60)
        if kind == "broken":
            broken = ai_pb2.ChatBroken(message="It broke off.", sent_characters=3, retry_after_seconds=2.5)
            yield ai_pb2.ChatStreamResponse(broken=broken)
            return
        if kind == "defect":
            raise RuntimeError("postgresql://user:hunter2@db")
        if kind == "unfinished":
            return
        yield ai_pb2.ChatStreamResponse(delta="lo.")
        context.degrade(UNSAVED)
        usage = ai_pb2.Usage(prompt_tokens=3, completion_tokens=2)
        yield ai_pb2.ChatStreamResponse(finished=told(usage=usage, finish_reason="stop"))


class OpenSessions:
    async def check(self, *_: object) -> Served[None]:
        return Served(None)


class World:
    """A browser, the Dashboard's routes of agents, and AI Core behind them."""

    def __init__(self, ai_core: AiCore, server: grpc.aio.Server, policy: RowPolicy, places: Bulkhead) -> None:
        self.ai_core = ai_core
        self.server = server
        self.policy = policy
        self.places = places
        self.base = ""
        self.line: grpc.aio.Channel
        self.session: aiohttp.ClientSession

    def ask(self, message: str, *, accept: str = "text/event-stream") -> Any:
        token = TokenIssuer(SECRET).issue("alice", "session")
        headers = {"authorization": f"Bearer {token}", "accept": accept}
        return self.session.post(self.base + PATH, json={"message": message}, headers=headers)

    async def events(self, message: str) -> tuple[Any, list[tuple[str, Any]]]:
        async with self.ask(message) as response:
            return response, read_events(await response.read())


def read_events(raw: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in raw.split(b"\n\n")[:-1]:
        kind, data = block.split(b"\n")
        found.append((kind.removeprefix(b"event: ").decode(), orjson.loads(data.removeprefix(b"data: "))))
    return found


def runtime(name: str) -> ServiceRuntime:
    settings: dict[str, Any] = {"jwt_secret": SECRET, "admin_token": "q7Hf-93kd-Pz12-vvXe-admn", "_env_file": None}
    made = ServiceRuntime(name, ServiceSettings(**settings, access_log="off", request_timeout=REQUEST_SECONDS))
    made.phase = Phase.READY
    return made


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    for one in server.servers:
        one.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    theirs, ours = runtime("ai-core"), runtime("dashboard")
    service = AiCore()  # type: ignore[abstract] # only what the tests call
    server = create_server(theirs, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(service, server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    breaker = CircuitBreaker(
        AI_CORE.id, failure_threshold=2, success_threshold=1, classify=is_dependency_failure, recovery_timeout=60
    )
    policy = RowPolicy(AI_CORE, breaker=breaker, timeout=CALL_SECONDS)
    ours.policies[AI_CORE.id] = policy
    places = Bulkhead(AI_CORE.id, PLACES, 0)
    nobody: Any = None
    async with channel(f"127.0.0.1:{port}") as line, aiohttp.ClientSession() as session:
        agents = Agents(GrpcAiCore(line, patience=CALL_SECONDS), policy, nobody, nobody, places=places)
        sessions: Any = OpenSessions()
        outcome = Outcome(TokenVerifier(SECRET), sessions, ours.policies, policy, lambda _: False)
        router = routes.create_router(agents, outcome, Doorman(outcome, "admin"), chat_limit=1.5)
        found = World(service, server, policy, places)
        found.session, found.line = session, line
        async with serving(create_app(ours, routers=[router], title="Dashboard")) as found.base:
            yield found
    await server.stop(0)
    await ours.close()
    await theirs.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.005)


async def test_an_answer_comes_in_pieces_with_who_gives_it_first_and_what_it_cost_last(world: World) -> None:
    response, events = await world.events("hello")
    assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert response.headers["x-fallback-used"] == "openai:gpt-3.5-turbo"
    assert response.headers["x-degraded-mode"] == "true"
    who = {
        "provider": "openai",
        "model": "gpt-3.5-turbo",
        "cached": False,
        "fallback_from": "openai:gpt-4",
        "conversation_id": CONVERSATION,
        "simulated": True,
        "as_of": None,
    }
    assert events == [
        ("start", who),
        ("delta", {"text": "Hel"}),
        ("delta", {"text": "lo."}),
        (
            "end",
            {
                **who,
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cost": None},
                "finish_reason": "stop",
                "degraded": True,
                "fallbacks": ["openai:gpt-3.5-turbo", "unsaved-history"],
            },
        ),
    ]
    assert world.ai_core.users == ["alice"]
    assert world.places.active == 0


async def test_the_same_whole(world: World) -> None:
    async with world.ask("hello", accept="application/json") as response:
        body = await response.json()
    assert response.status == 200
    assert (body["reply"], body["finish_reason"], body["as_of"]) == ("Hello.", "stop", None)
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.25}


@pytest.mark.parametrize(("message", "status"), [("unknown", 404), ("gone", 503)])
async def test_what_fails_before_it_began_is_a_problem_as_ever(world: World, message: str, status: int) -> None:
    async with world.ask(message) as response:
        assert (response.status, response.content_type) == (status, "application/problem+json")
        body = await response.json()
    if status == 503:
        assert response.headers["retry-after"] == "9"
        assert body["message"] == "All AI providers unavailable"
    assert world.places.active == 0


@pytest.mark.parametrize(
    ("message", "text", "seconds"),
    [
        ("broken", "It broke off.", 2.5),
        ("defect", None, AI_CORE.probe_interval),
        ("unfinished", AI_CORE.user_text, AI_CORE.probe_interval),
    ],
)
async def test_what_breaks_off_ends_with_an_error_and_what_was_sent(
    world: World, message: str, text: str | None, seconds: float
) -> None:
    response, events = await world.events(message)
    assert response.status == 200
    assert [kind for kind, _ in events] == ["start", "delta", "error"]
    error = events[-1][1]
    assert (error["error"], error["sent_characters"], error["retry_after"]) == (
        "DEPENDENCY_UNAVAILABLE",
        3,
        seconds,
    )
    assert error["request_id"] == response.headers["x-request-id"]
    assert text is None or error["message"] == text
    assert "hunter2" not in str(error)
    assert world.places.active == 0


async def test_an_ai_core_that_dies_in_the_middle_is_an_error_too(world: World) -> None:
    async with world.ask("stall") as response:
        await response.content.readuntil(b'"Hel"}\n\n')
        await world.server.stop(0)
        events = read_events(await response.read())
    assert [kind for kind, _ in events] == ["error"]
    assert events[0][1]["message"] == AI_CORE.user_text


async def test_one_that_falls_silent_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.outbound.ai_core.STREAM_IDLE_SECONDS", 0.2)
    _, events = await world.events("stall")
    assert [kind for kind, _ in events] == ["start", "delta", "error"]
    await until(lambda: world.ai_core.ended == ["stall"])
    assert ai_stream.STREAM_IDLE_SECONDS > 1


async def test_a_browser_that_leaves_ends_it_at_ai_core(world: World) -> None:
    async with world.ask("stall") as response:
        await response.content.readuntil(b'"Hel"}\n\n')
        assert world.places.active == 1
        response.close()
    await until(lambda: world.ai_core.ended == ["stall"])
    await until(lambda: world.places.active == 0)


async def test_one_that_never_begins_opens_the_circuit_and_is_503_then_as_well(world: World) -> None:
    for _ in range(2):
        async with world.ask("silent") as response:
            assert response.status == 503
    assert world.policy.breaker.state.value == "open"
    await until(lambda: world.ai_core.ended == ["silent", "silent"])
    async with world.ask("hello") as response:
        assert (response.status, response.headers["x-circuit-state"]) == (503, "open")
        assert int(response.headers["retry-after"]) > 1
    assert world.places.active == 0


async def test_streams_have_places_of_their_own(world: World) -> None:
    async with world.ask("stall") as one, world.ask("stall") as two:
        for response in (one, two):
            await response.content.readuntil(b'"Hel"}\n\n')
        async with world.ask("hello") as refused:
            assert (refused.status, refused.content_type) == (503, "application/problem+json")
        async with world.ask("hello", accept="application/json") as plain:
            assert plain.status == 200
        one.close()
        await until(lambda: world.places.active == 1)
        async with world.ask("hello") as again:
            assert again.status == 200
    assert world.policy.breaker.state.value == "closed"


async def test_a_whole_answer_may_take_longer_than_other_requests(world: World) -> None:
    async with world.ask("slow", accept="application/json") as response:
        assert (response.status, (await response.json())["reply"]) == (200, "Hello.")


async def test_one_that_waits_for_a_whole_answer_and_leaves_ends_it_at_ai_core(world: World) -> None:
    async def ask() -> None:
        async with world.ask("silent", accept="application/json"):
            pass

    asking = asyncio.ensure_future(ask())
    await until(lambda: world.policy.breaker.counts.started == 1)
    asking.cancel()
    await until(lambda: world.ai_core.ended == ["silent"])
    assert world.policy.status().failures == 0, "nobody has waited until it was too late"


async def test_whole_answers_have_places_of_their_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ai_core, "PATIENT", 1)
    client = GrpcAiCore(world.line, patience=CALL_SECONDS)
    context.bind(context.RequestContext("test", TokenIssuer(SECRET).issue("alice", "session")))
    slow = asyncio.ensure_future(client.chat("a-1", "slow", ""))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await client.chat("a-1", "hello", "")
    assert (await slow).value.reply == "Hello."
    assert (await client.chat("a-1", "hello", "")).value.reply == "Hello."
