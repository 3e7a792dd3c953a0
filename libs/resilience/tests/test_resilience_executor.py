"""Blocking work in threads of its own: bounded, never lost, and never in the way of the process's exit."""

import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilience import BulkheadFull, CallTimeout, Event, Events, FakeClock
from resilience.bulkhead import BulkheadRejected
from resilience.classify import never_began
from resilience.deadline import current_deadline, deadline_scope
from resilience.executor import BulkheadExecutor

PATIENCE = 20.0
# Blocking as such is what is tested here, in threads that are none of the event loop's.


class Gate:
    """Blocking work that a test holds up: it has begun when `begun` says so, and ends when the gate is opened."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.inside = self.peak = self.runs = 0

    def __call__(self, result: object = None) -> object:
        with self.lock:
            self.inside += 1
            self.runs += 1
            self.peak = max(self.peak, self.inside)
        self.begun.release()
        assert self.open.wait(PATIENCE)
        with self.lock:
            self.inside -= 1
        return result


async def until(condition: Callable[[], object]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.0005)


def until_sync(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def threads_of(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


# -- calls


async def test_it_runs_in_a_thread_of_its_own_and_returns_or_raises_what_the_function_does() -> None:
    async with BulkheadExecutor("reports") as executor:

        def work(number: int, *, plus: int) -> tuple[int, str]:
            return number + plus, threading.current_thread().name

        def fails() -> None:
            raise LookupError("not here")

        assert await executor.execute(work, 1, plus=2) == (3, "reports-1")
        assert await executor.execute(work, 2, plus=2) == (4, "reports-1")  # the same thread again
        with pytest.raises(LookupError, match="not here"):
            await executor.execute(fails)
        assert (executor.active, executor.waiting, executor.abandoned, executor.max_workers) == (0, 0, 0, 3)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_would_end_a_thread_ends_the_caller_instead(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with BulkheadExecutor("reports", 1) as executor:
        with pytest.raises(type(error)):
            executor.call_sync(fails)
        assert executor.call_sync(str, 1) == "1"


async def test_an_error_that_asyncio_could_not_carry_hangs_nobody() -> None:
    def fails() -> None:
        raise StopIteration

    async with BulkheadExecutor("reports", 1) as executor:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await executor.execute(fails)


async def test_the_context_of_the_caller_is_there_and_is_not_changed() -> None:
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("mine")

    def work() -> tuple[str, bool]:
        seen = variable.get()
        variable.set("theirs")
        return seen, current_deadline() is not None

    async with BulkheadExecutor("reports") as executor:
        with deadline_scope(PATIENCE):
            assert await executor.execute(work) == ("mine", True)
    assert variable.get() == "mine"


async def test_as_a_decorator_it_makes_a_blocking_function_async() -> None:
    async with BulkheadExecutor("reports") as executor:

        @executor
        def build(number: int, timeout: int) -> int:
            """Builds."""
            return number + timeout

        assert await build(1, timeout=2) == 3
        assert build.__doc__ == "Builds."


async def test_an_async_function_is_refused_with_advice() -> None:
    async def report() -> None: ...

    async with BulkheadExecutor("reports") as executor:
        asynchronous: tuple[Callable[[], Any], ...] = (report, functools.partial(report))
        for call in asynchronous:
            with pytest.raises(TypeError, match=r"report is async: await it .* Bulkhead"):
                await executor.execute(call)
            with pytest.raises(TypeError, match="is async"):
                executor.call_sync(call)
            with pytest.raises(TypeError, match="is async"):
                executor(call)
        with pytest.raises(TypeError, match="is async"):
            await executor.execute(lambda: asynchronous[0]())
        assert executor.active == 0


def test_call_sync_is_the_same_for_sync_code() -> None:
    with BulkheadExecutor("reports", 2) as executor:
        assert executor.call_sync(int, "11", base=2) == 3
        with pytest.raises(ValueError, match="invalid literal"):
            executor.call_sync(int, "x")
        assert executor.active == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"max_workers": 0}, "max_workers"), ({"max_waiting": -1}, "max_waiting"), ({"timeout": 0.0}, "timeout")],
)
def test_a_bad_setting_fails_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        BulkheadExecutor("reports", **settings)


# -- bounds


async def test_never_more_at_once_than_workers_nor_more_waiting_than_allowed(gate: Gate) -> None:
    events, seen = Events(), list[Event]()
    events.subscribe(seen.append)
    async with BulkheadExecutor("reports", 2, max_waiting=3, events=events) as executor:
        calls = [asyncio.create_task(executor.execute(gate, number)) for number in range(5)]
        await until(lambda: gate.inside == 2)
        assert (executor.active, executor.waiting) == (2, 3)
        with pytest.raises(BulkheadFull, match="reports"):
            await executor.execute(gate)
        assert seen == [BulkheadRejected("reports", 2, 3)]
        gate.open.set()
        assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]
        assert (gate.peak, gate.runs, executor.active, executor.waiting) == (2, 5, 0, 0)


async def test_threads_are_started_when_needed_and_kept() -> None:
    gates = [Gate() for _ in range(3)]
    async with BulkheadExecutor("kept", 5) as executor:
        assert threads_of("kept") == []
        calls = [asyncio.create_task(executor.execute(gate)) for gate in gates]
        await until(lambda: all(gate.inside for gate in gates))
        assert threads_of("kept") == ["kept-1", "kept-2", "kept-3"]
        for gate in gates:
            gate.open.set()
        await asyncio.gather(*calls)
        for _ in range(10):
            await executor.execute(len, "")
        assert threads_of("kept") == ["kept-1", "kept-2", "kept-3"]
    await until(lambda: not threads_of("kept"))


# -- time


@pytest.mark.parametrize("own", [True, False])
async def test_after_its_time_the_caller_goes_and_the_call_keeps_its_slot_until_it_ends(gate: Gate, own: bool) -> None:
    clock = FakeClock()
    async with BulkheadExecutor("reports", 1, max_waiting=0, timeout=9.0 if own else 2.0, clock=clock) as executor:
        call = asyncio.create_task(executor.execute(gate, timeout=2.0) if own else executor.execute(gate))
        await until(lambda: gate.inside)
        await clock.advance(2.0)
        with pytest.raises(CallTimeout) as caught:
            await call
        assert (caught.value.name, caught.value.limit) == ("reports", 2.0)
        assert not never_began(caught.value)
        assert (executor.active, executor.abandoned, clock.pending) == (1, 1, 0)
        with pytest.raises(BulkheadFull):
            await executor.execute(gate)
        gate.open.set()
        await until(lambda: not executor.active)
        assert executor.abandoned == 0
        assert await executor.execute(len, "abc", timeout=None) == 3


async def test_the_wait_for_a_thread_is_part_of_the_time(gate: Gate) -> None:
    clock = FakeClock()
    async with BulkheadExecutor("reports", 1, timeout=5.0, clock=clock) as executor:
        first = Gate()
        ahead = asyncio.create_task(executor.execute(first, timeout=None))
        queued = asyncio.create_task(executor.execute(gate))
        late = asyncio.create_task(executor.execute(gate, timeout=3.0))
        await until(lambda: first.inside)
        await clock.advance(3.0)
        with pytest.raises(CallTimeout) as caught:
            await late
        assert never_began(caught.value)
        first.open.set()
        await ahead
        await until(lambda: gate.inside)
        await clock.advance(1.9)
        assert not queued.done()
        await clock.advance(0.2)
        with pytest.raises(CallTimeout):
            await queued
        assert (executor.active, executor.abandoned, gate.runs) == (1, 1, 1)
        gate.open.set()


@pytest.mark.parametrize("timeout", [None, 10.0])
async def test_the_deadline_of_the_caller_shortens_the_time(gate: Gate, timeout: float | None) -> None:
    clock = FakeClock()
    async with BulkheadExecutor("reports", 2, timeout=timeout, clock=clock) as executor:
        with deadline_scope(2.0, clock=clock):
            call = asyncio.create_task(executor.execute(gate))
            await until(lambda: gate.inside)
            await clock.advance(2.0)
            with pytest.raises(CallTimeout):
                await call
            with pytest.raises(CallTimeout):  # it is over: even a free thread is not troubled
                await executor.execute(gate)
        assert (executor.active, gate.runs) == (1, 1)
        gate.open.set()


async def test_an_outcome_that_is_on_its_way_is_not_thrown_away_for_the_time() -> None:
    clock = FakeClock()
    ended = threading.Event()
    async with BulkheadExecutor("reports", 1, timeout=1.0, clock=clock) as executor:
        call = asyncio.create_task(executor.execute(ended.set))
        await asyncio.sleep(0)
        until_sync(lambda: ended.is_set() and not executor.active)
        clock.move(1.0)  # the loop has not run since
        await call
        assert executor.abandoned == 0


def test_call_sync_returns_at_its_time_as_well(gate: Gate) -> None:
    with BulkheadExecutor("reports", 1, timeout=0.01) as executor:
        with pytest.raises(CallTimeout) as caught:
            executor.call_sync(gate)
        assert not never_began(caught.value)
        assert (executor.active, executor.abandoned) == (1, 1)
        with pytest.raises(CallTimeout) as caught:
            executor.call_sync(gate)
        assert never_began(caught.value)
        gate.open.set()
        until_sync(lambda: not executor.active)
        assert executor.call_sync(len, "abc", timeout=None) == 3


# -- cancellation


async def test_cancelled_while_queued_it_is_withdrawn(gate: Gate) -> None:
    async with BulkheadExecutor("reports", 1) as executor:
        first = asyncio.create_task(executor.execute(gate))
        queued = asyncio.create_task(executor.execute(gate))
        await until(lambda: gate.inside)
        queued.cancel()
        await asyncio.wait([queued], timeout=PATIENCE)
        assert (executor.active, executor.waiting, executor.abandoned) == (1, 0, 0)
        gate.open.set()
        await first
        assert gate.runs == 1


async def test_cancelled_while_running_it_keeps_its_slot_until_it_ends(gate: Gate) -> None:
    clock = FakeClock()
    async with BulkheadExecutor("reports", 1, max_waiting=0, timeout=5.0, clock=clock) as executor:
        call = asyncio.create_task(executor.execute(gate))
        await until(lambda: gate.inside)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (executor.active, executor.abandoned, clock.pending) == (1, 1, 0)
        with pytest.raises(BulkheadFull):
            await executor.execute(gate)
        gate.open.set()
        await until(lambda: not executor.active)
        assert executor.abandoned == 0


async def test_cancelled_at_its_time_it_is_abandoned_once(gate: Gate) -> None:
    clock = FakeClock()
    async with BulkheadExecutor("reports", 1, timeout=5.0, clock=clock) as executor:
        call = asyncio.create_task(executor.execute(gate))
        await until(lambda: gate.inside)
        clock.move(5.0)
        call.cancel()
        await asyncio.wait([call], timeout=PATIENCE)
        assert executor.abandoned == 1
        gate.open.set()
        await until(lambda: not executor.active)
        assert executor.abandoned == 0


async def test_given_up_before_its_thread_had_looked_at_it_it_does_not_run(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Lock()
    held.acquire()
    executor = BulkheadExecutor("reports", 1)
    work = executor._crew._do

    def late(worker: object) -> bool:
        held.acquire(timeout=PATIENCE)
        return work(worker)  # type: ignore[arg-type]

    monkeypatch.setattr("resilience.executor._Crew._do", lambda _crew, worker: late(worker))
    call = asyncio.create_task(executor.execute(gate))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call], timeout=PATIENCE)
    assert executor.abandoned == 1
    held.release()
    await until(lambda: not executor.active)
    assert (gate.runs, executor.abandoned) == (0, 0)
    held.release()
    assert await executor.aclose()


def test_an_interrupted_sync_caller_abandons_its_call(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def acquire(self, timeout: float) -> bool:
            raise KeyboardInterrupt

        def release(self) -> None: ...

    with BulkheadExecutor("reports", 1) as executor:
        monkeypatch.setattr(
            "resilience.executor.ThreadWaiter.__init__", lambda self: setattr(self, "gate", Interrupting())
        )
        with pytest.raises(KeyboardInterrupt):
            executor.call_sync(gate)
        monkeypatch.undo()
        assert (executor.active, executor.abandoned) == (1, 1)
        gate.open.set()
        until_sync(lambda: not executor.active)


# -- the end


async def test_closing_turns_away_those_who_queue_and_waits_for_those_who_run(gate: Gate) -> None:
    executor = BulkheadExecutor("reports", 1)
    running = asyncio.create_task(executor.execute(gate, "done"))
    queued = asyncio.create_task(executor.execute(gate))
    await until(lambda: gate.inside)
    closing = asyncio.create_task(executor.aclose())
    with pytest.raises(RuntimeError, match="executor 'reports' is closed"):
        await queued
    assert executor.closed
    for call in (executor.execute, executor.call_sync):
        with pytest.raises(RuntimeError, match="is closed"):
            await call(len, "")  # type: ignore[misc]
    gate.open.set()
    assert await closing
    assert await running == "done"
    assert await executor.aclose()
    assert executor.close()
    assert (executor.active, executor.waiting, gate.runs) == (0, 0, 1)


async def test_closing_gives_up_in_time(gate: Gate) -> None:
    clock = FakeClock()
    executor = BulkheadExecutor("hung", 1, clock=clock)
    call = asyncio.create_task(executor.execute(gate))
    await until(lambda: gate.inside)
    closing = asyncio.create_task(executor.aclose(timeout=3.0))
    await clock.advance(3.0)
    assert await closing is False
    assert clock.pending == 0
    gate.open.set()
    await call
    await until(lambda: not threads_of("hung"))
    assert await executor.aclose()


def test_closing_from_sync_code(gate: Gate) -> None:
    executor = BulkheadExecutor("reports", 2)
    outcomes: list[object] = []

    def caller() -> None:
        try:
            outcomes.append(executor.call_sync(gate, "done"))
        except RuntimeError as error:
            outcomes.append(str(error))

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for thread in callers:
        thread.start()
    until_sync(lambda: gate.inside == 2 and executor.waiting == 1)
    assert not executor.close(timeout=0.01)
    until_sync(lambda: outcomes)
    gate.open.set()
    assert executor.close(timeout=PATIENCE)
    for thread in callers:
        thread.join(PATIENCE)
    assert sorted(map(str, outcomes)) == ["done", "done", "executor 'reports' is closed"]


async def test_who_got_a_slot_just_as_it_was_closed_gives_it_back() -> None:
    executor = BulkheadExecutor("reports", 1)
    crew = executor._crew
    await crew.bulkhead.acquire()
    call = asyncio.create_task(executor.execute(len, ""))
    await asyncio.sleep(0)
    crew.bulkhead.release()  # it has the slot, but has not run since
    assert executor.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await call
    assert executor.active == 0


async def test_an_executor_that_is_forgotten_takes_its_threads_along() -> None:
    executor = BulkheadExecutor("forgotten", 2)
    await executor.execute(len, "")
    assert threads_of("forgotten")
    del executor
    gc.collect()
    await until(lambda: not threads_of("forgotten"))


async def test_an_idle_thread_holds_on_to_nothing() -> None:
    class Big: ...

    big = Big()
    seen = weakref.ref(big)
    async with BulkheadExecutor("reports", 1) as executor:
        await executor.execute(lambda thing: thing, big)
        del big
        await until(lambda: seen() is None)


async def test_errors_leave_no_cycles_for_the_collector() -> None:
    class Oops(Exception): ...

    def fails() -> None:
        raise Oops

    async with BulkheadExecutor("reports", 1) as executor:
        gc.collect()
        gc.disable()
        try:
            try:
                await executor.execute(fails)
            except Oops as error:
                seen = weakref.ref(error)
            await until(lambda: seen() is None)
        finally:
            gc.enable()


async def test_where_no_thread_can_be_started_the_slot_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = BulkheadExecutor("reports", 1)
    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        await executor.execute(len, "")
    monkeypatch.undo()
    assert executor.active == 0
    assert await executor.execute(len, "abc") == 3
    assert await executor.aclose()


def test_a_caller_whose_loop_has_gone_stops_nobody(gate: Gate) -> None:
    with BulkheadExecutor("reports", 1) as executor:
        loop = asyncio.new_event_loop()
        call = loop.create_task(executor.execute(gate))
        loop.run_until_complete(asyncio.sleep(0))
        until_sync(lambda: gate.inside)
        loop.close()
        gate.open.set()
        assert executor.call_sync(len, "abc") == 3
        call._log_destroy_pending = False  # type: ignore[attr-defined]
        call.get_coro().close()
        assert (executor.active, executor.abandoned) == (0, 0)


HUNG = """
import asyncio, threading
from resilience.executor import BulkheadExecutor

async def main():
    executor = BulkheadExecutor("reports")
    try:
        await executor.execute(threading.Event().wait, timeout=0.05)
    except TimeoutError:
        print("in time")
    print(await executor.aclose(timeout=0.05), executor.abandoned)

asyncio.run(main())
"""


def test_a_call_that_hangs_does_not_hang_the_exit_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["in time", "False 1"], "")


def test_eight_threads_and_three_loops_keep_exact_counts() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    counter = Gate()
    counter.open.set()
    outcomes: list[str] = []

    def sync_caller() -> None:
        for _ in range(40):
            try:
                outcomes.append(str(executor.call_sync(counter, "ok")))
            except BulkheadFull:
                outcomes.append("full")

    async def async_callers() -> None:
        async def one() -> None:
            try:
                outcomes.append(str(await executor.execute(counter, "ok")))
            except BulkheadFull:
                outcomes.append("full")

        for _ in range(4):
            await asyncio.gather(*(one() for _ in range(10)))

    executor = BulkheadExecutor("exact", 3, max_waiting=8)
    callers = [threading.Thread(target=sync_caller, daemon=True) for _ in range(8)]
    callers += [threading.Thread(target=asyncio.run, args=(async_callers(),), daemon=True) for _ in range(3)]
    try:
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert len(outcomes) == 11 * 40
    assert counter.runs == outcomes.count("ok")
    assert counter.peak <= 3
    assert len(threads_of("exact")) <= 3
    assert (executor.active, executor.waiting, executor.abandoned) == (0, 0, 0)
    assert executor.close(PATIENCE)
    until_sync(lambda: not threads_of("exact"))
