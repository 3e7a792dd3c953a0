"""The event stream: what happens in calls is told to whoever listens, the Dashboard's call history first of all.

It has no row: while the stream is away events wait in this process (10,000 of them for 5 minutes), and nothing else of
the service depends on it.
"""

from collections.abc import Mapping
from dataclasses import asdict

from service_kit.event_stream import DomainEvent, EventPublisher
from service_kit.runtime import ServiceRuntime
from webrtc.settings import Settings

PREFIX = "auralink."
SOURCE = "auralink/webrtc"


class StreamPart:
    """``announce`` is what use cases call; without a configured stream nobody hears it."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        bootstrap = ",".join(settings.kafka_bootstrap_servers)
        self._publisher = self._publishing(runtime, bootstrap) if bootstrap else None

    def announce(self, kind: str, subject: str, data: Mapping[str, object]) -> None:
        """See usecases.calls.Announce."""
        if self._publisher is not None:
            self._publisher.publish(DomainEvent.new(PREFIX + kind, subject=subject, data=data))

    def _publishing(self, runtime: ServiceRuntime, bootstrap: str) -> EventPublisher:
        publisher = EventPublisher(bootstrap, source=SOURCE, metrics=runtime.metrics, clock=runtime.clock)
        runtime.buffers["events"] = lambda: asdict(publisher.stats())
        runtime.background("event stream", publisher.run)
        runtime.on_close(publisher.close, "event stream")
        return publisher
