"""Hedging: the first success wins, nothing is left behind, and no more is begun than may be."""

import asyncio
import gc
import math
import random
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.clock import FakeClock
from resilience.deadline import current_deadline, deadline_scope
from resilience.events import Event, Events
from resilience.hedge import Hedge, Hedged, HedgeWon, LatencyPercentile
from resilience.retry import Idempotency
from resilience.retry_budget import RetryBudget

Plan = float | BaseException | tuple[float, BaseException]


class Service:
    """Answers its calls one after the other as planned: after so many seconds, with an error, or with one after so many
    seconds. Says what became of each."""

    def __init__(self, clock: FakeClock, *plans: Plan) -> None:
        self._clock = clock
        self._plans = list(plans)
        self.begun: list[float] = []
        self.ended: dict[int, str] = {}

    async def __call__(self) -> int:
        number = len(self.begun)
        self.begun.append(self._clock.monotonic() - 1_000.0)
        plan = self._plans[number]
        seconds, error = (
            plan if isinstance(plan, tuple) else (0.0, plan) if isinstance(plan, BaseException) else (plan, None)
        )
        try:
            if seconds:
                await self._clock.sleep(seconds)
            if error:
                raise error
        except asyncio.CancelledError:
            self.ended[number] = "cancelled"
            raise
        self.ended[number] = "answered"
        return number


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
async def _nothing_is_left_behind() -> Any:
    """No task, and nothing that asyncio would complain about."""
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: complaints.append(what))
    yield
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    assert complaints == []


def hedge_of(clock: FakeClock, delay: Any = 1.0, **settings: Any) -> Hedge:
    return Hedge("api", delay, idempotent=True, clock=clock, **settings)


async def outcome(clock: FakeClock, call: Awaitable[Any], seconds: float = 60.0) -> tuple[Any, float]:
    """What `call` gave or raised, and after how many seconds."""
    began = clock.monotonic()

    async def timed() -> tuple[Any, float]:
        try:
            result = await call
        except Exception as error:  # noqa: BLE001
            result = error
        return result, clock.monotonic() - began

    task = asyncio.ensure_future(timed())
    await clock.advance(seconds)
    assert task.done()
    return task.result()


# -- who wins


async def test_an_answer_in_time_needs_no_hedge(clock: FakeClock) -> None:
    service = Service(clock, 0.5)
    assert await outcome(clock, hedge_of(clock).call(service)) == (0, 0.5)
    assert service.begun == [0.0]
    assert clock.pending == 0


async def test_a_late_call_is_made_again_and_the_first_success_wins(clock: FakeClock) -> None:
    told: list[Event] = []
    events = Events()
    events.subscribe(told.append)
    service = Service(clock, 9.0, 0.5)
    hedge = hedge_of(clock, events=events)
    assert await outcome(clock, hedge.call(service), 1.5) == (1, 1.5)
    assert service.begun == [0.0, 1.0]
    assert service.ended == {0: "cancelled", 1: "answered"}
    assert told == [Hedged("api", 1), HedgeWon("api", 1)]
    assert (hedge.abandoned, clock.pending) == (0, 0)


async def test_the_loser_has_ended_when_the_answer_is_given(clock: FakeClock) -> None:
    service = Service(clock, 9.0, 0.5)
    seen: dict[int, str] = {}

    async def caller() -> None:
        await hedge_of(clock).call(service)
        seen.update(service.ended)

    await outcome(clock, caller(), 1.5)
    assert seen == {0: "cancelled", 1: "answered"}


async def test_the_first_may_still_win(clock: FakeClock) -> None:
    told: list[Event] = []
    events = Events()
    events.subscribe(told.append)
    service = Service(clock, 1.5, 9.0)
    assert await outcome(clock, hedge_of(clock, events=events).call(service)) == (0, 1.5)
    assert service.ended == {0: "answered", 1: "cancelled"}
    assert told == [Hedged("api", 1)]


async def test_there_are_max_hedges_at_most_a_delay_apart(clock: FakeClock) -> None:
    service = Service(clock, 9.0, 9.0, 9.0, 9.0)
    assert await outcome(clock, hedge_of(clock, max_hedges=3).call(service)) == (0, 9.0)
    assert service.begun == [0.0, 1.0, 2.0, 3.0]
    assert clock.pending == 0


async def test_no_delay_begins_both_at_once(clock: FakeClock) -> None:
    service = Service(clock, 2.0, 1.0)
    assert await outcome(clock, hedge_of(clock, 0.0).call(service)) == (1, 1.0)


async def test_both_answer_in_the_same_moment(clock: FakeClock) -> None:
    service = Service(clock, 2.0, 1.0)
    assert await outcome(clock, hedge_of(clock).call(service)) == (0, 2.0)
    assert (len(service.ended), clock.pending) == (2, 0)


async def test_no_hedge_is_begun_in_the_moment_of_the_answer(clock: FakeClock) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    calls: list[int] = []

    def ask() -> "asyncio.Future[str]":
        calls.append(1)
        return answer

    task = asyncio.create_task(hedge_of(clock).call(ask))
    await clock.advance(0.5)
    answer.add_done_callback(lambda _: clock.move(5.0))  # decided, but the caller has not run yet
    answer.set_result("yes")
    assert await task == "yes"
    assert calls == [1]
    assert clock.pending == 0


# -- failures


async def test_a_failure_before_the_delay_is_raised_at_once(clock: FakeClock) -> None:
    error = KeyError("x")
    service = Service(clock, (0.5, error))
    assert await outcome(clock, hedge_of(clock).call(service)) == (error, 0.5)
    assert (service.begun, clock.pending) == ([0.0], 0)


@pytest.mark.parametrize(
    ("plans", "expected"),
    [(((1.2, KeyError()), 0.5), (1, 1.5)), ((2.0, (0.5, KeyError())), (0, 2.0)), ((2.0, KeyError()), (0, 2.0))],
)
async def test_a_failure_waits_for_the_other(clock: FakeClock, plans: tuple[Plan, ...], expected: Any) -> None:
    assert await outcome(clock, hedge_of(clock).call(Service(clock, *plans))) == expected


async def test_when_all_fail_the_first_attempts_error_is_raised_with_the_others_as_notes(clock: FakeClock) -> None:
    first, second, third = KeyError("a"), ValueError("b"), OSError("c")
    for _ in range(3):  # the same objects again: the notes do not grow
        service = Service(clock, (5.0, first), (0.5, second), (1.5, third))
        result, seconds = await outcome(clock, hedge_of(clock, max_hedges=2).call(service))
        assert result is first
        assert seconds == 5.0
        assert first.__notes__ == ["hedge 1 failed: ValueError", "hedge 2 failed: OSError"]
    assert clock.pending == 0


async def test_an_attempt_that_is_cancelled_from_inside_has_failed(clock: FakeClock) -> None:
    service = Service(clock, (1.5, asyncio.CancelledError()), 1.0)
    assert await outcome(clock, hedge_of(clock).call(service)) == (1, 2.0)
    with pytest.raises(asyncio.CancelledError):
        await hedge_of(clock).call(Service(clock, asyncio.CancelledError()))


async def test_a_hedge_that_cannot_even_begin_has_failed(clock: FakeClock) -> None:
    service = Service(clock, (2.0, KeyError("x")))
    calls: list[int] = []

    def ask() -> Awaitable[int]:
        calls.append(1)
        if len(calls) > 1:
            raise OSError("no socket")
        return service()

    result, seconds = await outcome(clock, hedge_of(clock).call(ask))
    assert isinstance(result, KeyError)
    assert (seconds, result.__notes__) == (2.0, ["hedge 1 failed: OSError"])


async def test_an_error_leaves_no_reference_cycle(clock: FakeClock) -> None:
    class Oops(Exception):
        pass

    async def fail() -> None:
        raise Oops

    gc.collect()
    gc.disable()
    try:
        kept: list[weakref.ref[Oops]] = []
        try:
            await hedge_of(clock).call(fail)
        except Oops as error:
            kept.append(weakref.ref(error))
        await clock.advance(2)  # the fake clock lets go of its timer
        assert kept[0]() is None
    finally:
        gc.enable()


# -- being cancelled, and what does not end


async def test_the_callers_cancellation_cancels_all(clock: FakeClock) -> None:
    for seconds, attempts in ((0.5, 1), (1.5, 2)):
        service = Service(clock, 9.0, 9.0)
        hedge = hedge_of(clock)
        task = asyncio.create_task(hedge.call(service))
        await clock.advance(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await clock.advance(0)
        assert service.ended == dict.fromkeys(range(attempts), "cancelled")
        assert (hedge.abandoned, clock.pending) == (0, 0)


async def test_cancelled_while_the_losers_end_nothing_is_left(clock: FakeClock) -> None:
    hold = asyncio.Event()

    async def stubborn() -> int:
        try:
            await clock.sleep(9)
        except asyncio.CancelledError:
            await hold.wait()
        return 0

    hedge = hedge_of(clock)
    service = Service(clock, 0.5)
    makers: Iterator[Callable[[], Awaitable[int]]] = iter([stubborn, service])
    task = asyncio.create_task(hedge.call(lambda: next(makers)()))
    await clock.advance(1.0)
    clock.move(0.5)
    while not service.ended:  # noqa: ASYNC110 - turn by turn, to cancel it in the right one
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hedge.abandoned == 1
    hold.set()


async def test_a_loser_that_does_not_end_is_not_waited_for_and_bounds_further_hedges(clock: FakeClock) -> None:
    hold = asyncio.Event()

    async def stubborn() -> int:
        try:
            await clock.sleep(9)
        except asyncio.CancelledError:
            await hold.wait()
            raise OSError("late and unseen") from None
        return 0

    async def quick() -> int:
        return 1

    hedge = hedge_of(clock, max_abandoned=2)
    for number in (1, 2):
        makers: Iterator[Callable[[], Awaitable[int]]] = iter([stubborn, quick])
        assert await outcome(clock, hedge.call(lambda: next(makers)()), 1.0) == (1, 1.0)  # noqa: B023
        assert hedge.abandoned == number
    service = Service(clock, 9.0)
    assert await outcome(clock, hedge.call(service)) == (0, 9.0)
    unhedged = asyncio.create_task(hedge.call(stubborn))  # it needs no task that could be left behind
    await clock.advance(1)
    unhedged.cancel()
    await clock.advance(1)
    assert (unhedged.done(), hedge.abandoned) == (False, 2)
    hold.set()
    with pytest.raises(OSError, match="unseen"):
        await unhedged
    await clock.advance(0)
    assert hedge.abandoned == 0


async def test_a_hedge_that_would_be_one_too_many_is_not_begun(clock: FakeClock) -> None:
    hold = asyncio.Event()

    async def stubborn() -> int:
        try:
            await clock.sleep(9)
        except asyncio.CancelledError:
            await hold.wait()
        return 0

    hedge = hedge_of(clock, max_abandoned=1)
    service = Service(clock, 1.5)
    slow = asyncio.create_task(hedge.call(service))
    await clock.advance(0.5)
    given_up = asyncio.create_task(hedge.call(stubborn))
    await clock.advance(0)
    given_up.cancel()
    await clock.advance(2)
    assert slow.result() == 0
    assert service.begun == [0.0]
    hold.set()


# -- bounds


@pytest.mark.parametrize(("seconds", "attempts"), [(1.9, 1), (2.0, 2), (2.5, 2), (3.0, 3), (60.0, 4)])
async def test_a_hedge_needs_as_much_time_as_its_delay(clock: FakeClock, seconds: float, attempts: int) -> None:
    service = Service(clock, *[9.0] * 4)
    with deadline_scope(seconds, clock=clock):
        call = asyncio.ensure_future(hedge_of(clock, max_hedges=3).call(service))
    await clock.advance(60)
    assert call.result() == 0
    assert len(service.begun) == attempts
    assert clock.pending == 0


class Budget:
    def __init__(self, left: int) -> None:
        self.left = left
        self.deposits = 0

    def deposit(self) -> None:
        self.deposits += 1

    def withdraw(self) -> bool:
        self.left -= 1
        return self.left >= 0


async def test_a_budget_bounds_the_hedges(clock: FakeClock) -> None:
    budget = Budget(2)
    hedge = hedge_of(clock, max_hedges=3, budget=budget)
    service = Service(clock, *[9.0] * 3)
    assert await outcome(clock, hedge.call(service)) == (0, 9.0)
    assert service.begun == [0.0, 1.0, 2.0]
    quick = Service(clock, 0.5)
    await outcome(clock, hedge.call(quick))
    assert budget.deposits == 2


async def test_the_budget_of_retries_will_do(clock: FakeClock) -> None:
    budget = RetryBudget(ratio=0.0, min_per_second=0.1, ttl=10.0, clock=clock)
    hedge = hedge_of(clock, max_hedges=3, budget=budget)
    service = Service(clock, *[5.0] * 4)
    await outcome(clock, hedge.call(service))
    assert (len(service.begun), budget.withdrawn, budget.refused) == (2, 1, 1)


@pytest.mark.parametrize("delay", [None, math.nan, math.inf, -1.0])
async def test_a_delay_that_is_none_hedges_nothing(clock: FakeClock, delay: float | None) -> None:
    service = Service(clock, 9.0)
    assert await outcome(clock, hedge_of(clock, lambda: delay).call(service)) == (0, 9.0)


async def test_a_delay_is_asked_for_per_call(clock: FakeClock) -> None:
    delays = iter([3.0, 1.0])
    hedge = hedge_of(clock, lambda: next(delays))
    for seconds in (3.0, 1.0):
        service = Service(clock, 9.0, 0.25)
        assert await outcome(clock, hedge.call(service)) == (1, seconds + 0.25)


# -- what is called


async def test_each_attempt_has_the_callers_context(clock: FakeClock) -> None:
    user = ContextVar("user", default="nobody")
    seen: list[Any] = []

    async def answer() -> None:
        seen.append((user.get(), current_deadline()))
        user.set("changed")
        await clock.sleep(1.5)

    def ask() -> Awaitable[None]:
        seen.append(user.get())
        return answer()

    with deadline_scope(9, clock=clock) as deadline:
        user.set("me")
        task = asyncio.create_task(hedge_of(clock).call(ask))
    user.set("somebody else")
    await clock.advance(9)
    assert task.done()
    assert seen == ["me", ("me", deadline)] * 2


async def test_what_is_not_async_simply_returns(clock: FakeClock) -> None:
    hedge = hedge_of(clock)
    assert await hedge.call(len, "four") == 4
    with deadline_scope(0.5, clock=clock):
        assert await hedge.call(len, "four") == 4
    with pytest.raises(ZeroDivisionError):
        await hedge.call(lambda: 1 / 0)
    assert clock.pending == 0


async def test_any_awaitable_will_do(clock: FakeClock) -> None:
    class Waits:
        def __await__(self) -> Any:
            yield from clock.sleep(9).__await__()
            return "waited"

    answers: Iterator[Any] = iter([Waits(), Waits(), "at once"])
    assert await outcome(clock, hedge_of(clock, max_hedges=2).call(lambda: next(answers)), 2.0) == ("at once", 2.0)
    assert clock.pending == 0


async def test_one_future_for_all_attempts(clock: FakeClock) -> None:
    error = KeyError("x")
    for result in ("yes", error):
        shared: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        set_it = shared.set_exception if isinstance(result, Exception) else shared.set_result
        clock.call_later(2.0, set_it, result)
        assert await outcome(clock, hedge_of(clock).call(lambda: shared), 3.0) == (result, 2.0)  # noqa: B023


async def test_arguments_reach_every_attempt(clock: FakeClock) -> None:
    seen: list[Any] = []

    async def ask(*args: Any, **kwargs: Any) -> int:
        seen.append((args, kwargs))
        await clock.sleep(3)
        return len(seen)

    assert await outcome(clock, hedge_of(clock).call(ask, 1, b=2)) == (2, 3.0)
    assert await outcome(clock, hedge_of(clock)(ask)(1, b=2)) == (4, 3.0)
    assert seen == [((1,), {"b": 2})] * 4


# -- only what may happen twice


@pytest.mark.parametrize("said", [False, None, 1, "yes", Idempotency.NOT_IDEMPOTENT, Idempotency.IDEMPOTENT])
def test_that_it_may_happen_twice_has_to_be_said(said: Any) -> None:
    with pytest.raises(ValueError, match="idempotent"):
        Hedge("api", 1.0, idempotent=said)


def test_there_is_no_default_for_it() -> None:
    with pytest.raises(TypeError, match="idempotent"):
        Hedge("api", 1.0)  # type: ignore[call-arg]


def test_there_is_no_sync_form(clock: FakeClock) -> None:
    with pytest.raises(TypeError, match="event loop"):
        hedge_of(clock).call_sync(len, "x")
    with pytest.raises(TypeError, match="async"):
        hedge_of(clock)(len)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"delay": -0.1}, "delay"),
        ({"delay": math.nan}, "delay"),
        ({"delay": math.inf}, "delay"),
        ({"max_hedges": 0}, "max_hedges"),
    ],
)
def test_a_bad_setting_fails_by_name(clock: FakeClock, settings: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        hedge_of(clock, **settings)


# -- whatever happens


async def test_a_listener_that_raises_changes_nothing(clock: FakeClock) -> None:
    events = Events()
    events.subscribe(lambda event: event[99])
    assert await outcome(clock, hedge_of(clock, events=events).call(Service(clock, 9.0, 0.5))) == (1, 1.5)
    assert events.listener_errors == 2


async def test_nothing_is_left_behind_whatever_happens(clock: FakeClock) -> None:
    dice = random.Random(3)
    hedge = hedge_of(clock, max_hedges=2)
    running = 0

    async def attempt() -> int:
        nonlocal running
        running += 1
        try:
            await clock.sleep(dice.choice([0.0, 0.2, 1.0, 1.2, 3.0]))
            if dice.random() < 0.4:
                raise OSError
            return 1
        except asyncio.CancelledError:
            await clock.sleep(dice.choice([0.0, 0.0, 0.5]))
            raise
        finally:
            running -= 1

    calls: list[asyncio.Task[int]] = []
    for _ in range(200):
        calls.append(asyncio.create_task(hedge.call(attempt)))
        await clock.advance(dice.choice([0.0, 0.1, 0.5]))
        if dice.random() < 0.2:
            dice.choice(calls).cancel()
    await clock.advance(30)
    assert all(call.done() for call in calls)
    assert {type(call.exception()) for call in calls if not call.cancelled()} == {type(None), OSError}
    assert (running, hedge.abandoned, clock.pending) == (0, 0, 0)


# -- the delay that follows the latencies


@given(st.lists(st.floats(2e-4, 100), min_size=20, max_size=300), st.integers(1, 63))
def test_the_percentile_is_right_to_the_tenth(latencies: list[float], part: int) -> None:
    share = part / 64
    tracker = LatencyPercentile(share)
    for latency in latencies:
        tracker.record(latency)
    exact = sorted(latencies)[math.ceil(share * len(latencies)) - 1]
    said = tracker()
    assert said is not None
    assert exact * 0.999 <= said <= exact * 1.11


def test_the_percentile_is_the_least_that_so_many_stay_below() -> None:
    tracker = LatencyPercentile(0.5, minimum=1)
    for seconds in (1.0, 2.0, 3.0, 4.0):
        tracker.record(seconds)
    assert tracker() == pytest.approx(2.0, rel=0.11)


def test_too_few_latencies_say_nothing() -> None:
    tracker = LatencyPercentile(minimum=3)
    assert tracker() is None
    for seconds in (0.0, -1.0, 1e9):
        tracker.record(seconds)
    said = tracker()
    assert said is not None
    assert 100 < said < 120


def test_old_latencies_fade() -> None:
    tracker = LatencyPercentile(0.9, memory=100)
    for seconds, times in ((0.01, 1_000), (1.0, 100), (0.01, 1_000)):
        for _ in range(times):
            tracker.record(seconds)
        assert tracker() == pytest.approx(seconds, rel=0.11)


async def test_a_hedge_records_latencies_and_follows_them(clock: FakeClock) -> None:
    tracker = LatencyPercentile(0.95, minimum=20)
    hedge = hedge_of(clock, tracker)
    for _ in range(20):  # too few are known: nothing is hedged
        await outcome(clock, hedge.call(Service(clock, 0.1)), 0.1)
    assert tracker() == pytest.approx(0.1, rel=0.11)
    for _ in range(2):  # the first attempt's time counts, as far as it is known: not the hedge's
        assert (await outcome(clock, hedge.call(Service(clock, 9.0, 0.4)), 1.0))[0] == 1
    known = tracker()
    assert known == pytest.approx(0.5, rel=0.15)
    error = OSError()
    for _ in range(100):  # failures say nothing about how long an answer takes
        await outcome(clock, hedge.call(Service(clock, error)), 0.0)
    for _ in range(10):
        assert (await outcome(clock, hedge.call(Service(clock, (0.9, error), 0.9)), 9.0))[0] == 1
    assert tracker() == known


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"percentile": 0}, "percentile"),
        ({"percentile": 1.0}, "percentile"),
        ({"percentile": math.nan}, "percentile"),
        ({"minimum": 0}, "minimum"),
        ({"minimum": 600}, "memory"),
    ],
)
def test_a_bad_setting_of_the_percentile_fails_by_name(settings: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        LatencyPercentile(**settings)
