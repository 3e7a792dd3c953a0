"""Row D5: the event stream, and the live page that is fed from it and from this instance itself."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from dashboard.degradation import EFFECTS, EVENT_BUFFER, EVENT_STREAM
from dashboard.inbound.http import events
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.ports import Sessions
from dashboard.settings import Settings
from dashboard.usecases.live import LiveEvent, LiveFeed
from resilience import CircuitState, Event, Mode, RowPolicy, Transitioned
from service_kit import event_stream
from service_kit.event_stream import DomainEvent, EventConsumer, EventPublisher
from service_kit.runtime import QueueView, ServiceRuntime

WATCH_SECONDS = 0.5
PREFIX = "auralink."
SOURCE = "auralink/dashboard"
_FOR_EVERYBODY = frozenset({"circuit", "mode", "queue"})


def live(event: DomainEvent) -> LiveEvent:
    """A domain event as the live page shows it, to those whom its data names; one that names nobody to nobody."""
    kind = event.type.removeprefix(PREFIX).partition(".")[0]
    data = {**event.data, "type": event.type, "subject": event.subject, "time": event.time}
    return LiveEvent(event.id, kind, data, None if kind in _FOR_EVERYBODY else _named(event.data))


def _named(data: Mapping[str, Any]) -> frozenset[str]:
    many = data.get("user_ids")
    found = [data.get("owner_id"), data.get("user_id"), *(many if isinstance(many, list) else ())]
    return frozenset(one for one in found if isinstance(one, str))


class StreamPart:
    """``announce`` is what the rest of the service calls; without a configured stream only this instance hears it."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self.feed = LiveFeed()
        self.instance = secrets.token_hex(4)
        self.policy: RowPolicy | None = None
        self._runtime = runtime
        self._bootstrap = ",".join(settings.kafka_bootstrap_servers)
        self._publisher = self._publishing() if self._bootstrap else None
        if self._bootstrap:
            self.consume("live page", self._heard)
        runtime.events.subscribe(self._on_event)
        runtime.on_mode(self._on_mode)
        runtime.on_queue(self._on_queue)

    def announce(self, kind: str, subject: str, data: Mapping[str, object], /, *, event_id: str | None = None) -> None:
        """See ports.Announce."""
        event = DomainEvent.new(PREFIX + kind, subject=subject, data=data, id=event_id)
        self.feed.publish(live(event))
        if self._publisher is not None and self.policy is not None:
            self._publisher.publish(event)
            if self.policy.breaker.state is not CircuitState.CLOSED:
                self.policy.note_fallback(EVENT_BUFFER)

    def consume(
        self,
        name: str,
        handler: Callable[[DomainEvent], Awaitable[object]],
        *,
        group: str | None = None,
        waits_for: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        """Have ``handler`` told of every event: those from now on, or, as a ``group``, all from where it stopped.

        While it fails for what it ``waits_for`` (its own dependency is away) an event is tried again and again. Does
        nothing without a configured stream.
        """
        if self._bootstrap:
            consumer = EventConsumer(
                self._bootstrap,
                handler,
                group=group,
                bury=self._publisher.bury if self._publisher else None,
                waits_for=waits_for,
                clock=self._runtime.clock,
            )
            self._runtime.background(f"events: {name}", consumer.run)

    def routers(self, sessions: Sessions, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        return [events.create_router(self.feed, sessions, outcome, doorman, now=self._now)]

    def _publishing(self) -> EventPublisher:
        runtime = self._runtime
        publisher = EventPublisher(
            self._bootstrap,
            source=SOURCE,
            timeout=EVENT_STREAM.call_timeout,
            metrics=runtime.metrics,
            clock=runtime.clock,
        )
        self.policy = runtime.policy(
            EVENT_STREAM, classify=event_stream.classify, probe=publisher.probe, on_closed=publisher.kick
        )
        publisher.guard(self.policy)
        runtime.buffers["events"] = lambda: asdict(publisher.stats())
        runtime.background("event stream", publisher.run)
        runtime.background("stream watch", lambda: self._watch(publisher))
        runtime.on_close(publisher.close, "event stream")
        return publisher

    async def _watch(self, publisher: EventPublisher) -> None:
        """Asks the broker while its circuit is closed: nothing else would notice its loss while nothing happens."""
        while True:
            await self._runtime.clock.sleep(WATCH_SECONDS)
            if self.policy is not None and self.policy.breaker.state is CircuitState.CLOSED:
                with contextlib.suppress(Exception):  # the circuit has taken note
                    await self.policy.call(publisher.probe)

    async def _heard(self, event: DomainEvent) -> None:
        self.feed.publish(live(event))

    # -- what this instance itself has to tell

    def _now(self) -> Iterable[LiveEvent]:
        """The state of things, for a reader who has just come."""
        yield LiveEvent("", "mode", self._here(mode=self._runtime.mode.value))
        for row in self._runtime.rows():
            yield LiveEvent("", "circuit", self._here(row=row.row, dependency=row.dependency, to=row.circuit.value))
        yield LiveEvent("", "queue", self._here(**_queue(self._runtime.queue_view)))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Transitioned):
            change = event.transition
            data = self._here(
                row=event.row,
                dependency=event.dependency,
                was=change.old.value,
                to=change.new.value,
                reason=change.reason,
            )
            self.announce("circuit.changed", f"circuit:{event.row}", data)

    def _on_mode(self, old: Mode, new: Mode) -> None:
        on = EFFECTS[new].live_updates
        if on:
            self.feed.switch(on)
        self.announce("mode.changed", f"mode:{self._runtime.name}", self._here(was=old.value, mode=new.value))
        if not on:
            self.feed.switch(on)

    def _on_queue(self, view: QueueView) -> None:
        """Of this instance's readers only: every instance looks at the same queue."""
        event = LiveEvent(secrets.token_hex(8), "queue", self._here(**_queue(view)))
        self.feed.publish(event)

    def _here(self, **data: Any) -> dict[str, Any]:
        return {"service": self._runtime.name, "instance": self.instance, **data}


def _queue(view: QueueView) -> dict[str, Any]:
    return {"depth": view.stats.depth, "oldest_age_seconds": view.stats.oldest_age, "dead": view.stats.dead}
