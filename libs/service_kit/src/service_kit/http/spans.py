"""The server span of one request, as OpenTelemetry's semantic conventions for HTTP describe it.

Imported only where an OTLP endpoint is configured.
"""

from __future__ import annotations

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service_kit.context import RequestContext

_PROPAGATOR = TraceContextTextMapPropagator()


class ServerSpan:
    """Begins with the request; its identity goes into the request's context, and from there to logs and calls."""

    __slots__ = ("_method", "_span", "_state", "_token")

    def __init__(self, tracer: trace.Tracer, state: RequestContext, method: str) -> None:
        parent = _PROPAGATOR.extract({"traceparent": state.traceparent}) if state.traceparent else None
        self._method = method
        self._state = state
        self._span = tracer.start_span(method, context=parent, kind=trace.SpanKind.SERVER)
        self._token = otel.attach(trace.set_span_in_context(self._span))
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        state.traceparent = carrier.get("traceparent", state.traceparent)
        state.trace_id = state.traceparent[3:35]

    def end(self, route: str, status: int) -> None:
        """Name the span by its route and close it."""
        span = self._span
        if span.is_recording():
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.request.method", self._method)
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if self._state.degradations:
                span.set_attribute("auralink.fallbacks", [one.fallback for one in self._state.degradations])
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
        span.end()
        otel.detach(self._token)
