"""/health/live, /health/ready, /health/detailed and /metrics.

The rule: a lost dependency is never an outage at the probe. Ready means "can serve anything useful"; what is broken
is said in detail. Nothing here calls a dependency: it shows what is known.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from resilience.modes import Mode, RowStatus

from .errors import DependencyUnavailable
from .http.answers import json_response, stamp
from .http.problems import problem_responses, respond
from .runtime import Phase, ServiceRuntime

NO_STORE = {"cache-control": "no-store"}
_STATUS = {Mode.NORMAL: "healthy", Mode.DEGRADED: "degraded", Mode.EMERGENCY: "emergency"}
_OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"description": "As it is now.", "content": _OBJECT}}


def detailed(runtime: ServiceRuntime) -> dict[str, Any]:
    """Everything known about the service's dependencies, as plain data."""
    tracker = runtime.tracker
    return {
        "service": runtime.name,
        "status": _STATUS[tracker.mode],
        "mode": tracker.mode.value,
        "mode_held": tracker.held,
        "since": stamp(tracker.since),
        "phase": runtime.phase.value,
        "dependencies": {row.dependency: _dependency(row) for row in runtime.rows()},
        "queues": _queues(runtime),
    }


def _dependency(row: RowStatus) -> dict[str, Any]:
    return {
        "status": "healthy" if not row.down else "degraded" if row.fallback else "down",
        "circuit": row.circuit.value,
        "failures": row.failures,
        "latency_ms": None if row.last_latency is None else round(row.last_latency * 1000, 2),
        "last_error": row.last_error,
        "fallback": row.fallback or None,
        "retry_after_s": None if row.retry_after is None else round(row.retry_after, 1),
        "row": row.row,
        "label": row.label,
        "priority": row.priority.value,
        "state_seconds": round(row.state_seconds, 1),
        "held": row.held,
    }


def _queues(runtime: ServiceRuntime) -> dict[str, Any]:
    found = {name: stats() for name, stats in runtime.buffers.items()}
    if runtime.queue is None:
        return found
    view = runtime.queue_view
    shown = {"depth": view.stats.depth, "oldest_age_seconds": view.stats.oldest_age, "dead": view.stats.dead}
    return {runtime.queue.name: {**shown, **({"error": view.error} if view.error else {})}, **found}


def router(runtime: ServiceRuntime) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health/live", response_class=Response, responses=_ANSWER)
    async def live() -> Response:
        """The process is up. Touches nothing."""
        return json_response({"status": "alive", "service": runtime.name}, headers=NO_STORE)

    @routes.get("/health/ready", response_class=Response, responses={**_ANSWER, **problem_responses(503)})
    async def ready() -> Response:
        """200 while anything useful can be served, also degraded; 503 while starting or draining."""
        if runtime.phase is not Phase.READY:
            return respond(DependencyUnavailable(f"The service is {runtime.phase.value}.", retry_after=1.0))
        body = {"status": "ready", "service": runtime.name, "mode": runtime.mode.value}
        return json_response(body, headers=NO_STORE)

    @routes.get("/health/detailed", response_class=Response, responses=_ANSWER)
    async def health() -> Response:
        """Mode, circuits and queues as they are now."""
        return json_response(detailed(runtime), headers=NO_STORE)

    text = {"text/plain": {"schema": {"type": "string"}}}

    @routes.get("/metrics", response_class=Response, responses={200: {"description": "Metrics.", "content": text}})
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(runtime.metrics.render(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)

    return routes
