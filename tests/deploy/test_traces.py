"""One request through three services is one trace: their spans, the fallbacks as events on them, their logs' lines.

Second processes of the services on the shared platform, which alone are traced; the spans come to this test over OTLP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

from devstack.ports import Ports
from tests.harness.client import Account
from tests.harness.platform import LIMIT, Platform, eventually
from tests.harness.second import second

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

SERVICES = {"dashboard", "ai-core", "webrtc"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4737", "00f067aa0ba902b7"
REQUEST = "traced-request-7"
PATIENCE = aiohttp.ClientTimeout(total=LIMIT)


@dataclass
class Collector(service.TraceServiceServicer):
    """Takes spans as any collector does: pairs of the service's name and the span."""

    spans: list[tuple[str, Any]] = field(default_factory=list)

    async def Export(self, request: Any, _context: Any) -> Any:
        """OTLP's only call."""
        for resource in request.resource_spans:
            name = _values(resource.resource.attributes)["service.name"]
            self.spans += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        return messages.ExportTraceServiceResponse()

    def trace(self) -> list[tuple[str, Any]]:
        """The spans of the request."""
        return [(name, span) for name, span in self.spans if span.trace_id.hex() == TRACE]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@asynccontextmanager
async def _collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector, server = Collector(), grpc.aio.server()
    service.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def _traced(platform: Platform, endpoint: str) -> AsyncIterator[dict[str, str]]:
    """Where the traced services answer."""
    ports = Ports()
    calls = {name: str(ports.free(name)) for name in ("ai-core", "webrtc")}
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    peers = {"AI_CORE_GRPC": f"127.0.0.1:{calls['ai-core']}", "WEBRTC_GRPC": f"127.0.0.1:{calls['webrtc']}"}
    async with AsyncExitStack() as stack:
        stack.callback(ports.release)
        at = {}
        for name, port in calls.items():
            at[name], _ = await stack.enter_async_context(second(platform, name, {**tracing, "GRPC_PORT": port}))
        at["dashboard"], _ = await stack.enter_async_context(second(platform, "dashboard", {**tracing, **peers}))
        yield at


async def test_a_request_through_three_services(platform: Platform, accounts: list[Account]) -> None:
    account = accounts[6]
    async with _collecting() as (collector, endpoint), _traced(platform, endpoint) as at:
        await _home(platform, at, account)  # copies of what is there
        path = "/admin/circuit-breaker/open?dependency=postgres"
        async with platform.session.post(at["ai-core"] + path, headers=platform.admin, timeout=PATIENCE) as held:
            assert held.status == 200
        await _home(platform, at, account, traceparent=f"00-{TRACE}-{CALLER}-01", **{"x-request-id": REQUEST})

        async def complete() -> bool:
            return {name for name, _ in collector.trace()} == SERVICES

        async def logged() -> bool:
            texts = [platform.stack.state.log(f"{name}-second").read_text() for name in SERVICES]
            return all(any(REQUEST in line and TRACE in line for line in text.splitlines()) for text in texts)

        await eventually(complete, "spans of all three services")
        await eventually(logged, "a line with the request's id and the trace's in the log of each")
        spans = collector.trace()
    _hang_together(spans)
    events = [(name, event.name, _values(event.attributes)) for name, event in _events(spans)]
    expected = {"auralink.row": "ai_core.postgres", "auralink.fallback": "redis-cache", "auralink.outcome": "success"}
    assert ("ai-core", "fallback", expected) in events


async def _home(platform: Platform, at: dict[str, str], account: Account, **headers: str) -> None:
    """The aggregate, for which the Dashboard asks both others."""
    given = {**account.headers, **headers}
    async with platform.session.get(f"{at['dashboard']}/api/v1/dashboard", headers=given, timeout=PATIENCE) as answer:
        assert answer.status == 200, await answer.text()


def _hang_together(spans: list[tuple[str, Any]]) -> None:
    """The Dashboard's span is the caller's child, and every other one some span's of the trace."""
    known = {span.span_id.hex() for _, span in spans}
    (root,) = [span for name, span in spans if span.parent_span_id.hex() == CALLER]
    assert root.name == "GET /api/v1/dashboard"
    assert all(span is root or span.parent_span_id.hex() in known for _, span in spans)


def _events(spans: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((name, event) for name, span in spans for event in span.events)
