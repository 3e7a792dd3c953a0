"""The recovery governor: what comes back is not knocked over again."""

import asyncio
import copy
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitBreakerOpen, FakeClock, deadline_scope
from resilience.errors import BulkheadFull, CallTimeout, ClientError
from resilience.events import Events
from resilience.governor import FREE, RampPermit, RecoveryGovernor, RecoveryThrottled, working
from resilience.ramp import KINDS, RampCut, RampEnded, RampStarted


class World:
    """A governor on a fake clock, and what it tells."""

    def __init__(self, full: int = 100, **more: Any) -> None:
        self.clock = FakeClock()
        self.events = Events()
        self.heard: list[object] = []
        self.events.subscribe(self.heard.append)
        self.governor = RecoveryGovernor("db", full, clock=self.clock, events=self.events, **more)

    def fill(self, kind: Any = "live") -> list[RampPermit]:
        """Take all there is."""
        permits = []
        while (permit := self.governor.admit(kind)) is not None:
            assert permit is not FREE
            permits.append(permit)
        return permits

    async def all_goes_well(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            await self.clock.advance(1.0)
            self.governor.outcome(True, 0.0)


@pytest.fixture
def world() -> World:
    world = World()
    world.governor.begin()
    return world


# -- without a ramp


def test_in_normal_times_everything_is_admitted() -> None:
    world = World(full=2)
    assert not world.governor.active
    assert all(world.governor.admit(kind) is FREE for kind in KINDS for _ in range(10))
    assert world.governor.may_revalidate()
    assert world.governor.batch_size(2_000) == 2_000
    world.governor.outcome(False, 1.0)
    FREE.release(False)
    assert world.heard == []
    snapshot = world.governor.snapshot()
    assert (snapshot.active, snapshot.budget, snapshot.in_use) == (False, 2, {"live": 0, "drain": 0, "revalidate": 0})


async def test_in_normal_times_nobody_waits() -> None:
    world = World()
    assert await world.governor.enter("drain") is FREE
    assert await world.governor.enter("revalidate") is FREE
    await world.governor.governed(asyncio.sleep)(0)
    assert world.clock.pending == 0


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("full", {"full": 1}),
        ("start", {"full": 10, "start": 1}),
        ("start", {"full": 10, "start": 11}),
        ("ramp_seconds", {"full": 10, "ramp_seconds": 0.0}),
        ("max_seconds", {"full": 10, "max_seconds": 29.0}),
        ("live_share", {"full": 10, "live_share": 0.0}),
        ("drain_share", {"full": 10, "live_share": 0.7, "drain_share": 0.4}),
        ("slow_seconds", {"full": 10, "slow_seconds": 0.0}),
        ("max_waiting", {"full": 10, "max_waiting": -1}),
    ],
)
def test_a_bad_setting_fails_by_name(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        RecoveryGovernor("db", **settings)


def test_settings_at_their_bounds_are_good() -> None:
    RecoveryGovernor(
        "db", 2, start=2, ramp_seconds=0.5, max_seconds=0.5, live_share=1.0, drain_share=0.0, max_waiting=0
    )


# -- ramps


async def test_a_ramp_begins_small_and_ends_full(world: World) -> None:
    assert world.governor.active
    assert len(world.fill()) == 10
    await world.all_goes_well(30.0)
    assert not world.governor.active
    assert world.governor.admit() is FREE
    assert world.heard == [RampStarted("db", 10, 100, 30.0, 0), RampEnded("db", "full", 30.0, 10, 1)]


def test_beginning_twice_is_one_ramp(world: World) -> None:
    world.fill()
    world.governor.begin()
    assert world.governor.admit() is None
    assert len(world.heard) == 1


def test_a_ramp_that_would_begin_full_is_none() -> None:
    world = World(full=2)
    world.governor.begin()
    assert (world.governor.active, world.heard) == (False, [])


@pytest.mark.parametrize(
    "look", [lambda governor: governor.admit(), lambda governor: governor.snapshot()], ids=["admit", "snapshot"]
)
def test_a_ramp_has_an_end_whatever_happens(world: World, look: Callable[[RecoveryGovernor], object]) -> None:
    world.fill()
    world.clock.move(150.0)
    look(world.governor)
    assert not world.governor.active
    assert world.heard[1:] == [RampEnded("db", "time", 150.0, 10, 1)]


def test_failures_cut_the_budget(world: World) -> None:
    permits = world.fill()
    world.clock.move(0.1)
    for permit in permits:
        permit.release(False)
    assert world.governor.snapshot().budget == 5
    assert world.heard[1:] == [RampCut("db", 10, 5)]  # once for all that began before


def test_at_its_least_the_budget_is_not_cut_any_more() -> None:
    world = World(start=2)
    world.governor.begin()
    world.clock.move(1.0)
    for _ in range(3):
        world.governor.outcome(False, 0.5)
    assert (world.governor.snapshot().budget, len(world.heard)) == (2, 1)


def test_slow_answers_to_live_traffic_cut_it_and_slow_batches_do_not() -> None:
    world = World(slow_seconds=0.5)
    world.governor.begin()
    drained = world.governor.admit("drain")
    permits = world.fill()
    world.clock.move(0.6)
    assert drained is not None
    drained.release(True)
    assert len(permits) >= 6
    for permit in permits[:6]:
        permit.release(True)
    assert world.heard[-1] == RampCut("db", 11, 5)


def test_outcomes_without_a_permit_count_as_well(world: World) -> None:
    world.clock.move(1.0)
    for _ in range(3):
        world.governor.outcome(False, 2.0)  # began before the ramp
    assert world.governor.snapshot().budget == 10
    for _ in range(3):
        world.governor.outcome(False, 0.5)
    assert world.governor.snapshot().budget == 5


def test_the_end_of_a_ramp_is_told_even_if_the_same_answer_cuts_it(world: World) -> None:
    world.clock.move(149.0)
    for _ in range(2):
        world.governor.outcome(False, 0.5)
    world.clock.move(1.0)
    world.governor.outcome(False, 0.5)
    assert isinstance(world.heard[-1], RampEnded)
    assert len(world.heard) == 2


# -- relapses


async def test_each_relapse_begins_smaller_and_takes_longer_up_to_a_bound(world: World) -> None:
    for _ in range(6):
        world.governor.end()
        world.governor.begin()
    started = [event for event in world.heard if isinstance(event, RampStarted)]
    assert [(event.budget, event.relapses) for event in started] == [
        (10, 0),
        (5, 1),
        (2, 2),
        (2, 3),
        (2, 4),
        (2, 5),
        (2, 6),
    ]
    seconds = [event.seconds for event in started]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= 4 * 150.0
    assert isinstance(world.heard[1], RampEnded)
    assert world.heard[1].reason == "failed"


async def test_a_failure_soon_after_a_ramp_is_a_relapse_and_a_later_one_is_not(world: World) -> None:
    await world.all_goes_well(30.0)
    world.clock.move(29.0)
    world.governor.end()
    world.governor.begin()
    started = world.heard[-1]
    assert isinstance(started, RampStarted)
    assert (started.budget, started.relapses) == (5, 1)
    assert started.seconds == pytest.approx(60 * (45 + 2 * 50) / 95)  # slower past half of where it fell
    await world.all_goes_well(200.0)
    assert not world.governor.active
    world.clock.move(200.0)
    world.governor.end()
    world.governor.begin()
    assert world.heard[-1] == RampStarted("db", 10, 100, 30.0, 0)


def test_an_outage_counts_once_however_many_trials_fail(world: World) -> None:
    for _ in range(5):
        world.governor.end()
    world.governor.begin()
    assert world.governor.snapshot().relapses == 1


def test_what_ends_without_a_ramp_is_no_relapse() -> None:
    world = World()
    world.governor.end()
    world.governor.begin()
    assert world.heard == [RampStarted("db", 10, 100, 30.0, 0)]


def test_it_follows_a_circuit() -> None:
    world = World()
    governor = world.governor
    breaker = CircuitBreaker("db", failure_threshold=1, recovery_timeout=5.0, success_threshold=1, clock=world.clock)
    breaker.subscribe(governor.on_transition)
    breaker.acquire().failure()
    assert not governor.active
    world.clock.move(5.0)
    breaker.acquire().failure()
    world.clock.move(5.0)
    breaker.acquire().success()
    assert governor.active
    breaker.acquire().failure()
    assert not governor.active
    breaker.force_closed()
    assert not governor.active  # the operator wants everything let in
    breaker.force_open()
    breaker.reset()
    assert governor.active
    assert governor.snapshot().relapses == 1


# -- permits


def test_a_permit_is_given_back_once(world: World) -> None:
    permits = world.fill()
    for _ in range(3):
        permits[0].release()
    assert world.governor.snapshot().in_use["live"] == 9
    assert world.governor.admit() is not None
    assert world.governor.admit() is None


def test_a_permit_of_an_old_ramp_changes_nothing(world: World) -> None:
    old = world.fill()
    world.governor.end()
    world.governor.begin()
    new = world.fill()
    assert len(new) == 5
    world.clock.move(0.1)
    for permit in old:
        permit.release(False)
    assert world.governor.snapshot().in_use["live"] == 5
    assert world.governor.snapshot().budget == 5


@pytest.mark.parametrize(
    ("error", "strain"),
    [
        (None, 0),
        (ConnectionError(), 10),
        (CallTimeout("db", 1.0), 10),
        (ClientError(), 0),
        (BulkheadFull("db"), 0),
        (CircuitBreakerOpen("db", 1.0, None), 0),
        (asyncio.CancelledError(), 0),
        (KeyboardInterrupt(), 0),
    ],
)
async def test_a_block_is_judged_by_how_it_ends(world: World, error: BaseException | None, strain: int) -> None:
    def block() -> None:
        permit = world.governor.admit()
        assert permit is not None
        with permit:
            world.clock.move(0.1)
            if error is not None:
                raise error

    async def async_block() -> None:
        permit = world.governor.admit()
        assert permit is not None
        async with permit:
            world.clock.move(0.1)
            if error is not None:
                raise error

    if error is None:
        block()
        await async_block()
    else:
        with pytest.raises(type(error)):
            block()
        with pytest.raises(type(error)):
            await async_block()
    assert world.governor._ramp is not None
    assert world.governor._ramp.strain == 2 * strain
    grown = error is None or isinstance(error, ClientError)
    assert (world.governor._ramp.budget > 10) is grown
    assert world.governor.snapshot().in_use["live"] == 0


def test_live_traffic_beyond_the_budget_gets_an_error_that_says_when(world: World) -> None:
    world.fill()
    world.clock.move(3.0)
    error = world.governor.throttled()
    assert isinstance(error, BulkheadFull)
    assert (error.name, error.kind, error.retry_after) == ("db", "live", 30.0)
    assert str(error) == "db is recovering and has no room for live work yet"
    twin = copy.copy(error)
    assert (str(twin), twin.retry_after) == (str(error), 30.0)
    world.governor.end()
    assert world.governor.throttled("drain").retry_after == 0.0


def test_what_makes_no_sense_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="kind"):
        world.governor.admit("dead")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cost"):
        world.governor.admit("drain", 0)


def test_revalidation_is_dropped_when_there_is_no_room(world: World) -> None:
    assert world.governor.may_revalidate()
    permits = world.fill()
    assert not world.governor.may_revalidate()
    assert world.governor.admit("revalidate") is None
    for permit in permits:
        permit.release()
    assert not world.governor.may_revalidate()  # live traffic had use for all of it a moment ago
    world.clock.move(2.0)
    assert world.governor.may_revalidate()


async def test_batches_grow_with_the_budget(world: World) -> None:
    assert world.governor.batch_size(2_000) == 200
    assert world.governor.batch_size(5) == 1
    await world.all_goes_well(10.0)
    assert world.governor.batch_size(2_000) == pytest.approx(800, abs=1)
    world.governor._ramp = None  # over, between the look at `active` and the lock
    assert world.governor.batch_size(2_000) == 2_000
    assert world.governor.may_revalidate()
    assert world.governor.admit() is FREE
    world.governor.outcome(True, 1.0)


# -- waiting


async def test_the_drain_waits_for_its_turn(world: World) -> None:
    permits = world.fill()
    waiting = asyncio.create_task(world.governor.enter("drain"))
    await world.clock.advance(1.0)
    assert not waiting.done()
    assert world.governor.snapshot().waiting["drain"] == 1
    permits[0].release()
    assert world.governor.admit() is None  # it was waited for
    await world.clock.advance(0)
    assert waiting.result().kind == "drain"
    assert world.clock.pending == 0
    waiting.result().release()


async def test_who_waits_first_is_served_first(world: World) -> None:
    permits, served = world.fill(), list[int]()

    async def wait(number: int) -> None:
        (await world.governor.enter("drain")).release()
        served.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await world.clock.advance(0)
    assert world.governor.admit("drain") is None  # not before those who wait
    for permit in permits:
        permit.release()
        await world.clock.advance(0)
    assert served == [0, 1, 2, 3]
    await asyncio.gather(*tasks)


async def test_one_end_may_make_room_for_several(world: World) -> None:
    big = world.governor.admit("live", cost=6)
    rest = world.fill()
    assert big is not None
    assert len(rest) == 4
    tasks = [asyncio.create_task(world.governor.enter("drain", timeout=0.5)) for _ in range(2)]
    await world.clock.advance(0)
    big.release()
    await world.clock.advance(0)
    assert all(task.done() for task in tasks)


async def test_live_traffic_may_wait_too_and_comes_first(world: World) -> None:
    world.clock.move(3.0)
    permits = world.fill("drain")
    assert len(permits) == 10
    drain = asyncio.create_task(world.governor.enter("drain"))
    await world.clock.advance(0)
    live = asyncio.create_task(world.governor.enter("live"))
    await world.clock.advance(0)
    permits[0].release()
    await world.clock.advance(0)
    assert (live.done(), drain.done()) == (True, False)
    for permit in permits[1:]:
        permit.release()
    await drain


async def test_waiting_is_bounded(world: World) -> None:
    world.fill()
    waiting = asyncio.create_task(world.governor.enter("drain", timeout=2.0))
    await world.clock.advance(1.9)
    assert not waiting.done()
    await world.clock.advance(0.1)
    with pytest.raises(RecoveryThrottled, match="drain"):
        waiting.result()
    assert world.governor.snapshot().waiting["drain"] == 0
    assert world.governor.snapshot().refused["drain"] == 1
    assert world.clock.pending == 0


async def test_waiting_ends_with_the_callers_deadline(world: World) -> None:
    world.fill()
    with deadline_scope(1.0, clock=world.clock):
        waiting = asyncio.create_task(world.governor.enter("drain", timeout=5.0))
    await world.clock.advance(1.0)
    with pytest.raises(RecoveryThrottled):
        waiting.result()
    with deadline_scope(0.0, clock=world.clock), pytest.raises(RecoveryThrottled):
        await world.governor.enter("drain")


async def test_only_so_many_may_wait_and_revalidation_never() -> None:
    world = World(max_waiting=2)
    world.governor.begin()
    world.fill()
    tasks = [asyncio.create_task(world.governor.enter("drain")) for _ in range(2)]
    await world.clock.advance(0)
    with pytest.raises(RecoveryThrottled):
        await world.governor.enter("drain")
    with pytest.raises(RecoveryThrottled, match="revalidate"):
        await world.governor.enter("revalidate")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert world.clock.pending == 0


async def test_who_is_cancelled_while_waiting_is_gone(world: World) -> None:
    permits = world.fill()
    first, second = (asyncio.create_task(world.governor.enter("drain")) for _ in range(2))
    await world.clock.advance(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    permits[0].release()
    await world.clock.advance(0)
    assert second.result().kind == "drain"
    assert world.governor.snapshot().in_use == {"live": 9, "drain": 1, "revalidate": 0}


async def test_who_is_cancelled_just_when_served_passes_it_on(world: World) -> None:
    permits = world.fill()
    first, second = (asyncio.create_task(world.governor.enter("drain")) for _ in range(2))
    await world.clock.advance(0)
    permits[0].release()
    first.cancel()
    await world.clock.advance(0)
    assert first.cancelled()
    assert second.result().kind == "drain"
    assert world.governor.snapshot().in_use == {"live": 9, "drain": 1, "revalidate": 0}


async def test_at_the_last_moment_room_is_looked_for_once_more(world: World) -> None:
    first = await world.governor.enter("drain", cost=2)  # all that is the drain's own
    permits = world.fill()
    waiting = asyncio.create_task(world.governor.enter("drain", timeout=5.0))
    await world.clock.advance(0)
    for permit in permits:
        permit.release()
    await world.clock.advance(4.0)
    assert not waiting.done()  # nothing has happened since live traffic has stopped asking
    await world.clock.advance(1.0)
    assert waiting.result().kind == "drain"
    first.release()


@pytest.mark.parametrize("end", ["full", "time", "failed"])
async def test_the_end_of_a_ramp_ends_all_waiting(world: World, end: str) -> None:
    world.fill()
    waiting = asyncio.create_task(world.governor.enter("drain", timeout=1_000.0))
    await world.clock.advance(0)
    if end == "full":
        await world.all_goes_well(31.0)
        assert (await waiting) is not FREE
        return
    if end == "time":
        await world.clock.advance(150.0)
        world.governor.snapshot()
    else:
        world.governor.end()
    assert await waiting is FREE
    assert world.clock.pending == 0


async def test_a_ramp_that_ends_just_before_the_wait_begins(world: World) -> None:
    class EndsThen(RecoveryGovernor):
        __slots__ = ()

        def _admit(self, *args: Any, **more: Any) -> RampPermit | None:
            permit = super()._admit(*args, **more)
            self.end()
            return permit

    governor = EndsThen("db", 2, start=2, clock=world.clock)
    governor.full = 3
    governor.begin()
    assert await governor.enter("drain", cost=1) is not FREE  # there was room
    governor.begin()
    governor._ramp.used[0] = 2  # type: ignore[union-attr]
    assert await governor.enter("drain") is FREE
    assert world.clock.pending == 0


async def test_room_may_be_made_by_another_thread(world: World) -> None:
    permits = world.fill()
    waiting = asyncio.create_task(world.governor.enter("drain"))
    await world.clock.advance(0)
    thread = threading.Thread(target=permits[0].release)
    thread.start()
    await asyncio.to_thread(thread.join, 5)
    assert (await waiting).kind == "drain"


async def test_who_waited_in_a_loop_that_was_closed_is_harmless(world: World) -> None:
    permits = world.fill()

    async def wait() -> None:
        kept.append(asyncio.ensure_future(world.governor.enter("drain")))
        await asyncio.sleep(0)

    def other_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(wait())
        loop.close()

    kept = list[asyncio.Future[RampPermit]]()
    thread = threading.Thread(target=other_loop)
    thread.start()
    await asyncio.to_thread(thread.join, 5)
    for permit in permits:
        permit.release()
    assert world.governor.snapshot().waiting["drain"] == 0
    kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    kept[0].get_coro().close()  # type: ignore[attr-defined]


# -- around other mechanisms


class Guarded:
    """What a policy does around a call."""

    def __init__(self, governor: RecoveryGovernor) -> None:
        self.governor = governor
        self.kinds: list[str] = []

    async def call(self, error: BaseException | None = None, told: bool | None = True) -> str:
        permit = self.governor.admit()
        if permit is None:
            raise self.governor.throttled()
        self.kinds.append(permit.kind)
        try:
            if error is not None:
                raise error
            return "done"
        finally:
            permit.release(told)


async def test_a_drainer_has_one_permit_for_itself_and_the_policy(world: World) -> None:
    policy = Guarded(world.governor)
    call = world.governor.governed(policy.call)
    assert await call() == "done"
    assert policy.kinds == ["drain"]
    snapshot = world.governor.snapshot()
    assert (snapshot.admitted["drain"], snapshot.admitted["live"]) == (1, 0)
    assert snapshot.in_use["drain"] == 0
    assert await policy.call() == "done"
    assert policy.kinds == ["drain", "live"]


async def test_the_policy_inside_judges_and_the_drainer_does_not_judge_again(world: World) -> None:
    policy = Guarded(world.governor)
    call = world.governor.governed(policy.call)
    assert world.governor._ramp is not None
    with pytest.raises(LookupError):
        await call(LookupError(), told=True)  # an answer, says the policy
    assert world.governor._ramp.strain == 0
    with pytest.raises(CallTimeout):
        await call(CallTimeout("db", 0.1), told=None)  # the caller's fault, says the policy
    assert world.governor._ramp.strain == 0
    with pytest.raises(ConnectionError):
        await call(ConnectionError(), told=False)
    assert world.governor._ramp.strain == 10


async def test_without_a_policy_inside_the_drainer_judges(world: World) -> None:
    async def transaction(error: BaseException | None = None) -> int:
        if error is not None:
            raise error
        return 1

    call = world.governor.governed(transaction)
    assert await call() == 1
    with pytest.raises(ConnectionError):
        await call(ConnectionError())
    assert world.governor._ramp is not None
    assert world.governor._ramp.strain == 10
    assert world.governor.snapshot().in_use["drain"] == 0


async def test_work_waits_its_turn_and_gives_up(world: World) -> None:
    world.fill()
    call = world.governor.governed(Guarded(world.governor).call, timeout=2.0)
    task = asyncio.create_task(call())
    await world.clock.advance(2.0)
    with pytest.raises(RecoveryThrottled):
        task.result()


async def test_background_work_is_of_the_kind_it_was_started_as(world: World) -> None:
    policy = Guarded(world.governor)
    with working("revalidate"):
        task = asyncio.create_task(policy.call())
        assert world.governor.throttled().kind == "revalidate"
    await task
    assert policy.kinds == ["revalidate"]
    await policy.call()
    assert policy.kinds == ["revalidate", "live"]


async def test_a_governor_of_another_dependency_knows_the_kind_but_not_the_permit(world: World) -> None:
    other = World()
    other.governor.begin()
    policy = Guarded(other.governor)
    await world.governor.governed(policy.call)()
    assert policy.kinds == ["drain"]
    assert other.governor.snapshot().admitted["drain"] == 1


async def test_a_task_that_outlives_the_permit_of_its_parent_needs_its_own(world: World) -> None:
    policy = Guarded(world.governor)
    go = asyncio.Event()
    started = list[asyncio.Task[str]]()

    async def later() -> str:
        await go.wait()
        return await policy.call()

    async def parent() -> None:
        started.append(asyncio.create_task(later()))

    await world.governor.governed(parent)()
    go.set()
    await started[0]
    assert world.governor.snapshot().admitted["drain"] == 2


async def test_a_ramp_that_begins_in_the_middle_of_work_asks_it_as_its_kind() -> None:
    world = World()
    policy = Guarded(world.governor)

    async def middle() -> None:
        world.governor.begin()
        await policy.call()

    await world.governor.governed(middle)()
    assert policy.kinds == ["drain"]


# -- listeners and threads


def test_a_listener_may_raise_or_call_back() -> None:
    world = World()

    def calls_back(event: object) -> None:
        if isinstance(event, RampEnded) and event.reason == "failed":
            world.governor.begin()
        raise LookupError

    world.events.subscribe(calls_back)
    world.governor.begin()
    world.governor.end()
    assert world.governor.active
    assert world.events.listener_errors == 3


def test_without_listeners_nothing_is_made() -> None:
    governor = RecoveryGovernor("db", 10, clock=FakeClock())
    governor.begin()
    governor.end()
    assert not governor.active


def test_eight_threads_never_exceed_the_budget_and_leave_nothing_behind(world: World) -> None:
    governor, over = world.governor, list[int]()
    start = threading.Barrier(8)

    def hammer(seed: int) -> None:
        random, held = Random(seed), list[RampPermit]()
        start.wait(5)
        for number in range(400):
            if seed == 0 and number % 100 == 99:
                governor.end()
                governor.begin()
            permit = governor.admit(random.choice(KINDS), random.randint(1, 3))
            if permit is not None:
                held.append(permit)
            snapshot = governor.snapshot()
            if snapshot.active and sum(snapshot.in_use.values()) > snapshot.budget:
                over.append(number)
            while held and random.random() < 0.6:
                held.pop().release(random.choice((True, None)))
        for permit in held:
            permit.release()

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert over == []
    assert set(governor.snapshot().in_use.values()) == {0}


# -- a simulation


class Server:
    """Falls over when it has more to do at once than it can bear, which is little while its cache is cold.

    Each answer warms it a bit; near its limit it is slow. After a crash it is back in five seconds, cold.
    """

    def __init__(self, clock: FakeClock, random: Random, answers_to_warm: int, cold: int) -> None:
        self.clock, self.random = clock, random
        self.answers_to_warm, self.cold, self.hot = answers_to_warm, cold, 80
        self.up, self.load, self.warm, self.crashes = True, 0, 1.0, 0

    @property
    def bears(self) -> float:
        return self.cold + (self.hot - self.cold) * self.warm

    def crash(self) -> None:
        self.crashes += 1
        self.up, self.load, self.warm = False, 0, 0.0
        self.clock.call_later(5.0, setattr, self, "up", True)

    def ask(self, slower: float, done: Callable[[bool], object]) -> None:
        if not self.up:
            self.clock.call_later(0.001, done, False)
            return
        self.load += 1
        if self.load > self.bears:
            self.crash()
            self.clock.call_later(0.05, done, False)
            return
        seconds = (0.25 - 0.22 * self.warm) * slower * (1 + 3 * max(0.0, self.load / self.bears - 0.7))
        self.clock.call_later(seconds * self.random.uniform(0.8, 1.2), self._answer, self.crashes, done)

    def _answer(self, life: int, done: Callable[[bool], object]) -> None:
        if life != self.crashes:
            done(False)
            return
        self.load -= 1
        self.warm = min(1.0, self.warm + 1 / self.answers_to_warm)
        done(True)


class Service:
    """Live traffic, a queue with four drainers and a cache that revalidates, all behind one circuit."""

    def __init__(self, *, governed: bool, seed: int, answers_to_warm: int = 600, cold: int = 6, **more: Any) -> None:
        self.random = Random(seed)
        self.clock = FakeClock(start=0.0)
        self.server = Server(self.clock, self.random, answers_to_warm, cold)
        self.breaker = CircuitBreaker(
            "db", failure_threshold=5, recovery_timeout=5.0, success_threshold=1, clock=self.clock
        )
        self.events, self.heard = Events(), list[object]()
        self.events.subscribe(self.heard.append)
        self.governor = RecoveryGovernor("db", 64, clock=self.clock, events=self.events, **more)
        if governed:
            self.breaker.subscribe(self.governor.on_transition)
        self.queue = 3_000
        self.answered = self.fell_back = 0
        self._live()
        self._revalidate()
        for _ in range(4):
            self._drain()

    def _call(self, kind: Any, done: Callable[[bool], object], slower: float = 1.0) -> None:
        permit = self.governor.admit(kind)
        if permit is None:
            done(False)
            return
        try:
            trial = self.breaker.acquire()
        except CircuitBreakerOpen:
            permit.release()
            done(False)
            return

        def ended(ok: bool) -> None:
            permit.release(ok)
            (trial.success if ok else trial.failure)()
            done(ok)

        self.server.ask(slower, ended)

    def _live(self) -> None:
        def done(ok: bool) -> None:
            self.answered += ok
            self.fell_back += not ok

        self.clock.call_later(self.random.expovariate(150.0), self._live)
        self._call("live", done)

    def _drain(self) -> None:
        size = min(self.queue, self.governor.batch_size(50))
        if size <= 0:
            return

        def done(ok: bool) -> None:
            self.queue -= size if ok else 0
            self.clock.call_later(0.0 if ok else 0.1, self._drain)

        self._call("drain", done, slower=1 + size / 25)

    def _revalidate(self) -> None:
        self.clock.call_later(0.02, self._revalidate)
        if self.governor.may_revalidate():
            self._call("revalidate", lambda ok: None)

    def outage(self, seconds: float) -> None:
        """The server crashes once, and what follows."""
        self.clock.move(0.5)
        self.answered = self.fell_back = 0
        self.server.crash()
        self.clock.move(seconds)


def test_without_a_governor_the_server_is_knocked_over_again_and_again() -> None:
    service = Service(governed=False, seed=1)
    service.outage(60.0)
    assert service.server.crashes >= 10  # each time it comes back
    assert service.queue > 0
    assert service.answered < 0.1 * service.fell_back


@pytest.mark.parametrize("seed", range(2))
def test_with_a_governor_it_recovers_and_the_queue_is_drained(seed: int) -> None:
    service = Service(governed=True, seed=seed)
    service.outage(40.0)
    assert service.server.crashes <= 2  # the outage, and at most once more: nobody knows yet what it bears
    assert service.queue <= 0
    service.answered = service.fell_back = 0
    service.clock.move(20.0)
    assert service.server.warm == 1.0
    assert service.answered > 2_500
    assert service.fell_back == 0


def test_told_what_is_slow_it_recovers_at_the_first_attempt() -> None:
    service = Service(governed=True, seed=1, slow_seconds=0.4)
    service.outage(40.0)
    assert service.server.crashes == 1
    assert service.queue <= 0


def test_it_learns_what_a_server_bears_that_warms_slowly() -> None:
    service = Service(governed=True, seed=1, answers_to_warm=3_000, cold=3)
    service.outage(110.0)
    assert service.server.crashes <= 4
    started = [event for event in service.heard if isinstance(event, RampStarted)]
    assert [event.budget for event in started] == sorted((event.budget for event in started), reverse=True)
    assert [event.seconds for event in started] == sorted(event.seconds for event in started)
    assert service.server.warm > 0.9
    assert service.queue <= 0
