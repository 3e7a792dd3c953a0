"""Where other breakers are known to fail, one test each, named after the failure."""

import asyncio
import itertools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from resilience import (
    Backoff,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    FakeClock,
    Retry,
    Timeout,
    TransientError,
)

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Down(Exception):
    pass


async def answer() -> int:
    return 1


async def fail() -> None:
    raise Down


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def opened(clock: FakeClock, **rules: Any) -> CircuitBreaker:
    settings = {"failure_threshold": 1, "recovery_timeout": 10.0, "success_threshold": 1, **rules}
    breaker = CircuitBreaker("db", clock=clock, **settings)
    with pytest.raises(Down):
        await breaker.call(fail)
    assert breaker.state is OPEN
    return breaker


async def start(breaker: CircuitBreaker, work: Callable[..., Any]) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await breaker.call(work)

    task = asyncio.get_running_loop().create_task(run())
    await asyncio.sleep(0)
    return task


async def test_a_neutral_result_of_an_older_state_mints_no_permit(clock: FakeClock) -> None:
    """resilience4j: one that began while closed and is ignored adds a trial to half-open."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=10.0, success_threshold=1, clock=clock)
    old = breaker.acquire()
    breaker.acquire().failure(Down())
    clock.move(10.0)
    trial = breaker.acquire()
    old.neutral()
    with pytest.raises(CircuitBreakerOpen):
        breaker.acquire()
    trial.success()
    assert breaker.state is CLOSED


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
async def test_a_trial_that_dies_of_a_base_exception_does_not_strand_half_open(
    clock: FakeClock, end: type[BaseException]
) -> None:
    """resilience4j and failsafe-go lose its permit for ever."""
    breaker = await opened(clock)
    clock.move(10.0)

    def die() -> None:
        raise end

    with pytest.raises(end):
        await breaker.call(die)
    assert breaker.state is HALF_OPEN
    assert await breaker.call(answer) == 1
    assert str(breaker.state) == "closed"


async def test_a_cancelled_trial_neither_closes_nor_opens(clock: FakeClock) -> None:
    """Polly closes; others open or strand."""
    breaker = await opened(clock)
    clock.move(10.0)
    trial = await start(breaker, forever)
    trial.cancel()
    await asyncio.wait([trial])
    assert breaker.state is HALF_OPEN
    assert await breaker.call(answer) == 1
    assert str(breaker.state) == "closed"


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_wall_clock_set_by_an_hour_changes_nothing(
    clock: FakeClock, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine Python peers measure the open time with it."""
    breaker = await opened(clock)
    clock.jump_wall(hours * 3600)
    clock.move(9.999)
    with pytest.raises(CircuitBreakerOpen):
        await breaker.call(answer)
    clock.move(0.001)
    assert await breaker.call(answer) == 1
    real = CircuitBreaker(failure_threshold=1, recovery_timeout=1e-9, success_threshold=1)
    with pytest.raises(Down):
        await real.call(fail)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
    assert await real.call(answer) == 1


async def test_a_raising_listener_changes_nothing(clock: FakeClock) -> None:
    """It keeps two peers from ever opening."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    told: list[str] = []

    def broken(_: object) -> None:
        raise RuntimeError("listener")

    breaker.subscribe(broken)
    breaker.subscribe(lambda transition: told.append(transition.new))
    with pytest.raises(Down):
        await breaker.call(fail)
    assert breaker.state is OPEN
    assert told == ["open"]
    assert breaker.listener_errors == 1


async def test_a_listener_that_calls_back_neither_deadlocks_nor_disturbs_the_order(clock: FakeClock) -> None:
    """Two peers deadlock."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    told: list[tuple[str, str]] = []

    def meddle(transition: Any) -> None:
        breaker.snapshot()
        unsubscribe = breaker.subscribe(lambda _: None)
        unsubscribe()
        if transition.new is OPEN and len(told) < 4:
            breaker.reset()
            breaker.force_open()

    breaker.subscribe(meddle)
    breaker.subscribe(lambda transition: told.append((transition.old, transition.new)))
    with pytest.raises(Down):
        await breaker.call(fail)
    assert told[:3] == [("closed", "open"), ("open", "closed"), ("closed", "open")]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(told))


async def test_a_reload_closes_nothing(clock: FakeClock) -> None:
    """A breaker that is made anew by a reload forgets that it was open."""
    breaker = await opened(clock)
    clock.move(4.0)
    breaker.configure(failure_threshold=50, recovery_timeout=99.0, window=10, failure_rate=0.5)
    assert breaker.state is OPEN
    assert breaker.retry_after() == 6.0, "the new open time is for the next opening"
    clock.move(6.0)
    trial = breaker.acquire()
    breaker.configure(success_threshold=2)
    with pytest.raises(CircuitBreakerOpen):
        breaker.acquire()
    trial.success()
    assert breaker.state is HALF_OPEN, "one of two successes"
    held = CircuitBreaker(clock=clock)
    held.force_open()
    held.configure(failure_threshold=1)
    assert held.held
    with pytest.raises(ValueError, match="failure_threshold"):
        held.configure(failure_threshold=0)
    with pytest.raises(TypeError):
        held.configure(no_such_setting=1)


async def test_of_a_hundred_callers_racing_at_half_open_one_gets_through(clock: FakeClock) -> None:
    """Eight Python peers let all of them through."""
    breaker = await opened(clock)
    clock.move(10.0)
    inside = 0

    async def work() -> None:
        nonlocal inside
        inside += 1
        await clock.sleep(1.0)

    calls = [await start(breaker, work) for _ in range(100)]
    assert inside == 1
    await clock.advance(1.0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, CircuitBreakerOpen) for result in results) == 99
    assert breaker.state is CLOSED


async def test_a_late_failure_from_before_the_trip_does_not_end_a_good_trial(clock: FakeClock) -> None:
    """Ten Python peers open again."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=10.0, success_threshold=1, clock=clock)
    late = breaker.acquire()
    breaker.acquire().failure(Down())
    clock.move(10.0)
    trial = breaker.acquire()
    late.failure(Down())
    assert breaker.state is HALF_OPEN
    trial.success()
    assert str(breaker.state) == "closed"
    assert breaker.counts.stale == 1


async def test_a_retry_after_is_honoured(clock: FakeClock) -> None:
    """One Python peer does."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=10.0, success_threshold=1, clock=clock)

    async def busy() -> None:
        raise TransientError("busy", retry_after=30.0)

    with pytest.raises(TransientError):
        await breaker.call(busy)
    assert breaker.retry_after() == 30.0
    clock.move(10.0)
    breaker.probe_succeeded()  # not even a good probe is earlier than what the dependency asked for
    with pytest.raises(CircuitBreakerOpen) as caught:
        await breaker.call(answer)
    assert caught.value.retry_after == 20.0
    clock.move(20.0)
    assert await breaker.call(answer) == 1


async def test_a_shorter_retry_after_does_not_shorten_the_open_time(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=10.0, clock=clock)
    breaker.acquire().failure(TransientError(retry_after=2.0), 2.0)
    assert breaker.retry_after() == 10.0
    deaf = CircuitBreaker(failure_threshold=1, recovery_timeout=10.0, honour_retry_after=False, clock=clock)
    deaf.acquire().failure(TransientError(), 30.0)
    assert deaf.retry_after() == 10.0
    quick = CircuitBreaker(failure_threshold=9, trip_on_retry_after=True, recovery_timeout=1.0, clock=clock)
    quick.acquire().failure(TransientError(), 30.0)
    assert quick.state is OPEN
    assert quick.retry_after() == 30.0


async def test_a_timeout_is_a_timeout_error_and_a_failure(clock: FakeClock) -> None:
    """In seven Python peers it is none."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    timeout = Timeout(1.0, clock=clock)
    call = await start(breaker, lambda: timeout.call(forever))
    await clock.advance(1.0)
    with pytest.raises(TimeoutError) as caught:
        await call
    assert isinstance(caught.value, CallTimeout)
    assert breaker.state is OPEN


async def test_ten_thousand_rejections_leave_memory_and_tracebacks_flat(clock: FakeClock) -> None:
    breaker = await opened(clock)

    async def rejections(times: int) -> int:
        depth = 0
        for _ in range(times):
            try:
                await breaker.call(answer)
            except CircuitBreakerOpen as error:
                traceback, depth = error.__traceback__, 0
                while traceback is not None:
                    traceback, depth = traceback.tb_next, depth + 1
        return depth

    first = await rejections(100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        last = await rejections(10_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert last == first
    assert grown < 5_000
    assert breaker.counts.rejected == 10_100


async def test_retries_into_an_open_circuit_stop_at_once(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    calls = 0

    async def count() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionRefusedError

    retry = Retry(attempts=10, backoff=Backoff(0.0), clock=clock)
    with pytest.raises(CircuitBreakerOpen):
        await retry.call(breaker.call, count)
    assert calls == 2
