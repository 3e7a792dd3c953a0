"""Recovery attempts: seldom, bounded, and never two at once."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import CircuitBreaker, FakeClock, current_deadline, deadline_scope
from resilience.events import Events
from resilience.recovery import (
    MAX_WAIT,
    Recovered,
    Recovery,
    RecoveryAttempted,
    RecoveryExhausted,
    RecoveryMachine,
    RecoverySchedule,
)


class Panic(BaseException):
    """No Exception."""


class World:
    """A dependency that comes back or does not, and its recovery."""

    def __init__(self, *, jitter: float = 0.0, relapse: float = 120.0) -> None:
        self.clock = FakeClock()
        self.mood: str | BaseException = ConnectionError("10.0.0.1")
        self.made: list[float] = []
        self.running = self.most = 0
        self.deadline: object = None
        self.let_go = asyncio.Event()
        self.events = Events()
        self.heard: list[object] = []
        self.events.subscribe(self.heard.append)
        self.recovery = Recovery(
            "db",
            self.attempt,
            jitter=jitter,
            relapse=relapse,
            random=Random(1),
            clock=self.clock,
            events=self.events,
        )

    async def attempt(self) -> object:
        self.made.append(self.clock.monotonic() - 1_000.0)
        self.deadline = current_deadline()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if isinstance(self.mood, BaseException):
                raise self.mood
            if self.mood in ("frozen", "stuck"):
                await asyncio.Event().wait()
            return {"up": None, "unsure": False}[self.mood]
        finally:
            while self.mood == "stuck" and not self.let_go.is_set():
                try:
                    await self.let_go.wait()
                except asyncio.CancelledError:
                    continue
            self.running -= 1


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    world = World()
    task = asyncio.create_task(world.recovery.run())
    await world.clock.advance(0)
    yield world
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.pending == 0
    assert world.most <= 1


# -- the schedule


def test_the_usual_schedule() -> None:
    schedule = RecoverySchedule(jitter=0.0)
    assert [schedule.next_attempt(n) for n in range(6)] == [30.0, 60.0, 120.0, 240.0, 480.0, None]
    assert RecoverySchedule(attempts=1).next_attempt(1) is None
    assert MAX_WAIT == 24 * 60 * 60


@given(
    base=st.floats(0.001, 1e6),
    factor=st.floats(1.0, 1e6),
    jitter=st.floats(0.0, 0.99),
    n=st.integers(0, 2_000),
    seed=st.integers(),
)
def test_a_wait_is_within_its_jitter_and_never_longer_than_a_day(
    base: float, factor: float, jitter: float, n: int, seed: int
) -> None:
    wait = RecoverySchedule(base, factor=factor, attempts=2_000, jitter=jitter).next_attempt(n, Random(seed))
    if n == 2_000:
        assert wait is None
        return
    assert wait is not None
    assert 0 < wait <= MAX_WAIT
    try:
        nominal = base * factor**n
    except OverflowError:
        nominal = MAX_WAIT
    low, high = (min(MAX_WAIT, nominal * share) for share in (1 - jitter, 1 + jitter))
    assert low * 0.999 <= wait <= high * 1.001


@pytest.mark.parametrize("field", ["base", "factor", "attempts", "jitter", "limit", "relapse"])
def test_a_bad_setting_fails_by_name(field: str) -> None:
    async def attempt() -> None: ...

    bad = {"base": 0.0, "factor": 0.5, "attempts": 0, "jitter": 1.0, "limit": 0.0, "relapse": -1.0}[field]
    with pytest.raises(ValueError, match=field):
        Recovery("db", attempt, **{field: bad})  # type: ignore[arg-type]


# -- attempts


async def test_nothing_is_attempted_while_all_is_well(world: World) -> None:
    await world.clock.advance(10_000)
    assert (world.made, world.clock.pending, world.recovery.phase) == ([], 0, "idle")
    assert world.recovery.snapshot() == ("db", "idle", 0, None, 0.0, None)


async def test_five_attempts_ever_later_and_then_an_alert(world: World) -> None:
    world.recovery.begin()
    await world.clock.advance(100_000)
    assert world.made == [30.0, 90.0, 210.0, 450.0, 930.0]
    assert world.heard == [
        RecoveryAttempted("db", 1, "failure", 60.0),
        RecoveryAttempted("db", 2, "failure", 120.0),
        RecoveryAttempted("db", 3, "failure", 240.0),
        RecoveryAttempted("db", 4, "failure", 480.0),
        RecoveryAttempted("db", 5, "failure", None),
        RecoveryExhausted("db", 5, 930.0),
    ]
    assert world.recovery.snapshot() == ("db", "exhausted", 5, None, 100_000.0, "ConnectionError")


async def test_beginning_again_and_again_changes_nothing(world: World) -> None:
    for _ in range(40):
        world.recovery.begin()
        await world.clock.advance(1.0)
    assert world.made == [30.0]
    await world.clock.advance(100_000)
    world.recovery.begin()  # exhausted, and quiet
    await world.clock.advance(100_000)
    assert len(world.made) == 5


async def test_an_attempt_that_succeeds_ends_it(world: World) -> None:
    world.recovery.begin()
    await world.clock.advance(40.0)
    assert world.recovery.snapshot() == ("db", "waiting", 1, 50.0, 40.0, "ConnectionError")
    world.mood = "up"
    await world.clock.advance(10_000)
    assert world.made == [30.0, 90.0]
    assert world.heard[1:] == [RecoveryAttempted("db", 2, "success", None), Recovered("db", 2, 90.0)]


async def test_an_attempt_that_cannot_tell_does_not_end_it(world: World) -> None:
    world.mood = "unsure"
    world.recovery.begin()
    await world.clock.advance(100.0)
    assert world.heard[0] == RecoveryAttempted("db", 1, "failure", 60.0)
    assert world.recovery.snapshot().last_error is None
    world.recovery.recovered()
    assert world.heard[-1] == Recovered("db", 2, 100.0)


async def test_recovered_by_other_means_stops_and_resets(world: World) -> None:
    world.recovery.begin()
    await world.clock.advance(100.0)
    world.recovery.recovered()
    world.recovery.recovered()
    await world.clock.advance(10_000)
    assert world.heard[2:] == [Recovered("db", 2, 100.0)]
    world.recovery.begin()
    await world.clock.advance(30.0)
    assert world.heard[-1] == RecoveryAttempted("db", 1, "failure", 60.0)


async def test_an_exhausted_recovery_can_be_ended_and_begun_anew(world: World) -> None:
    world.recovery.begin()
    await world.clock.advance(10_000)
    world.recovery.recovered()
    world.recovery.begin()
    await world.clock.advance(10_000)
    assert len(world.made) == 10


async def test_retry_by_hand(world: World) -> None:
    assert world.recovery.retry()  # nothing was known to be wrong
    await world.clock.advance(0)
    assert world.heard[-1] == RecoveryAttempted("db", 1, "failure", 60.0)
    assert world.recovery.retry()  # now instead of in a minute; the row goes on
    await world.clock.advance(0)
    assert world.heard[-1] == RecoveryAttempted("db", 2, "failure", 120.0)
    await world.clock.advance(10_000)
    assert world.recovery.phase == "exhausted"
    assert world.recovery.retry()
    world.mood = "frozen"
    await world.clock.advance(5.0)
    assert not world.recovery.retry()
    await world.clock.advance(5.0)
    assert world.heard[-1] == RecoveryAttempted("db", 1, "timeout", 60.0)


async def test_a_success_that_did_not_last_does_not_start_the_count_anew(world: World) -> None:
    world.mood = "up"
    for _ in range(5):
        world.recovery.begin()
        await world.clock.advance(500.0)
        assert world.recovery.phase == "idle"
    assert [event.attempt for event in world.heard if isinstance(event, RecoveryAttempted)] == [1, 1, 1, 1, 1]
    world.heard.clear()
    world.recovery.recovered()
    for wait in (30, 60, 120, 240, 480):
        world.recovery.begin()
        await world.clock.advance(wait + 60.0)
    world.recovery.begin()
    assert [event.attempt for event in world.heard if isinstance(event, RecoveryAttempted)] == [1, 2, 3, 4, 5]
    assert world.heard[-1] == RecoveryExhausted("db", 5, 930.0 + 5 * 60.0)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), Panic(), GeneratorExit(), RecursionError()])
async def test_whatever_an_attempt_raises_is_a_failed_attempt(world: World, error: BaseException) -> None:
    world.mood = error
    world.recovery.begin()
    await world.clock.advance(30.0)
    assert world.heard == [RecoveryAttempted("db", 1, "failure", 60.0)]
    assert world.recovery.snapshot().last_error == type(error).__name__


async def test_a_frozen_attempt_ends_at_its_limit(world: World) -> None:
    world.mood = "frozen"
    world.recovery.begin()
    await world.clock.advance(40.0)
    assert world.heard == [RecoveryAttempted("db", 1, "timeout", 60.0)]
    assert world.running == 0


async def test_an_attempt_is_not_begun_while_the_one_before_it_cleans_up(world: World) -> None:
    world.mood = "stuck"
    world.recovery.begin()
    await world.clock.advance(10_000)
    assert (world.made, world.recovery.phase) == ([30.0], "exhausted")
    outcomes = [event.outcome for event in world.heard if isinstance(event, RecoveryAttempted)]
    assert outcomes == ["timeout", "rejected", "rejected", "rejected", "rejected"]
    world.let_go.set()
    await world.clock.advance(0)


async def test_an_attempt_overtaken_by_recovery_counts_for_nothing(world: World) -> None:
    world.mood = "frozen"
    world.recovery.begin()
    await world.clock.advance(35.0)
    world.recovery.recovered()
    world.recovery.begin()
    assert world.recovery.snapshot().next_in == 30.0
    await world.clock.advance(29.0)
    assert world.heard == [Recovered("db", 1, 35.0)]
    await world.clock.advance(1.0)
    assert world.made == [30.0, 65.0]


async def test_an_attempt_waits_for_one_that_was_overtaken(world: World) -> None:
    world.mood = "frozen"
    world.recovery.begin()
    await world.clock.advance(35.0)
    world.recovery.recovered()
    world.recovery.retry()
    await world.clock.advance(4.0)
    assert (world.made, world.running) == ([30.0], 1)


async def test_instances_do_not_attempt_in_step() -> None:
    firsts = set()
    for seed in range(20):
        schedule = RecoverySchedule()
        wait = schedule.next_attempt(0, Random(seed))
        assert wait is not None
        assert 27.0 <= wait <= 33.0
        firsts.add(wait)
    assert len(firsts) == 20


async def test_a_listener_that_raises_changes_nothing(world: World) -> None:
    def broken(event: object) -> None:
        raise LookupError

    world.events.subscribe(broken)
    world.recovery.begin()
    await world.clock.advance(10_000)
    assert (len(world.made), world.events.listener_errors) == (5, 6)


async def test_a_listener_may_call_back(world: World) -> None:
    def again(event: object) -> None:
        if isinstance(event, RecoveryExhausted) and len(world.made) < 10:
            world.recovery.retry()

    world.events.subscribe(again)
    world.recovery.begin()
    await world.clock.advance(10_000)
    assert len(world.made) == 10


async def test_without_listeners_it_works_the_same() -> None:
    clock, made = FakeClock(), list[int]()

    async def attempt() -> None:
        made.append(1)

    recovery = Recovery("db", attempt, clock=clock)
    task = asyncio.create_task(recovery.run())
    recovery.begin()
    await clock.advance(40.0)
    assert made == [1]
    task.cancel()
    await asyncio.wait([task])


async def test_a_jump_of_the_wall_clock_changes_nothing(world: World) -> None:
    world.recovery.begin()
    await world.clock.advance(10.0)
    world.clock.jump_wall(3_600.0)
    await world.clock.advance(10.0)
    world.clock.jump_wall(-7_200.0)
    await world.clock.advance(15.0)
    assert world.made == [30.0]


# -- circuits


async def test_it_follows_a_circuit(world: World) -> None:
    breaker = CircuitBreaker("db", failure_threshold=1, recovery_timeout=60.0, success_threshold=1, clock=world.clock)
    breaker.subscribe(world.recovery.on_transition)
    breaker.acquire().failure()
    await world.clock.advance(60.0)
    assert world.made == [30.0]
    breaker.acquire().failure()  # the trial: half-open, open
    await world.clock.advance(60.0)
    assert world.made == [30.0, 90.0]
    breaker.acquire().success()
    assert world.recovery.phase == "idle"
    breaker.force_open()
    assert world.recovery.phase == "idle"


# -- running and stopping


async def test_it_runs_once_and_again_after_it_was_stopped() -> None:
    world = World()
    world.recovery.begin()
    for _ in range(3):
        task = asyncio.create_task(world.recovery.run())
        await world.clock.advance(10.0)
        with pytest.raises(RuntimeError, match="runs already"):
            await world.recovery.run()
        task.cancel()
        await asyncio.wait([task])
    assert world.made == [30.0]


async def test_an_attempt_cut_off_by_stopping_does_not_count() -> None:
    world = World()
    world.mood = "frozen"
    world.recovery.begin()
    task = asyncio.create_task(world.recovery.run())
    await world.clock.advance(31.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.clock.advance(0)
    assert (world.running, world.clock.pending, world.recovery.phase) == (0, 0, "waiting")
    assert world.recovery.snapshot().attempts == 0
    task = asyncio.create_task(world.recovery.run())
    await world.clock.advance(11.0)
    assert world.heard == [RecoveryAttempted("db", 1, "timeout", 60.0)]
    task.cancel()
    await asyncio.wait([task])


async def test_a_stopped_attempt_that_was_overtaken_changes_nothing() -> None:
    world = World()
    world.mood = "frozen"
    world.recovery.begin()
    task = asyncio.create_task(world.recovery.run())
    await world.clock.advance(31.0)
    world.recovery.recovered()
    task.cancel()
    await asyncio.wait([task])
    assert world.recovery.phase == "idle"


@pytest.mark.parametrize("turns", range(10))
async def test_it_can_be_stopped_at_any_moment(turns: int) -> None:
    world = World()
    world.mood = "frozen"
    world.recovery.retry()
    task = asyncio.create_task(world.recovery.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.clock.advance(0)
    assert (world.clock.pending, world.running, world.recovery.phase) == (0, 0, "waiting")


async def test_the_deadline_of_whoever_runs_it_is_not_that_of_the_attempts() -> None:
    world = World()
    world.recovery.begin()
    with deadline_scope(1.0, clock=world.clock):
        task = asyncio.create_task(world.recovery.run())
    await world.clock.advance(30.0)
    assert world.made
    assert world.deadline is None
    task.cancel()
    await asyncio.wait([task])


async def test_it_may_be_told_from_any_thread(world: World) -> None:
    def tell() -> None:
        for _ in range(200):
            world.recovery.begin()
            world.recovery.recovered()
        world.recovery.begin()

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    await world.clock.advance(30.0)
    assert (world.made, world.recovery.phase) == ([30.0], "waiting")


def test_a_loop_that_was_closed_under_it_is_forgotten() -> None:
    world = World()
    world.recovery._loop = asyncio.new_event_loop()
    world.recovery._loop.close()
    world.recovery.retry()

    async def again() -> None:
        task = asyncio.create_task(world.recovery.run())
        await world.clock.advance(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(again())
    assert world.made == [0.0]


# -- every short story


class Story:
    """The machine, and what must hold whatever happens."""

    def __init__(self) -> None:
        self.machine = RecoveryMachine(RecoverySchedule(2.0, factor=2.0, attempts=2, jitter=0.0), relapse=3.0)
        self.random = Random(0)
        self.now = 0.0
        self.tickets: tuple[int, ...] = ()  # begun and not ended, newest last: old ones may end late
        self.news = 0  # failures noticed since the last recovery, by hand included

    def copy(self) -> "Story":
        new = Story()
        new.now, new.tickets = self.now, self.tickets
        for slot in RecoveryMachine.__slots__:
            setattr(new.machine, slot, getattr(self.machine, slot))
        return new

    def key(self) -> tuple[object, ...]:
        machine = self.machine
        behind = tuple(machine.generation - ticket for ticket in self.tickets)
        ended = min(self.now - machine.ended, 4.0)
        return machine.phase, machine.attempts, min(machine.due - self.now, 0) or machine.due - self.now, behind, ended

    def check(self) -> None:
        machine = self.machine
        assert 0 <= machine.attempts <= 2
        current = [ticket for ticket in self.tickets if ticket == machine.generation]
        assert len(current) == (machine.phase == "attempting")  # exactly one result is waited for
        if machine.phase == "waiting":
            assert machine.attempts < 2
            assert machine.due - self.now <= 4.0
        if machine.phase == "exhausted":
            assert machine.attempts == 2
        assert (machine.next_in(self.now) is None) is (machine.phase != "waiting")


def tick(story: Story) -> None:
    story.now += 2.0


def begin(story: Story) -> None:
    before = story.machine.phase
    exhausted = story.machine.begin(story.now, story.random)
    assert story.machine.phase == ("exhausted" if exhausted else "waiting" if before == "idle" else before)


def retry(story: Story) -> None:
    before = story.machine.phase
    assert story.machine.retry(story.now) is (before != "attempting")
    assert story.machine.next_in(story.now) == (None if before == "attempting" else 0.0)


def recovered(story: Story) -> None:
    before = story.machine.phase
    assert story.machine.recovered() is (before != "idle")
    assert story.machine.phase == "idle"


def start(story: Story) -> None:
    due = story.machine.next_in(story.now) == 0.0
    ticket = story.machine.start(story.now)
    assert (ticket is not None) is due
    if ticket is not None:
        story.tickets += (ticket,)


def end(position: int, how: str) -> Callable[[Story], None]:
    def ends(story: Story) -> None:
        if len(story.tickets) <= position:
            return
        machine = story.machine
        ticket = story.tickets[position]
        story.tickets = story.tickets[:position] + story.tickets[position + 1 :]
        counts = ticket == machine.generation
        before = (machine.phase, machine.attempts, machine.due)
        if how == "success":
            assert machine.succeeded(ticket, story.now) is counts
        elif how == "failure":
            assert machine.failed(ticket, story.now, story.random)[0] is counts
        else:
            machine.aborted(ticket)
        if counts:
            after = {"success": ["idle"], "failure": ["waiting", "exhausted"], "aborted": ["waiting"]}[how]
            assert machine.phase in after
        else:
            assert (machine.phase, machine.attempts, machine.due) == before

    return ends


STEPS: list[Callable[[Story], None]] = [tick, begin, retry, recovered, start]
STEPS += [end(position, how) for position in (0, 1) for how in ("success", "failure", "aborted")]


def test_every_short_story_keeps_the_rules() -> None:
    """All sequences of eight events; those that have led to the same state are continued once."""
    stories = {Story().key(): Story()}
    for _ in range(8):
        following: dict[tuple[object, ...], Story] = {}
        for story in stories.values():
            for act in STEPS:
                new = story.copy()
                act(new)
                new.check()
                following[new.key()] = new
        stories = following
    assert len(stories) > 100


@given(st.lists(st.sampled_from(["fail", "succeed", "wait"]), max_size=30))
def test_no_row_is_longer_than_its_attempts(outcomes: list[str]) -> None:
    machine, random, now, row = RecoveryMachine(RecoverySchedule(), relapse=120.0), Random(0), 0.0, 0
    machine.begin(now, random)
    for outcome in outcomes:
        now += 500.0 if outcome == "wait" else 100.0
        if machine.phase == "idle":
            if now - machine.ended > 120.0:
                row = 0
            machine.begin(now, random)
        ticket = machine.start(now)
        if ticket is None:
            continue
        row += 1
        assert machine.attempts == row <= 5
        if outcome == "succeed":
            machine.succeeded(ticket, now)
        else:
            machine.failed(ticket, now, random)


def test_an_attempt_that_is_no_coroutine_function_has_failed() -> None:
    async def main() -> None:
        def attempt() -> Awaitable[object]:
            raise LookupError

        recovery = Recovery("db", attempt, clock=FakeClock())
        task = asyncio.create_task(recovery.run())
        recovery.retry()
        for _ in range(20):
            await asyncio.sleep(0)
        assert recovery.snapshot().last_error == "LookupError"
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
