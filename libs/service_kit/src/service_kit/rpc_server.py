"""The gRPC server of a service: options, health, reflection, the status service, and one interceptor for the rest.

The interceptor does for a call what the edge does for an HTTP request: context, deadline, errors from the one table,
degradation as trailing metadata, metrics, access line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from auralink.common.v1 import status_pb2, status_pb2_grpc
from resilience.deadline import deadline_scope, hard_timeout
from resilience.errors import CallTimeout, ResilienceError

from . import context, errors, logs
from .errors import ServiceError
from .http.event_stream import STREAM_SECONDS
from .http.problems import from_resilience
from .provenance import to_metadata
from .rpc_errors import to_grpc
from .runtime import ServiceRuntime

if TYPE_CHECKING:
    from .spans import ServerSpan

log = logs.get_logger("rpc")

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 500),  # or clients with short keepalives are thrown out
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # two processes on one port would share its calls silently
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)
MAX_CONCURRENT = 1000
ANSWER_MARGIN = 0.05  # share of the caller's time kept for sending our answer, at most MAX_MARGIN seconds
MAX_MARGIN = 0.05
MAX_WORK_MARGIN = 0.25  # seconds at most kept for turning a failed call into an answer, of calls that may take long

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]


def create_server(runtime: ServiceRuntime, add: Callable[[grpc.aio.Server], None]) -> grpc.aio.Server:
    """The server with the service's own handlers, put there by `add`. Bound to its port by `lifecycle.serve`.

    Must be called on the event loop that will run it.
    """
    server = grpc.aio.server(
        interceptors=(Interceptor(runtime),),
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CONCURRENT,
    )
    names = _Names(server)
    registrar = cast("grpc.aio.Server", names)
    add(registrar)
    status_pb2_grpc.add_StatusServiceServicer_to_server(StatusServicer(runtime), registrar)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, registrar)
    if runtime.settings.environment == "development":
        reflection.enable_server_reflection([*names.services, reflection.SERVICE_NAME], server)
    runtime.on_phase(lambda serving: _set_health(health, names.services, serving))
    return server


class _Names:
    """Stands before the server while handlers are added, to learn the services' names for health and reflection."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.services.extend(handler.service_name() for handler in handlers)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self._server.add_registered_method_handlers(service, handlers)


async def _set_health(health: health_aio.HealthServicer, services: list[str], serving: bool) -> None:
    kinds = health_pb2.HealthCheckResponse
    for name in ("", *services):
        await health.set(name, kinds.SERVING if serving else kinds.NOT_SERVING)


class StatusServicer(status_pb2_grpc.StatusServiceServicer):
    """The live matrix over gRPC."""

    def __init__(self, runtime: ServiceRuntime) -> None:
        self._runtime = runtime

    async def GetStatus(  # noqa: N802 - the protocol's name
        self, _request: status_pb2.GetStatusRequest, _context: Any
    ) -> status_pb2.GetStatusResponse:
        """Every row as it is now."""
        tracker = self._runtime.tracker
        rows = [{key: value for key, value in row.items() if key != "held"} for row in self._runtime.status()]
        return status_pb2.GetStatusResponse(
            service=self._runtime.name,
            mode=tracker.mode.value,
            mode_seconds=max(0.0, self._runtime.clock.time() - tracker.since),
            rows=[status_pb2.RowStatus(**row) for row in rows],
        )


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of ours once. No service of ours reads a stream of requests."""

    def __init__(self, runtime: ServiceRuntime) -> None:
        self._runtime = runtime
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """gRPC's hook; the wrapped handlers are kept, so a call costs one look into a table."""
        method = details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None or handler.request_streaming or method.startswith("/grpc."):
            return handler
        name = method.lstrip("/")
        streams = handler.response_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        around = (
            WrappedStream(self._runtime, name, handler.unary_stream)
            if streams
            else Wrapped(self._runtime, name, handler.unary_unary)
        )
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            around.answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._wrapped[method] = wrapped
        return wrapped


class Wrapped:
    """One method of the service with everything around it."""

    open_ended = False

    def __init__(self, runtime: ServiceRuntime, method: str, handler: Handler) -> None:
        self._runtime = runtime
        self._method = method
        self._handler = handler

    async def answer(self, request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The handler that gRPC calls; it must be a coroutine function, or gRPC takes it for a synchronous one."""
        begun = time.perf_counter()
        state = _state(call)
        context.bind(state)
        span = self._begin_span(state)
        status = "CANCELLED"
        try:
            response = await self._work(request, call)
            if state.degradations:
                call.set_trailing_metadata(_provenance(state))
            status = "OK"
            return response
        except ServiceError as error:
            status = errors.TABLE[error.reason].grpc.name
            await self._abort(call, state, error)
        finally:
            self._note(state, status, time.perf_counter() - begun)
            if span is not None:
                found = {"rpc.system.name": "grpc", "rpc.method": self._method, "rpc.response.status_code": status}
                span.end(self._method, found, failed=status not in ("OK", "CANCELLED"))

    def _begin_span(self, state: context.RequestContext) -> ServerSpan | None:
        tracer = self._runtime.tracing.tracer
        if tracer is None:
            return None
        from .spans import ServerSpan

        return ServerSpan(tracer, state, self._method)

    async def _work(self, request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await self._handled(request, call)
        except (ServiceError, asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except CallTimeout as error:
            if error.name != self._method:
                raise from_resilience(error, self._runtime) from error
            raise errors.RequestTimeout("The call was not answered in the time its caller gave it.") from error
        except ResilienceError as error:
            raise from_resilience(error, self._runtime) from error
        except Exception as error:
            log.error("unhandled error", route=self._method, error=type(error).__name__, exc_info=error)
            raise errors.Internal(errors.INTERNAL_MESSAGE) from error

    async def _handled(self, request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
        limit = self._limit(call.time_remaining())
        with deadline_scope(_for_work(limit)):
            return await hard_timeout(self._handler(request, call), limit, name=self._method)

    def _limit(self, remaining: float | None) -> float:
        if remaining is None:
            return self._runtime.settings.request_timeout
        return max(0.001, remaining - min(MAX_MARGIN, remaining * ANSWER_MARGIN))

    async def _abort(
        self, call: grpc.aio.ServicerContext[Any, Any], state: context.RequestContext, error: ServiceError
    ) -> None:
        state.error = error.reason.value
        code, text, trailing = to_grpc(error, state.degradations)
        await call.abort(code, text, (("x-request-id", state.request_id), *trailing))

    def _note(self, state: context.RequestContext, status: str, seconds: float) -> None:
        runtime = self._runtime
        runtime.metrics.rpc(self._method, status, seconds)
        if seconds > runtime.settings.slow_request and not self.open_ended:
            log.warning("slow request", route=self._method, status=status, ms=round(seconds * 1000))
        if state.error:
            transient = status in ("UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED")
            runtime.metrics.error(state.error, self._method, transient=transient)
        runtime.access_log.write(state, "grpc", self._method, status, seconds)


class WrappedStream(Wrapped):
    """One method that answers with a stream, its handler an asynchronous generator.

    Whatever degraded the answer before its first response is in the initial metadata, all of it in the trailing one. A
    caller that leaves ends the generator at once, wherever it waits. No task of its own per response, so the limit of
    time is a soft one: what the generator waits for keeps the hard ones.
    """

    open_ended = True

    async def _handled(self, request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> None:
        remaining = call.time_remaining()
        limit = STREAM_SECONDS if remaining is None else self._limit(remaining)
        try:
            async with asyncio.timeout(limit) as timer, aclosing(self._handler(request, call)) as responses:
                with deadline_scope(_for_work(limit)):
                    await _send(responses, call)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise CallTimeout(self._method, limit) from error


def _for_work(limit: float) -> float:
    return limit - min(MAX_WORK_MARGIN, limit * ANSWER_MARGIN)


async def _send(responses: AsyncGenerator[Any, None], call: grpc.aio.ServicerContext[Any, Any]) -> None:
    begun = False
    async for response in responses:
        if not begun:
            begun = True
            state = context.current()
            await call.send_initial_metadata(_provenance(state) if state else ())
        await call.write(response)


def _provenance(state: context.RequestContext) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", state.request_id), *to_metadata(state.degradations))


def _state(call: grpc.aio.ServicerContext[Any, Any]) -> context.RequestContext:
    found = {key: value for key, value in call.invocation_metadata() or () if isinstance(value, str)}
    given = found.get("x-request-id", "")
    request_id = context.sane_request_id(given) if given else context.new_request_id()
    authorization = found.get("authorization", "")
    bearer = authorization[7:].strip() if authorization[:7].lower() == "bearer " else ""
    return context.RequestContext(request_id, bearer, context.sane_traceparent(found.get("traceparent", "")))
