"""The bulkhead: bounded, fair, and never losing a slot."""

import asyncio
import dis
import functools
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FunctionType
from typing import Any

import pytest

from resilience import Bulkhead, BulkheadFull, CallTimeout, Event, Events, FakeClock
from resilience import bulkhead as module
from resilience.bulkhead import BulkheadRejected
from resilience.classify import never_began
from resilience.deadline import deadline_scope

PATIENCE = 20.0


@pytest.fixture(params=["with the global lock", "without"], autouse=True)
def _builds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds as well for a build without the global lock, in which no step is taken without ours."""
    if request.param == "without":
        monkeypatch.setattr(module, "_HIDDEN", -(1 << 40))


@pytest.fixture
def _nervous() -> Iterator[None]:
    """Threads are switched as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_all(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own, and raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    for error in errors:
        raise error


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


class Crowd:
    """Counts those inside by itself."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.peak = self.visits = 0

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            self.visits += 1
            self.peak = max(self.peak, self.inside)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1

    def visit(self) -> None:
        self.enter()
        time.sleep(0)
        self.leave()

    async def avisit(self) -> None:
        self.enter()
        try:
            await asyncio.sleep(0)
        finally:
            self.leave()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    bulkhead = Bulkhead("db", 2, 100)
    order: list[int] = []
    peak = 0

    async def caller(number: int) -> None:
        nonlocal peak
        async with bulkhead:
            peak = max(peak, bulkhead.active)
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(caller(number) for number in range(50)))
    assert order == list(range(50))
    assert (peak, bulkhead.active, bulkhead.waiting) == (2, 0, 0)


async def test_a_newcomer_cannot_overtake_those_who_wait() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    bulkhead.release()
    assert not bulkhead.try_acquire()
    await waiter


async def test_past_the_queue_it_says_no_at_once() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    with pytest.raises(BulkheadFull, match="db"):
        await bulkhead.acquire()
    bulkhead.release()
    await waiter


async def test_waiting_ends_in_time() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, clock=clock)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire(timeout=2.0))
    await clock.advance(2.0)
    with pytest.raises(CallTimeout):
        await waiter
    assert bulkhead.waiting == 0
    bulkhead.release()
    assert (bulkhead.active, clock.pending) == (0, 0)


async def test_cancelled_in_the_moment_of_the_hand_over_the_slot_goes_on() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    await bulkhead.acquire()
    first, second = (asyncio.create_task(bulkhead.acquire()) for _ in range(2))
    await settle()
    bulkhead.release()
    first.cancel()
    await second
    bulkhead.release()
    assert first.cancelled()
    assert bulkhead.active == 0


async def test_given_up_in_the_moment_of_the_hand_over_the_slot_goes_on() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, clock=clock)
    await bulkhead.acquire()
    late = asyncio.create_task(bulkhead.acquire(timeout=1.0))
    patient = asyncio.create_task(bulkhead.acquire(timeout=5.0))
    await settle()
    clock.move(1.0)  # the first waiter's time is up, but it has not run yet
    bulkhead.release()
    await patient
    with pytest.raises(CallTimeout):
        await late
    bulkhead.release()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_no_slot_is_lost_whatever_happens() -> None:
    clock, dice = FakeClock(), random.Random(5)
    bulkhead = Bulkhead("db", 3, 20, clock=clock)

    async def caller() -> None:
        await bulkhead.acquire(timeout=dice.uniform(0.1, 2.0))
        try:
            assert bulkhead.active <= 3
            await clock.sleep(dice.uniform(0.0, 1.0))
        finally:
            bulkhead.release()

    callers: list[asyncio.Task[None]] = []
    for _ in range(300):
        callers.append(asyncio.create_task(caller()))
        await clock.advance(dice.choice([0.0, 0.05, 0.2]))
        if dice.random() < 0.3:
            dice.choice(callers).cancel()
    await clock.advance(60)
    await asyncio.wait(callers, timeout=5)
    assert all(task.done() for task in callers)
    assert (bulkhead.active, bulkhead.waiting, clock.pending) == (0, 0, 0)
    assert {type(task.exception()) for task in callers if not task.cancelled()} >= {type(None), CallTimeout}


# -- forms


async def test_every_form_takes_one_slot_and_gives_it_back() -> None:
    bulkhead = Bulkhead("db", 1)

    async def seen(number: int, *, extra: int = 0) -> tuple[int, int]:
        await asyncio.sleep(0)
        return bulkhead.active, number + extra

    def seen_sync(number: int, *, extra: int = 0) -> tuple[int, int]:
        return bulkhead.active, number + extra

    assert await bulkhead.call(seen, 1, extra=2) == (1, 3)
    assert await bulkhead.call(seen_sync, 1, extra=2) == (1, 3)
    assert await bulkhead.call(functools.partial(seen, extra=2), 1) == (1, 3)
    assert await bulkhead(seen)(1, extra=2) == (1, 3)
    assert bulkhead(seen_sync)(1, extra=2) == (1, 3)
    assert bulkhead.call_sync(seen_sync, 1, extra=2) == (1, 3)
    with bulkhead:
        assert bulkhead.active == 1
    async with bulkhead:
        assert bulkhead.active == 1
    bulkhead.acquire_sync()
    assert bulkhead.active == 1
    bulkhead.release()
    assert bulkhead.active == 0


class Exit(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("no"), Exit()])
async def test_whatever_is_raised_goes_through_and_the_slot_comes_back(error: BaseException) -> None:
    bulkhead = Bulkhead("db", 1)

    def fails() -> None:
        raise error

    async def fails_later() -> None:
        await asyncio.sleep(0)
        raise error

    for func in (fails, fails_later):
        with pytest.raises(type(error)):
            await bulkhead.call(func)
    with pytest.raises(type(error)):
        bulkhead.call_sync(fails)
    with pytest.raises(type(error)), bulkhead:
        raise error
    with pytest.raises(type(error)):
        async with bulkhead:
            raise error
    assert bulkhead.active == 0


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_at_any_await_no_slot_is_lost_or_minted(turns: int) -> None:
    bulkhead = Bulkhead("db", 1, 5)

    async def inside() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    await bulkhead.acquire()
    victim = asyncio.create_task(bulkhead.call(inside))
    next_one = asyncio.create_task(bulkhead.call(inside))
    await asyncio.sleep(0)
    bulkhead.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    victim.cancel()
    await asyncio.wait([victim, next_one], timeout=PATIENCE)
    assert next_one.done()
    assert next_one.exception() is None
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_every_form_waits_in_line() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    order: list[str] = []

    async def block() -> None:
        async with bulkhead:
            order.append("block")

    await bulkhead.acquire()
    waiting: list[Coroutine[Any, Any, Any]] = [bulkhead.call(order.append, "call"), block(), bulkhead.acquire()]
    tasks = [asyncio.create_task(coroutine) for coroutine in waiting]
    await settle()
    assert (bulkhead.active, bulkhead.waiting) == (1, 3)
    bulkhead.release()
    await asyncio.gather(*tasks)
    assert (order, bulkhead.active) == (["call", "block"], 1)


@pytest.mark.parametrize("max_waiting", [0, 1])
async def test_past_the_queue_every_form_says_no_at_once(max_waiting: int) -> None:
    bulkhead = Bulkhead("db", 1, max_waiting)
    await bulkhead.acquire()
    waiters = [asyncio.create_task(bulkhead.acquire()) for _ in range(max_waiting)]
    await settle()
    for reject in (bulkhead.call(len, ""), bulkhead.acquire(5.0), bulkhead.__aenter__(), bulkhead(settle)()):
        with pytest.raises(BulkheadFull, match="db"):
            await reject
    for reject_sync in (bulkhead.acquire_sync, bulkhead.__enter__, lambda: bulkhead.call_sync(len, "")):
        with pytest.raises(BulkheadFull, match="db"):
            reject_sync()
    assert (bulkhead.active, bulkhead.waiting) == (1, max_waiting)
    bulkhead.release()
    await asyncio.gather(*waiters)


def test_more_released_than_taken_is_an_error_and_mints_nothing() -> None:
    bulkhead = Bulkhead("db", 2)
    assert bulkhead.try_acquire()
    bulkhead.release()
    with pytest.raises(RuntimeError, match="db was released that nobody had taken"):
        bulkhead.release()
    assert [bulkhead.try_acquire() for _ in range(3)] == [True, True, False]


# -- bounds


async def test_max_wait_bounds_every_wait_and_the_shorter_bound_wins() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, max_wait=2.0, clock=clock)
    await bulkhead.acquire()
    waits: list[Coroutine[Any, Any, Any]] = [bulkhead.call(len, ""), bulkhead.acquire(5.0), bulkhead.acquire(1.0)]
    patient, greedy, hasty = (asyncio.create_task(wait) for wait in waits)
    await clock.advance(1.0)
    assert (hasty.done(), patient.done(), greedy.done()) == (True, False, False)
    await clock.advance(1.0)
    for task, limit in ((patient, 2.0), (greedy, 2.0), (hasty, 1.0)):
        error = task.exception()
        assert isinstance(error, CallTimeout)
        assert (error.name, error.limit) == ("db", limit)
    assert (bulkhead.waiting, clock.pending) == (0, 0)


async def test_nobody_waits_longer_than_the_deadline_of_the_caller_leaves() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, clock=clock)
    await bulkhead.acquire()
    with deadline_scope(3.0, clock=clock):
        late = asyncio.create_task(bulkhead.acquire())
        await clock.advance(3.0)
        with pytest.raises(CallTimeout):
            await late
        with pytest.raises(CallTimeout):  # it is over: nobody queues any more
            await bulkhead.acquire()
        bulkhead.release()
        await bulkhead.acquire()  # but a free slot is taken


async def test_a_wait_in_vain_proves_that_the_call_was_not_begun() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    await bulkhead.acquire()
    with pytest.raises(CallTimeout) as caught:
        await bulkhead.acquire(timeout=0.0)
    assert never_began(caught.value)
    assert "not begun" in caught.value.__notes__[0]
    assert bulkhead.waiting == 0


async def test_check_rejects_as_a_call_would_and_takes_nothing() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    bulkhead.check()
    await bulkhead.acquire()
    bulkhead.check()  # there is room in the queue
    assert not bulkhead.full
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    assert bulkhead.full
    with pytest.raises(BulkheadFull):
        bulkhead.check()
    bulkhead.release()
    await waiter
    assert (bulkhead.active, bulkhead.waiting) == (1, 0)


async def test_on_an_event_loop_nobody_blocks_the_thread_to_wait() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    with bulkhead, pytest.raises(BulkheadFull):
        bulkhead.acquire_sync()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_those_who_wait_can_be_turned_away() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    await bulkhead.acquire()
    waiters = [asyncio.create_task(bulkhead.acquire()) for _ in range(3)]
    await settle()
    bulkhead.refuse_waiting()
    bulkhead.refuse_waiting()
    done = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in done] == [BulkheadFull] * 3
    bulkhead.release()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ((0, 1, 1.0), "limit"),
        ((1, -1, 1.0), "max_waiting"),
        ((1, 1, 0.0), "max_wait"),
        ((1, 1, float("nan")), "max_wait"),
    ],
)
def test_a_bad_setting_fails_by_name(settings: tuple[int, int, float], field: str) -> None:
    limit, max_waiting, max_wait = settings
    with pytest.raises(ValueError, match=f"^{field} "):
        Bulkhead("db", limit, max_waiting, max_wait=max_wait)


# -- resize


async def test_growing_wakes_those_who_wait_in_order() -> None:
    bulkhead = Bulkhead("db", 1, 10)
    order: list[int] = []
    await bulkhead.acquire()

    async def caller(number: int) -> None:
        await bulkhead.acquire()
        order.append(number)

    callers = [asyncio.create_task(caller(number)) for number in range(4)]
    await settle()
    bulkhead.resize(4)
    assert (bulkhead.active, bulkhead.waiting) == (4, 1)
    assert not bulkhead.try_acquire()
    await settle()
    assert order == [0, 1, 2]
    bulkhead.resize(7)
    assert (bulkhead.active, bulkhead.waiting) == (5, 0)
    await asyncio.gather(*callers)
    assert [bulkhead.try_acquire() for _ in range(3)] == [True, True, False]


async def test_shrinking_lets_those_inside_finish_and_nobody_in_before_there_is_room() -> None:
    bulkhead = Bulkhead("db", 4, 10)
    for _ in range(4):
        await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    bulkhead.resize(2)
    assert (bulkhead.active, bulkhead.waiting, bulkhead.limit) == (4, 1, 2)
    for active in (3, 2):
        bulkhead.release()
        await settle()
        assert (bulkhead.active, waiter.done(), bulkhead.try_acquire()) == (active, False, False)
    bulkhead.release()
    await waiter
    assert bulkhead.active == 2
    bulkhead.release()
    assert bulkhead.try_acquire()


async def test_growing_again_first_makes_up_for_what_shrinking_owed() -> None:
    bulkhead = Bulkhead("db", 4, 10)
    for _ in range(4):
        await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    bulkhead.resize(1)
    bulkhead.resize(4)
    assert (bulkhead.active, bulkhead.waiting) == (4, 1)
    bulkhead.resize(5)
    await waiter
    assert (bulkhead.active, bulkhead.waiting) == (5, 0)


def test_a_bad_new_limit_changes_nothing() -> None:
    bulkhead = Bulkhead("db", 2)
    with pytest.raises(ValueError, match=r"^limit "):
        bulkhead.resize(0)
    bulkhead.resize(2)
    assert (bulkhead.limit, bulkhead.active) == (2, 0)


# -- events


def fails(_event: Event) -> None:
    raise ValueError


async def test_rejections_are_told_and_a_raising_listener_changes_nothing() -> None:
    clock, events, seen = FakeClock(), Events(), list[Event]()
    bulkhead = Bulkhead("db", 1, 1, max_wait=2.0, events=events, clock=clock)
    events.subscribe(seen.append)
    events.subscribe(fails)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    with pytest.raises(BulkheadFull):
        await bulkhead.acquire()
    await clock.advance(2.0)
    with pytest.raises(CallTimeout):
        await waiter
    assert seen == [BulkheadRejected("db", 1, 1, "full"), BulkheadRejected("db", 1, 0, "timeout")]
    assert (bulkhead.active, bulkhead.waiting, events.listener_errors) == (1, 0, 2)


async def test_a_listener_may_use_the_bulkhead() -> None:
    events = Events()
    bulkhead = Bulkhead("db", 1, 1, events=events)
    events.subscribe(lambda _event: bulkhead.release())
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    with pytest.raises(BulkheadFull):
        await bulkhead.acquire()
    await waiter
    assert (bulkhead.active, events.listener_errors) == (1, 0)


async def test_ten_thousand_rejections_leave_the_memory_flat() -> None:
    bulkhead = Bulkhead("db", 1, 0)
    await bulkhead.acquire()
    blocks = 0
    for turn in range(10_000):
        with pytest.raises(BulkheadFull):
            await bulkhead.acquire()
        if turn == 1_000:
            gc.collect()
            blocks = sys.getallocatedblocks()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 500


# -- threads


def test_a_thread_waits_its_turn_and_not_longer_than_it_may() -> None:
    bulkhead = Bulkhead("db", 1, 5, max_wait=PATIENCE)
    order: list[str] = []
    bulkhead.acquire_sync()
    with pytest.raises(CallTimeout):
        bulkhead.acquire_sync(timeout=0.01)
    first = threading.Thread(target=bulkhead.call_sync, args=(order.append, "first"))
    second = threading.Thread(target=bulkhead(order.append), args=("second",))
    first.start()
    until(lambda: bulkhead.waiting == 1)
    second.start()
    until(lambda: bulkhead.waiting == 2)
    bulkhead.release()
    for thread in (first, second):
        thread.join(PATIENCE)
    assert order == ["first", "second"]
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


def test_without_a_bound_a_thread_waits_until_it_is_its_turn() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    bulkhead.acquire_sync()
    thread = threading.Thread(target=bulkhead.acquire_sync)
    thread.start()
    until(lambda: bulkhead.waiting)
    bulkhead.release()
    thread.join(PATIENCE)
    assert bulkhead.active == 1


def test_a_thread_may_be_told_to_wait_longer_than_the_system_can() -> None:
    bulkhead = Bulkhead("db", 1, 5, max_wait=float("inf"))
    bulkhead.acquire_sync()
    thread = threading.Thread(target=bulkhead.acquire_sync)
    thread.start()
    until(lambda: bulkhead.waiting)
    bulkhead.release()
    thread.join(PATIENCE)
    assert bulkhead.active == 1


def test_under_a_virtual_clock_a_thread_waits_in_virtual_time() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, max_wait=3.0, clock=clock)
    bulkhead.acquire_sync()
    before = clock.monotonic()
    with pytest.raises(CallTimeout):
        bulkhead.acquire_sync()
    assert (clock.monotonic() - before, bulkhead.waiting) == (3.0, 0)
    clock.call_later(1.0, bulkhead.release)
    bulkhead.acquire_sync()
    assert bulkhead.active == 1


def test_an_interrupted_thread_gives_back_what_it_got_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: still waiting, and with the slot handed over in this very moment."""
    for handed_over in (False, True):
        clock = FakeClock()
        bulkhead = Bulkhead("db", 1, 5, max_wait=3.0, clock=clock)
        bulkhead.acquire_sync()

        def interrupted(_seconds: float, bulkhead: Bulkhead = bulkhead, handed_over: bool = handed_over) -> None:
            if handed_over:
                bulkhead.release()
            raise KeyboardInterrupt

        monkeypatch.setattr(clock, "block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bulkhead.acquire_sync()
        assert (bulkhead.active, bulkhead.waiting) == (0 if handed_over else 1, 0)


def test_a_slot_goes_to_another_event_loop() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    bulkhead.acquire_sync()
    inside = threading.Event()

    async def elsewhere() -> None:
        async with bulkhead:
            inside.set()

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    until(lambda: bulkhead.waiting)
    assert not inside.is_set()
    bulkhead.release()  # nothing but the hand-over wakes that loop: it sleeps in its selector
    thread.join(PATIENCE)
    assert inside.is_set()
    assert bulkhead.active == 0


def test_who_waits_on_a_closed_event_loop_is_passed_over() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    bulkhead.acquire_sync()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    tasks = [loop.create_task(bulkhead.acquire()) for loop in (*loops, loops[1])]
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0))
    assert bulkhead.waiting == 3
    dead, (alive, last) = tasks[0], tasks[1:]
    loops[0].close()
    bulkhead.release()
    loops[1].run_until_complete(alive)
    assert (bulkhead.active, bulkhead.waiting) == (1, 1)
    dead._log_destroy_pending = False  # type: ignore[attr-defined]
    dead.get_coro().close()  # as the collector would
    assert (bulkhead.active, bulkhead.waiting) == (1, 1)
    bulkhead.release()
    loops[1].run_until_complete(last)
    bulkhead.release()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)
    loops[1].close()


def test_forgotten_while_the_slot_was_on_its_way_it_gives_it_back_once() -> None:
    """The task is collected between the hand-over and the discovery that its loop is closed."""
    bulkhead = Bulkhead("db", 1, 5)
    bulkhead.acquire_sync()
    loop = asyncio.new_event_loop()
    task = loop.create_task(bulkhead.acquire())
    loop.run_until_complete(asyncio.sleep(0))

    class Closing:
        def call_soon_threadsafe(self, *_args: object) -> None:
            task.get_coro().close()
            raise RuntimeError("Event loop is closed")

    bulkhead._waiters[0].loop = Closing()  # type: ignore[union-attr]
    bulkhead.release()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


def test_a_task_that_is_collected_under_the_lock_hangs_nothing() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    bulkhead.acquire_sync()
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(bulkhead.acquire()) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0))

    def collect() -> None:
        with bulkhead._lock:
            tasks[1].get_coro().close()
            bulkhead.release()

    run_all(collect)
    loop.run_until_complete(tasks[0])
    assert (bulkhead.active, bulkhead.waiting) == (1, 0)
    tasks[1]._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


@pytest.mark.usefixtures("_nervous")
@pytest.mark.parametrize("max_waiting", [0, 100])
def test_eight_threads_never_exceed_the_limit(max_waiting: int) -> None:
    bulkhead, crowd = Bulkhead("db", 3, max_waiting, max_wait=PATIENCE), Crowd()
    rejected = Crowd()

    def hammer() -> None:
        for _ in range(200):
            try:
                bulkhead.call_sync(crowd.visit)
            except BulkheadFull:
                rejected.enter()

    run_all(*[hammer] * 8)
    assert crowd.peak <= 3
    assert crowd.visits + rejected.visits == 1_600
    assert (rejected.visits == 0) is (max_waiting > 0)
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


@pytest.mark.usefixtures("_nervous")
def test_threads_and_event_loops_share_it_while_callers_give_up_and_the_limit_changes() -> None:
    bulkhead, crowd = Bulkhead("db", 4, 30), Crowd()
    working = [True]

    def threads(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(100):
            try:
                bulkhead.acquire_sync(timeout=dice.choice([0.0, 0.001, 0.01]))
            except (CallTimeout, BulkheadFull):
                continue
            crowd.visit()
            bulkhead.release()

    async def loops(seed: int) -> None:
        dice = random.Random(seed)

        async def caller() -> None:
            try:
                await bulkhead.acquire(timeout=dice.choice([None, 0.001, 0.01]))
            except (CallTimeout, BulkheadFull):
                return
            try:
                await crowd.avisit()
            finally:
                bulkhead.release()

        for _ in range(20):
            tasks = [asyncio.create_task(caller()) for _ in range(10)]
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
                dice.choice(tasks).cancel()
            await asyncio.wait(tasks, timeout=PATIENCE)
            assert all(task.done() for task in tasks)
            assert all(task.cancelled() or task.exception() is None for task in tasks)

    def resizes() -> None:
        dice = random.Random(9)
        while working[0]:
            bulkhead.resize(dice.randint(1, 6))
            assert 0 <= bulkhead.active <= 6
            time.sleep(0.0002)

    def work() -> None:
        run_all(*(functools.partial(threads, seed) for seed in range(3)), *(lambda: asyncio.run(loops(7)),) * 3)
        working[0] = False

    run_all(work, resizes)
    assert crowd.peak <= 6
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)
    bulkhead.resize(4)
    assert [bulkhead.try_acquire() for _ in range(5)] == [True] * 4 + [False]


MAY_SWITCH = (
    "CALL",
    "RESUME",
    "JUMP_BACKWARD",
    "SEND",
    "YIELD",
    "FOR_ITER",
    "BEFORE_WITH",
    "RETURN",
    "RAISE",
    "RERAISE",
)
FORMS = ("call", "call_sync", "__aenter__", "__enter__", "try_acquire", "acquire", "acquire_sync", "release", "_queue")


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="about CPython's code")
@pytest.mark.parametrize("function", FORMS)
def test_between_looking_and_stepping_the_counter_no_other_thread_can_run(function: str) -> None:
    code = getattr(Bulkhead, function)
    assert isinstance(code, FunctionType)
    steps = list(dis.get_instructions(code))
    jumps = {step.argval: at for at, step in enumerate(steps) if "JUMP" in step.opname and step.argval > step.offset}
    stores = [at for at, step in enumerate(steps) if (step.opname, step.argval) == ("STORE_ATTR", "_free")]
    assert stores
    for at in stores:
        looks = 0
        while looks < 2:  # the read that belongs to the step, and the look before it
            # Where an `else` begins, what ran before is not what stands before.
            at = jumps.get(steps[at].offset, at - 1)
            assert not steps[at].opname.startswith(MAY_SWITCH), (function, steps[at])
            looks += steps[at].argval in ("_free", "_busy")


# -- a model


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_it_does_what_a_simple_model_does(seed: int) -> None:
    """Against a list of those inside and a list of those who wait, after every single step."""
    dice, clock = random.Random(seed), FakeClock()
    limit, max_waiting = dice.randint(1, 3), dice.randint(0, 4)
    bulkhead = Bulkhead("db", limit, max_waiting, clock=clock)
    inside: list[int] = []
    queue: list[int] = []
    tasks: dict[int, asyncio.Task[None]] = {}
    until_time: dict[int, float] = {}
    number = 0

    def admit() -> None:
        while queue and len(inside) < limit:
            inside.append(queue.pop(0))

    for _ in range(150):
        step = dice.choice(["come", "come", "go", "cancel", "wait", "resize", "try"])
        if step == "come":
            number += 1
            patience = dice.choice([1.0, 2.0, 50.0])
            tasks[number] = asyncio.create_task(bulkhead.acquire(patience))
            if len(inside) < limit:
                inside.append(number)
            elif len(queue) < max_waiting:
                queue.append(number)
                until_time[number] = clock.monotonic() + patience
        elif step == "go" and inside:
            inside.pop(dice.randrange(len(inside)))
            bulkhead.release()
            admit()
        elif step == "cancel" and queue:
            victim = dice.choice(queue)
            queue.remove(victim)
            tasks[victim].cancel()
        elif step == "wait":
            await clock.advance(0.5)
            queue[:] = [one for one in queue if until_time[one] > clock.monotonic()]
        elif step == "resize":
            limit = dice.randint(1, 4)
            bulkhead.resize(limit)
            admit()
        elif step == "try":
            number += 1
            if bulkhead.try_acquire():
                assert len(inside) < limit
                inside.append(number)
            else:
                assert len(inside) >= limit
        await settle()
        assert (bulkhead.active, bulkhead.waiting, bulkhead.limit) == (len(inside), len(queue), limit)
        assert all(tasks[one].done() and tasks[one].exception() is None for one in inside if one in tasks)
        assert not any(tasks[one].done() for one in queue)
        assert bulkhead.full is (len(inside) >= limit and len(queue) >= max_waiting)
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert clock.pending == 0
