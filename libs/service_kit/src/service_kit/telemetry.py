"""Metrics (Prometheus) and traces (OpenTelemetry).

Metrics are prometheus_client with children bound once per label set: an OpenTelemetry counter costs twenty times as
much. Traces exist only where an OTLP endpoint is configured; without one no span is made at all and the caller's
`traceparent` is passed on as it came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import generate_latest

from resilience.breaker import CircuitState
from resilience.events import CallFinished, FallbackUsed, Transitioned
from resilience.modes import Mode

from .errors import TABLE, ErrorReason

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

    from resilience.events import EventListener

disable_created_metrics()  # type: ignore[no-untyped-call]

# The bucket boundaries that OpenTelemetry's semantic conventions advise for *.duration in seconds.
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
RECOVERIES = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
MAX_TRACKED_ERRORS = 1000
TRACER_SHUTDOWN = 2.0  # seconds for the last spans
EXPORT_TIMEOUT = 2  # seconds for one batch


class Metrics:
    """All metrics of one service. Listens to the resilience events; the edges call `http` and `rpc`."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = registry = CollectorRegistry()
        self.degraded_seconds = 0.0
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = DURATIONS) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        row = ("service", "dependency")
        self._state = gauge("circuit_breaker_state", "1 for the state the circuit is in.", *row, "state")
        self._transitions = counter("circuit_breaker_transitions", "Changes of circuits.", *row, "from", "to")
        self._calls = histogram("dependency_call_duration_seconds", "Calls to dependencies.", *row, "outcome")
        self._fallbacks = counter("fallback_activations", "Answers served by a fallback.", "service", "fallback")
        self._fallback_errors = counter("fallback_errors", "Fallbacks that failed too.", "service", "fallback")
        self._mode = gauge("service_mode", "1 for the mode the service is in.", "service", "mode")
        self._mode_changes = counter("service_mode_changes", "Changes of the mode.", "service", "from", "to")
        self._depth = gauge("fallback_queue_depth", "Writes waiting.", "service").labels(service)
        self._age = gauge("fallback_queue_oldest_age_seconds", "Age of the oldest one.", "service").labels(service)
        self._dead = gauge("fallback_queue_dead_total", "Writes in the dead letters.", "service").labels(service)
        self._errors = counter("app_errors", "Failed answers.", "error_type", "endpoint")
        self._recovery = histogram(
            "app_error_recovery_seconds",
            "From an endpoint's first error of a type to its next good answer.",
            "error_type",
            buckets=RECOVERIES,
        )
        for reason, mapped in TABLE.items():  # from the first scrape on: an increase from nothing is none to Prometheus
            if mapped.http >= 500 or reason is ErrorReason.CIRCUIT_OPEN:
                self._recovery.labels(reason.value)
        self._http = histogram(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests.",
            "http_request_method",
            "http_route",
            "http_response_status_code",
        )
        self._rpc = histogram(
            "rpc_server_call_duration_seconds",
            "Duration of incoming remote procedure calls.",
            "rpc_system_name",
            "rpc_method",
            "rpc_response_status_code",
        )
        self._http_children: dict[tuple[str, str, int], Histogram] = {}
        self._rpc_children: dict[tuple[str, str], Histogram] = {}
        self._call_children: dict[tuple[str, str], Histogram] = {}
        self._failing: dict[str, dict[str, float]] = {}

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answered HTTP request; `method` and `route` come from a bounded set."""
        key = (method, route, status)
        child = self._http_children.get(key)
        if child is None:
            child = self._http_children[key] = self._http.labels(method, route, str(status))
        child.observe(seconds)
        if status < 400 and route in self._failing:
            self._recovered(route)

    def rpc(self, method: str, status: str, seconds: float) -> None:
        """An answered remote procedure call, by its full method name and status name."""
        key = (method, status)
        child = self._rpc_children.get(key)
        if child is None:
            child = self._rpc_children[key] = self._rpc.labels("grpc", method, status)
        child.observe(seconds)
        if status == "OK" and method in self._failing:
            self._recovered(method)

    def error(self, kind: str, endpoint: str, *, transient: bool) -> None:
        """A failed answer; a `transient` one (the platform's fault) also starts the clock of its recovery."""
        self._errors.labels(kind, endpoint).inc()
        if transient and len(self._failing) < MAX_TRACKED_ERRORS:
            self._failing.setdefault(endpoint, {}).setdefault(kind, time.monotonic())

    def _recovered(self, endpoint: str) -> None:
        now = time.monotonic()
        for kind, since in self._failing.pop(endpoint).items():
            self._recovery.labels(kind).observe(now - since)

    def circuit(self, dependency: str, state: CircuitState) -> None:
        """Show the state a dependency's circuit is in."""
        for one in CircuitState:
            self._state.labels(self.service, dependency, one.value).set(1 if one is state else 0)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show one more number of this service, asked for whenever the metrics are read."""
        Gauge(name, text, ("service",), registry=self.registry).labels(self.service).set_function(value)

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = DURATIONS) -> Histogram:
        """One more distribution of this service; labels from a bounded set."""
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """One more count of this service; labels from a bounded set."""
        return Counter(name, text, labels, registry=self.registry)

    def mode(self, mode: Mode, degraded_seconds: float) -> None:
        """Show the service's mode and the seconds it has spent outside `normal`."""
        self.degraded_seconds = degraded_seconds
        for one in Mode:
            self._mode.labels(self.service, one.value).set(1 if one is mode else 0)

    def mode_changed(self, old: Mode, new: Mode) -> None:
        """Count a change of the mode."""
        self._mode_changes.labels(self.service, old.value, new.value).inc()

    def queue(self, depth: int, oldest_age: float, dead: int) -> None:
        """Show the write queue."""
        self._depth.set(depth)
        self._age.set(oldest_age)
        self._dead.set(dead)

    def listen(self, event: object) -> None:
        """Count an event of the resilience core."""
        if isinstance(event, CallFinished):
            self._called(event.dependency, event.outcome, event.seconds)
        elif isinstance(event, FallbackUsed):
            self._fell_back(event.fallback, event.outcome)
        elif isinstance(event, Transitioned):
            change = event.transition
            self._transitions.labels(self.service, event.dependency, change.old.value, change.new.value).inc()
            self.circuit(event.dependency, change.new)

    def _called(self, dependency: str, outcome: str, seconds: float) -> None:
        key = (dependency, outcome)
        child = self._call_children.get(key)
        if child is None:
            child = self._call_children[key] = self._calls.labels(self.service, dependency, outcome)
        child.observe(seconds)

    def _fell_back(self, fallback: str, outcome: str) -> None:
        if outcome == "success":
            self._fallbacks.labels(self.service, fallback).inc()
        elif outcome == "failure":
            self._fallback_errors.labels(self.service, fallback).inc()

    def render(self) -> bytes:
        """The Prometheus text format. The contract's counter of seconds has no _total, so it is written by hand."""
        name = "degraded_mode_duration_seconds"
        lines = (
            f"# HELP {name} Seconds spent outside the normal mode.\n# TYPE {name} counter\n"
            f'{name}{{service="{self.service}"}} {self.degraded_seconds!r}\n'
        )
        return generate_latest(self.registry) + lines.encode()


class Tracing:
    """Spans at the edges, exported over OTLP; `tracer` is None where no endpoint is configured.

    `listener` notes what the resilience core says on the span of the request that it happened to.
    """

    def __init__(self, service: str, endpoint: str | None) -> None:
        self._provider: TracerProvider | None = None
        self._exporter: SpanExporter | None = None
        self.tracer: Tracer | None = None
        self.listener: EventListener | None = None
        if endpoint:
            self._start(service, endpoint)

    def _start(self, service: str, endpoint: str) -> None:
        # Imported here: the exporter costs start-up time and memory that most runs do not need.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from .spans import note

        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        insecure = not endpoint.startswith("https://")
        self._exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        trace.set_tracer_provider(self._provider)
        self.tracer = self._provider.get_tracer("service_kit")
        self.listener = note

    def close(self) -> None:
        """Send what is left and stop; blocks for `TRACER_SHUTDOWN` and a moment at most, so it is run in a thread."""
        if self._provider is None or self._exporter is None:
            return
        # The SDK's own limit does not hold: with a frozen collector it waits for one batch after the other.
        flush = threading.Thread(target=self._provider.force_flush, name="last spans", daemon=True)
        flush.start()
        flush.join(TRACER_SHUTDOWN)
        if flush.is_alive():
            self._exporter.shutdown()  # ends the call it waits in; the rest is dropped
        self._provider.shutdown()
