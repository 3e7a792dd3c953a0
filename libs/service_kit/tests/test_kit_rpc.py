"""gRPC over real connections: everything that travels, both ways, and what happens when it does not."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from auralink.common.v1 import status_pb2, status_pb2_grpc
from resilience.breaker import Verdict
from resilience.deadline import current_deadline, deadline_scope
from service_kit import context, errors, rpc_client
from service_kit.rpc_client import Caller, is_dependency_failure
from service_kit.rpc_server import create_server
from service_kit.runtime import Phase, ServiceRuntime

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Agents(ai_pb2_grpc.AgentServiceServicer):
    """Answers as the agent's id asks."""

    def __init__(self, runtime: ServiceRuntime, sample: Any) -> None:
        self.policy = runtime.policy(sample.ROW)
        self.seen = SimpleNamespace(request_id="", bearer="", traceparent="", deadline=None)

    async def GetAgent(self, request: Any, context_: Any) -> Any:
        state = context.current()
        assert state
        self.seen = SimpleNamespace(
            request_id=state.request_id,
            bearer=state.bearer,
            traceparent=state.traceparent,
            deadline=(found := current_deadline()) and found.remaining(),
        )
        match request.id:
            case "stale":
                context.degrade(self.policy.degradation("redis-cache"))
            case "missing":
                raise errors.NotFound("There is no such agent.")
            case "crash":
                raise RuntimeError("postgresql://user:hunter2@db")
            case "down":
                raise errors.CircuitOpen("Agents are away.", retry_after=7.5, row="ai_core.postgres")
            case "slow":
                await asyncio.sleep(30)
            case "timeout":
                await self.policy.call(lambda: asyncio.sleep(30))
        return ai_pb2.GetAgentResponse(agent=ai_pb2.Agent(id=request.id))


@pytest.fixture
async def peer(runtime: ServiceRuntime, sample: Any) -> AsyncIterator[Any]:
    agents = Agents(runtime, sample)  # type: ignore[abstract] # only what the tests call
    server = create_server(runtime, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(agents, server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await runtime.enter(Phase.READY)
    async with rpc_client.channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(
            channel=channel, get=ai_pb2_grpc.AgentServiceStub(channel).GetAgent, agents=agents, server=server, port=port
        )
    await server.stop(0)


def ask(peer: Any, agent: str, timeout: float = 1.0, row: Any = None) -> Any:
    return Caller(row).unary(peer.get, ai_pb2.GetAgentRequest(id=agent), timeout=timeout)


async def test_what_travels_with_a_call(peer: Any) -> None:
    context.bind(context.RequestContext("req-1", "tok.en", TRACE))
    with deadline_scope(0.5):
        served = await ask(peer, "a", timeout=5.0)
    assert (served.value.agent.id, served.degraded) == ("a", False)
    assert (peer.agents.seen.request_id, peer.agents.seen.bearer) == ("req-1", "tok.en")
    assert peer.agents.seen.traceparent == TRACE
    assert 0.2 < peer.agents.seen.deadline < 0.5


async def test_degradation_comes_back(peer: Any) -> None:
    served = await ask(peer, "stale")
    assert [(one.row, one.fallback, one.circuit) for one in served.degradations] == [
        ("sample.store", "redis-cache", "closed")
    ]


@pytest.mark.parametrize(
    ("agent", "kind", "code", "verdict"),
    [
        ("missing", errors.NotFound, grpc.StatusCode.NOT_FOUND, Verdict.SUCCESS),
        ("down", errors.CircuitOpen, grpc.StatusCode.UNAVAILABLE, Verdict.SUCCESS),
        ("timeout", errors.DependencyUnavailable, grpc.StatusCode.UNAVAILABLE, Verdict.SUCCESS),
        ("crash", errors.Internal, grpc.StatusCode.INTERNAL, Verdict.FAILURE),
    ],
)
async def test_errors(peer: Any, agent: str, kind: type[errors.ServiceError], code: Any, verdict: Verdict) -> None:
    with pytest.raises(kind) as caught:
        await ask(peer, agent)
    assert caught.value.answered
    assert is_dependency_failure(caught.value) is verdict
    assert "hunter2" not in caught.value.message
    failure = caught.value.__cause__
    assert isinstance(failure, grpc.aio.AioRpcError)
    assert failure.code() is code
    if agent == "down":
        assert (caught.value.retry_after, caught.value.circuit) == (7.5, "open")
        assert dict(failure.trailing_metadata() or ())["x-circuit-state"] == "open"


async def test_the_peer_answers_before_its_callers_time_is_up(peer: Any) -> None:
    with pytest.raises(errors.RequestTimeout) as caught:
        await ask(peer, "slow", timeout=0.5)
    assert caught.value.answered


async def test_a_caller_without_time_makes_no_call(peer: Any) -> None:
    with deadline_scope(0.01), pytest.raises(errors.RequestTimeout):
        await ask(peer, "a")
    assert peer.agents.seen.request_id == ""


async def test_a_dead_peer_and_its_return(
    peer: Any, runtime: ServiceRuntime, sample: Any, until: Callable[..., Any]
) -> None:
    await ask(peer, "a")
    await peer.server.stop(0)
    with pytest.raises(errors.DependencyUnavailable) as caught:
        await ask(peer, "a", row=sample.ROW)
    assert (caught.value.answered, caught.value.message) == (False, sample.ROW.user_text)
    assert is_dependency_failure(caught.value) is Verdict.FAILURE
    again = create_server(runtime, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(peer.agents, server))
    assert again.add_insecure_port(f"127.0.0.1:{peer.port}") == peer.port
    await again.start()
    begun = time.monotonic()
    while True:
        try:
            await ask(peer, "a", timeout=0.5)
            break
        except errors.DependencyUnavailable:
            assert time.monotonic() - begun < 3
            await asyncio.sleep(0.05)
    await again.stop(0)


async def test_a_peer_that_accepts_and_says_nothing(sample: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody ever reads
    port = listener.getsockname()[1]
    async with rpc_client.channel(f"127.0.0.1:{port}") as channel:
        get = ai_pb2_grpc.AgentServiceStub(channel).GetAgent
        begun = time.monotonic()
        with pytest.raises(errors.DependencyUnavailable) as caught:
            await Caller(sample.ROW).unary(get, ai_pb2.GetAgentRequest(id="a"), timeout=0.4)
        assert time.monotonic() - begun < 2
        assert not caught.value.answered
    listener.close()


async def test_health_status_and_reflection(peer: Any, runtime: ServiceRuntime) -> None:
    health: Any = health_pb2_grpc.HealthStub(peer.channel)
    for name in ("", "auralink.ai.v1.AgentService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=1)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await runtime.enter(Phase.DRAINING)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    status = await status_pb2_grpc.StatusServiceStub(peer.channel).GetStatus(status_pb2.GetStatusRequest(), timeout=1)
    assert (status.service, status.mode, status.rows[0].label) == ("sample", "normal", "S1")
    assert not status.rows[0].HasField("latency_ms")

    async def requests() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
    async for listed in stub.ServerReflectionInfo(requests(), timeout=1):
        names = {service.name for service in listed.list_services_response.service}
        assert {"auralink.ai.v1.AgentService", "auralink.common.v1.StatusService", "grpc.health.v1.Health"} <= names


async def test_metrics(peer: Any, runtime: ServiceRuntime, until: Callable[..., Any]) -> None:
    await ask(peer, "a")
    with pytest.raises(errors.NotFound):
        await ask(peer, "missing")
    missed = b'app_errors_total{endpoint="auralink.ai.v1.AgentService/GetAgent",error_type="NOT_FOUND"} 1.0'
    await until(lambda: missed in runtime.metrics.render())  # counted once the answer is out
    text = runtime.metrics.render()
    method = b'rpc_method="auralink.ai.v1.AgentService/GetAgent"'
    assert b"rpc_server_call_duration_seconds_count{" + method + b',rpc_response_status_code="OK"' in text
