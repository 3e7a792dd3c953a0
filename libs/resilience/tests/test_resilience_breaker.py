"""The circuit breaker's rules as seen from outside. Tests named `case_NN` pin the case of that number."""

import asyncio
import gc
import random
import traceback
from collections.abc import Awaitable, Callable

import pytest

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
    fail(breaker, breaker.settings.failure_threshold)
    clock.move(breaker.settings.recovery_timeout)


def rejected(breaker: CircuitBreaker) -> CircuitBreakerOpen:
    with pytest.raises(CircuitBreakerOpen) as caught:
        breaker.acquire()
    return caught.value


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


def test_the_state_stays_open_until_a_trial_is_admitted(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    clock.move(1_000)
    assert breaker.state is OPEN
    assert breaker.snapshot().retry_after == 0.0


def test_case_24_no_task_or_timer_exists(make: Make, clock: FakeClock) -> None:
    breaker = make()
    to_half_open(breaker, clock)
    succeed(breaker)
    assert clock.pending == 0


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
    breaker = make()
    to_half_open(breaker, clock)
    succeed(breaker)
    snapshot = breaker.snapshot()
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (field, bad)
            for field in ("failure_threshold", "success_threshold", "half_open_max_calls")
            for bad in (0, -1)
        ],
        ("failure_threshold", 1.5),
        ("failure_threshold", True),
        *[("recovery_timeout", bad) for bad in (0, -1.0, float("nan"), float("inf"))],
        ("max_half_open", 0.0),
    ],
)
def test_case_49_a_bad_setting_fails_by_name(make: Make, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        make(**{field: value})


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


async def test_case_60_every_call_is_accounted_for(make: Make, clock: FakeClock) -> None:
    """100,000 mixed calls, many at once, over many state changes: no outcome is lost or counted twice."""
    breaker = make(failure_threshold=4, recovery_timeout=0.5, half_open_max_calls=3, success_threshold=2)
    dice = random.Random(60)
    open_permits = []
    started = rejections = 0
    for _ in range(100_000):
        clock.move(0.01)
        try:
            open_permits.append(breaker.acquire())
            started += 1
        except CircuitBreakerOpen:
            rejections += 1
        while open_permits and (len(open_permits) > 20 or dice.random() < 0.5):
            permit = open_permits.pop(dice.randrange(len(open_permits)))
            dice.choice([permit.success, permit.failure, permit.failure, permit.neutral])()
        if dice.random() < 0.001:
            dice.choice([breaker.reset, breaker.force_open, breaker.force_closed])()
            breaker.reset()
    counts = breaker.counts
    assert (counts.started, counts.rejected) == (started, rejections)
    settled = counts.succeeded + counts.failed + counts.neutral + counts.stale
    assert started == settled + len(open_permits)
    assert min(counts.succeeded, counts.failed, counts.neutral, counts.stale, rejections) > 100
