"""The policy: every part around a call, on the flat way and on the way step by step, which must not differ."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resilience import (
    Bulkhead,
    BulkheadFull,
    CallFinished,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    ClientError,
    Events,
    FakeClock,
    Policy,
    RateLimited,
    TransientError,
    deadline_scope,
)
from resilience.backoff import Backoff
from resilience.fallback import Fallback
from resilience.governor import RecoveryGovernor
from resilience.retry import Idempotency, Retry, RetryBudget

Make = Callable[..., Policy]


class Down(Exception):
    pass


class Dependency:
    """Answers, fails or hangs, as told."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.hangs = False

    async def __call__(self, value: int = 1) -> int:
        self.calls += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return value


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["flat", "step by step"])
def make(request: pytest.FixtureRequest, clock: FakeClock) -> Make:
    def policy(**parts: Any) -> Policy:
        made = Policy("stock", clock=clock, **parts)
        for one in (made, made._inner):
            if one is not None and request.param == "step by step":
                one._step_by_step = True
        return made

    return policy


def breaker_of(clock: FakeClock, **rules: Any) -> CircuitBreaker:
    return CircuitBreaker("stock", clock=clock, **{"failure_threshold": 3, "recovery_timeout": 10.0, **rules})


def retry_of(clock: FakeClock, **settings: Any) -> Retry:
    return Retry(
        "stock", clock=clock, **{"attempts": 3, "backoff": Backoff(1.0, jitter="none"), "retry_on": Down, **settings}
    )


async def start(work: Callable[..., Awaitable[Any]], *args: Any) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await work(*args)

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(10):
        await asyncio.sleep(0)
    return task


async def test_an_answer_passes_through_with_its_arguments(make: Make, clock: FakeClock) -> None:
    policy = make(
        timeout=1.0,
        retry=retry_of(clock),
        breaker=breaker_of(clock),
        bulkhead=Bulkhead("stock", 2, 0),
        fallback=Fallback(lambda _: -1),
        total=5.0,
    )
    dependency = Dependency()
    assert await policy.call(dependency) == 1
    assert await policy.call(dependency, 7) == 7
    assert await policy.call(dependency, value=8) == 8
    assert await policy.call(lambda: 9) == 9
    assert policy.breaker is not None
    assert policy.breaker.counts.succeeded == 4
    assert policy.bulkhead is not None
    assert policy.bulkhead.active == 0
    assert clock.pending == 0


async def test_without_any_part_it_is_the_call(make: Make) -> None:
    assert await make().call(Dependency(), 3) == 3
    failing = Dependency()
    failing.error = Down()
    with pytest.raises(Down):
        await make().call(failing)


async def test_each_attempt_has_its_own_timeout_and_counts_for_the_circuit(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.hangs = True
    breaker = breaker_of(clock, failure_threshold=5)
    policy = make(timeout=2.0, retry=retry_of(clock, retry_on=CallTimeout), breaker=breaker)
    call = await start(policy.call, dependency)
    await clock.advance(2.0)  # the first attempt is over
    assert breaker.counts.failed == 1
    await clock.advance(1.0)  # the wait
    assert dependency.calls == 2
    await clock.advance(2.0 + 2.0)
    assert dependency.calls == 3
    await clock.advance(2.0)
    with pytest.raises(CallTimeout, match="stock did not answer within 2 s"):
        await call
    assert breaker.counts.failed == 3
    assert clock.pending == 0


async def test_a_retry_stops_when_the_circuit_opens(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    policy = make(retry=retry_of(clock, attempts=9), breaker=breaker_of(clock, failure_threshold=2))
    call = await start(policy.call, dependency)
    await clock.advance(30.0)
    with pytest.raises(CircuitBreakerOpen):
        await call
    assert dependency.calls == 2


async def test_the_fallback_serves_what_is_left(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    seen: list[BaseException] = []
    breaker = breaker_of(clock, failure_threshold=1)

    def serve(failure: BaseException) -> int:
        seen.append(failure)
        return -1

    policy = make(breaker=breaker, fallback=Fallback(serve))
    assert await policy.call(dependency) == -1
    assert await policy.call(dependency) == -1
    assert isinstance(seen[0], Down)
    assert isinstance(seen[1], CircuitBreakerOpen)
    assert dependency.calls == 1


async def test_an_answer_of_the_dependency_is_neither_hidden_nor_counted(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = ClientError("no such thing")
    from resilience import Verdict
    from resilience.classify import ERRORS

    breaker = breaker_of(clock, classify=lambda error: Verdict.SUCCESS if ERRORS.is_answer(error) else Verdict.FAILURE)
    policy = make(breaker=breaker, retry=retry_of(clock), fallback=Fallback(lambda _: -1))
    for _ in range(5):
        with pytest.raises(ClientError):
            await policy.call(dependency)
    assert breaker.counts.succeeded == 5


async def test_an_open_circuit_rejects_before_anybody_queues(make: Make, clock: FakeClock) -> None:
    breaker = breaker_of(clock, failure_threshold=1)
    bulkhead = Bulkhead("stock", 1, 10)
    policy = make(breaker=breaker, bulkhead=bulkhead)
    failing, hanging = Dependency(), Dependency()
    failing.error, hanging.hangs = Down(), True
    call = await start(policy.call, hanging)
    breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await policy.call(failing)
    assert bulkhead.waiting == 0
    call.cancel()
    await asyncio.wait([call])
    assert bulkhead.active == 0


async def test_waiting_for_the_bulkhead_is_part_of_the_attempts_time(make: Make, clock: FakeClock) -> None:
    bulkhead = Bulkhead("stock", 1, 10, clock=clock)
    policy = make(timeout=2.0, bulkhead=bulkhead)
    hanging = Dependency()
    hanging.hangs = True
    first = await start(Policy("other", bulkhead=bulkhead, clock=clock).call, hanging)
    second = await start(policy.call, Dependency())
    assert bulkhead.waiting == 1
    await clock.advance(2.0)
    with pytest.raises(CallTimeout):
        await second
    first.cancel()
    await asyncio.wait([first])
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)
    assert await policy.call(Dependency()) == 1


async def test_a_full_bulkhead_rejects_and_says_nothing_about_the_dependency(make: Make, clock: FakeClock) -> None:
    bulkhead, breaker = Bulkhead("stock", 1, 0), breaker_of(clock)
    policy = make(bulkhead=bulkhead, breaker=breaker)
    hanging = Dependency()
    hanging.hangs = True
    call = await start(policy.call, hanging)
    with pytest.raises(BulkheadFull):
        await policy.call(Dependency())
    call.cancel()
    await asyncio.wait([call])
    assert breaker.counts._replace(started=0) == (0, 0, 0, 1, 0, 0, 0), "only the cancelled one, as neutral"
    assert bulkhead.active == 0


async def test_the_bulkhead_is_free_between_attempts(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    bulkhead = Bulkhead("stock", 1, 0)
    call = await start(make(bulkhead=bulkhead, retry=retry_of(clock)).call, dependency)
    assert dependency.calls == 1
    assert bulkhead.active == 0, "a waiting retry holds no slot"
    dependency.error = None
    await clock.advance(1.0)
    assert await call == 1


async def test_the_total_bounds_attempts_and_waits_and_is_passed_on(make: Make, clock: FakeClock) -> None:
    from resilience import current_deadline

    seen: list[float] = []

    async def slow() -> None:
        deadline = current_deadline()
        assert deadline is not None
        seen.append(deadline.remaining(clock))
        await asyncio.get_running_loop().create_future()

    policy = make(timeout=2.0, total=5.0, retry=retry_of(clock, retry_on=CallTimeout, attempts=9))
    call = await start(policy.call, slow)
    await clock.advance(2.0 + 1.0 + 2.0)  # attempt, wait, attempt; a further wait would end too late
    with pytest.raises(CallTimeout) as caught:
        await call
    assert seen == [5.0, 2.0]
    assert "deadline" in "".join(caught.value.__notes__)
    assert clock.pending == 0


async def test_the_total_cuts_an_attempt_short(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.hangs = True
    call = await start(make(timeout=9.0, total=3.0).call, dependency)
    await clock.advance(3.0)
    with pytest.raises(CallTimeout, match="within 3 s"):
        await call


async def test_the_total_alone_is_a_limit(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.hangs = True
    call = await start(make(total=3.0).call, dependency)
    await clock.advance(3.0)
    with pytest.raises(CallTimeout):
        await call


async def test_the_callers_deadline_counts_too_and_scraps_of_it_prove_nothing(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.hangs = True
    breaker = breaker_of(clock, failure_threshold=1)
    policy = make(timeout=4.0, breaker=breaker)

    async def caller(seconds: float) -> None:
        with deadline_scope(seconds, clock=clock):
            await policy.call(dependency)

    scraps = await start(caller, 1.0)
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await scraps
    assert str(breaker.state) == "closed"
    fair = await start(caller, 3.0)
    await clock.advance(3.0)
    with pytest.raises(CallTimeout):
        await fair
    assert breaker.state is CircuitState.OPEN


async def test_with_no_time_left_nothing_is_called(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    with deadline_scope(1.0, clock=clock):
        clock.move(1.0)
        with pytest.raises(CallTimeout):
            await make(timeout=4.0).call(dependency)
    assert dependency.calls == 0


class CountingLimiter:
    def __init__(self, allowed: int) -> None:
        self.left = allowed

    async def wait(self, cost: int = 1) -> None:
        self.wait_sync(cost)

    def wait_sync(self, cost: int = 1) -> None:
        self.left -= cost
        if self.left < 0:
            raise RateLimited("stock", 1.0)


async def test_the_limiter_is_asked_once_per_call_and_the_fallback_serves_what_it_rejects(
    make: Make, clock: FakeClock
) -> None:
    dependency = Dependency()
    dependency.error = Down()
    limiter = CountingLimiter(1)
    policy = make(limiter=limiter, retry=retry_of(clock, attempts=2), fallback=Fallback(lambda failure: failure))
    call = await start(policy.call, dependency)
    await clock.advance(1.0)
    assert isinstance(await call, Down)
    assert dependency.calls == 2
    assert limiter.left == 0
    assert isinstance(await policy.call(dependency), RateLimited)
    assert dependency.calls == 2
    bare = make(limiter=CountingLimiter(0))
    with pytest.raises(RateLimited):
        await bare.call(dependency)


async def test_the_retry_budget_is_paid_into_by_calls(make: Make, clock: FakeClock) -> None:
    budget = RetryBudget(ratio=1.0, min_per_second=0.0, clock=clock)
    dependency = Dependency()
    policy = make(retry=retry_of(clock, budget=budget))
    assert await policy.call(dependency) == 1
    dependency.error = Down()
    call = await start(policy.call, dependency)
    await clock.advance(10.0)
    with pytest.raises(Down):
        await call
    assert dependency.calls == 4, "two calls paid for two retries"


async def test_a_result_can_be_tried_again(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    policy = make(retry=retry_of(clock, retry_result=lambda result: result == 0))
    call = await start(policy.call, dependency, 0)
    await clock.advance(10.0)
    assert await call == 0
    assert dependency.calls == 3
    assert await policy.call(dependency, 1) == 1


async def test_an_operation_that_must_not_happen_twice_is_not_tried_again(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    policy = make(retry=retry_of(clock, idempotency=Idempotency.NOT_IDEMPOTENT))
    with pytest.raises(Down):
        await policy.call(dependency)
    assert dependency.calls == 1


async def test_a_failure_result_counts_and_is_returned(make: Make, clock: FakeClock) -> None:
    breaker = breaker_of(clock, failure_threshold=1, failure_result=lambda result: result == 0)
    policy = make(breaker=breaker)
    assert await policy.call(Dependency(), 0) == 0
    assert breaker.state is CircuitState.OPEN


async def test_slow_calls_are_measured(make: Make, clock: FakeClock) -> None:
    breaker = breaker_of(clock, slow_call_seconds=1.0, slow_rate=1.0, minimum_calls=1)

    async def slow() -> int:
        await clock.sleep(1.5)
        return 1

    call = await start(make(breaker=breaker, timeout=5.0).call, slow)
    await clock.advance(1.5)
    assert await call == 1
    assert breaker.state is CircuitState.OPEN


async def test_a_trial_goes_through_and_closes_the_circuit(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    breaker = breaker_of(clock, failure_threshold=1, success_threshold=1)
    policy = make(breaker=breaker, timeout=1.0)
    with pytest.raises(Down):
        await policy.call(dependency)
    dependency.error = None
    clock.move(10.0)
    assert await policy.call(dependency) == 1
    assert breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()])
async def test_what_is_no_exception_passes_everything_and_releases_all(
    make: Make, clock: FakeClock, error: BaseException
) -> None:
    breaker, bulkhead = breaker_of(clock), Bulkhead("stock", 1, 0)
    policy = make(
        breaker=breaker, bulkhead=bulkhead, timeout=1.0, retry=retry_of(clock), fallback=Fallback(lambda _: -1)
    )

    def end() -> None:
        raise error

    with pytest.raises(type(error)):
        await policy.call(end)
    assert breaker.counts.neutral == 1
    assert bulkhead.active == 0
    assert clock.pending == 0


async def test_cancelled_in_a_wait_it_ends_at_once(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.error = Down()
    call = await start(make(retry=retry_of(clock), fallback=Fallback(lambda _: -1)).call, dependency)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert clock.pending == 0


async def test_the_callers_cancellation_beats_the_timeout(make: Make, clock: FakeClock) -> None:
    dependency = Dependency()
    dependency.hangs = True
    call = await start(make(timeout=1.0).call, dependency)
    clock.move(1.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_an_answer_in_spite_of_the_cancellation_is_kept(make: Make, clock: FakeClock) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "late"
        return "never"

    async def caller() -> tuple[str, int]:
        said = await make(timeout=1.0).call(stubborn)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return said, task.cancelling()

    call = await start(caller)
    await clock.advance(1.0)
    assert await call == ("late", 0)


async def test_every_attempt_is_told_with_its_outcome_and_seconds(make: Make, clock: FakeClock) -> None:
    events = Events()
    told: list[CallFinished] = []
    events.subscribe(lambda event: told.append(event) if isinstance(event, CallFinished) else None)
    breaker = breaker_of(clock, failure_threshold=3)
    policy = make(breaker=breaker, timeout=1.0, events=events)
    dependency = Dependency()
    await policy.call(dependency)
    dependency.error = Down()
    with pytest.raises(Down):
        await policy.call(dependency)
    dependency.hangs = True
    call = await start(policy.call, dependency)
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    call = await start(policy.call, dependency)
    call.cancel()
    await asyncio.wait([call])
    breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await policy.call(dependency)
    with deadline_scope(1.0, clock=clock):
        clock.move(1.0)
        with pytest.raises(CallTimeout):
            await policy.call(dependency)
    assert [event.outcome for event in told] == ["success", "failure", "timeout", "neutral", "rejected", "neutral"]
    assert [event.seconds for event in told] == [0, 0, 1.0, 0, 0, 0]
    assert {event.row for event in told} == {"stock"}


async def test_without_a_circuit_outcomes_are_told_too(make: Make) -> None:
    events = Events()
    told: list[str] = []
    events.subscribe(lambda event: told.append(event[2]))
    failing = Dependency()
    failing.error = TransientError()
    with pytest.raises(TransientError):
        await make(events=events).call(failing)
    assert told == ["failure"]


async def test_hard_attempts_end_at_their_limit(make: Make, clock: FakeClock) -> None:
    released = asyncio.Event()

    async def hanging() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await released.wait()

    policy = make(timeout=1.0, hard=True, max_abandoned=1)
    call = await start(policy.call, hanging)
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    assert policy.abandoned == 1
    with pytest.raises(BulkheadFull):
        await policy.call(Dependency())
    released.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert policy.abandoned == 0


async def test_while_the_dependency_recovers_calls_beyond_the_budget_take_their_fallback(
    make: Make, clock: FakeClock
) -> None:
    governor = RecoveryGovernor("stock", full=4, clock=clock)
    breaker = breaker_of(clock, success_threshold=1)
    policy = make(breaker=breaker, governor=governor, fallback=Fallback(lambda failure: type(failure).__name__))
    breaker.force_open()
    breaker.reset()
    assert governor.active
    hanging = Dependency()
    hanging.hangs = True
    budget = governor.snapshot().budget
    calls = [await start(policy.call, hanging) for _ in range(budget)]
    assert str(await policy.call(Dependency())) == "RecoveryThrottled"
    assert breaker.counts.in_flight == budget
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert await policy.call(Dependency()) == 1
    failing = Dependency()
    failing.error = Down()
    assert str(await policy.call(failing)) == "Down"
    assert policy.call_sync(lambda: 2) == 2
    assert policy.call_sync(fail_down) == "Down"
    assert sum(governor.snapshot().in_use.values()) == 0
    breaker.force_open()
    assert not governor.active


async def test_what_was_not_tried_tells_the_governor_nothing(make: Make, clock: FakeClock) -> None:
    governor = RecoveryGovernor("stock", full=8, start=8, clock=clock)
    breaker, bulkhead = breaker_of(clock), Bulkhead("stock", 1, 0)
    policy = make(breaker=breaker, governor=governor, bulkhead=bulkhead)
    breaker.force_open()
    breaker.reset()
    budget = governor.snapshot().budget
    assert bulkhead.try_acquire()
    for _ in range(20):
        with pytest.raises(BulkheadFull):
            await policy.call(Dependency())
    assert governor.snapshot().budget == budget
    assert sum(governor.snapshot().in_use.values()) == 0


def fail_down() -> object:
    raise Down


class Twice:
    """A hedge that always makes two attempts, one after the other."""

    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await func(*args, **kwargs)
        return await func(*args, **kwargs)


async def test_a_hedged_attempt_counts_for_the_circuit(clock: FakeClock) -> None:
    breaker = breaker_of(clock)
    policy = Policy("stock", hedge=Twice(), breaker=breaker, clock=clock)
    assert await policy.call(Dependency()) == 1
    assert breaker.counts.succeeded == 2
    with pytest.raises(TypeError, match="event loop"):
        policy.call_sync(lambda: 1)


# -- without an event loop


def test_sync_it_has_the_same_parts(clock: FakeClock) -> None:
    calls: list[int] = []

    def failing(value: int) -> object:
        calls.append(value)
        raise Down

    breaker, bulkhead = breaker_of(clock, failure_threshold=2), Bulkhead("stock", 1, 0)
    policy = Policy(
        "stock",
        breaker=breaker,
        bulkhead=bulkhead,
        retry=retry_of(clock, attempts=2),
        fallback=Fallback(lambda failure: type(failure).__name__),
        limiter=CountingLimiter(3),
        total=100.0,
        clock=clock,
    )
    assert policy.call_sync(failing, 1) == "Down"
    assert clock.monotonic() == 1001.0, "the wait"
    assert breaker.state is CircuitState.OPEN
    assert policy.call_sync(failing, 1) == "CircuitBreakerOpen"
    assert bulkhead.active == 0
    breaker.reset()
    assert policy.call_sync(lambda value: value, 5) == 5
    assert policy.call_sync(failing, 1) == "RateLimited"
    assert calls == [1, 1]


def test_sync_without_a_fallback_errors_come_through(clock: FakeClock) -> None:
    def failing() -> None:
        raise Down

    with pytest.raises(Down):
        Policy("stock", clock=clock).call_sync(failing)
    with pytest.raises(RateLimited):
        Policy("stock", limiter=CountingLimiter(0), clock=clock).call_sync(failing)
    with deadline_scope(1.0, clock=clock):
        clock.move(1.0)
        with pytest.raises(CallTimeout):
            Policy("stock", clock=clock).call_sync(failing)


def test_sync_as_a_decorator() -> None:
    @Policy("stock", breaker=CircuitBreaker("stock"))
    def double(value: int) -> int:
        return 2 * value

    assert double(2) == 4


# -- settings


@pytest.mark.parametrize("total", [0, -1.0])
def test_bad_settings_are_named(total: float) -> None:
    with pytest.raises(ValueError, match="total"):
        Policy(total=total)


def test_it_can_be_printed(clock: FakeClock) -> None:
    policy = Policy(
        "stock",
        timeout=0.5,
        total=2,
        retry=Retry(attempts=3),
        breaker=CircuitBreaker(window=50, failure_rate=0.5, slow_call_seconds=2, slow_rate=0.8, recovery_timeout=9),
        bulkhead=Bulkhead("stock", 8, 64),
        limiter=CountingLimiter(1),
        fallback=Fallback(lambda _: 1, name="x"),
    )
    assert policy.timeout == 0.5
    assert policy.describe() == (
        "stock: total 2 s → limiter → retry up to 3 attempts → timeout 0.5 s → "
        "circuit 50% failing or 80% over 2 s / 9 s → bulkhead 8 (+64 waiting) → call; fallback: <lambda>"
    )
    assert Policy("bare").describe() == "bare: call; fallback: none"
    growing = CircuitBreaker(recovery_timeout=lambda _: 1.0)
    assert "5 failures / growing" in Policy("x", breaker=growing, hedge=Twice(), hard=True, timeout=1).describe()
