"""Answers in pieces, over HTTP and gRPC: provenance, limits, and that nothing goes on once nobody reads."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from fastapi import APIRouter, Response

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from resilience.breaker import Verdict
from resilience.outcome import Degradation
from service_kit import context, errors, rpc_client
from service_kit.http import EventStream, event, json_response
from service_kit.http import event_stream as streams
from service_kit.rpc_client import Caller, is_dependency_failure
from service_kit.rpc_server import create_server
from service_kit.runtime import Phase, ServiceRuntime

STALE = Degradation("sample.store", "redis-copy", "open", 2.0)
LATE = Degradation("sample.store", "unsaved-history", "open", 3.0)


class Agents(ai_pb2_grpc.AgentServiceServicer):
    """Streams as the message asks."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def ChatStream(self, request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        context.degrade(STALE)
        try:
            async for one in self._answer(request.message):
                yield one
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        finally:
            self.ended.append(request.message)

    async def _answer(self, kind: str) -> AsyncIterator[Any]:
        if kind == "refused":
            raise errors.NotFound("There is no such agent.")
        yield ai_pb2.ChatStreamResponse(started=ai_pb2.ChatResponse(provider="openai"))
        yield ai_pb2.ChatStreamResponse(delta="Hel")
        if kind == "crash":
            raise RuntimeError("postgresql://user:hunter2@db")
        if kind == "stall":
            await asyncio.sleep(60)
        context.degrade(LATE)
        yield ai_pb2.ChatStreamResponse(delta="lo")


@pytest.fixture
async def peer(runtime: ServiceRuntime) -> AsyncIterator[Any]:
    agents = Agents()  # type: ignore[abstract] # only what the tests call
    server = create_server(runtime, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(agents, server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await runtime.enter(Phase.READY)
    async with rpc_client.channel(f"127.0.0.1:{port}") as channel:
        stub = ai_pb2_grpc.AgentServiceStub(channel)
        yield SimpleNamespace(stub=stub, agents=agents, server=server)
    await server.stop(0)


async def opened(peer: Any, message: str, *, timeout: float = 5.0, idle: float = 5.0) -> Any:
    request = ai_pb2.ChatStreamRequest(message=message)
    return await Caller().stream(peer.stub.ChatStream, request, timeout=timeout, idle=idle)


async def deltas(stream: Any) -> list[str]:
    async with stream, aclosing(stream.rest()) as rest:
        return [one.delta async for one in rest]


async def test_a_stream_brings_what_degraded_it_at_its_beginning_and_by_its_end(
    peer: Any, runtime: ServiceRuntime
) -> None:
    served = await opened(peer, "whole")
    assert served.value.first.started.provider == "openai"
    assert served.degradations == (STALE,)
    assert await deltas(served.value) == ["Hel", "lo"]
    assert served.value.degradations == (STALE, LATE)
    assert b'rpc_method="auralink.ai.v1.AgentService/ChatStream",rpc_response_status_code="OK"' in (
        runtime.metrics.render()
    )


async def test_a_stream_refused_before_it_began_is_the_peers_own_answer(peer: Any) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await opened(peer, "refused")
    assert caught.value.answered
    assert caught.value.degradations == (STALE,)


async def test_a_defect_in_the_middle_says_nothing_about_itself(peer: Any) -> None:
    stream = (await opened(peer, "crash")).value
    with pytest.raises(errors.Internal) as caught:
        await deltas(stream)
    assert "hunter2" not in str(caught.value)
    assert is_dependency_failure(caught.value) is Verdict.FAILURE


async def test_a_stream_left_early_ends_where_it_is_made(peer: Any, until: Callable[..., Any]) -> None:
    async with (await opened(peer, "stall")).value:
        assert peer.agents.ended == []
    await until(lambda: peer.agents.ended == ["cancelled", "stall"])


async def test_a_caller_that_is_cancelled_while_it_waits_ends_it_too(peer: Any, until: Callable[..., Any]) -> None:
    stream = (await opened(peer, "stall")).value
    reading = asyncio.create_task(deltas(stream))
    await asyncio.sleep(0)
    reading.cancel()
    await until(lambda: peer.agents.ended == ["cancelled", "stall"])


async def test_a_peer_that_falls_silent_has_not_answered(peer: Any, until: Callable[..., Any]) -> None:
    stream = (await opened(peer, "stall", idle=0.2)).value
    with pytest.raises(errors.DependencyUnavailable) as caught:
        await deltas(stream)
    assert not caught.value.answered
    await until(lambda: "stall" in peer.agents.ended)


async def test_the_peer_keeps_its_callers_limit(peer: Any, until: Callable[..., Any]) -> None:
    stream = (await opened(peer, "stall", timeout=0.3)).value
    with pytest.raises((errors.RequestTimeout, errors.DependencyUnavailable)):
        await deltas(stream)
    await until(lambda: "stall" in peer.agents.ended)


async def test_a_dead_peer_breaks_the_stream_off(peer: Any) -> None:
    stream = (await opened(peer, "stall")).value
    await peer.server.stop(0)
    with pytest.raises(errors.DependencyUnavailable) as caught:
        await deltas(stream)
    assert not caught.value.answered


class Source:
    """Makes events until it is left."""

    def __init__(self, *, stall: bool = False, size: int = 0) -> None:
        self.open = False
        self.cancelled = False
        self._stall = stall
        self._size = size

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Source"]:
        self.open = True
        try:
            yield self
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.open = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        yield event("start", {"n": 1})
        while self._size:
            yield b"data: " + b"x" * self._size + b"\n\n"
        if self._stall:
            await asyncio.sleep(60)
        yield event("end", {})


def routes(source: Source, *, limit: float = 60.0) -> APIRouter:
    router = APIRouter()

    @router.get("/stream")
    async def stream() -> Response:
        context.degrade(STALE)
        return EventStream(source.opened(), Source.events, limit=limit)

    return router


async def test_events_are_sent_with_what_degraded_them(serving: Callable[..., Any], runtime: ServiceRuntime) -> None:
    source = Source()
    async with serving(runtime, routes(source)) as client:
        status, headers, body = await client("GET", "/stream")
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (headers["x-fallback-used"], headers["cache-control"]) == ("redis-copy", "no-store")
    assert "content-length" not in headers
    assert body == b'event: start\ndata: {"n":1}\n\nevent: end\ndata: {}\n\n'
    assert not source.open


async def test_a_reader_that_leaves_ends_the_source_at_once(
    serving: Callable[..., Any], runtime: ServiceRuntime, until: Callable[..., Any]
) -> None:
    source = Source(stall=True)
    async with serving(runtime, routes(source)) as client:
        async with client.session.get(client.base + "/stream") as response:
            assert await response.content.readline() == b"event: start\n"
            assert source.open
            response.close()
        await until(lambda: source.cancelled)
        assert not source.open
        await until(lambda: not runtime.in_flight)


async def test_a_stream_longer_than_its_limit_ends(
    serving: Callable[..., Any], runtime: ServiceRuntime, until: Callable[..., Any]
) -> None:
    source = Source(stall=True)
    async with serving(runtime, routes(source, limit=0.2)) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client("GET", "/stream")
        await until(lambda: source.cancelled)


async def test_a_service_that_stops_waits_for_it_and_cuts_it_off_visibly_in_the_end(
    serving: Callable[..., Any], runtime: ServiceRuntime
) -> None:
    source = Source(stall=True)
    async with serving(runtime, routes(source)) as client, client.session.get(client.base + "/stream") as response:
        assert await response.content.readline() == b"event: start\n"
        (exchange,) = runtime.in_flight
        assert not exchange.open_ended
        exchange.give_up(errors.DependencyUnavailable("The service is stopping."))
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert source.cancelled


async def test_a_reader_that_takes_nothing_has_left(
    serving: Callable[..., Any],
    runtime: ServiceRuntime,
    until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.1)
    source = Source(size=1_000_000)
    async with serving(runtime, routes(source)) as client:
        _, writer = await asyncio.open_connection(*client.base.removeprefix("http://").split(":"))
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: source.cancelled)
        writer.close()


async def test_errors_under_a_path_can_have_a_shape_of_their_own(
    serving: Callable[..., Any], runtime: ServiceRuntime
) -> None:
    router = APIRouter()

    @router.get("/v1/missing")
    @router.get("/other/missing")
    async def missing() -> None:
        raise errors.NotFound("Nothing here.")

    def shape(error: errors.ServiceError) -> Response:
        return json_response({"error": {"message": error.message}}, status=418)

    json = {"content-type": "application/json"}
    async with serving(runtime, router, error_shapes={"/v1/": shape}) as client:
        assert (await client("GET", "/v1/missing"))[::2] == (418, {"error": {"message": "Nothing here."}})
        assert (await client("GET", "/v1/nowhere"))[0] == 418
        assert (await client("POST", "/v1/missing", data=b"{", headers=json))[0] == 418
        status, _, body = await client("GET", "/other/missing")
    assert (status, body["error"]) == (404, "NOT_FOUND")
