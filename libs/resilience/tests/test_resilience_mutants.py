"""Small things that mutation testing (tools/mutate.py) found nobody to watch over: defaults, names, bounds."""

import asyncio
import email.utils
import functools
import gc
import inspect
import random
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from resilience import (
    ABANDONED,
    AbandonedTasks,
    Backoff,
    BulkheadFull,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitHeldOpen,
    CircuitState,
    ClientError,
    FakeClock,
    Policy,
    RateLimited,
    Retry,
    Timeout,
    Verdict,
    deadline_scope,
    hard_timeout,
)
from resilience.breaker import default_classify
from resilience.circuit import growing
from resilience.deadline import current_deadline
from resilience.forms import Guard, is_async, is_awaitable
from resilience.row_policy import never
from resilience.timeout import MAX_THREADS


class Down(Exception):
    pass


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Failing:
    """Fails `times` times, then answers 7."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise Down
        return 7

    async def later(self) -> int:
        return self()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def start(call: Callable[[], Any]) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await call()

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(5):
        await asyncio.sleep(0)
    return task


# -- breaker


async def test_a_trial_may_be_a_sync_function_and_a_held_circuit_rejects_by_every_form(clock: FakeClock) -> None:
    breaker = CircuitBreaker("db", failure_threshold=1, success_threshold=1, recovery_timeout=1.0, clock=clock)
    breaker.acquire().failure(cause := Down())
    clock.move(1.0)
    assert await breaker.call(lambda a, *, b: a + b, 1, b=2) == 3
    assert breaker.state is CircuitState.CLOSED
    breaker.acquire().failure(cause)
    breaker.force_open()
    forms: list[Callable[[], Any]] = [breaker.acquire, lambda: breaker.call_sync(int), breaker.check]
    for form in forms:
        with pytest.raises(CircuitHeldOpen) as held:
            form()
        assert held.value.args == ("db", None, cause)
    with pytest.raises(CircuitHeldOpen) as held:
        await breaker.call(int)
    assert held.value.args == ("db", None, cause)
    assert breaker.counts.rejected == 4


async def test_each_settlement_counts_once_whatever_comes_after(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=99, clock=clock)
    hows: list[Callable[[Any], None]] = [
        lambda permit: permit.settle(Down()),
        lambda permit: permit.returned(1),
        lambda permit: permit.success(),
        lambda permit: permit.failure(),
        lambda permit: permit.neutral(),
    ]
    for how in hows:
        permit = breaker.acquire()
        how(permit)
        for again in hows:
            again(permit)
    assert breaker.counts == (5, 2, 2, 1, 0, 0, 0)


def test_two_threads_that_find_the_same_lost_trial_do_not_trip_over_each_other(clock: FakeClock) -> None:
    class Raced(list[int]):
        def pop(self, *_: Any) -> int:
            self.clear()  # as the other thread does, after this one has looked
            return super().pop()

    breaker = CircuitBreaker(clock=clock)
    breaker._lost = Raced([0])
    assert breaker.counts == (0, 0, 0, 0, 0, 0, 0)


async def by_call(breaker: CircuitBreaker, work: Callable[..., Any]) -> Any:
    return await breaker.call(work, 1, b=2)


async def by_call_async(breaker: CircuitBreaker, work: Callable[..., Any]) -> Any:
    async def later(a: int, *, b: int) -> Any:
        return work(a, b=b)

    return await breaker.call(later, 1, b=2)


async def by_call_sync(breaker: CircuitBreaker, work: Callable[..., Any]) -> Any:
    return breaker.call_sync(work, 1, b=2)


async def by_block(breaker: CircuitBreaker, work: Callable[..., Any]) -> Any:
    async with breaker.acquire():
        return work(1, b=2)


async def by_sync_block(breaker: CircuitBreaker, work: Callable[..., Any]) -> Any:
    with breaker.acquire():
        return work(1, b=2)


FORMS = [by_call, by_call_async, by_call_sync, by_block, by_sync_block]


def add(a: int, *, b: int) -> int:
    return a + b


class Busy(Exception):
    retry_after = 30.0


def busy(*_: Any, **_named: Any) -> Any:
    raise Busy


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rules", [{}, {"window": 4, "failure_rate": 1.0}, {"window_seconds": 9, "failure_rate": 1.0}])
async def test_every_form_counts_streaks_and_outcomes_alike(clock: FakeClock, form: Any, rules: dict[str, Any]) -> None:
    breaker = CircuitBreaker(
        "db", failure_threshold=3, success_threshold=1, recovery_timeout=10.0, clock=clock, **rules
    )
    for _ in range(7):
        assert await form(breaker, add) == 3
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(Busy):
                await form(breaker, busy)
        assert await form(breaker, add) == 3
        assert breaker.snapshot().failures == 0
    assert breaker.counts == (16, 10, 6, 0, 0, 0, 0)
    for _ in range(3):
        with pytest.raises(Busy):
            await form(breaker, busy)
    for number in range(1, 4):
        with pytest.raises(CircuitBreakerOpen) as rejected:
            await form(breaker, add)
        assert (rejected.value.name, rejected.value.retry_after) == ("db", 30.0)
        assert type(rejected.value.last_cause) is Busy
        assert breaker.counts.rejected == number
    clock.move(30.0)
    with pytest.raises(Busy):
        await form(breaker, busy)
    assert breaker.retry_after() == 30.0, "what a trial is told counts as well"
    clock.move(30.0)
    assert await form(breaker, add) == 3
    assert breaker.state is CircuitState.CLOSED
    assert breaker.counts == (21, 11, 10, 0, 0, 0, 3)


@pytest.mark.parametrize("form", FORMS)
async def test_of_a_busy_half_open_circuit_every_form_tells_the_name_and_the_cause(clock: FakeClock, form: Any) -> None:
    breaker = CircuitBreaker("db", failure_threshold=1, recovery_timeout=10.0, clock=clock)
    breaker.acquire().failure(cause := Down())
    clock.move(10.0)
    trial = breaker.acquire()
    for number in range(1, 3):
        with pytest.raises(CircuitBreakerOpen) as rejected:
            await form(breaker, add)
        assert rejected.value.args == ("db", 0.0, cause)
        assert breaker.counts.rejected == number
    trial.neutral()
    assert await form(breaker, add) == 3


@pytest.mark.parametrize("end", ["success", "failure", "neutral"])
async def test_a_call_of_an_earlier_state_is_stale_and_counted_so(clock: FakeClock, end: str) -> None:
    breaker = CircuitBreaker(window=2, failure_rate=1.0, minimum_calls=2, clock=clock)
    ends = [asyncio.get_running_loop().create_future() for _ in range(3)]
    calls = [await start(lambda end=one: breaker.call(lambda: end)) for one in ends]  # type: ignore[misc]
    breaker.reset()
    breaker.call_sync(lambda: 1)
    breaker.call_sync(lambda: 1)
    for one, call in zip(ends, calls, strict=True):
        if end == "success":
            one.set_result(1)
        elif end == "failure":
            one.set_exception(Down())
        else:
            call.cancel()
    await asyncio.wait(calls)
    assert [call.cancelled() for call in calls] == [end == "neutral"] * 3
    assert [call.exception() for call in calls if end == "failure"].count(None) == 0
    assert breaker.counts == (5, 2, 0, 0, 3, 0, 0)
    assert breaker.snapshot()[8:] == (2, 0.0, 0.0)


@pytest.mark.parametrize("sync", [False, True])
async def test_the_short_way_keeps_the_order_of_a_full_window(clock: FakeClock, sync: bool) -> None:
    breaker = CircuitBreaker(window=5, failure_rate=1.0, failure_threshold=99, clock=clock)
    latest: deque[bool] = deque(maxlen=5)
    dice = random.Random(5)
    for _ in range(400):
        failed = dice.random() < 0.15
        if failed:
            breaker.acquire().failure(Down())
        elif sync:
            breaker.call_sync(int)
        else:
            await breaker.call(int)
        latest.append(failed)
        calls, rate, _ = breaker._circuit.rates()
        assert calls == len(latest)
        assert rate == (sum(latest) / 5 if calls == 5 else None)
        if rate is not None and rate > 0.7:
            breaker.acquire().success()
            latest.append(False)


@pytest.mark.parametrize("told", [None, 0.0, 0.25])
def test_only_a_time_that_was_named_opens_at_once(clock: FakeClock, told: float | None) -> None:
    breaker = CircuitBreaker(recovery_timeout=0.125, trip_on_retry_after=True, clock=clock)
    reasons: list[str] = []
    breaker.subscribe(lambda change: reasons.append(change.reason))
    breaker.acquire().failure(Down(), told)
    assert reasons == (["told to wait"] if told else [])
    assert breaker.retry_after() == (told or None)


def test_what_the_dependency_asked_for_counts_however_the_circuit_opens(clock: FakeClock) -> None:
    for rules in ({"failure_threshold": 1}, {"window": 1, "failure_rate": 1.0, "minimum_calls": 1}):
        breaker = CircuitBreaker(recovery_timeout=1.0, clock=clock, **rules)
        breaker.acquire().failure(Down(), 30.0)
        assert breaker.retry_after() == 30.0


def test_the_age_of_a_state_begins_with_a_change_and_not_with_a_self_transition(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    clock.move(5.0)
    assert breaker.snapshot().state_seconds == 5.0
    breaker.reset()
    assert breaker.snapshot().state_seconds == 5.0
    breaker.acquire().failure()
    clock.move(2.0)
    breaker.force_open()
    assert breaker.snapshot().state_seconds == 2.0
    breaker.reset()
    assert breaker.snapshot().state_seconds == 0.0
    assert breaker.snapshot().last_error is None


async def test_a_trial_is_judged_by_its_result_in_every_form(clock: FakeClock) -> None:
    breaker = CircuitBreaker(
        failure_threshold=1, recovery_timeout=1.0, failure_result=lambda result: result == 503, clock=clock
    )
    assert await breaker.call(lambda: 503) == 503
    for _ in range(2):
        clock.move(1.0)
        assert await breaker.call(lambda: 503) == 503
        assert breaker.state is CircuitState.OPEN
    clock.move(1.0)
    assert breaker.call_sync(lambda: 503) == 503
    assert breaker.state is CircuitState.OPEN
    assert breaker.counts.failed == 4


def test_by_default_an_answer_is_a_success_and_all_else_a_failure() -> None:
    assert default_classify(ClientError("no such thing")) is Verdict.SUCCESS
    assert default_classify(Down()) is Verdict.FAILURE


def test_cancellation_is_neutral_even_if_the_classifier_never_says_so() -> None:
    breaker = CircuitBreaker()
    ends = (asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit())
    assert {breaker.verdict(end) for end in ends} == {Verdict.NEUTRAL}
    harsh = CircuitBreaker(classify=lambda _: Verdict.FAILURE)
    assert {harsh.verdict(end) for end in ends} == {Verdict.NEUTRAL}
    assert {default_classify(end) for end in ends} == {Verdict.NEUTRAL}
    assert breaker.verdict(Down()) is default_classify(Down()) is Verdict.FAILURE
    assert breaker.snapshot().name == "default"


def test_a_lost_trial_is_its_own_breakers_business(clock: FakeClock) -> None:
    breakers = [CircuitBreaker(failure_threshold=1, recovery_timeout=1.0, clock=clock) for _ in range(2)]
    for breaker in breakers:
        breaker.acquire().failure()
    clock.move(1.0)
    trials = [breaker.acquire() for breaker in breakers]
    assert breakers[0]._lost is not breakers[1]._lost
    del trials[0]
    gc.collect()
    assert [breaker.counts.in_flight for breaker in breakers] == [0, 1]
    with pytest.raises(CircuitBreakerOpen):
        breakers[1].acquire()
    lost = breakers[0]._lost
    breakers[0].acquire()
    gc.collect()
    assert breakers[0]._lost is lost
    assert breakers[0].counts.neutral == 2


def test_a_result_that_fails_slowly_is_both(clock: FakeClock) -> None:
    breaker = CircuitBreaker(
        window=4,
        failure_rate=1.0,
        slow_call_seconds=1.0,
        slow_rate=1.0,
        minimum_calls=2,
        failure_result=lambda result: result is None,
        clock=clock,
    )
    breaker.call_sync(lambda: 1)
    assert breaker.call_sync(lambda: clock.move(2.0)) is None
    permit = breaker.acquire()
    clock.move(2.0)
    permit.returned(None)
    permit = breaker.acquire()
    clock.move(2.0)
    permit.settle(Down())
    assert breaker.snapshot()[8:] == (4, 0.75, 0.75)
    assert breaker.snapshot().last_error == "Down"

    def slowly() -> None:
        clock.move(2.0)
        raise Down

    with pytest.raises(Down):
        breaker.call_sync(slowly)
    assert breaker.state is CircuitState.OPEN


async def test_a_retry_after_that_is_a_date_is_read_by_the_breakers_own_clock(clock: FakeClock) -> None:
    class Unavailable(Exception):
        def __init__(self, headers: dict[str, str]) -> None:
            self.headers = headers

    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    date = email.utils.formatdate(clock.time() + 500.0, usegmt=True)

    async def call() -> None:
        raise Unavailable({"Retry-After": date})

    with pytest.raises(Unavailable):
        await breaker.call(call)
    assert breaker.retry_after() == pytest.approx(500.0, abs=1.0)


# -- circuit


def test_growing_has_the_documented_defaults_and_jitters_by_the_given_chance() -> None:
    least, most = (growing(10.0)(n) for n in (0, 50))
    assert 9.0 <= least <= 11.0
    assert most <= 600.0
    assert all(540.0 <= growing(10.0)(50) <= 600.0 for _ in range(50))
    assert growing(10.0, random=random.Random(3))(0) == growing(10.0, random=random.Random(3))(0)
    with pytest.raises(ValueError) as caught:
        growing(-1.0)
    assert str(caught.value) == "base must be a positive number of seconds, not -1.0"


def test_a_probe_lets_the_trial_come_at_exactly_the_time_that_was_asked_for(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=60.0, clock=clock)
    told: list[str] = []
    breaker.subscribe(lambda change: told.append(change.reason))
    breaker.acquire().failure(Down(), 10.0)
    breaker.probe_succeeded()
    assert breaker.retry_after() == 10.0
    for form in (breaker.acquire, breaker.check):
        with pytest.raises(CircuitBreakerOpen) as rejected:
            form()
        assert rejected.value.retry_after == 10.0
    with pytest.raises(CircuitBreakerOpen) as rejected:
        asyncio.run(breaker.call(int))
    assert rejected.value.retry_after == 10.0
    clock.move(10.0)
    assert asyncio.run(breaker.call(int)) == 0
    assert told == ["too many consecutive failures", "probe succeeded"]


def test_every_transition_by_hand_has_its_reason(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=60.0, clock=clock)
    told: list[tuple[str, str]] = []
    breaker.subscribe(lambda change: told.append((change.new, change.reason)))
    steps = (breaker.force_open, breaker.force_closed, breaker.force_open, breaker.reset, breaker.force_open)
    for step in (*steps, breaker.shadow):
        step()
    assert told == [
        ("open", "held open"),
        ("closed", "held closed"),
        ("open", "held open"),
        ("closed", "reset"),
        ("open", "held open"),
        ("closed", "reset"),
    ]
    breaker.reset()
    breaker.probe_succeeded()
    breaker.force_open()
    breaker.probe_succeeded()
    assert breaker.retry_after() is None
    with pytest.raises(CircuitHeldOpen):
        asyncio.run(breaker.call(int))
    breaker.reset()
    with pytest.raises(ValueError) as caught:
        breaker.force_half_open()
    assert str(caught.value) == "a closed circuit cannot become half-open: open it first"


def test_nobody_told_means_no_time_is_added(clock: FakeClock) -> None:
    """Open times below a second, where a default of one would show."""
    rules: list[dict[str, Any]] = [
        {"failure_threshold": 1},
        {"failure_threshold": None, "window": 1, "failure_rate": 1.0, "minimum_calls": 1},
        {"slow_call_seconds": 0.1, "slow_rate": 1.0, "minimum_calls": 1},
    ]
    for rule in rules:
        breaker = CircuitBreaker(recovery_timeout=0.5, max_half_open=2.0, clock=clock, **rule)
        permit = breaker.acquire()
        clock.move(0.2)
        permit.success() if "slow_rate" in rule else permit.failure()
        assert breaker.retry_after() == 0.5
        clock.move(0.5)
        permit = breaker.acquire()
        clock.move(0.2)
        permit.success() if "slow_rate" in rule else permit.failure()
        assert breaker.retry_after() == 0.5
        clock.move(0.5)
        permit = breaker.acquire()
        clock.move(2.0)
        with pytest.raises(CircuitBreakerOpen) as rejected:
            breaker.acquire()
        assert rejected.value.retry_after == 0.5


def test_in_shadow_the_open_time_is_always_the_first(clock: FakeClock) -> None:
    asked: list[int] = []
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=lambda n: asked.append(n) or 1.0, clock=clock)  # type: ignore[func-returns-value]
    breaker.shadow()
    for _ in range(3):
        breaker.acquire().failure()
        clock.move(1.0)
    assert asked == [0, 0, 0]


def test_trials_that_failed_take_verdicts_away_too(clock: FakeClock) -> None:
    breaker = CircuitBreaker(
        failure_threshold=1,
        recovery_timeout=1.0,
        success_threshold=1,
        half_open_max_calls=9,
        half_open_trials=4,
        clock=clock,
    )
    breaker.acquire().failure()
    clock.move(1.0)
    breaker.acquire().failure()
    trials = [breaker.acquire() for _ in range(3)]
    with pytest.raises(CircuitBreakerOpen):
        breaker.acquire()
    assert len(trials) == 3


# -- forms and errors


def test_decorated_methods_are_bound_and_know_whether_they_are_async() -> None:
    breaker = CircuitBreaker()

    class Store:
        def __init__(self, value: int) -> None:
            self.value = value

        @breaker
        def get(self, more: int) -> int:
            """Gets."""
            return self.value + more

        @breaker
        async def later(self, more: int) -> int:
            return self.value + more

    assert Store(2).get(3) == 5
    assert asyncio.run(Store(2).later(more=3)) == 5
    assert Store.get(Store(1), 1) == 2
    assert (Store.get.__name__, Store.get.__doc__) == ("get", "Gets.")
    assert inspect.iscoroutinefunction(Store.later)
    assert not inspect.iscoroutinefunction(Store.get)
    assert breaker.counts.succeeded == 3


def test_partials_and_callable_objects_are_seen_through() -> None:
    class Now:
        def __call__(self) -> int:
            return 1

    class Later:
        async def __call__(self) -> int:
            return 1

    assert is_async(functools.partial(functools.partial(forever)))
    assert is_async(Later())
    assert not is_async(Now())
    assert not is_async(functools.partial(int))


async def test_awaitables_are_recognised_whatever_they_are() -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield

    @types.coroutine
    def generator_based() -> Any:
        yield

    coroutine, old = forever(), generator_based()
    for _ in range(2):
        made: list[Any] = [coroutine, asyncio.get_running_loop().create_future(), Awaitable(), old]
        others: list[Any] = [1, None, "x", iter(()), (number for number in range(1))]
        assert all(is_awaitable(one) for one in made)
        assert not any(is_awaitable(one) for one in others)
    coroutine.close()
    for number in range(3_000):  # types that are made at run time
        assert not is_awaitable(type(f"Made{number}", (), {})())
    assert is_awaitable(asyncio.Future())


async def test_a_mechanism_without_its_forms_says_so() -> None:
    with pytest.raises(NotImplementedError):
        await Guard().call(int)
    with pytest.raises(NotImplementedError):
        Guard().call_sync(int)


def test_a_rate_limit_says_when() -> None:
    assert str(RateLimited("x", 1.5)) == "rate limit of x reached, allowed again in 1.5 s"
    assert str(RateLimited("", None)) == "rate limit of the call reached, allowed again never"


def test_a_total_alone_bounds_a_sync_call(clock: FakeClock) -> None:
    assert Policy(total=1.0, clock=clock).call_sync(lambda: current_deadline()) == (clock.monotonic() + 1.0,)


def test_a_row_retries_nothing_unless_told() -> None:
    assert not never(Down())


# -- deadline


async def test_an_awaitable_of_ones_own_without_time_is_left_alone(clock: FakeClock) -> None:
    class Own:
        def __await__(self) -> Any:
            raise AssertionError("begun")

    with pytest.raises(CallTimeout):
        await hard_timeout(Own(), 0.0, clock=clock)


async def test_what_hard_timeout_raises_says_whose_call_it_was_and_how_long_it_had(clock: FakeClock) -> None:
    with pytest.raises(CallTimeout) as late:
        await hard_timeout(forever(), -1.0, name="db", clock=clock)
    assert (late.value.name, late.value.limit) == ("db", -1.0)
    with pytest.raises(BulkheadFull) as full:
        await hard_timeout(forever(), 1.0, name="db", clock=clock, abandoned=AbandonedTasks(0))
    assert full.value.name == "db"
    with pytest.raises(CallTimeout) as unnamed:
        await hard_timeout(forever(), 0.0)
    assert unnamed.value.name == ""


async def test_its_task_has_the_name_of_the_call_for_those_who_look_at_tasks(clock: FakeClock) -> None:
    async def my_name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    assert await hard_timeout(my_name(), 1.0, name="db", clock=clock) == "db"


async def test_a_future_without_time_is_abandoned_by_all(clock: FakeClock) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    before = len(ABANDONED)
    with pytest.raises(CallTimeout):
        await hard_timeout(future, 0.0, clock=clock)
    assert future.cancelled()
    assert len(ABANDONED) == before + 1
    await asyncio.sleep(0)
    assert len(ABANDONED) == before


def test_a_thousand_abandoned_calls_are_the_usual_bound() -> None:
    assert AbandonedTasks().limit == ABANDONED.limit == 1_000


# -- timeout


async def test_a_timeout_without_a_name(clock: FakeClock) -> None:
    timeout = Timeout(1.0, clock=clock)
    assert (timeout.name, timeout.hard) == ("", False)
    call = await start(lambda: timeout.call(forever))
    await clock.advance(1.0)
    with pytest.raises(CallTimeout) as late:
        await call
    assert str(late.value) == "call did not answer within 1 s"


async def test_all_calls_on_one_loop_share_one_timer(clock: FakeClock) -> None:
    timeout = Timeout(5.0, clock=clock)
    calls = [await start(lambda: timeout.call(forever)) for _ in range(10)]
    assert clock.pending == 1
    shared = timeout._shared
    assert shared.loop is asyncio.get_running_loop()
    assert (len(shared.notes), shared.limit, shared.clock, shared.idle) == (10, 5.0, clock, False)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert timeout._shared is shared
    assert shared.idle


async def test_a_deadline_that_is_just_as_far_takes_nothing_away_from_sharing(clock: FakeClock) -> None:
    timeout = Timeout(5.0, name="db", clock=clock)
    with deadline_scope(5.0, clock=clock):
        call = await start(lambda: timeout.call(forever))
    assert len(timeout._shared.notes) == 1
    await clock.advance(5.0)
    with pytest.raises(CallTimeout):
        await call


@pytest.mark.parametrize("gives", ["coroutine", "future", "value"])
async def test_whatever_a_function_gives_is_waited_for(clock: FakeClock, gives: str) -> None:
    timeout = Timeout(5.0, clock=clock)
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def coroutine() -> int:
        return await future

    made: dict[str, Callable[[], Any]] = {"coroutine": coroutine, "future": lambda: future, "value": lambda: 3}
    call = await start(lambda: timeout.call(made[gives]))
    assert call.done() is (gives == "value")
    future.set_result(3)
    assert await call == 3


def test_sync_calls_run_in_a_thread_with_their_arguments() -> None:
    timeout, here = Timeout(20.0, name="db"), threading.get_ident()

    def work(a: int, *, timeout: float) -> tuple[int, float]:
        assert threading.get_ident() != here
        return a, timeout

    assert timeout.call_sync(work, 1, timeout=2.0) == (1, 2.0)
    with pytest.raises(Down):
        timeout.call_sync(Failing(1))


def test_a_sync_call_that_is_over_time_is_left_to_itself() -> None:
    go = threading.Event()
    timeout = Timeout(0.02, name="db")
    try:
        with pytest.raises(CallTimeout) as late:
            timeout.call_sync(go.wait, 20)
    finally:
        go.set()
    assert (late.value.name, late.value.limit) == ("db", 0.02)
    assert late.value.__cause__ is None
    assert late.value.__suppress_context__


def test_a_sync_call_has_no_more_time_than_its_caller(clock: FakeClock) -> None:
    called: list[int] = []
    timeout = Timeout(5.0, name="db", clock=clock)
    with deadline_scope(0.5, clock=clock):
        assert timeout.call_sync(lambda: 3) == 3
        clock.move(0.5)
        with pytest.raises(CallTimeout) as late:
            timeout.call_sync(called.append, 1)
    assert (late.value.name, late.value.limit, called) == ("db", 0.0, [])


def test_a_timeout_of_the_sync_functions_own_is_passed_on_as_it_is() -> None:
    own = CallTimeout("inner", 0.5)

    def inner() -> None:
        raise own

    with pytest.raises(CallTimeout) as late:
        Timeout(20.0, name="outer").call_sync(inner)
    assert late.value is own


def test_sync_calls_that_hang_are_bounded_in_number() -> None:
    assert MAX_THREADS == 32
    go = threading.Event()
    timeout = Timeout(0.002, name="db")
    try:
        for _ in range(MAX_THREADS):
            with pytest.raises(CallTimeout):
                timeout.call_sync(go.wait, 20)
        with pytest.raises((BulkheadFull, CallTimeout)):
            timeout.call_sync(go.wait, 20)
    finally:
        go.set()
    assert Timeout(20.0).call_sync(lambda: 1) == 1


@pytest.mark.parametrize("hard", [False, True])
async def test_with_less_time_than_usual_what_is_no_coroutine_is_returned_too(clock: FakeClock, hard: bool) -> None:
    timeout = Timeout(5.0, name="db", hard=hard, clock=clock)
    with deadline_scope(1.0, clock=clock):
        assert await timeout.call(lambda: 3) == 3
        assert await timeout.call(add, 1, b=2) == 3
        call = await start(lambda: timeout.call(forever))
        assert clock.pending == 1
        await clock.advance(0.999)
        assert not call.done()
        await clock.advance(0.001)
        with pytest.raises(CallTimeout) as late:
            await call
        assert (late.value.name, late.value.limit) == ("db", 1.0)
        with pytest.raises(CallTimeout) as none_left:
            await timeout.call(lambda: 3)
        assert (none_left.value.name, none_left.value.limit) == ("db", 0.0)
    assert clock.pending == 0


async def test_a_block_says_whose_it_was(clock: FakeClock) -> None:
    block = Timeout(5.0, name="db", clock=clock).block()
    with deadline_scope(0.0, clock=clock), pytest.raises(CallTimeout) as none_left:
        async with Timeout(5.0, name="db", clock=clock).block():
            pass
    assert (none_left.value.name, none_left.value.limit) == ("db", 0.0)

    async def inside() -> None:
        async with block:
            await forever()

    call = await start(inside)
    await clock.advance(5.0)
    with pytest.raises(CallTimeout) as late:
        await call
    assert (late.value.name, late.value.limit) == ("db", 5.0)


# -- backoff


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"base": -1}, "base must be finite and not negative, not -1"),
        ({"factor": float("inf")}, "factor must be finite and not negative, not inf"),
        ({"cap": float("nan")}, "cap must be finite and not negative, not nan"),
        ({"jitter": "some"}, "jitter must be one of none, full, equal, proportional, decorrelated, not 'some'"),
    ],
)
def test_a_bad_backoff_says_what_is_wrong(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Backoff(**settings)
    assert str(caught.value) == text


def test_the_usual_backoff_and_the_first_decorrelated_wait() -> None:
    usual = Backoff()
    assert (usual.base, usual.factor, usual.cap, usual.jitter, usual.share) == (0.05, 2.0, 5.0, "full", 0.1)
    decorrelated = Backoff(0.1, jitter="decorrelated", cap=100.0)
    assert all(0.1 <= decorrelated.wait(1, random.Random(seed)) <= 0.3 for seed in range(50))


# -- retry


async def test_max_elapsed_counts_from_the_beginning_of_the_call_in_every_form(clock: FakeClock) -> None:
    def guard(**more: Any) -> Retry:
        return Retry(attempts=99, backoff=Backoff(1.0, jitter="none", factor=1.0), max_elapsed=3.0, clock=clock, **more)

    failing = Failing(99)
    with pytest.raises(Down):
        guard(retry_on=Down).call_sync(failing)
    assert failing.calls == 3
    unwanted: list[int] = []
    assert guard(retry_result=lambda _: True).call_sync(lambda: unwanted.append(1)) is None
    assert len(unwanted) == 3
    call = asyncio.ensure_future(guard(retry_result=lambda _: True).call(lambda: unwanted.append(1)))
    await clock.advance(10.0)
    await call
    assert len(unwanted) == 6
    failing = Failing(99)
    failed = asyncio.ensure_future(guard(retry_on=Down).call(failing.later))
    await clock.advance(10.0)
    with pytest.raises(Down):
        await failed
    assert failing.calls == 3


def test_an_attempt_that_is_not_entered_is_told_of() -> None:
    attempts = Retry().attempts_sync()
    next(attempts)
    with pytest.raises(RuntimeError) as caught:
        next(attempts)
    assert str(caught.value) == "every attempt needs its `with attempt:`"


async def test_the_first_attempt_of_a_block_waits_for_nothing_not_even_a_turn_of_the_loop() -> None:
    async def block() -> None:
        async for attempt in Retry().attempts():
            with attempt:
                pass

    with pytest.raises(StopIteration):
        block().send(None)
