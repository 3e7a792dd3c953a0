"""One breaker shared by threads and event loops: counts stay exact, trials stay few, and nothing deadlocks."""

import asyncio
import contextlib
import dis
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitBreakerOpen, CircuitState, FakeClock, Permit
from resilience.circuit import GIL

THREADS = 8


class Down(Exception):
    pass


def fail() -> None:
    raise Down


@pytest.fixture(autouse=True)
def _switch_threads_as_often_as_possible() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def hammer(*works: Callable[[], object]) -> None:
    """Runs all at once, each in a thread of its own; raises the first error."""
    barrier = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        barrier.wait(20)
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def each(times: int, *steps: Callable[[], object]) -> Callable[[], None]:
    def work() -> None:
        for number in range(times):
            steps[number % len(steps)]()

    return work


def settle(breaker: CircuitBreaker, how: str) -> None:
    permit = breaker.acquire()
    if how == "failure":
        permit.failure(Down())
    elif how == "success":
        permit.success()
    else:
        permit.neutral()


def in_a_loop(breaker: CircuitBreaker, times: int) -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 1

    async def work() -> None:
        for _ in range(times):
            await breaker.call(answer)

    asyncio.run(work())


def test_eight_threads_keep_exact_counts() -> None:
    breaker = CircuitBreaker(failure_threshold=10**9)
    times = 2_000

    def failing() -> None:
        with pytest.raises(Down):
            breaker.call_sync(fail)

    hammer(
        each(times, lambda: breaker.call_sync(int)),
        each(times, lambda: settle(breaker, "success")),
        each(times, lambda: settle(breaker, "failure")),
        each(times, lambda: settle(breaker, "neutral")),
        each(times, lambda: settle(breaker, "failure"), lambda: settle(breaker, "success")),
        each(times // 10, failing),
        lambda: in_a_loop(breaker, times),
        lambda: in_a_loop(breaker, times),
    )
    ok, bad = times + times + times // 2 + 2 * times, times + times // 2 + times // 10
    assert breaker.counts == (ok + bad + times, ok, bad, times, 0, 0, 0)


def test_the_window_equals_a_recount() -> None:
    breaker = CircuitBreaker(window=64, failure_rate=1.0, minimum_calls=64)
    hammer(*(each(1_500, *(lambda: settle(breaker, "success"),) * 3, lambda: settle(breaker, "failure")),) * THREADS)
    window: Any = breaker._circuit.window
    assert len(window.ring) == window.calls == 64
    assert window.failures == sum(outcome & 1 for outcome in window.ring)
    assert window.slow == 0


def test_of_many_racing_callers_exactly_the_permitted_run() -> None:
    for permitted in (1, 3):
        clock = FakeClock()
        breaker = CircuitBreaker(
            failure_threshold=1, recovery_timeout=1.0, half_open_max_calls=permitted, success_threshold=1, clock=clock
        )
        settle(breaker, "failure")
        clock.move(1.0)
        inside: list[Permit] = []

        def race(breaker: CircuitBreaker = breaker, inside: list[Permit] = inside) -> None:
            with contextlib.suppress(CircuitBreakerOpen):
                inside.append(breaker.acquire())

        hammer(*(each(25, race),) * THREADS)
        assert len(inside) == permitted
        assert breaker.counts.rejected == 25 * THREADS - permitted
        inside[0].success()
        assert breaker.state is CircuitState.CLOSED


def test_everything_at_once_conserves_calls_and_never_deadlocks() -> None:
    breaker = CircuitBreaker(window=20, failure_rate=0.5, slow_call_seconds=60.0, slow_rate=1.0, recovery_timeout=1e-4)
    told: list[str] = []
    breaker.subscribe(lambda transition: told.append(transition.new))
    breaker.subscribe(lambda transition: breaker.reset() if len(told) % 50 == 0 else None)

    def call() -> None:
        try:
            with breaker.acquire():
                if len(told) % 3 == 0:
                    raise Down
        except (Down, CircuitBreakerOpen):
            pass

    def manual() -> None:
        breaker.force_open()
        breaker.snapshot()
        breaker.configure(window=10 + len(told) % 10)
        breaker.shadow()
        breaker.open_for(1e-4)
        breaker.probe_succeeded()
        breaker.reset()
        assert breaker.counts.in_flight >= 0
        breaker.idle  # noqa: B018

    hammer(*(each(1_500, call),) * (THREADS - 1), each(300, manual))
    counts = breaker.counts
    assert counts.in_flight == 0
    assert counts.started == counts.succeeded + counts.failed + counts.neutral + counts.stale
    assert breaker.listener_errors == 0


def test_each_listener_is_told_of_every_transition_once_and_in_order() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    told: list[tuple[str, str]] = []
    breaker.subscribe(lambda transition: told.append((transition.old, transition.new)))
    hammer(*(each(500, breaker.force_open, breaker.reset),) * THREADS)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(told))
    assert told[0][0] == "closed"
    assert told[-1][1] == breaker.state


def test_a_trial_lost_to_the_collector_at_any_moment_deadlocks_nobody() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=1.0, success_threshold=1, clock=clock)

    class Cycle:
        permit: Permit | None = None
        me: object = None

    def lose() -> None:
        cycle = Cycle()
        cycle.permit, cycle.me = breaker.acquire(), cycle

    settle(breaker, "failure")
    clock.move(1.0)
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again and again
    gc.set_threshold(1)  # collected inside the breaker's own steps, too
    try:
        for _ in range(50):
            lose()
            breaker.probe_succeeded()
            breaker.snapshot()
            gc.collect()
            assert breaker.counts.in_flight == 0
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
    breaker.acquire().success()
    assert breaker.state is CircuitState.CLOSED


def _between(function: Callable[..., Any], first: str, last: str) -> list[dis.Instruction]:
    """The instructions from the first source line that has `first` in it to the last one that has `last`."""
    import inspect

    lines, start = inspect.getsourcelines(function)
    numbers = [start + number for number, line in enumerate(lines) if first in line]
    ends = [start + number for number, line in enumerate(lines) if last in line]
    begin, end = numbers[0], ends[-1]
    found, line = [], None
    for instruction in dis.get_instructions(function):
        position = instruction.positions
        line = position.lineno if position is not None and position.lineno is not None else line
        if line is not None and begin <= line <= end:
            found.append(instruction)
    return found


# What CPython may switch threads at: calls, backward jumps and resumed frames.
_SWITCHES = ("CALL", "JUMP_BACKWARD", "RESUME", "SEND", "FOR_ITER", "YIELD_VALUE", "INSTRUMENTED")


@pytest.mark.skipif(not GIL, reason="without the global lock these steps are not taken")
@pytest.mark.parametrize(
    ("function", "first", "last"),
    [
        (CircuitBreaker.call, "if door == circuit.door and not circuit.failures", "                self._ok += 1"),
        (CircuitBreaker.call, "self._started += 1", "self._started += 1"),
        (CircuitBreaker.call, "self._rejected += 1", "self._rejected += 1"),
        (CircuitBreaker.acquire, "self._started += 1", "self._started += 1"),
        (CircuitBreaker._succeeded, "if generation == circuit.door", "                self._ok += 1"),
    ],
    ids=["success", "start", "rejection", "start by acquire", "success elsewhere"],
)
def test_the_steps_without_the_lock_are_such_that_no_thread_can_come_between(
    function: Callable[..., Any], first: str, last: str
) -> None:
    instructions = _between(function, first, last)
    assert len(instructions) >= 5
    risky = [one.opname for one in instructions if one.opname.startswith(_SWITCHES)]
    assert risky == []
