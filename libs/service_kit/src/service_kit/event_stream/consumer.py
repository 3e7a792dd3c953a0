"""Consuming domain events, so that neither a dead, frozen or emptied broker nor a poisonous event ends the stream.

Partitions are assigned by hand, never by joining a consumer group: a join takes 3 s and a rejoin 11 s (measured with
Tansu; Kafka's own defaults are similar), and a service that has just come back wants its events now. So every consumer
sees every event. A `group` is only the name under which the broker keeps how far its handler has come.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped] # the package has no type marker

from resilience.ambient import RANDOM
from resilience.backoff import Backoff
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import hard_timeout, without_deadline
from resilience.errors import CallTimeout, TransientError
from service_kit import logs

from . import kafka
from .bookmarks import Bookmarks
from .domain_event import DomainEvent, UnreadableEvent
from .kafka import Watch
from .publisher import TOPIC
from .sender import Record

HANDLER_TRIES = 3
HANDLER_LIMIT = 10.0  # seconds for one try
REMEMBERED = 10_000  # ids by which doubles are known
FETCH_RECORDS = 100
POLL = 0.2  # seconds that a fetch waits for records: how soon the loss of the broker is noticed
FIRST_FETCH = 0.01  # seconds between looks at whether it has been answered
STOP_LIMIT = 0.5

log = logs.get_logger("event_stream")
Handler = Callable[[DomainEvent], Awaitable[object]]
Bury = Callable[[Record, BaseException, str], object]


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """Whether events come in now, and counts since the start."""

    connected: bool
    handled: int
    doubles: int
    unreadable: int
    poisonous: int  # the handler failed at them every time
    sessions: int  # times the stream was found


class EventConsumer:
    """Hands each event of `topic` to `handler`, in order per subject, doubles dropped; `run` it in the background.

    Args:
        bootstrap: "host:port", or several with commas.
        handler: awaited for one event after the other. What it raises is tried again a few times; then the event is
            buried, and the stream goes on. It must be harmless to repeat.
        group: the broker keeps under this name how far the handler has come, and all events from there on are handled,
            also those from before the start. None: all events from the first connection on.
        bury: told of an event that the handler cannot digest: `EventPublisher.bury`. None: it is logged and counted.
        waits_for: whether a failure means that what the handler itself needs is away: the event is then tried again for
            as long as it takes, and those behind it wait.
        timeout: seconds for one answer of the broker; then it counts as frozen.
    """

    def __init__(
        self,
        bootstrap: str,
        handler: Handler,
        *,
        topic: str = TOPIC,
        group: str | None = None,
        bury: Bury | None = None,
        timeout: float = 1.0,
        handler_limit: float = HANDLER_LIMIT,
        waits_for: Callable[[Exception], bool] = lambda _: False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._timeout = timeout
        self._clock = clock
        self._delivery = Delivery(handler, bury, handler_limit, clock, waits_for)
        self._bookmarks = Bookmarks()
        self._reconnect = Backoff(0.2, cap=1.0, jitter="equal")
        self._retired = kafka.Retired()
        self._uncommitted: dict[TopicPartition, int] = {}
        self._committing: asyncio.Task[None] | None = None
        self._connected = False
        self._sessions = self._failures = 0

    async def run(self) -> None:
        """Consume until cancelled; ends within a second then."""
        try:
            with without_deadline():
                while True:
                    await self._session_or_failure()
                    await self._clock.sleep(self._reconnect.wait(max(1, self._failures), RANDOM))
        finally:
            await self._retired.wait(STOP_LIMIT)

    def stats(self) -> ConsumerStats:
        """For health pages."""
        done = self._delivery
        return ConsumerStats(
            self._connected, done.handled, done.doubles, done.unreadable, done.poisonous, self._sessions
        )

    # -- sessions: from a connection to its loss

    async def _session_or_failure(self) -> None:
        try:
            await self._session()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._lost(TransientError("the client cancelled itself"))
        except Exception as error:  # noqa: BLE001 - the stream is away: tried again for ever, ever more slowly
            self._lost(error)

    async def _session(self) -> None:
        watch = Watch(self._bootstrap, self._topic, timeout=self._timeout, clock=self._clock)
        try:
            await hard_timeout(watch.open(), 2 * self._timeout, name="event consumer", clock=self._clock)
            consumer = self._make_consumer()
            watching = asyncio.get_running_loop().create_task(watch.run())
            try:
                await hard_timeout(self._begin(consumer, watch), 3 * self._timeout, name="event consumer")
                await self._read(consumer, watch)
            finally:
                watching.cancel()
                self._retired.add(consumer.stop, consumer._client, self._committing)
                self._committing = None
        finally:
            watch.close()

    def _make_consumer(self) -> Any:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # of a log that was cut off behind us; where to begin is up to `_begin`
            request_timeout_ms=int(2 * self._timeout * 1000),
            fetch_max_wait_ms=int(POLL * 1000),
            retry_backoff_ms=kafka.RETRY_BACKOFF_MS,
        )

    async def _begin(self, consumer: Any, watch: Watch) -> None:
        await consumer.start()
        partitions = [TopicPartition(self._topic, number) for number in sorted(watch.partitions)]
        consumer.assign(partitions)
        ends = await self._ends(consumer, partitions)
        if self._group is None:
            starts = self._bookmarks.begin({partition.partition: end for partition, end in ends.items()})
        else:
            starts = {partition.partition: await consumer.committed(partition) or 0 for partition in partitions}
        for partition in partitions:
            start = starts[partition.partition]
            consumer.seek(partition, start if start <= ends[partition] else 0)  # beyond the end: it is another log

    async def _ends(self, consumer: Any, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The logs' ends, as the first fetch tells them; asked for directly, Tansu says where the last batch begins."""
        while True:
            ends = {partition: consumer.highwater(partition) for partition in partitions}
            if None not in ends.values():
                return ends
            await self._clock.sleep(FIRST_FETCH)

    async def _read(self, consumer: Any, watch: Watch) -> None:
        while True:
            fetched = await hard_timeout(
                consumer.getmany(timeout_ms=int(POLL * 1000), max_records=FETCH_RECORDS),
                POLL + 2 * self._timeout,
                name="event consumer",
            )
            for partition, records in fetched.items():
                watch.check()  # before the records: a log that came back in between may be another one
                try:
                    await self._take(consumer, partition, records)
                finally:
                    await self._commit(consumer, watch)
            watch.check()
            if not self._connected and (not fetched or self._bookmarks.settled):
                self._found()

    async def _take(self, consumer: Any, partition: TopicPartition, records: Sequence[Any]) -> None:
        for record in records:
            if self._group is None:
                new = self._bookmarks.admit(record)
                if new is None:
                    log.warning("the event stream has lost its past: reading it from its beginning")
                    consumer.seek(partition, 0)
                    return
                if not new:
                    continue
            await self._delivery.deliver(record)
            self._uncommitted[partition] = record.offset + 1

    async def _commit(self, consumer: Any, watch: Watch) -> None:
        """Only now, after the handler; and never into a log that may be another one by now."""
        done, self._uncommitted = self._uncommitted, {}
        if self._group is not None and done:
            watch.check()
            self._committing = asyncio.get_running_loop().create_task(consumer.commit(done))
            await asyncio.wait({self._committing}, timeout=self._timeout)
            if not self._committing.done():
                raise CallTimeout("event consumer commit", self._timeout)
            self._committing.result()

    def _found(self) -> None:
        if self._failures:
            log.warning("the event stream is back: events are consumed again", topic=self._topic)
        self._failures = 0
        self._sessions += 1
        self._connected = True

    def _lost(self, error: Exception) -> None:
        if not self._failures:
            log.warning("the event stream is away: no events are consumed", error=type(error).__name__)
        self._failures += 1
        self._connected = False


class Delivery:
    """From a record to a handled event: reads it, drops doubles, tries again, and buries what is poisonous."""

    def __init__(
        self,
        handler: Handler,
        bury: Bury | None,
        limit: float,
        clock: Clock,
        waits_for: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._handler = handler
        self._bury = bury
        self._waits_for = waits_for
        self._limit = limit
        self._clock = clock
        self._backoff = Backoff(0.1, cap=1.0, jitter="equal")
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.handled = self.doubles = self.unreadable = self.poisonous = 0

    async def deliver(self, record: Any) -> None:
        """Returns when the event is handled or given up; raises only when cancelled."""
        try:
            event = DomainEvent.decode(record.value)
        except UnreadableEvent as error:
            self._skip(record, error)
            return
        if (event.source, event.id) in self._known:
            self.doubles += 1
            return
        failure = await self._handle(event)
        self._remember(event)
        if failure is None:
            self.handled += 1
        else:
            self._give_up(record, event, failure)

    async def _handle(self, event: DomainEvent) -> Exception | None:
        tries = attempts = 0
        while (failure := await self._attempt(event)) is not None:
            attempts += 1
            if not self._waits_for(failure):
                tries += 1
            if tries >= HANDLER_TRIES:
                return failure
            await self._clock.sleep(self._backoff.wait(attempts, RANDOM))
        return None

    async def _attempt(self, event: DomainEvent) -> Exception | None:
        try:
            await hard_timeout(self._handler(event), self._limit, name="event handler", clock=self._clock)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return TransientError("the handler cancelled itself")
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the stream
            return error
        return None

    def _remember(self, event: DomainEvent) -> None:
        self._known[event.source, event.id] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _skip(self, record: Any, error: UnreadableEvent) -> None:
        self.unreadable += 1
        if self.unreadable == 1:  # the count tells of the others
            log.warning("a record is no event and is skipped", why=str(error), offset=record.offset)

    def _give_up(self, record: Any, event: DomainEvent, failure: Exception) -> None:
        self.poisonous += 1
        log.error(
            "an event cannot be handled and is skipped",
            type=event.type,
            event_id=event.id,
            error=type(failure).__name__,
        )
        if self._bury is not None:
            self._bury(Record(record.key or b"", record.value, tuple(record.headers)), failure, event.id)
