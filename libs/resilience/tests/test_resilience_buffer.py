"""The event buffer: bounded, in order, at least once, and past what the stream refuses."""

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.backlog import Backlog, BufferedEvent, BufferStats, DeadEvent, EventsDropped, EventsSent
from resilience.backoff import Backoff
from resilience.buffer import EventBuffer
from resilience.clock import FakeClock
from resilience.deadline import ABANDONED, current_deadline, deadline_scope
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, RateLimited, TransientError
from resilience.events import Event, Events

STEADY = Backoff(1.0, factor=2.0, cap=8.0, jitter="none")


class Away(ConnectionError):
    """Can be referred to weakly, unlike those built in."""


class Stream:
    """Takes events, unless it is away, slow, or does not like one of them."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.taken: list[BufferedEvent] = []
        self.attempts = 0
        self.error: BaseException | None = None
        self.poison: set[Any] = set()
        self.gate: asyncio.Event | None = None

    async def __call__(self, batch: Sequence[BufferedEvent]) -> None:
        self.attempts += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.poison & {event.value for event in batch}:
            raise ValueError("malformed")
        self.batches.append([event.value for event in batch])
        self.taken += batch

    @property
    def values(self) -> list[Any]:
        return [event.value for event in self.taken]


def buffer_of(stream: Stream, clock: FakeClock, **changed: Any) -> EventBuffer:
    return EventBuffer("audit", stream, **{"clock": clock, "backoff": STEADY, "interval": 1.0, **changed})


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# -- keeping


def test_put_takes_events_until_it_is_full_and_then_drops_the_oldest() -> None:
    told: list[Event] = []
    events = Events()
    events.subscribe(told.append)
    buffer = buffer_of(Stream(), FakeClock(), max_events=3, events=events)
    assert [buffer.put(number) for number in range(5)] == [True] * 5
    assert buffer.stats() == BufferStats(depth=3, oldest_age=0.0, sent=0, overflow=2, expired=0, dead=0)
    assert told == [EventsDropped("audit", "overflow", 1)] * 2


def test_events_that_are_too_old_are_dropped_and_counted() -> None:
    clock, events = FakeClock(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    buffer = buffer_of(Stream(), clock, max_age=300.0, events=events)
    buffer.put("a")
    clock.move(100.0)
    buffer.put("b")
    clock.move(200.0)
    buffer.put("c")
    assert buffer.stats()[:5] == (3, 300.0, 0, 0, 0)
    clock.move(0.001)
    buffer.put("d")
    stats = buffer.stats()
    assert (stats.depth, stats.expired) == (3, 1)
    assert told == [EventsDropped("audit", "expired", 1)]


def test_each_event_has_an_id_of_its_own_or_the_one_it_came_with() -> None:
    buffer = buffer_of(Stream(), FakeClock())
    assert all(buffer.put(number) for number in range(1_000))
    buffer.put("x", event_id="mine")
    backlog = buffer._backlog.take(0.0, 100)
    assert len({event.id for event in backlog}) == 100
    ids = iter("abc")
    named = buffer_of(Stream(), FakeClock(), new_id=lambda: next(ids))
    named.put(1)
    named.put(2, "mine")
    assert [event.id for event in named._backlog.take(0.0, 9)] == ["a", "mine"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_events", 0),
        ("max_age", 0.0),
        ("batch", 0),
        ("tries", 0),
        ("interval", 0.0),
        ("send_timeout", float("nan")),
        ("max_dead", -1),
    ],
)
def test_a_bad_setting_fails_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        buffer_of(Stream(), FakeClock(), **{field: value})


# -- sending


async def test_events_are_sent_in_order_and_in_batches() -> None:
    stream, clock, events = Stream(), FakeClock(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    buffer = buffer_of(stream, clock, events=events)
    for number in range(250):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert stream.values == list(range(250))
    assert [len(batch) for batch in stream.batches] == [100, 100, 50]
    assert told == [EventsSent("audit", 100), EventsSent("audit", 100), EventsSent("audit", 50)]
    assert buffer.stats() == BufferStats(0, 0.0, 250, 0, 0, 0)
    await stop(task)
    assert clock.pending == 0


async def test_a_small_batch_waits_for_the_interval_and_a_full_one_does_not() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock, batch=3)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    buffer.put(1)
    buffer.put(2)
    await clock.advance(0.9)
    assert stream.values == []
    await clock.advance(0.1)
    assert stream.values == [1, 2]
    for number in (3, 4, 5):
        buffer.put(number)
    await clock.advance(0)
    assert stream.values == [1, 2, 3, 4, 5]
    await stop(task)


async def test_events_put_from_other_threads_wake_the_sender() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock, batch=100, max_events=10_000)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    threads = [threading.Thread(target=lambda: [buffer.put(1) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(asyncio.to_thread(thread.join, 10) for thread in threads))
    await clock.advance(1.0)
    assert len(stream.taken) == 1_600
    assert len({event.id for event in stream.taken}) == 1_600
    await stop(task)


def test_eight_threads_keep_the_bound_and_the_books() -> None:
    buffer = buffer_of(Stream(), FakeClock(), max_events=100)
    threads = [threading.Thread(target=lambda: [buffer.put(1) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    stats = buffer.stats()
    assert (stats.depth, stats.overflow) == (100, 3_900)


# -- outages


async def test_an_outage_uses_up_no_tries_and_is_met_with_growing_waits() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError("away")
    buffer = buffer_of(stream, clock, tries=2)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    began = clock.monotonic()
    attempts: list[float] = []
    for _ in range(160):
        before = stream.attempts
        await clock.advance(0.25)
        if stream.attempts > before:
            attempts.append(clock.monotonic() - began)
    assert attempts == [0.25, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0, 39.0]
    assert (len(buffer), list(buffer.dead_events)) == (1, [])
    stream.error = None
    buffer.kick()
    await clock.advance(0)
    assert stream.values == ["a"]
    assert stream.taken[0].tries == 0
    await stop(task)


async def test_the_waits_are_spread_by_chance() -> None:
    waits = set()
    for seed in range(5):
        stream, clock = Stream(), FakeClock()
        stream.error = ConnectionError()
        buffer = EventBuffer("audit", stream, clock=clock, random=Random(seed))
        buffer.put("a")
        task = asyncio.create_task(buffer.run())
        await clock.advance(0)
        seconds = 0
        while stream.attempts < 2:
            await clock.advance(0.01)
            seconds += 1
        waits.add(seconds)
        assert 50 <= seconds <= 101
        await stop(task)
    assert len(waits) > 1


async def test_a_kick_from_any_thread_ends_the_wait_and_begins_the_waits_anew() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = CircuitBreakerOpen("kafka", 30.0)
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(20.0)
    before = stream.attempts
    await asyncio.to_thread(buffer.kick)
    await clock.advance(0)
    assert stream.attempts == before + 1
    await clock.advance(1.0)
    assert stream.attempts == before + 2
    await stop(task)


async def test_a_kick_during_a_send_is_not_lost() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()
    stream.gate = asyncio.Event()
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    buffer.kick()
    stream.gate.set()
    await clock.advance(0)
    assert stream.attempts == 2
    await stop(task)


async def test_a_kick_in_the_moment_in_which_the_wait_ends_harms_nothing() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    buffer.kick()
    clock.move(1.0)
    stream.error = None
    await clock.advance(0)
    assert stream.values == ["a"]
    await stop(task)


async def test_more_events_do_not_end_the_wait_of_an_outage() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()
    buffer = buffer_of(stream, clock, batch=2)
    task = asyncio.create_task(buffer.run())
    buffer.put(1)
    await clock.advance(0)
    for number in range(10):
        buffer.put(number)
    await clock.advance(0.5)
    assert stream.attempts == 1
    await stop(task)


async def test_a_send_that_hangs_is_an_outage_and_its_batch_is_kept() -> None:
    stream, clock = Stream(), FakeClock()
    stream.gate = asyncio.Event()
    buffer = buffer_of(stream, clock, send_timeout=5.0)
    for number in range(3):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(5.0)
    assert (len(buffer), stream.attempts, len(ABANDONED)) == (3, 1, 0)
    stream.gate = None
    await clock.advance(1.0)
    assert stream.values == [0, 1, 2]
    await stop(task)


async def test_a_send_that_cancels_itself_is_an_outage_and_does_not_end_the_sender() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = asyncio.CancelledError()
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert not task.done()
    stream.error = None
    await clock.advance(1.0)
    assert stream.values == ["a"]
    await stop(task)


async def test_events_that_came_during_the_outage_keep_their_order_behind_the_batch() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()
    buffer = buffer_of(stream, clock, batch=2, max_age=100.0)
    for number in range(5):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(2.0)
    for number in range(5, 9):
        buffer.put(number)
    stream.error = None
    await clock.advance(10.0)
    assert stream.values == list(range(9))
    await stop(task)


async def test_an_outage_longer_than_the_age_loses_what_is_too_old_and_nothing_else() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()
    buffer = buffer_of(stream, clock, max_age=300.0)
    task = asyncio.create_task(buffer.run())
    for number in range(8):
        buffer.put(number)
        await clock.advance(60.0)
    stream.error = None
    buffer.kick()
    await clock.advance(0)
    assert stream.values == [3, 4, 5, 6, 7]
    assert buffer.stats()[:5] == (0, 0.0, 5, 0, 3)
    await stop(task)


async def test_what_is_in_flight_is_not_dropped_for_newer_events() -> None:
    stream, clock = Stream(), FakeClock()
    stream.gate = asyncio.Event()
    buffer = buffer_of(stream, clock, max_events=3, batch=2)
    for number in range(2):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert [buffer.put(number) for number in (2, 3)] == [True, True]
    assert len(buffer) == 3
    stream.gate.set()
    await clock.advance(1.0)
    assert stream.values == [0, 1, 3]
    await stop(task)


async def test_with_no_room_beside_what_is_in_flight_a_new_event_is_not_taken() -> None:
    stream, clock = Stream(), FakeClock()
    stream.gate = asyncio.Event()
    buffer = buffer_of(stream, clock, max_events=2)
    assert buffer.put(0)
    assert buffer.put(1)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert not buffer.put(2)
    assert (len(buffer), buffer.stats().overflow) == (2, 1)
    await stop(task)


# -- refusals


@pytest.mark.parametrize("bad", [0, 37, 99])
async def test_a_poisoned_event_is_found_by_halving_and_the_others_pass_in_order(bad: int) -> None:
    stream, clock = Stream(), FakeClock()
    stream.poison = {bad}
    buffer = buffer_of(stream, clock)
    for number in range(150):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert stream.values == [number for number in range(150) if number != bad]
    assert stream.attempts <= 20
    assert len(buffer) == 1
    await clock.advance(15.0)
    (dead,) = buffer.dead_events
    assert (dead.event.value, dead.event.tries, str(dead.error)) == (bad, 5, "malformed")
    assert (len(buffer), buffer.stats().dead) == (0, 1)
    await stop(task)
    assert clock.pending == 0


async def test_a_refused_event_has_its_tries_with_growing_waits_and_then_is_dead() -> None:
    stream, clock, events = Stream(), FakeClock(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    buried: list[DeadEvent] = []

    def bury(dead: DeadEvent) -> None:
        buried.append(dead)
        raise ZeroDivisionError

    stream.poison = {"a"}
    buffer = buffer_of(stream, clock, dead=bury, max_dead=0, events=events, interval=0.1)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    began, attempts = clock.monotonic(), []
    for _ in range(200):
        before = stream.attempts
        await clock.advance(0.1)
        if stream.attempts > before:
            attempts.append(round(clock.monotonic() - began))
    assert attempts == [0, 1, 3, 7, 15]
    assert [dead.event.value for dead in buried] == ["a"]
    assert list(buffer.dead_events) == []
    assert buffer.callback_errors == 1
    assert told == [EventsDropped("audit", "refused", 1)]
    await stop(task)


async def test_a_refused_event_may_pass_later() -> None:
    stream, clock = Stream(), FakeClock()
    stream.poison = {1}
    buffer = buffer_of(stream, clock)
    for number in range(3):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    stream.poison = set()
    await clock.advance(1.0)
    assert stream.values == [0, 2, 1]
    assert stream.taken[-1].tries == 1
    await stop(task)


async def test_a_retry_that_meets_an_outage_keeps_its_tries() -> None:
    stream, clock = Stream(), FakeClock()
    stream.poison = {1}
    buffer = buffer_of(stream, clock, tries=2)
    buffer.put(1)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    stream.error = ConnectionError()
    await clock.advance(60.0)
    assert (len(buffer), buffer.stats().dead) == (1, 0)
    stream.error = None
    buffer.kick()
    await clock.advance(0)
    assert (len(buffer), buffer.stats().dead) == (0, 1)
    await stop(task)


async def test_a_stream_that_refuses_everything_is_asked_ever_more_slowly() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock, is_outage=lambda _error: False, max_age=3_600.0)
    stream.error = PermissionError()
    for number in range(1_000):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(60.0)
    assert stream.attempts < 120
    assert len(buffer) > 900
    stream.error = None
    await clock.advance(30.0)
    assert len(buffer) == 0
    assert buffer.stats().sent + buffer.stats().dead == 1_000
    await stop(task)


async def test_what_an_outage_is_can_be_said_and_a_judge_that_raises_means_one() -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = ConnectionError()

    def broken(_error: Exception) -> bool:
        raise ZeroDivisionError

    for is_outage, dead in ((lambda _error: False, 1), (broken, 0), (lambda _error: True, 0)):
        judge: Callable[[Exception], bool] = is_outage
        buffer = buffer_of(stream, clock, is_outage=judge, tries=1)
        buffer.put("a")
        task = asyncio.create_task(buffer.run())
        await clock.advance(0)
        assert (len(buffer), buffer.stats().dead) == (1 - dead, dead)
        await stop(task)


@pytest.mark.parametrize(
    "error",
    [
        CircuitBreakerOpen("kafka", 1.0),
        BulkheadFull("kafka"),
        RateLimited("kafka", 1.0),
        CallTimeout("kafka", 1.0),
        TransientError(),
        asyncio.CancelledError(),
    ],
)
async def test_what_never_reached_the_stream_is_no_refusal_whatever_the_judge_says(error: BaseException) -> None:
    stream, clock = Stream(), FakeClock()
    stream.error = error
    buffer = buffer_of(stream, clock, is_outage=lambda _error: False, tries=1)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(5.0)
    assert (len(buffer), buffer.stats().dead) == (1, 0)
    await stop(task)


async def test_dead_events_are_bounded_and_hold_no_frames() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock, tries=1, max_dead=3, batch=1)
    stream.poison = set(range(10))
    for number in range(10):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(100.0)
    assert [dead.event.value for dead in buffer.dead_events] == [7, 8, 9]
    assert {dead.error.__traceback__ for dead in buffer.dead_events} == {None}
    await stop(task)


async def test_the_oldest_to_go_is_first_one_that_was_refused() -> None:
    stream, clock = Stream(), FakeClock()
    stream.poison = {0}
    buffer = buffer_of(stream, clock, max_events=3)
    buffer.put(0)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    await stop(task)
    for number in (1, 2, 3):
        buffer.put(number)
    stream.poison = set()
    assert await buffer.flush(10.0) == 0
    assert stream.values == [1, 2, 3]


async def test_a_refused_event_gets_too_old_like_any_other() -> None:
    stream, clock = Stream(), FakeClock()
    stream.poison = {0}
    buffer = buffer_of(stream, clock, max_age=2.0)
    buffer.put(0)
    task = asyncio.create_task(buffer.run())
    await clock.advance(10.0)
    assert buffer.stats()[:] == (0, 0.0, 0, 0, 1, 0)
    await stop(task)


# -- stopping


async def test_a_cancelled_sender_returns_its_batch_to_the_front() -> None:
    stream, clock = Stream(), FakeClock()
    stream.gate = asyncio.Event()
    buffer = buffer_of(stream, clock, batch=2)
    for number in range(3):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    await stop(task)
    assert (len(buffer), stream.values, clock.pending) == (3, [], 0)
    stream.gate = None
    assert await buffer.flush(10.0) == 0
    assert stream.batches == [[0, 1], [2]]


@pytest.mark.parametrize("turn", range(12))
async def test_wherever_it_is_cancelled_nothing_is_lost(turn: int) -> None:
    stream, clock = Stream(), FakeClock()

    async def admit(_count: int) -> None:
        await asyncio.sleep(0)

    buffer = buffer_of(stream, clock, batch=2, admit=admit)
    for number in range(6):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    for _ in range(turn):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(set(stream.values)) + len(buffer) >= 6
    await buffer.flush(10.0)
    assert sorted(set(stream.values)) == list(range(6))
    assert list(dict.fromkeys(stream.values)) == list(range(6))
    assert clock.pending == 0


async def test_an_exit_in_send_returns_the_batch() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock)
    buffer.put("a")

    def interrupted(_error: Exception) -> bool:
        raise KeyboardInterrupt

    buffer._is_outage = interrupted
    stream.error = ValueError()
    with pytest.raises(KeyboardInterrupt):
        await buffer._drain()
    assert buffer._backlog.waiting == 1


async def test_flush_sends_what_it_can_in_its_time_and_tells_what_is_left() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock)
    assert await buffer.flush(5.0) == 0
    buffer.put("a")
    stream.error = ConnectionError()
    task = asyncio.create_task(buffer.flush(5.0))
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.1)
    assert await task == 1
    assert stream.attempts == 3
    stream.error = None
    assert await buffer.flush(5.0) == 0
    assert clock.pending == 0


async def test_flush_waits_out_an_outage_that_is_short_enough() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    stream.error = ConnectionError()
    task = asyncio.create_task(buffer.flush(5.0))
    await clock.advance(0.5)
    stream.error = None
    await clock.advance(0.5)
    assert await task == 0


async def test_flush_beside_a_running_sender_sends_nothing_twice() -> None:
    stream, clock = Stream(), FakeClock()
    stream.gate = asyncio.Event()

    async def admit(_count: int) -> None:
        await asyncio.sleep(0)

    buffer = buffer_of(stream, clock, batch=2, admit=admit)
    for number in range(5):
        buffer.put(number)
    running = asyncio.create_task(buffer.run())
    flushing = asyncio.create_task(buffer.flush(30.0))
    await clock.advance(0)
    stream.gate.set()
    await clock.advance(1.0)
    assert await flushing == 0
    assert stream.values == [0, 1, 2, 3, 4]
    await stop(running)


async def test_sending_has_no_deadline_of_whoever_started_it() -> None:
    clock = FakeClock()
    seen: list[object] = []

    async def send(_batch: Sequence[BufferedEvent]) -> None:
        seen.append(current_deadline())

    buffer = EventBuffer("audit", send, clock=clock)
    buffer.put(1)
    with deadline_scope(0.1, clock=clock):
        task = asyncio.create_task(buffer.run())
        await clock.advance(0)
    assert seen == [None]
    await stop(task)


def test_a_kick_after_the_senders_loop_was_closed_harms_nobody() -> None:
    clock = FakeClock()
    buffer = buffer_of(Stream(), clock)
    loop, context, sender = asyncio.new_event_loop(), contextvars.copy_context(), buffer.run()

    async def begin() -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(sender, context=context)
        await clock.advance(0)
        return task

    left = loop.run_until_complete(begin())
    loop.close()
    buffer.kick()
    assert buffer.put(1)
    context.run(sender.close)
    left._log_destroy_pending = False  # type: ignore[attr-defined]


# -- permission


async def test_each_batch_asks_for_admission_with_its_size() -> None:
    stream, clock = Stream(), FakeClock()
    asked: list[int] = []

    async def admit(count: int) -> None:
        asked.append(count)
        await clock.sleep(1.0)

    buffer = buffer_of(stream, clock, admit=admit)
    for number in range(150):
        buffer.put(number)
    task = asyncio.create_task(buffer.run())
    await clock.advance(0.5)
    assert (asked, stream.values) == ([100], [])
    await clock.advance(2.0)
    assert (asked, len(stream.values)) == ([100, 50], 150)
    await stop(task)
    assert clock.pending == 0


async def test_without_admission_nothing_is_sent_and_it_is_asked_again_later() -> None:
    stream, clock = Stream(), FakeClock()
    denied = True

    async def admit(_count: int) -> None:
        if denied:
            raise CallTimeout("governor", 1.0)

    buffer = buffer_of(stream, clock, admit=admit)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(0.9)
    assert stream.attempts == 0
    denied = False
    await clock.advance(0.1)
    assert stream.values == ["a"]
    await stop(task)


async def test_a_governor_that_never_answers_is_waited_for_no_longer_than_events_live() -> None:
    stream, clock = Stream(), FakeClock()
    hung = asyncio.Event()

    async def admit(_count: int) -> None:
        await hung.wait()

    buffer = buffer_of(stream, clock, admit=admit, max_age=50.0)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(52.0)
    assert buffer.stats()[:5] == (0, 0.0, 0, 0, 1)
    await stop(task)


async def test_events_that_got_too_old_while_admission_was_awaited_are_not_sent() -> None:
    stream, clock = Stream(), FakeClock()

    async def admit(_count: int) -> None:
        clock.move(60.0)

    buffer = buffer_of(stream, clock, admit=admit, max_age=50.0)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    await clock.advance(0)
    assert (stream.attempts, buffer.stats().expired) == (0, 1)
    await stop(task)


# -- listeners and memory


async def test_a_listener_that_raises_changes_nothing() -> None:
    stream, clock, events = Stream(), FakeClock(), Events()

    def broken(_event: Event) -> None:
        raise ZeroDivisionError

    events.subscribe(broken)
    buffer = buffer_of(stream, clock, max_events=2, events=events)
    for number in range(3):
        assert buffer.put(number)
    assert await buffer.flush(5.0) == 0
    assert stream.values == [1, 2]
    assert events.listener_errors == 2


async def test_an_outage_leaves_no_garbage_for_the_collector() -> None:
    stream, clock = Stream(), FakeClock()
    buffer = buffer_of(stream, clock)
    buffer.put("a")
    task = asyncio.create_task(buffer.run())
    gc.collect()
    gc.disable()
    try:
        stream.error = Away()
        seen = weakref.ref(stream.error)
        await clock.advance(0)
        stream.error = None
        assert seen() is None
    finally:
        gc.enable()
    await stop(task)


def test_an_event_that_uses_the_buffer_when_it_dies_does_not_deadlock() -> None:
    clock = FakeClock()
    buffer = buffer_of(Stream(), clock, max_events=1, max_age=10.0)
    done: list[str] = []

    class Dying:
        def __del__(self) -> None:
            buffer.stats()

    def work() -> None:
        buffer.put(Dying())
        buffer.put(Dying())
        clock.move(11.0)
        buffer.put(1)
        done.append("done")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert done == ["done"]


# -- the rules alone

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.booleans()),
        st.tuples(st.just("tick"), st.floats(0.0, 4.0)),
        st.tuples(st.just("send"), st.integers(1, 8)),
        st.tuples(st.just("outage"), st.integers(1, 8)),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 12), st.integers(1, 8), st.integers(1, 3))
def test_whatever_happens_the_books_agree_and_good_events_stay_in_order(
    steps: list[tuple[str, Any]], max_events: int, batch: int, tries: int
) -> None:
    backlog, now, serial = Backlog(max_events, 20.0, batch, tries), 0.0, 0
    bad: set[str] = set()
    put = sent = gone = 0
    good: list[int] = []
    for step, value in steps:
        if step == "put":
            serial += 1
            event = BufferedEvent(str(serial), serial, now)
            if value:
                bad.add(event.id)
            put += 1
            gone += backlog.put(event) is not None
        elif step == "tick":
            now += value
            expired = backlog.expire(now)
            assert all(now - event.at > 20.0 for event in expired)
            gone += len(expired)
        else:
            ready = backlog.ready(now)
            taken = backlog.take(now, value)
            assert len(taken) == min(ready, value) <= batch
            assert backlog.ready(now) == 0 if taken else True
            assert backlog.take(now, 9) == ()
            if taken and step == "outage":
                backlog.back(now)
            elif bad.intersection(event.id for event in taken):
                dead = backlog.refused(now + 1.0)
                assert dead is None or (dead.id in bad and dead.tries == tries)
                gone += dead is not None
            elif taken:
                good += [event.value for event in taken]
                sent += backlog.sent()
        oldest = backlog.oldest
        assert (oldest is None) == (len(backlog) == 0)
        assert len(backlog) == put - sent - gone <= max_events
    assert good == sorted(good)


def test_the_search_halves_what_is_suspect_and_then_goes_on_with_whole_batches() -> None:
    backlog = Backlog(100, 1e9, 8, 5)
    for number in range(12):
        backlog.put(BufferedEvent(str(number), number, 0.0))
    sends = []
    while taken := backlog.take(0.0, 100):
        sends.append([event.value for event in taken])
        if 5 in sends[-1]:
            backlog.refused(10.0)
        else:
            backlog.sent()
    assert sends == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5],
        [4],
        [5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert backlog.due == 10.0


def test_a_retry_between_the_halves_leaves_the_search_alone() -> None:
    backlog = Backlog(100, 1e9, 8, 5)
    backlog.put(BufferedEvent("a", "a", 0.0))
    backlog.take(0.0, 1)
    backlog.refused(1.0)
    for number in range(8):
        backlog.put(BufferedEvent(str(number), number, 0.0))
    backlog.take(0.0, 8)
    backlog.refused(9.0)
    assert backlog.ready(0.0) == 4
    assert [event.id for event in backlog.take(1.0, 8)] == ["a"]
    backlog.sent()
    assert backlog.ready(1.0) == 4


def test_a_retry_that_was_not_judged_is_tried_alone_again() -> None:
    backlog = Backlog(100, 1e9, 8, 5)
    backlog.put(BufferedEvent("a", "a", 0.0))
    backlog.take(0.0, 1)
    backlog.refused(1.0)
    backlog.put(BufferedEvent("b", "b", 0.0))
    for _ in range(2):
        assert [event.id for event in backlog.take(1.0, 8)] == ["a"]
        backlog.back(1.0)
    backlog.take(1.0, 8)
    backlog.sent()
    assert [event.id for event in backlog.take(1.0, 8)] == ["b"]


@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=12), st.integers(1, 100))
def test_every_good_event_passes_and_every_bad_one_is_found(count: int, bad: set[int], batch: int) -> None:
    backlog = Backlog(1_000, 1e9, batch, 1)
    for number in range(count):
        backlog.put(BufferedEvent(str(number), number, 0.0))
    passed: list[int] = []
    dead: list[int] = []
    sends = 0
    while taken := backlog.take(0.0, batch):
        sends += 1
        if any(event.value in bad for event in taken):
            buried = backlog.refused(0.0)
            dead += [buried.value] if buried else []
        else:
            passed += [event.value for event in taken]
            backlog.sent()
    present = bad & set(range(count))
    assert passed == [number for number in range(count) if number not in bad]
    assert dead == sorted(present)
    assert sends <= count / batch + 1 + len(present) * (2 * batch.bit_length() + 3)
