"""Publishing domain events: into a bounded buffer at once, from there to Kafka when it is there.

`publish` never blocks and never raises. A batch is safe when every replica in sync has it (acks=all); one that was cut
off is sent again, with the same ids. An event that the broker refuses five times goes to the topic of dead letters, so
that the others pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped] # the package has no type marker

from resilience.backlog import BufferedEvent, DeadEvent, EventsDropped, EventsSent
from resilience.backoff import Backoff
from resilience.buffer import EventBuffer
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.events import Event, Events
from resilience.row_policy import RowPolicy
from service_kit import logs
from service_kit.telemetry import Metrics

from . import kafka
from .domain_event import DomainEvent
from .meters import Meters
from .sender import Record, Sender

TOPIC = "auralink.events"
DEAD_TOPIC = "auralink.events.dead"

MAX_EVENTS, MAX_AGE, BATCH, TRIES = 10_000, 300.0, 100, 5  # the matrix, row D5
MAX_LETTERS, MAX_LETTER_AGE = 1_000, 3_600.0
MAX_EVENT_BYTES = 65_536  # bounds the memory of the buffer; an event is a fact, not a document
INTERVAL = 0.2  # seconds that a batch which is not full waits for more
FLUSH_LIMIT, STOP_LIMIT = 1.0, 0.5  # seconds, together less than what the runtime grants a closer
MAX_ERROR_TEXT = 200

_STREAM, _LETTERS = "event stream", "dead letters"

log = logs.get_logger("event_stream")


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """Sizes of now and counts since the start."""

    away: bool  # whether the latest attempt found no stream
    buffered: int
    oldest_age: float  # seconds; 0 when nothing is buffered
    sent: int
    dead: int  # refused for good
    letters_waiting: int  # of these, on their way to the topic of dead letters
    dropped: dict[str, int]  # by reason: overflow, expired, invalid; undeliverable: dead letters that found no way


class EventPublisher:
    """Publishes to one topic. `guard` it, then `run` it in the background, and `close` it at the end.

    Args:
        bootstrap: "host:port", or several with commas.
        source: of events that name none, such as "auralink/dashboard".
        timeout: seconds for one batch: the row's `call_timeout`.
        metrics: of the service; nothing is shown without.
        producer: makes the client, as `AIOKafkaProducer` does.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        source: str,
        timeout: float = 1.0,
        metrics: Metrics | None = None,
        topic: str = TOPIC,
        dead_topic: str = DEAD_TOPIC,
        clock: Clock = SYSTEM_CLOCK,
        producer: Callable[..., Any] = AIOKafkaProducer,
    ) -> None:
        self.source = source
        self.topic = topic
        self.dead_topic = dead_topic
        self._bootstrap = bootstrap
        self._timeout = timeout
        self._clock = clock
        self._policy: RowPolicy | None = None
        self._sender = Sender(bootstrap, client_id=source.replace("/", "."), timeout=timeout, producer=producer)
        self._away = False
        self._dropped = {"overflow": 0, "expired": 0, "invalid": 0, "undeliverable": 0}
        self._events = Events()
        self._events.subscribe(self._count)
        self._buffer = self._make_buffer(
            _STREAM, self.topic, max_events=MAX_EVENTS, max_age=MAX_AGE, dead=self._bury, max_dead=0
        )
        self._letters = self._make_buffer(
            _LETTERS, self.dead_topic, max_events=MAX_LETTERS, max_age=MAX_LETTER_AGE, max_dead=MAX_LETTERS
        )
        self._meters = None if metrics is None else Meters(metrics, self._buffer.__len__)

    def guard(self, policy: RowPolicy) -> None:
        """Send under the row's policy, which itself is made with `probe` and `kick`."""
        self._policy = policy

    # -- publishing

    def publish(self, event: DomainEvent) -> bool:
        """Take the event; returns whether it was taken. From any thread; never blocks and never raises."""
        try:
            value = event.encode(self.source)
            record = Record(event.key, value)
        except (TypeError, ValueError, AttributeError):
            return self._invalid(event, "not JSON")
        if len(value) > MAX_EVENT_BYTES:
            return self._invalid(event, "too large")
        return self._buffer.put(record, event.id)

    def bury(self, record: Record, error: BaseException, event_id: str) -> None:
        """Put a record that nobody can use into the topic of dead letters, with the error in its headers."""
        text = logs.redact_text(f"{type(error).__name__}: {error}")[:MAX_ERROR_TEXT]
        headers = (*record.headers, ("error", text.encode()), ("topic", self.topic.encode()))
        self._letters.put(record._replace(headers=headers), event_id)

    # -- running

    async def run(self) -> None:
        """Send what there is until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._buffer.run())
            group.create_task(self._letters.run())

    def kick(self) -> None:
        """Try again at once: the stream is back."""
        self._buffer.kick()
        self._letters.kick()

    async def probe(self) -> None:
        """A cheap real request on a connection of its own; raises if the stream is away."""
        await kafka.probe(self._bootstrap, self.topic, timeout=self._timeout)

    async def close(self) -> None:
        """Send what can be sent in a short time, and stop."""
        left = sum(await asyncio.gather(self._buffer.flush(FLUSH_LIMIT), self._letters.flush(FLUSH_LIMIT)))
        if left:
            log.warning("events are lost: the stream is away and the service stops", events=left)
        await self._sender.close(STOP_LIMIT)

    # -- watching

    @property
    def dead_events(self) -> Sequence[DeadEvent]:
        """The last dead letters that found no way to their topic either."""
        return self._letters.dead_events

    def stats(self) -> PublisherStats:
        """For health pages; the metrics say the same."""
        now = self._buffer.stats()
        return PublisherStats(
            self._away, now.depth, now.oldest_age, now.sent, now.dead, len(self._letters), dict(self._dropped)
        )

    # -- inside

    def _make_buffer(self, name: str, topic: str, **options: Any) -> EventBuffer:
        async def send(batch: Sequence[BufferedEvent]) -> None:
            await self._send(topic, [event.value for event in batch])

        return EventBuffer(
            name,
            send,
            batch=BATCH,
            tries=TRIES,
            interval=INTERVAL,
            backoff=Backoff(0.5, cap=2.0, jitter="equal"),
            send_timeout=self._timeout + 1.0,  # the policy's own limit is the shorter one
            is_outage=kafka.is_outage,
            clock=self._clock,
            events=self._events,
            **options,
        )

    async def _send(self, topic: str, records: Sequence[Record]) -> None:
        try:
            if self._policy is None:
                await self._sender.send(topic, records)
            else:
                await self._policy.call(self._sender.send, topic, records)
        except Exception as error:
            if kafka.is_outage(error):
                self._went_away(error)
            raise
        self._came_back()

    def _went_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.warning("the event stream is away: events wait", error=type(error).__name__, waiting=len(self._buffer))

    def _came_back(self) -> None:
        if self._away:
            self._away = False
            log.warning("the event stream is back", waiting=len(self._buffer))

    def _bury(self, dead: DeadEvent) -> None:
        log.warning("an event was refused for good", event_id=dead.event.id, error=type(dead.error).__name__)
        self.bury(dead.event.value, dead.error, dead.event.id)

    def _invalid(self, event: DomainEvent, why: str) -> bool:
        log.error("an event cannot be published", type=event.type, event_id=event.id, why=why)
        self._drop("invalid", 1)
        return False

    def _count(self, event: Event) -> None:
        if isinstance(event, EventsSent) and event.name == _STREAM and self._meters:
            self._meters.published.inc(event.count)
        elif isinstance(event, EventsDropped) and event.name == _LETTERS:
            self._drop("undeliverable", event.count)
        elif isinstance(event, EventsDropped) and event.reason != "refused":
            self._drop(event.reason, event.count)
        elif isinstance(event, EventsDropped) and self._meters:
            self._meters.dead.inc(event.count)

    def _drop(self, reason: str, count: int) -> None:
        self._dropped[reason] += count
        if self._meters:
            self._meters.dropped(reason, count)
