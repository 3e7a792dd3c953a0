"""The sync way through a policy judges and tells as the async way does."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from resilience import (
    Backoff,
    Bulkhead,
    BulkheadFull,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    Events,
    FakeClock,
    Policy,
    Retry,
    deadline_scope,
)
from resilience.events import CallFinished


class Down(Exception):
    pass


def fail() -> None:
    raise Down


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def told() -> tuple[Events, list[tuple[str, float]]]:
    events, log = Events(), list[tuple[str, float]]()
    events.subscribe(lambda e: log.append((e.outcome, e.seconds)) if isinstance(e, CallFinished) else None)
    return events, log


def test_every_attempt_is_told(clock: FakeClock) -> None:
    events, log = told()
    breaker = CircuitBreaker(failure_threshold=3, clock=clock)
    retry = Retry(attempts=2, backoff=Backoff(1.0, jitter="none"), retry_on=Down, clock=clock)
    policy = Policy("stock", breaker=breaker, retry=retry, events=events, clock=clock)
    assert policy.call_sync(lambda: clock.move(0.5)) is None
    with pytest.raises(Down):
        policy.call_sync(fail)
    with pytest.raises(CircuitBreakerOpen):
        Policy("stock", breaker=breaker, events=events, retry=Retry(retry_on=Down, clock=clock), clock=clock).call_sync(
            fail
        )
    with pytest.raises(CircuitBreakerOpen):
        policy.call_sync(fail)
    outcomes = [outcome for outcome, _ in log]
    assert outcomes == ["success", "failure", "failure", "failure", "rejected", "rejected"]
    assert log[0][1] == 0.5


def test_a_full_bulkhead_says_nothing_about_the_dependency(clock: FakeClock) -> None:
    events, log = told()
    breaker, bulkhead = CircuitBreaker(failure_threshold=1, clock=clock), Bulkhead("stock", 1, 0, clock=clock)
    policy = Policy("stock", breaker=breaker, bulkhead=bulkhead, events=events, clock=clock)
    with bulkhead, pytest.raises(BulkheadFull):
        policy.call_sync(fail)
    assert breaker.counts.started == 0
    assert [outcome for outcome, _ in log] == ["rejected"]
    assert bulkhead.active == 0


def test_too_many_threads_say_nothing_about_the_dependency_either(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_named: Any) -> None:
        raise BulkheadFull("threads")

    monkeypatch.setattr("resilience.timeout.Timeout.call_sync", full)
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    with pytest.raises(BulkheadFull):
        Policy("stock", timeout=5.0, breaker=breaker, clock=clock).call_sync(fail)
    assert breaker.state is CircuitState.CLOSED
    assert breaker.counts.neutral == 1


def test_waiting_for_the_bulkhead_is_part_of_the_attempts_time(clock: FakeClock) -> None:
    events, log = told()
    bulkhead = Bulkhead("stock", 1, 5, clock=clock)
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    policy = Policy("stock", timeout=2.0, bulkhead=bulkhead, breaker=breaker, events=events, clock=clock)
    began = clock.monotonic()
    with bulkhead, pytest.raises(CallTimeout):
        policy.call_sync(fail)
    assert clock.monotonic() - began == 2.0
    assert breaker.counts.started == 0
    assert [outcome for outcome, _ in log] == ["timeout"]
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


@pytest.mark.parametrize(("left", "state"), [(0.02, CircuitState.CLOSED), (None, CircuitState.OPEN)])
def test_scraps_of_a_callers_time_prove_nothing(left: float | None, state: CircuitState) -> None:
    go, breaker = threading.Event(), CircuitBreaker(failure_threshold=1)
    policy = Policy("stock", timeout=0.05 if left is None else 20.0, breaker=breaker)
    events, log = told()
    policy._events = events

    def call() -> None:
        with pytest.raises(CallTimeout):
            policy.call_sync(go.wait, 20)

    try:
        if left is None:
            call()
        else:
            with deadline_scope(left):
                call()
    finally:
        go.set()
    assert breaker.state is state
    assert [outcome for outcome, _ in log] == ["timeout"]


def test_with_no_time_left_nothing_is_called(clock: FakeClock) -> None:
    events, log = told()
    breaker = CircuitBreaker(clock=clock)
    bulkhead = Bulkhead("stock", 1, 0, clock=clock)
    with deadline_scope(1.0, clock=clock):
        clock.move(1.0)
        with pytest.raises(CallTimeout):
            Policy("stock", breaker=breaker, bulkhead=bulkhead, events=events, clock=clock).call_sync(fail)
    assert breaker.counts.started == 0
    assert [outcome for outcome, _ in log] == ["neutral"]
    assert bulkhead.active == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_releases_all(clock: FakeClock, kind: type[BaseException]) -> None:
    breaker, bulkhead = CircuitBreaker(failure_threshold=1, clock=clock), Bulkhead("stock", 1, 0, clock=clock)

    def stop() -> None:
        raise kind

    with pytest.raises(kind):
        Policy("stock", breaker=breaker, bulkhead=bulkhead, clock=clock).call_sync(stop)
    assert bulkhead.active == 0
    assert breaker.counts == (1, 0, 0, 1, 0, 0, 0)


class Busy:
    """An answer that nobody wants yet."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after


@pytest.mark.parametrize("step_by_step", [False, True])
async def test_async_an_unwanted_results_retry_after_is_honoured(clock: FakeClock, step_by_step: bool) -> None:
    answers: list[Any] = [Busy(20.0), 1]
    call: Callable[[], Any] = lambda: answers.pop(0)  # noqa: E731
    retry = Retry(retry_result=lambda result: isinstance(result, Busy), backoff=Backoff(0.0), clock=clock)
    policy = Policy("stock", retry=retry, clock=clock)
    policy._step_by_step = step_by_step
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    policy._clock = type("Sleeper", (), {"sleep": staticmethod(sleep), "monotonic": clock.monotonic})()
    assert await policy.call(call) == 1
    assert slept == [20.0]


async def call(policy: Policy, sync: bool) -> None:
    policy.call_sync(fail) if sync else await policy.call(fail)


@pytest.mark.parametrize("sync", [False, True])
async def test_a_circuit_that_opened_while_its_caller_queued_rejects(clock: FakeClock, sync: bool) -> None:
    events, log = told()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)

    class Slow(Bulkhead):
        def try_acquire(self) -> bool:
            return False

        async def acquire(self, timeout: float | None = None) -> None:
            self.acquire_sync(timeout)

        def acquire_sync(self, timeout: float | None = None) -> None:
            super().acquire_sync(timeout)
            breaker.force_open()

    bulkhead = Slow("stock", 1, 0, clock=clock)
    policy = Policy("stock", timeout=2.0, breaker=breaker, bulkhead=bulkhead, events=events, clock=clock)
    with pytest.raises(CircuitBreakerOpen):
        await call(policy, sync)
    assert [outcome for outcome, _ in log] == ["rejected"]
    assert (bulkhead.active, breaker.counts.started) == (0, 0)


@pytest.mark.parametrize("sync", [False, True])
async def test_who_gets_his_slot_at_the_last_moment_has_no_time_left_to_call(clock: FakeClock, sync: bool) -> None:
    events, log = told()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)

    class Slow(Bulkhead):
        def try_acquire(self) -> bool:
            return False

        async def acquire(self, timeout: float | None = None) -> None:
            self.acquire_sync(timeout)

        def acquire_sync(self, timeout: float | None = None) -> None:
            super().acquire_sync(timeout)
            clock.move(timeout or 0.0)

    bulkhead = Slow("stock", 1, 0, clock=clock)
    policy = Policy("stock", timeout=2.0, breaker=breaker, bulkhead=bulkhead, events=events, clock=clock)
    with pytest.raises(CallTimeout):
        await call(policy, sync)
    assert [outcome for outcome, _ in log] == ["neutral"]
    assert (bulkhead.active, breaker.counts.started) == (0, 0)
