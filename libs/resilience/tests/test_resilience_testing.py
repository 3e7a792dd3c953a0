"""The tools for tests: they do what they say, restore what they change, and tell what happened when they complain."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.ambient import RANDOM, TESTING
from resilience.backoff import Backoff
from resilience.breaker import CircuitBreaker, Verdict, classify_by
from resilience.errors import CallTimeout, CircuitBreakerOpen
from resilience.events import Events, FallbackUsed
from resilience.outcome import Degradation, Served
from resilience.retry import Retried, Retry
from resilience.testing import (
    HANG,
    OK,
    FakeClock,
    FlakyDependency,
    RecordedEvents,
    assert_circuit,
    assert_degraded,
    assert_fresh,
    assert_no_tasks_left,
    assert_nothing_pending,
    break_circuit,
    expect_transitions,
    record_events,
    run_until,
    settle,
    slow,
    testing_mode,
)
from resilience.testing.mode import _STARTED
from resilience.timeout import Timeout


def in_force() -> tuple[object, ...]:
    return TESTING.attempts, TESTING.backoff, RANDOM.getstate()


@pytest.fixture(autouse=True)
def _nothing_is_left_changed() -> Iterator[None]:
    before = in_force()
    yield
    assert in_force() == before
    assert not _STARTED


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker("stock", failure_threshold=3, recovery_timeout=30.0, clock=clock)


# -- testing mode


async def test_retries_do_not_wait_in_testing_mode(clock: FakeClock) -> None:
    fails = FlakyDependency(clock=clock)
    fails.fail(ConnectionError)
    retry = Retry(attempts=4, backoff=Backoff(10.0, cap=60.0), clock=clock)
    with testing_mode(), pytest.raises(ConnectionError):
        await retry.call(fails)
    assert (len(fails.calls), clock.monotonic()) == (4, 1_000.0)
    with testing_mode(attempts=2), pytest.raises(ConnectionError):
        retry.call_sync(fails.call_sync)
    assert (len(fails.calls), clock.monotonic()) == (6, 1_000.0)


def test_back_off_can_be_kept_and_its_jitter_repeats_itself(clock: FakeClock) -> None:
    def waited(seed: int) -> float:
        began, fails = clock.monotonic(), FlakyDependency(ConnectionError, ConnectionError, clock=clock)
        with testing_mode(seed=seed, backoff=True):
            Retry(backoff=Backoff(10.0), clock=clock).call_sync(fails.call_sync)
        return clock.monotonic() - began

    assert waited(1) == pytest.approx(waited(1))
    assert waited(1) != pytest.approx(waited(2))


def test_an_inner_mode_replaces_the_outer_one_until_it_ends() -> None:
    with testing_mode(attempts=2, seed=1) as outer:
        first = RANDOM.random()
        with testing_mode(backoff=True, seed=1):
            assert (TESTING.attempts, TESTING.backoff) == (None, True)
            assert RANDOM.random() == first
        assert (TESTING.attempts, TESTING.backoff) == (2, False)
        chance = Random(1)
        assert [first, RANDOM.random()] == [chance.random(), chance.random()]  # the outer one's goes on undisturbed
        assert repr(outer) == "testing_mode(seed=1, attempts=2, backoff=False)"


@given(st.permutations(range(4)))
def test_modes_end_in_any_order_and_leave_no_trace(order: list[int]) -> None:
    before = in_force()
    modes = [testing_mode(seed=seed, attempts=seed + 1) for seed in range(4)]
    for mode in modes:
        mode.__enter__()
    for ended, at in enumerate(order):
        alive = set(order[ended:])
        assert TESTING.attempts == max(alive) + 1  # of those left, the one that began last
        modes[at].__exit__(None, None, None)
    assert in_force() == before


def test_it_restores_after_any_ending() -> None:
    before = in_force()

    def end_with(error: BaseException) -> None:
        with testing_mode(attempts=1):
            RANDOM.random()
            raise error

    for error in (ValueError(), KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            end_with(error)
        assert in_force() == before


async def test_it_decorates_functions_async_and_sync() -> None:
    mode = testing_mode(attempts=5)

    @mode
    async def fetch(depth: int) -> tuple[int | None, int | None]:
        await asyncio.sleep(0)
        inner = (await fetch(depth - 1))[0] if depth else None  # one mode, entered again by a recursive call
        return TESTING.attempts, inner

    @mode
    def compute() -> int | None:
        return TESTING.attempts

    assert await fetch(1) == (5, 5)
    assert await fetch(0) == (5, None)
    assert compute() == 5
    assert TESTING.attempts is None
    assert fetch.__name__ == "fetch"


async def test_a_cancelled_function_leaves_testing_mode() -> None:
    @testing_mode(attempts=1)
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(hang())
    await settle()
    assert TESTING.attempts == 1
    task.cancel()
    await settle()
    assert TESTING.attempts is None


def test_it_does_not_pretend_to_decorate_what_it_cannot() -> None:
    def generator() -> Iterator[None]:
        yield

    async def async_generator() -> AsyncIterator[None]:
        yield

    class Suite:
        pass

    for func in (generator, async_generator, Suite):
        with pytest.raises(TypeError, match="testing_mode decorates functions"):
            testing_mode()(func)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"attempts": 0}, "attempts must be"),
        ({"attempts": True}, "attempts must be"),
        ({"attempts": 1.5}, "attempts must be"),
        ({"seed": "x"}, "seed must be"),
        ({"seed": True}, "seed must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        testing_mode(**settings)


def test_eight_threads_leave_everything_as_it_was() -> None:
    def work(seed: int) -> None:
        for _ in range(200):
            with testing_mode(seed=seed, attempts=seed + 1):
                RANDOM.random()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    # The autouse fixture compares before and after.


# -- what was served

MARK = Degradation("shop.stock", "redis-cache", "open", 12.0)


def test_a_degraded_answer_is_recognised_by_its_marks() -> None:
    served = Served(41, (Degradation("shop.prices", "default", "closed"), MARK))
    assert assert_degraded(served) == 41
    assert assert_degraded(served, fallback="redis-cache") == 41
    assert assert_degraded(served, row="shop.stock", circuit="open", fallback="redis-cache") == 41
    with pytest.raises(AssertionError) as told:
        assert_degraded(served, row="shop.prices", fallback="redis-cache")
    assert str(told.value) == (
        "expected an answer of a fallback with fallback 'redis-cache', row 'shop.prices', but it was degraded: "
        "fallback 'default' of row 'shop.prices', circuit 'closed'; "
        "fallback 'redis-cache' of row 'shop.stock', circuit 'open'\n"
        "  value: 41"
    )
    with pytest.raises(
        AssertionError, match=r"^expected an answer of a fallback, but no fallback took part\n  value: 42$"
    ):
        assert_degraded(Served(42))


def test_a_fresh_answer_is_neither_marked_nor_a_copy_nor_ahead_of_the_store() -> None:
    assert assert_fresh(Served(42)) == 42
    with pytest.raises(AssertionError) as told:
        assert_fresh(Served(42, (MARK,), as_of=1.5, pending=True))
    assert str(told.value) == (
        "expected a fresh answer, but it was degraded: fallback 'redis-cache' of row 'shop.stock', circuit 'open', "
        "it was a copy as of 1.500, it showed queued writes\n  value: 42"
    )
    for served in (Served(42, as_of=1.5), Served(42, pending=True)):
        with pytest.raises(AssertionError, match="but no fallback took part, it "):
            assert_fresh(served)


def test_a_bare_value_is_no_served_one() -> None:
    bare: Any = 42
    for check in (assert_fresh, assert_degraded):
        with pytest.raises(AssertionError, match="not a Served but 42: `serve` says where a value came from"):
            check(bare)


# -- circuits


def test_assert_circuit_tells_the_story(breaker: CircuitBreaker, clock: FakeClock) -> None:
    assert_circuit(breaker, "closed")
    assert_circuit(breaker, "closed", held=False)
    breaker.acquire().failure(OSError())
    clock.move(2.0)
    with pytest.raises(AssertionError) as told:
        assert_circuit(breaker, "open")
    assert str(told.value) == (
        "expected open, but circuit 'stock' is closed\n"
        "  for 2 s, 1 of 3 consecutive failures, last error: OSError\n"
        "  calls: 1 started, 0 succeeded, 1 failed, 0 neutral, 0 stale, 0 in_flight, 0 rejected"
    )
    with pytest.raises(ValueError, match="state must be one of closed, open, half_open, not 'ajar'"):
        assert_circuit(breaker, "ajar")


def test_assert_circuit_explains_when_an_open_circuit_becomes_half_open(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    break_circuit(breaker)
    clock.move(10.0)
    with pytest.raises(AssertionError, match="half-open when a call is admitted as the trial, 20 s from now"):
        assert_circuit(breaker, "half_open")
    clock.move(20.0)
    with breaker.acquire():
        assert_circuit(breaker, "half-open")  # as in headers


def test_assert_circuit_can_ask_whether_the_state_is_held(breaker: CircuitBreaker) -> None:
    breaker.force_open()
    assert_circuit(breaker, "open", held=True)
    with pytest.raises(AssertionError, match="expected open, not held, but circuit 'stock' is open, held by hand"):
        assert_circuit(breaker, "open", held=False)
    with pytest.raises(AssertionError, match=r"^expected half_open, but circuit 'stock' is open, held by hand\n  for"):
        assert_circuit(breaker, "half_open")


def test_a_windows_rates_are_in_the_story(clock: FakeClock) -> None:
    breaker = CircuitBreaker(window=10, failure_rate=0.9, minimum_calls=4, clock=clock)
    breaker.shadow()
    breaker.acquire().failure()
    with pytest.raises(AssertionError, match=r"(?s)in shadow: it never opens.*1 calls, too few to say how many failed"):
        assert_circuit(breaker, "open")
    for _ in range(3):
        breaker.acquire().success()
    with pytest.raises(AssertionError, match="window: 4 calls, 25% failed, 0% slow"):
        assert_circuit(breaker, "open")


def rules() -> list[dict[str, Any]]:
    return [
        {"failure_threshold": 1},
        {"failure_threshold": 500},
        {"window": 100, "failure_rate": 1.0, "minimum_calls": 50},
        {"window_seconds": 60.0, "failure_rate": 0.5},
        {"slow_call_seconds": 1.0, "slow_rate": 0.5, "failure_threshold": 7},
    ]


@pytest.mark.parametrize("settings", rules())
def test_break_circuit_opens_it_by_its_own_rules(settings: dict[str, Any], clock: FakeClock) -> None:
    breaker = CircuitBreaker("stock", clock=clock, **settings)
    for _ in range(20):
        breaker.acquire().success()
    error = OSError("gone")
    with expect_transitions(breaker, "closed->open") as seen:
        break_circuit(breaker, error)
        break_circuit(breaker)  # open already
    assert "failure" in seen[0].reason
    with pytest.raises(CircuitBreakerOpen) as rejection:
        breaker.check()
    assert rejection.value.last_cause is error


def test_break_circuit_reopens_a_half_open_circuit(breaker: CircuitBreaker, clock: FakeClock) -> None:
    break_circuit(breaker)
    clock.move(30.0)
    trial = breaker.acquire()  # under way, and takes the only place
    with pytest.raises(AssertionError, match="it is half-open and all its trials are taken"):
        break_circuit(breaker)
    trial.success()
    break_circuit(breaker)
    assert_circuit(breaker, "open")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classify": classify_by(answers=(ConnectionError,))}, "takes a ConnectionError for a success; break it with"),
        ({"classify": classify_by(neutral=(OSError,))}, "takes a ConnectionError for a neutral"),
        ({"slow_call_seconds": 2.5, "slow_rate": 0.5}, "it opens for slow calls only, those over 2.5 s"),
        ({"failure_threshold": 20_000}, "10000 failures in a row are not enough for its rules"),
    ],
)
def test_break_circuit_says_why_it_cannot(settings: dict[str, Any], text: str, clock: FakeClock) -> None:
    with pytest.raises(AssertionError, match=f"circuit 'stock' did not open: .*{text}"):
        break_circuit(CircuitBreaker("stock", clock=clock, **settings))


def test_break_circuit_cannot_open_what_is_held_or_in_shadow(breaker: CircuitBreaker) -> None:
    breaker.force_closed()
    with pytest.raises(AssertionError, match="it is held closed by hand"):
        break_circuit(breaker)
    breaker.shadow()
    with pytest.raises(AssertionError, match="it is in shadow"):
        break_circuit(breaker)
    assert breaker.counts.started == 0


def test_break_circuit_does_not_hide_other_errors(breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CircuitBreaker, "call_sync", lambda self, func: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        break_circuit(breaker)


def test_expected_transitions_are_exact(breaker: CircuitBreaker, clock: FakeClock) -> None:
    with expect_transitions(breaker):
        breaker.acquire().failure()
    with expect_transitions(breaker, "closed->open", "open -> half-open", "half_open->open"):
        break_circuit(breaker)
        clock.move(30.0)
        breaker.acquire().failure()

    def recover_and_hold() -> None:
        with expect_transitions(breaker, "open->half_open", "half_open->open"):
            clock.move(30.0)
            for _ in range(2):
                breaker.acquire().success()
            breaker.force_open()

    with pytest.raises(AssertionError) as told:
        recover_and_hold()
    assert str(told.value).splitlines()[:5] == [
        "circuit 'stock' did not go the expected way",
        "  expected              was",
        "  open->half_open       open->half_open (open time over)",
        "> half_open->open       half_open->closed (trial succeeded)",
        "> -                     closed->open (held open)",
    ]
    with pytest.raises(AssertionError, match="> open->closed          -"), expect_transitions(breaker, "open->closed"):
        pass


def test_transitions_until_an_error_are_noted_on_it(breaker: CircuitBreaker) -> None:
    with pytest.raises(KeyError) as raised, expect_transitions(breaker, "closed->open"):
        raise KeyError
    assert raised.value.__notes__ == ["transitions of circuit 'stock' until then:\n  none"]

    def break_and_fail() -> None:
        with expect_transitions(breaker):
            break_circuit(breaker)
            raise KeyError

    with pytest.raises(KeyError) as raised:
        break_and_fail()
    assert "closed->open (too many consecutive failures)" in raised.value.__notes__[0]


@pytest.mark.parametrize("text", ["closed", "closed->ajar", "->open"])
def test_a_transition_that_cannot_be_is_refused(text: str, breaker: CircuitBreaker) -> None:
    with (
        pytest.raises(ValueError, match=r"state must be one of|a transition is written"),
        expect_transitions(breaker, text),
    ):
        pytest.fail("never entered")


# -- recording


def test_events_are_recorded_until_stopped() -> None:
    events = Events()
    seen = record_events(events)
    used, retried = FallbackUsed("row", "cache", "success"), Retried("stock", 1, 0.5, None)
    for event in (used, retried, retried):
        events.emit(event)
    assert seen == [used, retried, retried]
    assert seen.of(Retried) == [retried, retried]
    assert seen.one(FallbackUsed) is used
    with pytest.raises(AssertionError) as told:
        seen.one(Retried)
    assert str(told.value).startswith("expected one Retried, recorded 2\n  FallbackUsed(row='row', ")
    seen.clear()
    with pytest.raises(AssertionError, match="recorded 0\n  nothing was told"):
        seen.one(Retried)
    events.emit(used)
    assert seen == [used]
    seen.stop()
    assert not events
    events.emit(used)
    assert seen == [used]


def test_a_recorder_is_bounded_and_its_messages_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    events = RecordedEvents()
    monkeypatch.setattr(type(events.recorded), "MAX_EVENTS", 30)
    for attempt in range(40):
        events.emit(Retried("stock", attempt, 0.0, None))
    lines = events.recorded.describe().splitlines()
    assert (len(events.recorded), events.recorded.dropped) == (30, 10)
    assert (lines[0], len(lines)) == ("  ... 10 earlier ones", 22)
    assert lines[-1] == "  ... and 10 more that were not recorded"
    events.recorded.clear()
    assert events.recorded.dropped == 0


def test_a_breakers_transitions_can_be_recorded(breaker: CircuitBreaker) -> None:
    with record_events(breaker) as seen:
        break_circuit(breaker)
    breaker.reset()
    assert [change.new for change in seen] == ["open"]


# -- waiting


async def test_settle_lets_long_chains_of_tasks_end() -> None:
    steps = 0

    async def chain(depth: int) -> None:
        nonlocal steps
        steps += 1
        if depth:
            await asyncio.create_task(chain(depth - 1))

    task = asyncio.create_task(chain(200))
    assert await settle()
    assert (steps, task.done()) == (201, True)


async def test_settle_gives_up_on_a_task_that_never_waits() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110 - as code does that polls
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    assert not await settle(50)
    task.cancel()
    assert await settle()


async def test_settle_does_what_it_can_on_other_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    done = asyncio.create_task(asyncio.sleep(0))
    monkeypatch.setattr(asyncio, "get_running_loop", object)  # a loop that shows nothing
    assert await settle()
    assert done.done()


async def test_run_until_moves_from_timer_to_timer(clock: FakeClock) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await clock.sleep(0.1)
            ticks += 1

    task = asyncio.create_task(tick(), name="ticker")
    assert await run_until(clock, lambda: ticks == 7) == 0.7
    assert await run_until(clock, lambda: True) == 0.0
    with pytest.raises(AssertionError) as told:
        await run_until(clock, lambda: False, within=1.0)
    assert "the next timer is later than 1 s\n  in 0.1 s: task 'ticker', at " in str(told.value)
    task.cancel()
    await settle()
    with pytest.raises(AssertionError, match="not true after 0 s: nothing is waiting any more\n  no timers"):
        await run_until(clock, lambda: False)


async def test_what_is_pending_is_described(clock: FakeClock) -> None:
    async def poll() -> None:
        await clock.sleep(60.0)

    timeout = Timeout(5.0, clock=clock)
    await timeout.call(poll_nothing)  # its shared timer waits for nobody
    assert_nothing_pending(clock)
    task = asyncio.create_task(poll(), name="poller")
    own = clock.sleep(3.0)
    waiting = asyncio.ensure_future(own)
    await settle()
    timers = [clock.call_later(1.0, partial(print, "x")), clock.call_later(2.0, Nameless())]
    with pytest.raises(AssertionError) as told:
        assert_nothing_pending(clock)
    lines = str(told.value).splitlines()
    assert lines[:3] == ["4 still waiting on the fake clock", "  in 1 s: timer print", "  in 2 s: timer <nameless>"]
    assert lines[3].startswith("  in 3 s: task 'Task-")
    assert lines[3].endswith("nothing known of where")  # it is nowhere but in the clock
    assert lines[4].startswith("  in 60 s: task 'poller', at ")
    assert lines[4].endswith("in test_what_is_pending_is_described.<locals>.poll")
    for timer in timers:
        timer.cancel()
    for sleeper in (task, waiting):
        sleeper.cancel()
    await settle()
    assert_nothing_pending(clock)


async def poll_nothing() -> None:
    return


class Nameless:
    def __call__(self) -> None: ...

    def __repr__(self) -> str:
        return "<nameless>"


def test_pending_timers_are_described_without_a_loop(clock: FakeClock) -> None:
    clock.call_later(1.0, print)
    with pytest.raises(AssertionError, match="in 1 s: timer print"):
        assert_nothing_pending(clock)


async def test_a_future_that_nobody_awaits_is_described_by_its_timer(clock: FakeClock) -> None:
    clock.call_later(1.0, asyncio.get_running_loop().create_future().set_result, None)
    clock.call_later(2.0, asyncio.Future.cancel, asyncio.get_running_loop().create_future())
    with pytest.raises(AssertionError, match=r"(?s)in 1 s: timer .*set_result.*in 2 s: timer .*cancel"):
        assert_nothing_pending(clock)


async def test_tasks_left_are_described() -> None:
    assert_no_tasks_left()
    stuck = asyncio.create_task(asyncio.Event().wait(), name="stuck")
    await settle()
    with pytest.raises(AssertionError) as told:
        assert_no_tasks_left()
    assert str(told.value).startswith("tasks left: 1\n  task 'stuck', at ")
    assert_no_tasks_left(besides=[stuck])
    stuck.cancel()
    with pytest.raises(AssertionError, match="task 'stuck', being cancelled, at "):
        assert_no_tasks_left()
    await settle()
    assert_no_tasks_left()


# -- a dependency on a string


async def test_it_takes_its_script_step_by_step_and_is_then_well(clock: FakeClock) -> None:
    error = ConnectionError("no route")
    stock = FlakyDependency(1, error, TimeoutError, OK, answer=7, clock=clock, name="stock")
    assert await stock("apple", size=2) == 1
    with pytest.raises(ConnectionError) as raised:
        await stock()
    assert raised.value is error
    with pytest.raises(TimeoutError, match="stock was told to fail"):
        stock.call_sync()
    assert [await stock(), stock.call_sync(), await stock()] == [7, 7, 7]
    assert [call.outcome for call in stock.calls] == ["ok", "error", "error", "ok", "ok", "ok"]
    assert repr(stock.calls[0]) == "<Call ('apple', size=2) ok>"
    assert repr(stock.calls[1]) == "<Call () error ConnectionError('no route')>"
    assert (stock.calls[0].args, stock.calls[0].kwargs, stock.calls[0].error) == (("apple",), {"size": 2}, None)


async def test_its_answer_can_be_worked_out_from_the_call() -> None:
    shelf = {"apple": 7}
    stock = FlakyDependency(answer=shelf.__getitem__)
    assert await stock("apple") == 7
    with pytest.raises(KeyError):
        stock.call_sync("pear")


async def test_slow_steps_take_the_clocks_time(clock: FakeClock) -> None:
    stock = FlakyDependency(slow(2.0, then=slow(1.0, then=ValueError)), slow(0.5), clock=clock)
    task = asyncio.create_task(stock())
    assert await run_until(clock, task.done) == 3.0
    assert isinstance(task.exception(), ValueError)
    assert stock.call_sync() == "ok"
    assert [(call.began, call.ended) for call in stock.calls] == [(1000.0, 1003.0), (1003.0, 1003.5)]
    with pytest.raises(ValueError, match="seconds must not be negative, not -1"):
        slow(-1)


async def test_standing_orders_replace_the_script(clock: FakeClock) -> None:
    stock = FlakyDependency(1, 2, clock=clock)
    stock.fail(OSError("down"))
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            await stock()
    stock.script(3)
    assert await stock() == 3
    stock.slow(2.0)
    assert stock.call_sync() == "ok"
    assert clock.monotonic() == 1002.0
    stock.script(4, 5)
    stock.heal()
    assert await stock() == "ok"
    for wrong in ("error", int):
        with pytest.raises(TypeError, match="error must be an exception"):
            stock.fail(wrong)  # type: ignore[arg-type]


async def test_frozen_it_accepts_calls_and_answers_none(clock: FakeClock) -> None:
    stock = FlakyDependency(OSError, slow(1.0), clock=clock)
    stock.freeze()
    tasks = [asyncio.create_task(stock()) for _ in range(3)]
    await clock.advance(3600.0)
    assert not any(task.done() for task in tasks)
    assert (stock.in_flight, stock.max_in_flight) == (3, 3)
    assert repr(stock) == "<FlakyDependency 'dependency': 3 calls, 3 in flight (at most 3), frozen>"
    stock.thaw()
    await settle()
    assert isinstance(tasks[0].exception(), OSError)  # each is answered as it would have been
    assert [task.result() for task in tasks[1:]] == ["ok", "ok"]
    assert (stock.in_flight, stock.max_in_flight, stock.frozen) == (0, 3, False)
    assert_nothing_pending(clock)


async def test_a_call_under_way_freezes_too_and_freezing_again_before_it_wakes_holds_it(clock: FakeClock) -> None:
    stock = FlakyDependency(slow(1.0), clock=clock)
    task = asyncio.create_task(stock())
    await settle()
    stock.freeze()
    await clock.advance(10.0)
    assert not task.done()
    stock.thaw()
    stock.freeze()
    await settle()
    assert not task.done()
    stock.heal()
    await settle()
    assert task.result() == "ok"


async def test_a_hanging_call_hangs_alone_and_can_be_cancelled(clock: FakeClock) -> None:
    stock = FlakyDependency(HANG, HANG, clock=clock)
    hanging = [asyncio.create_task(stock()) for _ in range(2)]
    await settle()
    assert await stock() == "ok"
    hanging[0].cancel()
    await settle()
    assert (hanging[0].cancelled(), stock.calls[0].outcome, stock.in_flight) == (True, "cancelled", 1)
    stock.thaw()
    await settle()
    assert hanging[1].result() == "ok"
    assert repr(HANG) == "HANG"


async def test_a_cancelled_slow_call_leaves_nothing(clock: FakeClock) -> None:
    stock = FlakyDependency(slow(5.0), clock=clock)
    task = asyncio.create_task(stock())
    await settle()
    assert repr(stock.calls[0]) == "<Call () running>"
    task.cancel()
    await settle()
    assert (stock.in_flight, stock.calls[0].outcome) == (0, "cancelled")
    assert_nothing_pending(clock)


async def test_a_timeout_cuts_a_hanging_call(clock: FakeClock) -> None:
    stock = FlakyDependency(HANG, clock=clock)
    task = asyncio.create_task(Timeout(2.0, clock=clock).call(stock))
    assert await run_until(clock, task.done) == 2.0
    assert isinstance(task.exception(), CallTimeout)
    assert stock.calls[0].outcome == "cancelled"


def test_a_sync_call_that_hangs_blocks_its_thread_until_thawed() -> None:
    stock = FlakyDependency(HANG, HANG)
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(stock.call_sync())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10_000):  # until both hang
        if len(stock._hanging) < 2:
            threading.Event().wait(0.001)
    assert (answers, stock.in_flight) == ([], 2)
    stock.thaw()
    for thread in threads:
        thread.join(10)
    assert answers == ["ok", "ok"]


def test_a_forgotten_sync_call_ends_by_itself() -> None:
    stock = FlakyDependency(name="stock", max_hang=0.001)
    stock.freeze()
    with pytest.raises(TimeoutError, match=r"stock was frozen, and nobody thawed it within 0\.001 s"):
        stock.call_sync()
    assert (stock.in_flight, stock._hanging, stock.calls[0].outcome) == (0, {}, "error")


def test_thawing_finds_loops_that_are_gone() -> None:
    stock = FlakyDependency(HANG)
    loop = asyncio.new_event_loop()
    task = loop.create_task(stock())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0))
    assert len(stock._hanging) == 1
    _close_under(loop, task)
    stock.thaw()
    assert stock._hanging == {}


def _close_under(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[object]") -> None:
    """A loop that is closed with a task in it, as a crashed test leaves it."""
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_late_thaw_does_not_touch_a_call_that_has_ended() -> None:
    stock = FlakyDependency(HANG)
    task = asyncio.create_task(stock())
    await settle()
    stock.thaw()
    task.cancel()  # after it was woken, before it has run
    await settle()
    assert task.cancelled()
    assert stock.in_flight == 0


def test_eight_threads_are_counted_exactly() -> None:
    stock = FlakyDependency(answer=threading.get_ident)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(10)
        for _ in range(500):
            stock.call_sync()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert (len(stock.calls), stock.in_flight) == (4000, 0)
    assert 1 <= stock.max_in_flight <= 8
    assert {call.outcome for call in stock.calls} == {"ok"}


def test_its_log_and_its_errors_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlakyDependency, "MAX_CALLS", 10)
    stock = FlakyDependency()
    stock.fail(error := OSError("down"))
    for _ in range(100):
        with pytest.raises(OSError, match="down"):
            stock.call_sync()
    traceback, depth = error.__traceback__, 0
    while traceback is not None:
        traceback, depth = traceback.tb_next, depth + 1
    assert (len(stock.calls), depth) == (10, 3)


async def test_it_goes_through_a_breaker_in_every_form(breaker: CircuitBreaker, clock: FakeClock) -> None:
    stock = FlakyDependency(ConnectionError, slow(1.0), clock=clock)
    with pytest.raises(ConnectionError):
        await breaker.call(stock, "apple")
    assert breaker.call_sync(stock.call_sync, "apple") == "ok"
    assert await breaker(stock)("apple") == "ok"
    assert breaker.verdict(ConnectionError()) is Verdict.FAILURE
    assert breaker.counts.succeeded == 2
