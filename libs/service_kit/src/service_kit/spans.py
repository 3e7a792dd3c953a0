"""The server span of one request, as OpenTelemetry's semantic conventions for HTTP and RPC describe it.

Imported only where an OTLP endpoint is configured.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

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
