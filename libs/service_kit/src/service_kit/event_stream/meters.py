"""The event stream's metrics, on the service's own registry."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from service_kit.telemetry import Metrics


class Meters:
    """`depth` is asked whenever the metrics are read."""

    def __init__(self, metrics: Metrics, depth: Callable[[], float]) -> None:
        service, registry = metrics.service, metrics.registry
        gauge = Gauge("event_buffer_depth", "Events waiting for the stream.", ["service"], registry=registry)
        gauge.labels(service).set_function(depth)
        published = Counter("events_published", "Events that the stream took.", ["service"], registry=registry)
        dead = Counter("events_dead", "Events that the stream refused for good.", ["service"], registry=registry)
        self.published = published.labels(service)
        self.dead = dead.labels(service)
        self._dropped = Counter("events_dropped", "Events lost.", ["service", "reason"], registry=registry)
        self._service = service

    def dropped(self, reason: str, count: int) -> None:
        """Count lost events; `reason` comes from a bounded set."""
        self._dropped.labels(self._service, reason).inc(count)
