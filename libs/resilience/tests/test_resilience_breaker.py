"""The circuit breaker's rules as seen from outside. Tests named `case_NN` pin the case of that number.

Where to find the cases of `breaker-cases.md` that have no test here, and why some have none at all:

    4-7         also as properties against a recount, in test_resilience_window.py
    14, 15, 22, 35, 41, 45, 50, 59   not on the page
    23          does not apply: there is no timer mode, an open circuit becomes half-open when a call is admitted
    39          does not apply: there is no fixed interval, windows slide
    16, 53, 60  also with real threads, in test_resilience_breaker_threads.py
    31-33, 51   also as known failures of others, in test_resilience_breaker_known_failures.py
"""

import ast
import asyncio
import gc
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import resilience
from resilience import (
    Backoff,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    FakeClock,
    Retry,
    Transition,
    Verdict,
    hard_timeout,
)
from resilience.breaker import classify_by
from resilience.circuit import MAX_OPEN_SECONDS, growing

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Down(Exception):
    """The dependency failed."""


class NotFound(Exception):
    """The dependency answered."""


def classify(error: BaseException) -> Verdict:
    return Verdict.SUCCESS if isinstance(error, NotFound) else Verdict.FAILURE


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Make = Callable[..., CircuitBreaker]


@pytest.fixture
def make(clock: FakeClock) -> Make:
    def build(**settings: object) -> CircuitBreaker:
        values = {"failure_threshold": 3, "recovery_timeout": 30.0, "success_threshold": 1, "clock": clock}
        return CircuitBreaker("db", **{**values, **settings})  # type: ignore[arg-type]

    return build


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.acquire().failure(Down())


def succeed(breaker: CircuitBreaker) -> None:
    breaker.acquire().success()


def to_half_open(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Open it and let the open time pass: the next permit is the first trial."""
    fail(breaker, breaker.settings.failure_threshold or 0)
    wait = breaker.settings.recovery_timeout
    assert not callable(wait)
    clock.move(wait)


def take(breaker: CircuitBreaker, clock: FakeClock, outcomes: str, seconds: float = 0.0) -> None:
    """Calls of `seconds` each: F fails, S succeeds, N is neutral."""
    for outcome in outcomes:
        permit = breaker.acquire()
        clock.move(seconds)
        {"F": permit.failure, "S": permit.success, "N": permit.neutral}[outcome]()


def told(breaker: CircuitBreaker) -> list[Transition]:
    """All transitions from now on."""
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    return seen


def rejected(breaker: CircuitBreaker) -> CircuitBreakerOpen:
    with pytest.raises(CircuitBreakerOpen) as caught:
        breaker.acquire()
    return caught.value


# -- window


def rates(breaker: CircuitBreaker) -> tuple[Any, ...]:
    snapshot = breaker.snapshot()
    return snapshot.calls, snapshot.failure_rate, snapshot.slow_rate


RATE = {"failure_threshold": None, "window": 100, "failure_rate": 0.5}


def test_case_01_below_the_minimum_the_rate_is_unknown(make: Make, clock: FakeClock) -> None:
    breaker = make(**RATE, minimum_calls=10)
    take(breaker, clock, "F" * 9)
    assert breaker.state is CLOSED
    assert rates(breaker) == (9, None, None)
    take(breaker, clock, "F")
    assert breaker.state is OPEN


def test_case_02_exactly_the_rate_at_exactly_the_minimum_opens_on_that_call(make: Make, clock: FakeClock) -> None:
    breaker = make(**RATE, minimum_calls=10)
    take(breaker, clock, "SSSSSFFFF")
    assert breaker.state is CLOSED
    take(breaker, clock, "F")
    assert breaker.state is OPEN


def test_case_02_the_call_that_opens_may_be_a_success_and_the_open_time_is_whole(make: Make, clock: FakeClock) -> None:
    breaker = make(**RATE, minimum_calls=10)
    seen = told(breaker)
    take(breaker, clock, "FFFFFSSSS")
    assert breaker.state is CLOSED
    take(breaker, clock, "S")
    assert seen == [Transition("db", CLOSED, OPEN, "failure rate too high", 0, 10, 5, 0)]
    assert rejected(breaker).retry_after == 30.0
    assert breaker.snapshot().state_seconds == 0.0


async def test_case_02_the_same_through_call(make: Make, clock: FakeClock) -> None:
    breaker = make(**RATE, minimum_calls=2)
    take(breaker, clock, "F")
    await breaker.call(lambda: 1)
    assert rejected(breaker).retry_after == 30.0


def test_just_below_the_rate_stays_closed(make: Make, clock: FakeClock) -> None:
    breaker = make(**RATE, minimum_calls=4)
    take(breaker, clock, "SSSFSFSF" * 10)
    assert breaker.state is CLOSED
    assert rates(breaker) == (80, 0.375, 0.0)


def test_case_03_a_count_window_caps_the_minimum_and_a_time_window_does_not(make: Make, clock: FakeClock) -> None:
    assert make(failure_threshold=None, window=5, minimum_calls=100).settings.minimum_calls == 5
    by_time = make(failure_threshold=None, window_seconds=5.0, minimum_calls=100)
    assert by_time.settings.minimum_calls == 100
    take(by_time, clock, "F" * 99)
    assert by_time.state is CLOSED
    take(by_time, clock, "F")
    assert by_time.state is OPEN


def test_case_04_a_full_window_lets_exactly_the_oldest_go(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window=4, failure_rate=1.0, slow_call_seconds=1.0, slow_rate=1.0)
    take(breaker, clock, "F", seconds=2.0)
    take(breaker, clock, "FFS")
    assert rates(breaker) == (4, 0.75, 0.25)
    take(breaker, clock, "S")
    assert rates(breaker) == (4, 0.5, 0.0)
    take(breaker, clock, "SS")
    assert rates(breaker) == (4, 0.0, 0.0)
    take(breaker, clock, "SSSSS")
    take(breaker, clock, "F")
    assert rates(breaker) == (4, 0.25, 0.0)


def test_case_05_an_outcome_leaves_a_time_window_at_exactly_its_length(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window_seconds=10.0, minimum_calls=1, failure_rate=1.0)
    take(breaker, clock, "S")
    clock.move(9.999)
    assert rates(breaker)[0] == 1
    clock.move(0.001)
    assert rates(breaker) == (0, None, None)


def test_case_06_after_idleness_a_failure_stands_alone(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window_seconds=10.0, minimum_calls=3, failure_rate=0.5)
    take(breaker, clock, "FF")
    clock.move(1e6)
    take(breaker, clock, "F")
    assert breaker.state is CLOSED
    assert rates(breaker) == (1, None, None)


def test_case_07_a_call_counts_when_it_began_or_not_at_all(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window_seconds=10.0, minimum_calls=1, failure_rate=1.0)
    long, longer = breaker.acquire(), breaker.acquire()
    clock.move(9.0)
    long.success()
    assert rates(breaker)[0] == 1
    clock.move(1.0)
    assert rates(breaker)[0] == 0, "it began ten seconds ago"
    longer.failure()
    assert rates(breaker)[0] == 0
    assert breaker.state is CLOSED
    assert breaker.counts.failed == 1


SLOW = {"failure_threshold": None, "window": 10, "slow_call_seconds": 4.0, "slow_rate": 0.5}


def test_case_08_exactly_the_limit_is_not_slow_and_a_slow_failure_is_both(make: Make, clock: FakeClock) -> None:
    breaker = make(**SLOW, minimum_calls=3, failure_rate=0.9)
    take(breaker, clock, "S", seconds=4.0)
    take(breaker, clock, "S", seconds=1.0)
    take(breaker, clock, "F", seconds=4.000001)
    assert rates(breaker) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))


async def test_case_08_the_same_through_call(make: Make, clock: FakeClock) -> None:
    breaker = make(**SLOW, minimum_calls=3)
    for seconds in (4.0, 1.0, 4.001):
        await breaker.call(clock.move, seconds)
    assert rates(breaker)[2] == pytest.approx(1 / 3)
    for seconds in (4.0, 1.0, 4.001):
        breaker.call_sync(clock.move, seconds)
    assert rates(breaker)[2] == pytest.approx(1 / 3)


def test_case_09_slow_calls_alone_open(make: Make, clock: FakeClock) -> None:
    breaker = make(**SLOW, minimum_calls=4)
    seen = told(breaker)
    take(breaker, clock, "SS", seconds=5.0)
    take(breaker, clock, "S", seconds=1.0)
    assert breaker.state is CLOSED
    take(breaker, clock, "S", seconds=1.0)
    assert seen == [Transition("db", CLOSED, OPEN, "slow call rate too high", 0, 4, 0, 2)]


async def test_of_a_full_window_a_success_takes_the_place_of_any_outcome(make: Make, clock: FakeClock) -> None:
    """The short way is for a success that takes the place of a success; anything else must not go by it."""
    breaker = make(failure_threshold=None, window=3, failure_rate=1.0, slow_call_seconds=4.0, slow_rate=1.0)
    for outcome in ("S", "F", "S"):
        take(breaker, clock, outcome)
    for left in (1, 0, 0, 0, 0):
        await breaker.call(lambda: 1)
        assert rates(breaker) == (3, pytest.approx(left / 3), 0.0)
    await breaker.call(clock.move, 5.0)
    for left in (1, 1, 0):
        breaker.call_sync(lambda: 1)
        assert rates(breaker) == (3, 0.0, pytest.approx(left / 3))


# -- closed


def test_opens_at_the_threshold_of_consecutive_failures(make: Make) -> None:
    breaker = make()
    fail(breaker, 2)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN


def test_case_10_a_success_ends_the_streak(make: Make) -> None:
    breaker = make(failure_threshold=6)
    fail(breaker, 5)
    succeed(breaker)
    fail(breaker, 5)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN


def test_case_11_neutral_outcomes_change_no_streak(make: Make) -> None:
    breaker = make()
    for _ in range(2):
        fail(breaker)
        breaker.acquire().neutral()
    assert breaker.snapshot().failures == 2
    fail(breaker)
    assert breaker.state is OPEN


async def test_case_12_an_answer_counts_as_success_and_is_raised_unchanged(make: Make) -> None:
    breaker = make(classify=classify)
    fail(breaker, 2)

    async def lookup() -> None:
        raise NotFound

    with pytest.raises(NotFound):
        await breaker.call(lookup)
    assert breaker.snapshot().failures == 0


def test_case_12_where_several_rules_match_neutral_wins_over_answers_over_failures() -> None:
    judge = classify_by(neutral=(KeyError,), answers=(LookupError,), failures=(Exception,), otherwise=Verdict.NEUTRAL)
    assert judge(KeyError()) is Verdict.NEUTRAL
    assert judge(IndexError()) is Verdict.SUCCESS
    assert judge(ValueError()) is Verdict.FAILURE
    assert judge(KeyboardInterrupt()) is Verdict.NEUTRAL
    assert classify_by()(ValueError()) is Verdict.FAILURE


async def test_case_12_a_neutral_error_is_recorded_as_nothing(make: Make) -> None:
    breaker = make(classify=classify_by(neutral=(NotFound,)))
    fail(breaker, 2)

    def query() -> None:
        raise NotFound

    for call in (breaker.call_sync, breaker(query)):
        with pytest.raises(NotFound):
            call(*((query,) if call == breaker.call_sync else ()))
    with pytest.raises(NotFound):
        await breaker.call(query)
    assert breaker.snapshot().failures == 2
    assert breaker.counts.neutral == 3


async def test_case_13_a_failing_result_is_returned_and_is_a_failure(make: Make) -> None:
    breaker = make(failure_result=lambda result: result == 503)
    assert await breaker.call(lambda: 200) == 200
    assert breaker.snapshot().failures == 0
    assert await breaker.call(lambda: 503) == 503
    assert breaker.call_sync(lambda: 503) == 503
    assert breaker.snapshot().failures == 2
    breaker.acquire().returned(503)
    assert breaker.state is OPEN
    assert breaker.snapshot().last_error is None
    assert breaker.counts.failed == 3


async def test_case_13_a_predicate_that_raises_hides_no_result_and_is_a_failure(make: Make) -> None:
    breaker = make(failure_result=lambda result: result.status == 503, failure_threshold=1)
    assert await breaker.call(lambda: 1) == 1
    assert breaker.state is OPEN
    assert not make().is_failure(503)


async def test_a_classifier_that_raises_does_not_hide_the_error(make: Make) -> None:
    def broken(_error: BaseException) -> Verdict:
        raise TypeError("bug")

    breaker = make(classify=broken, failure_threshold=1)

    def query() -> None:
        raise Down

    with pytest.raises(Down):
        await breaker.call(query)
    assert breaker.state is OPEN


async def test_call_takes_sync_and_async_functions_with_arguments(make: Make) -> None:
    breaker = make()

    async def later(a: int, *, b: int) -> int:
        return a + b

    assert await breaker.call(lambda a: a * 2, 4) == 8
    assert await breaker.call(later, 1, b=2) == 3


async def test_case_16_fifty_failures_at_once_make_one_transition(make: Make) -> None:
    breaker = make(failure_threshold=5)
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    go = asyncio.Event()

    async def query() -> None:
        await go.wait()
        raise Down

    calls = [asyncio.create_task(breaker.call(query)) for _ in range(50)]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(type(result) is Down for result in results)
    assert [(event.old, event.new) for event in seen] == [(CLOSED, OPEN)]
    assert breaker.counts.failed == 5
    assert breaker.counts.stale == 45


# -- open


def test_case_17_late_results_while_open_change_nothing(make: Make, clock: FakeClock) -> None:
    breaker = make()
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    late = [breaker.acquire() for _ in range(2)]
    fail(breaker, 3)
    clock.move(10)
    late[0].failure(Down())
    late[1].success()
    assert len(seen) == 1
    assert rejected(breaker).retry_after == pytest.approx(20)


async def test_case_18_a_rejection_names_everything_and_does_not_call(make: Make, clock: FakeClock) -> None:
    breaker = make()
    cause = Down("first")
    fail(breaker, 2)
    breaker.acquire().failure(cause)
    clock.move(12.5)
    called = False

    def query() -> None:
        nonlocal called
        called = True

    with pytest.raises(CircuitBreakerOpen) as caught:
        await breaker.call(query)
    assert not called
    error = caught.value
    assert (error.name, error.last_cause, error.held) == ("db", cause, False)
    assert error.retry_after == pytest.approx(17.5)
    assert breaker.counts.rejected == 1
    assert str(error) == "circuit 'db' is open, next trial in 17.5 s"


def test_case_19_ten_thousand_rejections_stay_flat(make: Make) -> None:
    breaker = make()
    fail(breaker, 3)
    depths: set[int] = set()
    seen: set[int] = set()
    previous: CircuitBreakerOpen | None = None
    for _ in range(10_000):
        error = rejected(breaker)
        assert error is not previous
        depths.add(len(traceback.extract_tb(error.__traceback__)))
        seen.add(id(error.last_cause))
        previous = error
    assert len(depths) == 1
    assert len(seen) == 1
    assert breaker.counts.rejected == 10_000


def test_case_20_at_exactly_the_open_time_one_call_is_admitted(make: Make, clock: FakeClock) -> None:
    breaker = make()
    fail(breaker, 3)
    clock.move(29.999)
    rejected(breaker)
    clock.move(0.001)
    breaker.acquire()
    assert breaker.state is HALF_OPEN


def test_case_21_the_open_time_grows_with_each_opening_in_a_row(make: Make, clock: FakeClock) -> None:
    asked: list[int] = []

    def grow(attempt: int) -> float:
        asked.append(attempt)
        return 10.0 * float(2**attempt)

    breaker = make(recovery_timeout=grow)
    fail(breaker, 3)
    for attempt in range(4):
        assert rejected(breaker).retry_after == 10.0 * 2**attempt
        clock.move(10.0 * 2**attempt)
        fail(breaker)
    assert asked == [0, 1, 2, 3, 4]
    clock.move(160.0)
    succeed(breaker)
    fail(breaker, 3)
    assert asked == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (lambda n: 10.0**400 if n else 2.0**5000, MAX_OPEN_SECONDS),  # raises OverflowError
        (lambda n: 10**400, MAX_OPEN_SECONDS),
        (lambda n: float("inf"), MAX_OPEN_SECONDS),
        (lambda n: 1e300, MAX_OPEN_SECONDS),
        (lambda n: float("nan"), 60.0),
        (lambda n: None, 60.0),
        (lambda n: {}[n], 60.0),
        (lambda n: -5, 0.0),
        (lambda n: 7, 7.0),
    ],
    ids=["overflow", "huge int", "infinite", "huge", "nan", "none", "raises", "negative", "int"],
)
def test_case_21_what_the_function_gives_is_clamped(make: Make, value: Callable[[int], Any], seconds: float) -> None:
    breaker = make(recovery_timeout=value)
    fail(breaker, 3)
    assert breaker.state is OPEN
    assert breaker.retry_after() == seconds


def test_case_21_growing_is_bounded_and_spread(clock: FakeClock) -> None:
    wait = growing(30.0, factor=3.0, cap=600.0, jitter=0.1, random=random.Random(1))
    for attempt in range(2000):
        highest = 30.0 * 3.0 ** min(attempt, 10)
        assert min(600.0, highest) * 0.9 <= wait(attempt) <= min(600.0, highest * 1.1)
    assert len({wait(0) for _ in range(10)}) == 10
    assert growing(30.0, jitter=0.0)(1) == 60.0
    with pytest.raises(ValueError, match="base"):
        growing(0.0)
    with pytest.raises(ValueError, match="cap"):
        growing(1.0, cap=-1.0)


def test_the_state_stays_open_until_a_trial_is_admitted(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    clock.move(1_000)
    assert breaker.state is OPEN
    assert breaker.snapshot().retry_after == 0.0


def test_case_24_no_task_or_timer_exists(make: Make, clock: FakeClock) -> None:
    breaker = make()
    threads = threading.active_count()
    to_half_open(breaker, clock)
    succeed(breaker)
    assert clock.pending == 0
    assert threading.active_count() == threads


# -- half-open


@pytest.mark.parametrize("permits", [1, 10])
async def test_case_25_of_many_racing_callers_exactly_the_permitted_run(
    make: Make, clock: FakeClock, permits: int
) -> None:
    breaker = make(half_open_max_calls=permits, success_threshold=permits)
    to_half_open(breaker, clock)
    go = asyncio.Event()
    running = 0

    async def trial() -> None:
        nonlocal running
        running += 1
        await go.wait()

    calls = [asyncio.create_task(breaker.call(trial)) for _ in range(100)]
    done, waiting = await asyncio.wait(calls, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
    done, waiting = await asyncio.wait(calls, timeout=0)
    assert running == len(waiting) == permits
    errors = [task.exception() for task in done]
    assert all(isinstance(error, CircuitBreakerOpen) and error.retry_after == 0.0 for error in errors)
    go.set()
    await asyncio.gather(*waiting)
    assert breaker.state is CLOSED


def test_more_permits_than_successes_needed_all_run(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=3, success_threshold=2)
    to_half_open(breaker, clock)
    trials = [breaker.acquire() for _ in range(3)]
    rejected(breaker)
    trials[0].success()
    trials[1].success()
    assert breaker.state is CLOSED


@pytest.mark.parametrize(("outcomes", "state"), [("SSSF", CLOSED), ("FSSS", CLOSED), ("SFSF", OPEN), ("FF", OPEN)])
def test_case_26_trials_are_judged_by_their_own_number(
    make: Make, clock: FakeClock, outcomes: str, state: CircuitState
) -> None:
    """Of four trials three have to succeed, whatever the minimum of calls is while closed."""
    breaker = make(half_open_max_calls=4, half_open_trials=4, success_threshold=3, minimum_calls=100)
    to_half_open(breaker, clock)
    trials = [breaker.acquire() for _ in range(4)]
    rejected(breaker)
    for trial, outcome in zip(trials, outcomes, strict=False):
        trial.success() if outcome == "S" else trial.failure(Down())
    assert breaker.state is state


def test_case_27_it_opens_as_soon_as_success_is_out_of_reach(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=4, half_open_trials=4, success_threshold=3)
    seen = told(breaker)
    to_half_open(breaker, clock)
    trials = [breaker.acquire() for _ in range(4)]
    trials[0].failure(Down())
    assert breaker.state is HALF_OPEN
    trials[1].failure(Down())
    assert breaker.state is OPEN
    trials[2].success()
    trials[3].success()
    assert [event.reason for event in seen][-1] == "trial failed"
    assert breaker.counts.stale == 2


def test_case_27_one_by_one_there_are_no_more_trials_than_verdicts(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_trials=3, success_threshold=2)
    to_half_open(breaker, clock)
    fail(breaker)
    succeed(breaker)
    assert breaker.state is HALF_OPEN
    last = breaker.acquire()
    rejected(breaker)
    last.success()
    assert breaker.state is CLOSED


def test_a_slow_trial_is_a_failed_one(make: Make, clock: FakeClock) -> None:
    breaker = make(slow_call_seconds=4.0, slow_rate=1.0)
    seen = told(breaker)
    to_half_open(breaker, clock)
    take(breaker, clock, "S", seconds=4.5)
    assert breaker.state is OPEN
    assert seen[-1].reason == "trial too slow"
    clock.move(30)
    take(breaker, clock, "S", seconds=4.0)
    assert breaker.state is CLOSED


def test_case_28_one_failed_trial_reopens_for_the_full_time(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=2, success_threshold=2)
    to_half_open(breaker, clock)
    first, second = breaker.acquire(), breaker.acquire()
    first.failure(Down())
    assert breaker.state is OPEN
    second.success()
    assert breaker.state is OPEN
    assert rejected(breaker).retry_after == pytest.approx(30)


def test_case_29_only_as_many_trials_as_successes_are_missing(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=3, success_threshold=3)
    to_half_open(breaker, clock)
    succeed(breaker)
    succeed(breaker)
    last = breaker.acquire()
    rejected(breaker)
    last.success()
    assert breaker.state is CLOSED
    assert breaker.snapshot().failures == 0


def test_successes_one_after_the_other_with_one_permit(make: Make, clock: FakeClock) -> None:
    breaker = make(success_threshold=2)
    to_half_open(breaker, clock)
    succeed(breaker)
    assert breaker.state is HALF_OPEN
    succeed(breaker)
    assert breaker.state is CLOSED


def test_case_30_a_neutral_trial_returns_its_permit(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=2, success_threshold=2)
    to_half_open(breaker, clock)
    breaker.acquire().neutral()
    trials = [breaker.acquire(), breaker.acquire()]
    rejected(breaker)
    for trial in trials:
        trial.success()
    assert breaker.state is CLOSED


def test_case_31_a_neutral_result_of_an_earlier_state_adds_no_permit(make: Make, clock: FakeClock) -> None:
    breaker = make()
    early = breaker.acquire()
    to_half_open(breaker, clock)
    trial = breaker.acquire()
    early.neutral()
    rejected(breaker)
    trial.success()
    assert breaker.state is CLOSED


async def test_case_32_a_cancelled_trial_returns_its_permit(make: Make, clock: FakeClock) -> None:
    breaker = make(classify=lambda _error: Verdict.FAILURE)
    to_half_open(breaker, clock)
    trial = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert breaker.state is HALF_OPEN
    assert breaker.counts.neutral == 1
    succeed(breaker)
    assert breaker.state is CLOSED


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_case_33_a_base_exception_releases_the_permit(
    make: Make, clock: FakeClock, exit_type: type[BaseException]
) -> None:
    breaker = make()
    to_half_open(breaker, clock)

    def stop() -> None:
        raise exit_type

    with pytest.raises(exit_type):
        await breaker.call(stop)
    assert breaker.state is HALF_OPEN
    succeed(breaker)
    assert breaker.state is CLOSED


async def test_case_33_closing_the_callers_coroutine_releases_the_permit(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    call = breaker.call(asyncio.Event().wait)
    call.send(None)
    rejected(breaker)
    call.close()
    succeed(breaker)
    assert breaker.state is CLOSED


def test_case_34_a_trial_that_never_reports_reopens_and_probing_resumes(make: Make, clock: FakeClock) -> None:
    breaker = make(max_half_open=5.0)
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    to_half_open(breaker, clock)
    hung = breaker.acquire()
    clock.move(4.9)
    rejected(breaker)
    assert breaker.state is HALF_OPEN
    clock.move(0.1)
    assert rejected(breaker).retry_after == pytest.approx(30)
    assert seen[-1].reason == "trial never reported"
    clock.move(30)
    trial = breaker.acquire()
    hung.failure(Down())
    trial.success()
    assert breaker.state is CLOSED


def test_case_34_idle_half_open_is_not_a_lost_trial(make: Make, clock: FakeClock) -> None:
    breaker = make(max_half_open=5.0)
    to_half_open(breaker, clock)
    breaker.acquire().neutral()
    clock.move(1_000)
    succeed(breaker)
    assert breaker.state is CLOSED


def test_case_34_a_garbage_collected_trial_returns_its_permit(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    permit = breaker.acquire()
    rejected(breaker)
    del permit
    gc.collect()
    succeed(breaker)
    assert breaker.state is CLOSED


def test_case_36_closing_starts_from_nothing(make: Make, clock: FakeClock) -> None:
    breaker = make(window=10, failure_rate=1.0)
    to_half_open(breaker, clock)
    succeed(breaker)
    snapshot = breaker.snapshot()
    assert (snapshot.calls, snapshot.failure_rate) == (0, None)
    assert (snapshot.failures, snapshot.last_error, snapshot.retry_after) == (0, None, None)
    fail(breaker, 2)
    assert breaker.state is CLOSED


# -- generations


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_case_37_38_a_call_begun_closed_does_not_count_half_open(make: Make, clock: FakeClock, outcome: str) -> None:
    breaker = make()
    early = breaker.acquire()
    to_half_open(breaker, clock)
    trial = breaker.acquire()
    early.success() if outcome == "success" else early.failure(Down())
    assert breaker.state is HALF_OPEN
    trial.success()
    assert breaker.state is CLOSED


def test_case_40_a_trial_of_an_earlier_half_open_is_ignored(make: Make, clock: FakeClock) -> None:
    breaker = make(half_open_max_calls=2, success_threshold=2)
    to_half_open(breaker, clock)
    slow, failing = breaker.acquire(), breaker.acquire()
    failing.failure(Down())
    clock.move(30)
    trials = [breaker.acquire(), breaker.acquire()]
    slow.failure(Down())
    assert breaker.state is HALF_OPEN
    rejected(breaker)
    for trial in trials:
        trial.success()
    assert breaker.state is CLOSED


@pytest.mark.parametrize("intervene", ["reset", "force_open", "force_closed"])
def test_case_42_an_intervention_makes_running_calls_stale(make: Make, intervene: str) -> None:
    breaker = make(failure_threshold=1)
    running = breaker.acquire()
    getattr(breaker, intervene)()
    before = breaker.snapshot()
    running.failure(Down())
    assert breaker.snapshot() == before
    assert breaker.counts.stale == 1


def test_case_43_only_the_first_settlement_counts(make: Make) -> None:
    breaker = make()
    permit = breaker.acquire()
    permit.failure(Down())
    permit.failure(Down())
    permit.success()
    permit.neutral()
    assert breaker.snapshot().failures == 1
    assert breaker.counts.failed == 1


# -- early trial


def test_a_good_probe_allows_the_trial_at_once(make: Make, clock: FakeClock) -> None:
    breaker = make()
    fail(breaker, 3)
    clock.move(1)
    breaker.probe_succeeded(breaker.generation)
    assert breaker.state is OPEN
    trial = breaker.acquire()
    assert breaker.state is HALF_OPEN
    rejected(breaker)
    trial.failure(Down())
    assert rejected(breaker).retry_after == pytest.approx(30)


def test_a_probe_begun_before_a_state_change_is_ignored(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    trial = breaker.acquire()
    generation = breaker.generation
    trial.failure(Down())
    breaker.probe_succeeded(generation)
    rejected(breaker)


def test_a_probe_does_nothing_unless_open(make: Make, clock: FakeClock) -> None:
    breaker = make()
    breaker.probe_succeeded()
    fail(breaker, 3)
    rejected(breaker)
    breaker.force_open()
    breaker.probe_succeeded()
    assert rejected(breaker).retry_after is None
    breaker.reset()
    fail(breaker, 3)
    rejected(breaker)


# -- by hand


def test_case_44_held_open_rejects_for_ever_without_retry_after(make: Make, clock: FakeClock) -> None:
    breaker = make()
    breaker.force_open()
    clock.move(1e9)
    error = rejected(breaker)
    assert (error.held, error.retry_after, str(error)) == (True, None, "circuit 'db' is held open by an operator")
    assert breaker.snapshot().held
    breaker.force_closed()
    succeed(breaker)


def test_case_46_held_closed_admits_all_and_records_nothing(make: Make) -> None:
    breaker = make()
    breaker.force_closed()
    fail(breaker, 100)
    assert breaker.state is CLOSED
    assert breaker.snapshot().failures == 0
    breaker.reset()
    fail(breaker, 3)
    assert breaker.state is OPEN


def test_case_46_held_closed_a_window_counts_nothing_either(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window=3, minimum_calls=1, failure_rate=0.1)
    seen = told(breaker)
    breaker.force_closed()
    take(breaker, clock, "FSFSFSFSFFF")
    assert rates(breaker) == (0, None, None)
    assert seen == []
    assert breaker.counts.started == 11


@pytest.mark.parametrize(
    "rules", [{}, {"failure_threshold": None, "window": 6, "minimum_calls": 3, "failure_rate": 0.5}]
)
def test_case_47_shadow_never_rejects_and_tells_once_that_it_would_have(
    make: Make, clock: FakeClock, rules: dict[str, Any]
) -> None:
    breaker = make(**rules)
    breaker.shadow()
    assert breaker.snapshot().shadow
    seen = told(breaker)
    fail(breaker, 20)
    assert breaker.state is CLOSED
    assert [(event.old, event.new, event.failures) for event in seen] == [(CLOSED, CLOSED, 3)]
    clock.move(29.9)
    fail(breaker)
    assert len(seen) == 1, "it would still be open"
    clock.move(0.1)
    fail(breaker)
    assert len(seen) == 2
    breaker.reset()
    snapshot = breaker.snapshot()
    assert (snapshot.shadow, snapshot.failures, snapshot.calls) == (False, 0, 0)
    fail(breaker, 3)
    assert str(breaker.state) == "open"


def test_case_47_in_shadow_not_even_an_order_to_wait_rejects(make: Make, clock: FakeClock) -> None:
    breaker = make(trip_on_retry_after=True)
    breaker.shadow()
    seen = told(breaker)
    breaker.open_for(5.0)
    breaker.acquire().failure(Down(), 99.0)
    succeed(breaker)
    assert [(event.old, event.new, event.reason) for event in seen] == [(CLOSED, CLOSED, "told to wait")]
    assert breaker.snapshot().shadow
    clock.move(30.0)
    breaker.acquire().failure(Down(), 99.0)
    clock.move(98.0)
    breaker.acquire().failure(Down(), 99.0)
    assert len(seen) == 2


def test_open_for_opens_and_extends_but_never_shortens(make: Make, clock: FakeClock) -> None:
    breaker = make()
    seen = told(breaker)
    breaker.open_for(10.0)
    assert rejected(breaker).retry_after == 10.0
    breaker.open_for(5.0)
    assert rejected(breaker).retry_after == 10.0
    breaker.open_for(20.0)
    assert rejected(breaker).retry_after == 20.0
    breaker.probe_succeeded()
    assert rejected(breaker).retry_after == 20.0
    breaker.open_for(1e9)
    assert rejected(breaker).retry_after == MAX_OPEN_SECONDS
    assert [event.reason for event in seen] == ["told to wait"]
    breaker.force_open()
    breaker.open_for(5.0)
    assert rejected(breaker).retry_after is None


def test_case_48_half_open_by_hand_needs_an_open_circuit(make: Make, clock: FakeClock) -> None:
    breaker = make()
    seen = told(breaker)
    fail(breaker, 2)
    before = breaker.snapshot()
    with pytest.raises(ValueError, match="closed"):
        breaker.force_half_open()
    assert (breaker.snapshot(), seen) == (before, [])
    fail(breaker)
    breaker.force_half_open()
    assert breaker.state is HALF_OPEN
    trial, generation = breaker.acquire(), breaker.generation
    breaker.force_half_open()
    assert breaker.generation == generation, "the trial that runs still counts"
    trial.success()
    assert str(breaker.state) == "closed"
    assert [event.reason for event in seen] == ["too many consecutive failures", "by hand", "trial succeeded"]


def test_case_48_self_transitions_are_legal_and_silent(make: Make) -> None:
    breaker = make()
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    breaker.reset()
    breaker.force_closed()
    breaker.reset()
    assert seen == []
    breaker.force_open()
    breaker.force_open()
    assert [event.reason for event in seen] == ["held open"]


COUNTS = (
    "failure_threshold",
    "success_threshold",
    "half_open_max_calls",
    "half_open_trials",
    "window",
    "minimum_calls",
)
TIMES = ("recovery_timeout", "max_half_open", "window_seconds")
SHARES = ("failure_rate",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(field, bad) for field in COUNTS for bad in (0, -1, 1.5, True, "3")],
        *[(field, bad) for field in TIMES for bad in (0, -1.0, float("nan"), float("inf"), True, "3")],
        *[(field, bad) for field in SHARES for bad in (0, -0.1, 1.01, 100, float("nan"), True, "3")],
    ],
)
def test_case_49_a_bad_setting_fails_by_name(make: Make, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        make(**{field: value})


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"window": 5, "window_seconds": 5.0}, "window and window_seconds exclude each other"),
        ({"slow_rate": 0.5}, "slow_rate and slow_call_seconds go together"),
        ({"slow_call_seconds": 0.5}, "slow_rate and slow_call_seconds go together"),
        ({"slow_call_seconds": 0.5, "slow_rate": 2}, "slow_rate must be a share above 0 and up to 1, not 2"),
        ({"slow_call_seconds": 0, "slow_rate": 0.5}, "slow_call_seconds must be a positive number of seconds, not 0"),
        ({"half_open_trials": 1, "success_threshold": 2}, "half_open_trials must be at least success_threshold (2)"),
        ({"window": 0}, "window must be a whole number of at least 1, not 0"),
    ],
)
def test_case_49_bad_combinations_are_named_too(make: Make, rules: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**rules)
    assert str(caught.value).startswith(text)


def test_the_defaults_are_as_documented() -> None:
    plain = CircuitBreaker().settings
    assert (plain.failure_threshold, plain.recovery_timeout, plain.success_threshold) == (5, 60.0, 2)
    assert (plain.half_open_max_calls, plain.half_open_trials, plain.max_half_open) == (1, 2, None)
    assert (plain.window, plain.window_seconds, plain.failure_rate, plain.slow_rate) == (None, None, None, None)
    assert (plain.honour_retry_after, plain.trip_on_retry_after, plain.minimum_calls) == (True, False, 10)
    assert CircuitBreaker().name == "default"
    assert CircuitBreaker(failure_rate=0.3).settings.window == 100
    assert CircuitBreaker(slow_rate=0.3, slow_call_seconds=1.0).settings.window == 100
    assert CircuitBreaker(slow_rate=0.3, slow_call_seconds=1.0).settings.failure_rate is None
    for rules in ({"window": 7}, {"window_seconds": 7}):
        watched = CircuitBreaker(**rules).settings  # type: ignore[arg-type]
        assert (watched.failure_rate, watched.failure_threshold) == (0.5, None)
    assert CircuitBreaker(window_seconds=7, failure_rate=1).settings.window is None


# -- live reconfiguration


def test_a_changed_setting_leaves_the_others_as_they_were_given(make: Make) -> None:
    breaker = make(half_open_max_calls=5, half_open_trials=2, success_threshold=2, window=5, minimum_calls=50)
    breaker.configure(failure_rate=0.25)
    assert breaker.settings.half_open_trials == 2
    breaker.configure(window=80)
    assert breaker.settings.minimum_calls == 50
    assert breaker.settings.failure_rate == 0.25
    usual = make(half_open_max_calls=2)
    usual.configure(success_threshold=4)
    assert usual.settings.half_open_trials == 4
    usual.configure(half_open_trials=5)
    assert (usual.settings.half_open_trials, usual.settings.bad_trials) == (5, 1)


def test_a_changed_setting_holds_for_everything_that_was_given_in_common(make: Make) -> None:
    first, second = make(), make()
    assert first._settings is second._settings
    first.configure(failure_threshold=1)
    fail(first)
    fail(second)
    assert (first.state, second.state) == (OPEN, CLOSED)


@pytest.mark.parametrize("wanted", [{"window": 10}, {"window_seconds": 10.0}])
async def test_calls_under_way_when_timing_begins_are_neither_slow_nor_old(
    make: Make, clock: FakeClock, wanted: dict[str, Any]
) -> None:
    breaker = make(failure_threshold=100, minimum_calls=1)
    permits = [breaker.acquire() for _ in range(2)]
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(breaker.call(lambda: answer))
    await asyncio.sleep(0)
    clock.move(30.0)
    breaker.configure(**wanted, slow_call_seconds=1.0, slow_rate=1.0, failure_rate=1.0, minimum_calls=4)
    clock.move(0.5)
    answer.set_result(1)
    assert await call == 1
    permits[0].success()
    permits[1].failure()
    breaker.call_sync(lambda: 1)
    assert rates(breaker) == (4, 0.25, 0.0)


def test_fewer_successes_asked_for_than_there_are_do_not_strand_the_trials(make: Make, clock: FakeClock) -> None:
    breaker = make(success_threshold=3)
    to_half_open(breaker, clock)
    succeed(breaker)
    succeed(breaker)
    breaker.configure(success_threshold=2)
    assert breaker.state is HALF_OPEN, "applied to the next outcome"
    trial = breaker.acquire()
    rejected(breaker)
    trial.success()
    assert breaker.state is CLOSED


def test_a_changed_window_keeps_its_latest_outcomes(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=None, window=4, failure_rate=0.9, minimum_calls=1)
    take(breaker, clock, "SFFSF")
    breaker.configure(window=3)
    assert rates(breaker) == (3, pytest.approx(2 / 3), 0.0)
    breaker.configure(window=10)
    take(breaker, clock, "S")
    assert rates(breaker) == (4, 0.5, 0.0)
    breaker.configure(window=None, window_seconds=10.0)
    assert rates(breaker) == (0, None, None)
    breaker.configure(window_seconds=20.0)
    take(breaker, clock, "S")
    breaker.configure(minimum_calls=3)
    assert rates(breaker) == (1, None, None)
    breaker.configure(window_seconds=None, window=5)
    assert rates(breaker) == (0, None, None)


def test_classification_can_be_changed_too(make: Make) -> None:
    breaker = make(failure_threshold=1)
    breaker.configure(classify=classify, failure_result=lambda result: result == 7)
    breaker.acquire().settle(NotFound())
    assert breaker.state is CLOSED
    breaker.configure(success_threshold=3)
    breaker.acquire().settle(NotFound())
    assert breaker.state is CLOSED
    breaker.acquire().returned(7)
    assert str(breaker.state) == "open"


# -- clock, listeners, composition


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_case_51_a_jump_of_the_wall_clock_changes_no_open_time(make: Make, clock: FakeClock, jump: float) -> None:
    breaker = make()
    fail(breaker, 3)
    clock.jump_wall(jump)
    clock.move(29.9)
    assert rejected(breaker).retry_after == pytest.approx(0.1)
    clock.move(0.1)
    succeed(breaker)
    assert breaker.state is CLOSED


def _core_modules() -> list[Path]:
    folder = Path(resilience.__file__).parent
    return [path for path in sorted(folder.glob("*.py")) if path.name != "pytest_plugin.py"]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _core_modules(), ids=lambda path: path.stem)
def test_case_52_only_the_clock_reads_time_and_chance_comes_from_outside(path: Path) -> None:
    imports = _imports(path)
    clocks = {name for name in imports if name == "time" or name.startswith(("time.", "datetime.datetime"))}
    if path.stem == "retry_after":  # RFC 9110 dates are parsed with it; the present is the clock's
        clocks -= {name for name in clocks if name.startswith("datetime.")}
    assert clocks == ({"time"} if path.stem == "clock" else set())
    chance = {name for name in imports if name.split(".")[0] in ("random", "secrets", "uuid")}
    assert chance <= {"random.Random"}, "no function of the module `random`"
    makes = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Random"
    ]
    # The prober's own is for the jitter of its interval only, when it is given none.
    assert not makes or path.stem in ("ambient", "prober")


def test_case_53_a_re_entrant_listener_sees_transitions_in_order(make: Make) -> None:
    breaker = make()
    seen: list[tuple[str, CircuitState, CircuitState]] = []

    def meddle(event: Transition) -> None:
        seen.append(("meddler", event.old, event.new))
        if event.new is OPEN:
            assert breaker.state is OPEN
            breaker.reset()

    breaker.subscribe(meddle)
    breaker.subscribe(lambda event: seen.append(("other", event.old, event.new)))
    fail(breaker, 3)
    assert breaker.state is CLOSED
    assert seen == [
        ("meddler", CLOSED, OPEN),
        ("other", CLOSED, OPEN),
        ("meddler", OPEN, CLOSED),
        ("other", OPEN, CLOSED),
    ]


def test_case_54_a_raising_listener_changes_nothing(make: Make) -> None:
    breaker = make()
    seen: list[Transition] = []

    def broken(_event: Transition) -> None:
        raise RuntimeError("bug")

    breaker.subscribe(broken)
    breaker.subscribe(seen.append)
    fail(breaker, 3)
    assert breaker.state is OPEN
    assert len(seen) == 1
    assert breaker.listener_errors == 1
    breaker.reset()
    assert breaker.listener_errors == 2
    assert make().listener_errors == 0


def test_a_listener_that_exits_leaves_the_others_and_later_transitions_to_be_told(make: Make) -> None:
    breaker = make(failure_threshold=1)
    seen: list[str] = []
    stop = breaker.subscribe(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    breaker.subscribe(lambda event: seen.append(event.new))
    with pytest.raises(KeyboardInterrupt):
        fail(breaker)
    assert breaker.state is OPEN
    stop()
    stop()
    breaker.reset()
    assert seen == ["closed"]


def test_a_listener_can_unsubscribe(make: Make) -> None:
    breaker = make()
    seen: list[Transition] = []
    stop = breaker.subscribe(seen.append)
    stop()
    fail(breaker, 3)
    assert seen == []


def test_case_55_an_event_carries_the_old_states_count(make: Make, clock: FakeClock) -> None:
    breaker = make()
    seen: list[Transition] = []
    breaker.subscribe(seen.append)
    to_half_open(breaker, clock)
    succeed(breaker)
    assert seen == [
        Transition("db", CLOSED, OPEN, "too many consecutive failures", 3),
        Transition("db", OPEN, HALF_OPEN, "open time over", 3),
        Transition("db", HALF_OPEN, CLOSED, "trial succeeded", 3),
    ]


def test_case_55_with_a_window_it_carries_that_too(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=3, window=10, failure_rate=1.0, slow_call_seconds=1.0, slow_rate=1.0)
    seen = told(breaker)
    take(breaker, clock, "SSF", seconds=2.0)
    take(breaker, clock, "FF")
    clock.move(30.0)
    succeed(breaker)
    assert seen == [
        Transition("db", CLOSED, OPEN, "too many consecutive failures", 3, 5, 3, 3),
        Transition("db", OPEN, HALF_OPEN, "open time over", 3, 5, 3, 3),
        Transition("db", HALF_OPEN, CLOSED, "trial succeeded", 3, 5, 3, 3),
    ]


async def test_case_56_retry_outside_counts_each_attempt_inside_counts_once(make: Make) -> None:
    async def query() -> None:
        raise Down

    outside, inside = make(failure_threshold=10), make(failure_threshold=10)

    def always(error: Exception) -> bool:
        return isinstance(error, Down)

    at_once = Retry(attempts=3, backoff=Backoff(0.0), retry_on=always)

    with pytest.raises(Down):
        await at_once.call(outside.call, query)
    with pytest.raises(Down):
        await inside.call(at_once.call, query)
    assert outside.snapshot().failures == 3
    assert inside.snapshot().failures == 1


async def test_case_57_a_timeout_inside_is_a_failure(make: Make, clock: FakeClock) -> None:
    breaker = make(failure_threshold=1)
    call = asyncio.create_task(breaker.call(lambda: hard_timeout(asyncio.Event().wait(), 2.0, name="db", clock=clock)))
    await clock.advance(2.0)
    with pytest.raises(CallTimeout):
        await call
    assert breaker.state is OPEN
    assert breaker.snapshot().last_error == "CallTimeout: db did not answer within 2 s"


async def test_case_58_nested_breakers_trip_on_their_own_errors(make: Make) -> None:
    def only(kind: type[Exception]) -> Callable[[BaseException], Verdict]:
        return lambda error: Verdict.FAILURE if isinstance(error, kind) else Verdict.SUCCESS

    async def through(outer: CircuitBreaker, inner: CircuitBreaker, error: Exception) -> None:
        async def query() -> None:
            raise error

        def guarded() -> Awaitable[None]:
            return inner.call(query)

        with pytest.raises(type(error)):
            await outer.call(guarded)

    for swap in (False, True):
        by_down, by_missing = (
            make(failure_threshold=1, classify=only(Down)),
            make(failure_threshold=1, classify=only(NotFound)),
        )
        pair = (by_missing, by_down) if swap else (by_down, by_missing)
        await through(*pair, Down())
        assert (by_down.state, by_missing.state) == (OPEN, CLOSED)


def test_the_text_of_an_error_stays_inside(make: Make) -> None:
    breaker = make()
    breaker.acquire().failure(ConnectionRefusedError("postgres://user:secret@db"))
    assert breaker.snapshot().last_error == "ConnectionRefusedError"


async def test_case_57_its_measured_duration_is_known(make: Make, clock: FakeClock) -> None:
    breaker = make(**SLOW, minimum_calls=1, failure_rate=1.0)
    call = asyncio.create_task(breaker.call(lambda: hard_timeout(asyncio.Event().wait(), 5.0, name="db", clock=clock)))
    seen = told(breaker)
    await clock.advance(5.0)
    with pytest.raises(CallTimeout):
        await call
    assert (seen[0].failed, seen[0].slow) == (1, 1)


async def test_case_60_every_call_is_accounted_for(make: Make, clock: FakeClock) -> None:
    """100,000 mixed calls, many at once, over many state changes: no outcome is lost or counted twice."""
    breaker = make(failure_threshold=4, recovery_timeout=0.5, half_open_max_calls=3, success_threshold=2)
    dice, began = random.Random(60), time.process_time()
    chance, choose = dice.random, dice.randrange
    running: list[Any] = []
    started = rejections = 0
    for number in range(100_000):
        clock.move(0.01)
        try:
            running.append(breaker.acquire())
            started += 1
        except CircuitBreakerOpen:
            rejections += 1
        while running and (len(running) > 20 or chance() < 0.5):
            permit = running.pop(choose(len(running)))
            (permit.success, permit.failure, permit.failure, permit.neutral)[choose(4)]()
        if number % 1000 == 0:
            (breaker.reset, breaker.force_open, breaker.force_closed, breaker.shadow)[choose(4)]()
            breaker.reset()
            counts = breaker.counts
            assert counts.in_flight == len(running)
    counts = breaker.counts
    assert (counts.started, counts.rejected) == (started, rejections)
    settled = counts.succeeded + counts.failed + counts.neutral + counts.stale
    assert started == settled + len(running)
    assert min(counts.succeeded, counts.failed, counts.neutral, counts.stale, rejections) > 100
    assert time.process_time() - began < 1.5


def test_case_60_two_steps_call_and_block_count_alike(make: Make) -> None:
    breaker = make(failure_threshold=100)

    async def everything() -> None:
        async def broken() -> None:
            raise Down

        with pytest.raises(Down):
            await breaker.call(broken)
        with pytest.raises(Down):
            async with breaker.acquire():
                raise Down
        with pytest.raises(Down), breaker.acquire():
            raise Down
        async with breaker.acquire():
            pass
        with breaker.acquire():
            pass
        await breaker.call(lambda: None)
        breaker.call_sync(lambda: None)
        breaker.check()

    asyncio.run(everything())
    assert breaker.counts == (7, 4, 3, 0, 0, 0, 0)


def test_check_takes_no_permit_and_rejects_as_acquire_would(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    for _ in range(3):
        breaker.check()
    assert breaker.state is HALF_OPEN
    trial = breaker.acquire()
    with pytest.raises(CircuitBreakerOpen):
        breaker.check()
    trial.success()
    breaker.check()
    assert breaker.counts[:2] == (4, 1)
    assert breaker.counts.rejected == 1


def test_idle_is_a_breaker_that_would_lose_nothing(make: Make, clock: FakeClock) -> None:
    breaker = make(window_seconds=10.0, failure_rate=1.0, slow_call_seconds=1.0, slow_rate=1.0)
    assert breaker.idle
    permit = breaker.acquire()
    assert not breaker.idle
    permit.success()
    assert breaker.idle
    take(breaker, clock, "S", seconds=2.0)
    assert not breaker.idle, "a slow call is remembered"
    clock.move(10.0)
    assert breaker.idle, "and forgotten"
    for change in (breaker.shadow, breaker.force_closed, breaker.force_open):
        change()
        assert not breaker.idle
    breaker.reset()
    fail(breaker)
    assert not breaker.idle
