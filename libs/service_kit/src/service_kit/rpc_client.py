"""Calls to other services: tuned channels, and one place that carries request id, trace, token and deadline along.

Channel options are measured ones: with gRPC's defaults a frozen peer is noticed after more than 30 s and a
restarted one found after up to 15 s; with these it is about 1 s each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from resilience.breaker import Verdict
from resilience.deadline import current_deadline
from resilience.matrix import Row
from resilience.outcome import Degradation, Served

from . import context
from .errors import ErrorReason, RequestTimeout, ServiceError
from .provenance import from_metadata
from .rpc_errors import from_grpc, no_answer

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
TRANSIT = 0.02  # seconds kept back from the caller's time for the way there and back


def channel(target: str) -> grpc.aio.Channel:
    """A channel to "host:port". It connects lazily and finds a restarted peer within about a second."""
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


class Caller:
    """Makes calls for the request being answered. `row` is what it means to our callers when the peer is gone."""

    def __init__(self, row: Row | None = None) -> None:
        self._row = row

    async def unary(self, method: Callable[..., Any], request: object, *, timeout: float) -> Served[Any]:
        """The peer's response with the degradations it told of; `timeout` in seconds, cut to what the caller has left.

        Raises ServiceError: the peer's own, or DependencyUnavailable with `answered=False` when there was no answer.
        """
        limit = _limit(timeout)
        try:
            call = method(request, timeout=limit, metadata=_metadata())
            response = await call
            return Served(response, from_metadata(await call.trailing_metadata() or ()))
        except grpc.aio.AioRpcError as failure:
            raise from_grpc(failure, self._row) from failure

    async def stream(
        self, method: Callable[..., Any], request: object, *, timeout: float, idle: float
    ) -> Served[PeerStream]:
        """The peer's stream once its first response is there, with the degradations known then.

        ``timeout``: seconds for all of it, whatever the deadline of the request was; ``idle``: for each further
        response. The opening is bounded by whoever calls this. Raises as ``unary``.
        """
        call = method(request, timeout=timeout, metadata=_metadata())
        try:
            first = await call.read()
            if first is grpc.aio.EOF:
                raise no_answer(self._row)
            known = from_metadata(await call.initial_metadata() or ())
            return Served(PeerStream(call, first, self._row, idle), known)
        except grpc.aio.AioRpcError as failure:
            raise from_grpc(failure, self._row) from failure
        except BaseException:
            call.cancel()
            raise


class PeerStream:
    """What another service of ours is sending. Left early, the call is cancelled, and with it whatever feeds it."""

    def __init__(self, call: Any, first: Any, row: Row | None, idle: float) -> None:
        self.first = first
        self.degradations: tuple[Degradation, ...] = ()
        """All that took part, known at the end."""
        self._call = call
        self._row = row
        self._idle = idle

    async def __aenter__(self) -> PeerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def rest(self) -> AsyncGenerator[Any, None]:
        """The responses after the first. Raises ServiceError when it breaks off or nothing comes for too long."""
        try:
            while True:
                async with asyncio.timeout(self._idle):
                    response = await self._call.read()
                if response is grpc.aio.EOF:
                    break
                yield response
            self.degradations = from_metadata(await self._call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as failure:
            raise from_grpc(failure, self._row) from failure
        except TimeoutError as failure:
            raise no_answer(self._row) from failure


def _limit(timeout: float) -> float:
    deadline = current_deadline()
    limit = timeout if deadline is None else min(timeout, deadline.remaining() - TRANSIT)
    if limit <= 0:
        raise RequestTimeout("The time for this request was used up.", answered=False)
    return limit


def _metadata() -> list[tuple[str, str]]:
    state = context.current()
    if state is None:
        return [("x-request-id", context.new_request_id())]
    found = [("x-request-id", state.request_id)]
    if state.traceparent:
        found.append(("traceparent", state.traceparent))
    if state.bearer:
        found.append(("authorization", f"Bearer {state.bearer}"))
    return found


def is_dependency_failure(error: BaseException) -> Verdict:
    """The verdict of a policy that guards another service of ours.

    A status that carries our ErrorDetail is an answer: the service lives, whatever became of its own dependencies.
    Two kinds of answers still count as failures, as the circuit rules have it: its own defect and its own timeout.
    Without the detail the call did not reach a working service, except for the statuses that blame the caller.
    """
    if isinstance(error, ServiceError):
        broken = error.reason in (ErrorReason.INTERNAL_ERROR, ErrorReason.REQUEST_TIMEOUT)
        return Verdict.FAILURE if broken or not error.answered else Verdict.SUCCESS
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.CANCELLED:
            return Verdict.NEUTRAL
        return is_dependency_failure(from_grpc(error))
    return Verdict.FAILURE if isinstance(error, Exception) else Verdict.NEUTRAL
