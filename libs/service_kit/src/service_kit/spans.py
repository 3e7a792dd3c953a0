"""The server span of one request, as OpenTelemetry's semantic conventions for HTTP and RPC describe it.

Imported only where an OTLP endpoint is configured.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from resilience.events import Event, FallbackUsed, Transitioned

from .context import RequestContext

_PROPAGATOR = TraceContextTextMapPropagator()


class ServerSpan:
    """Begins with the request; its identity goes into the request's context, and from there to logs and calls."""

    __slots__ = ("_span", "_state", "_token")

    def __init__(self, tracer: trace.Tracer, state: RequestContext, name: str) -> None:
        parent = _PROPAGATOR.extract({"traceparent": state.traceparent}) if state.traceparent else None
        self._state = state
        self._span = tracer.start_span(name, context=parent, kind=trace.SpanKind.SERVER)
        self._token = otel.attach(trace.set_span_in_context(self._span))
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        state.traceparent = carrier.get("traceparent", state.traceparent)
        state.trace_id = state.traceparent[3:35]

    def end(self, name: str, attributes: Mapping[str, str | int], *, failed: bool) -> None:
        """Give the span its final name, by the route and never by the raw path, and close it."""
        span = self._span
        if span.is_recording():
            span.update_name(name)
            for key, value in attributes.items():
                span.set_attribute(key, value)
            if self._state.degradations:
                span.set_attribute("auralink.fallbacks", [one.fallback for one in self._state.degradations])
            if failed:
                span.set_status(trace.StatusCode.ERROR)
        span.end()
        otel.detach(self._token)


def note(event: Event) -> None:
    """A fallback that was tried, or a circuit that changed, as an event on the span of the request it happened to."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    if isinstance(event, FallbackUsed):
        found = {"auralink.row": event.row, "auralink.fallback": event.fallback, "auralink.outcome": event.outcome}
        span.add_event("fallback", found)
    elif isinstance(event, Transitioned):
        change = event.transition
        states = {"auralink.circuit.from": change.old.value, "auralink.circuit.to": change.new.value}
        span.add_event("circuit changed", {"auralink.row": event.row, **states})
