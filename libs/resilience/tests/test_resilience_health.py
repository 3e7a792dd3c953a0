"""Health of the dependencies, found out by asking them."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import FakeClock, current_deadline, deadline_scope
from resilience.events import Events
from resilience.health import (
    CHECK_EVERY,
    HEALTHS,
    MAX_ABANDONED,
    Health,
    HealthChanged,
    HealthMonitor,
    Streaks,
    Thresholds,
    judge,
    step,
)

HEALTHY, DEGRADED, FAILED = HEALTHS


class Panic(BaseException):
    """What an extension raises when its native code panics: no Exception."""


class Dependency:
    """Answers after `delay` seconds, as its mood has it."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.mood: str | BaseException = "up"
        self.delay = 0.0
        self.lag: Any = 0.0
        self.asked: list[float] = []
        self.running = self.most = 0
        self.deadline: object = None
        self.let_go = asyncio.Event()

    async def __call__(self) -> Any:
        self.asked.append(self.clock.monotonic())
        self.deadline = current_deadline()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.delay:
                await self.clock.sleep(self.delay)
            if isinstance(self.mood, BaseException):
                raise self.mood
            if self.mood != "up":
                await asyncio.Event().wait()
        finally:
            if self.mood == "stuck":
                await self._cleans_up()
            self.running -= 1
        return self.lag

    async def _cleans_up(self) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue


class World:
    """A monitor that runs, on a fake clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.events = Events()
        self.heard: list[object] = []
        self.events.subscribe(self.heard.append)
        self.monitor = HealthMonitor(jitter=0.0, random=Random(1), clock=self.clock, events=self.events)

    def add(self, name: str, thresholds: Thresholds = Thresholds.DATABASE, **more: Any) -> Dependency:
        dependency = Dependency(self.clock)
        self.monitor.add(name, dependency, thresholds, **more)
        return dependency

    def health(self, name: str) -> Health | None:
        return self.monitor.report(name).health


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    world = World()
    task = asyncio.create_task(world.monitor.run())
    await world.clock.advance(0)
    yield world
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.pending == 0
    assert len(asyncio.all_tasks()) == 1


# -- the rules


@pytest.mark.parametrize(
    ("thresholds", "seconds"),
    [(Thresholds.REDIS, 0.1), (Thresholds.DATABASE, 0.5), (Thresholds.STREAM, 30.0), (Thresholds.API, 1.0)],
)
def test_the_usual_thresholds(thresholds: Thresholds, seconds: float) -> None:
    assert judge(True, seconds, thresholds) is HEALTHY
    assert judge(True, math.nextafter(seconds, math.inf), thresholds) is DEGRADED
    assert judge(False, 0.0, thresholds) is FAILED
    assert CHECK_EVERY == 10.0


@given(shown=st.lists(st.sampled_from(HEALTHS)), fail=st.integers(1, 4), heal=st.integers(1, 4))
def test_health_changes_only_after_so_many_checks_in_a_row(shown: list[Health], fail: int, heal: int) -> None:
    thresholds = Thresholds(1.0, failures_to_fail=fail, successes_to_heal=heal)
    state, rank = Streaks(), HEALTHS.index
    for number, health in enumerate(shown, 1):
        old, state = state.health, step(state, health, thresholds)
        new = state.health
        assert new is not None
        if old is None:
            assert new is health
        elif rank(new) > rank(old):
            assert all(rank(one) >= rank(new) for one in shown[max(0, number - fail) : number])
        elif rank(new) < rank(old):
            assert number > heal
            assert all(rank(one) <= rank(new) for one in shown[number - heal : number])
        if number > max(fail, heal) and len(set(shown[number - max(fail, heal) : number])) == 1:
            assert new is health  # what is shown long enough is believed


@given(shown=st.lists(st.sampled_from(HEALTHS), min_size=1))
def test_without_hysteresis_the_latest_check_is_believed(shown: list[Health]) -> None:
    state = Streaks()
    for health in shown:
        state = step(state, health, Thresholds.API)
        assert state.health is health


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Thresholds(0.0), "slow"),
        (lambda: Thresholds(math.inf), "slow"),
        (lambda: Thresholds(1.0, limit=0.0), "limit"),
        (lambda: Thresholds(1.0, failures_to_fail=0), "failures_to_fail"),
        (lambda: Thresholds(1.0, successes_to_heal=0), "successes_to_heal"),
        (lambda: HealthMonitor(interval=0.0), "interval"),
        (lambda: HealthMonitor(jitter=1.0), "jitter"),
        (lambda: HealthMonitor(history=-1), "history"),
        (lambda: HealthMonitor().add("db", asyncio.Event().wait, interval=0.0), "interval"),
    ],
)
def test_a_bad_setting_fails_by_name(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()


# -- checks


async def test_nothing_is_known_before_the_first_check() -> None:
    world = World()
    world.add("db")
    world.clock.move(3.0)
    report = world.monitor.report("db")
    assert (report.health, report.latency, report.checked_at, report.state_seconds) == (None, None, None, 3.0)
    assert world.monitor.as_json()["db"]["status"] == "unknown"
    assert world.monitor.worst is HEALTHY


async def test_a_slow_dependency_is_degraded_and_a_silent_one_has_failed(world: World) -> None:
    db = world.add("db")
    await world.clock.advance(0)
    assert world.health("db") is HEALTHY
    db.delay = 0.6
    await world.clock.advance(11.0)
    assert world.health("db") is DEGRADED
    db.mood = "frozen"
    await world.clock.advance(16.0)
    assert world.health("db") is FAILED
    assert world.monitor.report("db").last_error == "CallTimeout"
    db.mood, db.delay = "up", 0.0
    await world.clock.advance(10.0)
    assert world.heard == [
        HealthChanged("db", None, HEALTHY, 0.0),
        HealthChanged("db", HEALTHY, DEGRADED, pytest.approx(0.6)),  # type: ignore[arg-type]
        HealthChanged("db", DEGRADED, FAILED, 5.0),
        HealthChanged("db", FAILED, HEALTHY, 0.0),
    ]


async def test_a_stream_is_judged_by_its_lag(world: World) -> None:
    stream = world.add("stream", Thresholds.STREAM, lag=True)
    stream.delay = 2.0  # slow to tell, but what it tells is good
    stream.lag = 30.0
    await world.clock.advance(2.0)
    assert world.health("stream") is HEALTHY
    stream.lag = 31
    await world.clock.advance(10.0)
    report = world.monitor.report("stream")
    assert (report.health, report.lag, report.latency) == (DEGRADED, 31.0, 2.0)
    stream.lag = -5.0  # two machines' clocks
    await world.clock.advance(10.0)
    assert world.monitor.report("stream").lag == 0.0


@pytest.mark.parametrize("lag", [None, "soon", math.nan, math.inf])
async def test_a_lag_that_is_no_number_is_a_failed_check(world: World, lag: object) -> None:
    stream = world.add("stream", Thresholds.STREAM, lag=True)
    stream.lag = lag
    report = await world.monitor.check_now("stream")
    assert (report.health, report.last_error, report.lag) == (FAILED, "TypeError", None)


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("10.0.0.1"), asyncio.CancelledError(), Panic(), GeneratorExit(), RecursionError()]
)
async def test_whatever_a_check_raises_is_a_failed_check(world: World, error: BaseException) -> None:
    db = world.add("db")
    db.mood = error
    await world.clock.advance(25.0)
    report = world.monitor.report("db")
    assert (report.health, report.checks, report.failures) == (FAILED, 3, 3)
    assert report.last_error == type(error).__name__
    assert "10.0.0.1" not in str(world.monitor.as_json()) + str(world.monitor.history("db"))
    db.mood = "up"
    await world.clock.advance(10.0)
    assert (world.monitor.report("db").last_error, world.monitor.report("db").failures) == (None, 0)


async def test_a_check_that_is_no_coroutine_function_is_a_failed_check(world: World) -> None:
    def no_check() -> Awaitable[object]:
        raise LookupError

    world.monitor.add("db", no_check)
    assert (await world.monitor.check_now("db")).last_error == "LookupError"


@pytest.mark.parametrize("leave", [SystemExit, KeyboardInterrupt])
def test_an_exit_ends_the_process_and_not_just_the_check(leave: type[BaseException]) -> None:
    async def main() -> None:
        clock = FakeClock()
        monitor = HealthMonitor(jitter=0.0, clock=clock)
        dependency = Dependency(clock)
        dependency.mood = leave()
        monitor.add("db", dependency)
        await monitor.run()

    with pytest.raises(leave):
        asyncio.run(main())


async def test_a_frozen_dependency_delays_nobody(world: World) -> None:
    frozen, db = world.add("frozen"), world.add("db")
    frozen.mood = "frozen"
    await world.clock.advance(100.0)
    assert len(db.asked) == 11
    assert len(frozen.asked) == 11  # from start to start, whatever a check takes


async def test_a_check_that_takes_longer_than_the_interval_follows_upon_the_other(world: World) -> None:
    db = world.add("db", Thresholds(1.0, limit=25.0))
    db.mood = "frozen"
    await world.clock.advance(80.0)
    assert (len(db.asked), db.most) == (4, 1)


async def test_checks_that_never_end_their_clean_up_are_bounded(world: World) -> None:
    db, other = world.add("db"), world.add("other")
    db.mood = "stuck"
    await world.clock.advance(1_000.0)
    assert len(db.asked) == MAX_ABANDONED == 3
    assert len(other.asked) == 101
    report = world.monitor.report("db")
    assert (report.health, report.last_error) == (FAILED, "BulkheadFull")
    db.mood = "up"
    db.let_go.set()
    await world.clock.advance(10.0)
    assert world.health("db") is HEALTHY


async def test_instances_do_not_check_in_step() -> None:
    moments: list[list[float]] = []
    for seed in range(2):
        clock = FakeClock()
        monitor, db = HealthMonitor(random=Random(seed), clock=clock), Dependency(clock)
        monitor.add("db", db)
        task = asyncio.create_task(monitor.run())
        await clock.advance(500.0)
        task.cancel()
        await asyncio.wait([task])
        moments.append(db.asked)
        pauses = [later - earlier for earlier, later in zip(db.asked, db.asked[1:], strict=False)]
        assert all(9.0 <= pause <= 11.0 for pause in pauses)
        assert len({*pauses}) > 40
    assert not {*moments[0]} & {*moments[1]}


async def test_a_jump_of_the_wall_clock_changes_stamps_only(world: World) -> None:
    db = world.add("db")
    await world.clock.advance(5.0)
    before = world.monitor.report("db").checked_at
    world.clock.jump_wall(-3_600.0)
    await world.clock.advance(5.0)
    report = world.monitor.report("db")
    assert len(db.asked) == 2
    assert (report.health, report.state_seconds, report.latency) == (HEALTHY, 10.0, 0.0)
    assert before is not None
    assert report.checked_at == before - 3_590.0


async def test_hysteresis_waits_for_several_checks(world: World) -> None:
    db = world.add("db", Thresholds(0.5, failures_to_fail=3, successes_to_heal=2))
    await world.clock.advance(5.0)
    db.mood = ConnectionError()
    await world.clock.advance(20.0)
    assert (world.health("db"), world.monitor.report("db").failures) == (HEALTHY, 2)
    await world.clock.advance(10.0)
    assert world.health("db") is FAILED
    db.mood = "up"
    await world.clock.advance(10.0)
    assert world.health("db") is FAILED
    await world.clock.advance(10.0)
    assert world.health("db") is HEALTHY
    assert len(world.heard) == 3


async def test_a_listener_that_raises_changes_nothing(world: World) -> None:
    def broken(event: object) -> None:
        raise LookupError

    world.events.subscribe(broken)
    db = world.add("db")
    await world.clock.advance(30.0)
    assert (world.health("db"), len(db.asked), world.events.listener_errors) == (HEALTHY, 4, 1)


# -- by hand


async def test_check_now_does_not_wait_for_the_next_round(world: World) -> None:
    db = world.add("db")
    await world.clock.advance(5.0)
    db.mood = ConnectionError()
    assert (await world.monitor.check_now("db")).health is FAILED
    with pytest.raises(KeyError):
        await world.monitor.check_now("nobody")
    with pytest.raises(KeyError):
        world.monitor.report("nobody")


async def test_a_check_under_way_is_shared() -> None:
    world = World()
    db = world.add("db")
    db.delay = 0.4
    callers = [asyncio.create_task(world.monitor.check_now("db")) for _ in range(100)]
    await world.clock.advance(0.1)
    callers[0].cancel()
    await world.clock.advance(0.4)
    assert len(db.asked) == 1
    assert callers[0].cancelled()
    assert all(caller.result().health is HEALTHY for caller in callers[1:])


async def test_a_check_that_nobody_waits_for_any_more_ends() -> None:
    world = World()
    db = world.add("db")
    db.mood = "frozen"
    callers = [asyncio.create_task(world.monitor.check_now("db")) for _ in range(3)]
    await world.clock.advance(1.0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await world.clock.advance(0)
    assert (db.running, world.clock.pending, world.monitor.report("db").checks) == (0, 0, 0)
    db.mood = "up"
    assert (await world.monitor.check_now("db")).health is HEALTHY


async def test_somebody_who_comes_just_when_a_check_ends_gets_a_new_one() -> None:
    world = World()
    db = world.add("db")
    first = asyncio.create_task(world.monitor.check_now("db"))
    for _ in range(100):
        await asyncio.sleep(0)
        if world.monitor.report("db").checks:
            break
    db.mood = "frozen"
    second = asyncio.create_task(world.monitor.check_now("db"))
    await world.clock.advance(1.0)
    assert first.done()
    second.cancel()
    await asyncio.wait([second])
    await world.clock.advance(0)
    assert (len(db.asked), db.running, world.clock.pending) == (2, 0, 0)


def test_a_check_left_behind_by_a_closed_loop_is_not_waited_for() -> None:
    world = World()
    db = world.add("db")
    db.mood = "stuck"

    async def left_behind() -> None:
        asyncio.get_running_loop().create_task(world.monitor.check_now("db"))
        await world.clock.advance(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(left_behind())
    try:

        async def again() -> None:
            db.mood = "up"
            assert (await world.monitor.check_now("db")).health is HEALTHY

        asyncio.run(again())
    finally:
        for task in asyncio.all_tasks(loop):
            db.mood = "up"
            task.cancel()
        db.let_go.set()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def test_a_check_cancelled_by_a_stranger_counts_for_nothing(world: World) -> None:
    db = world.add("db")
    db.mood = "frozen"
    await world.clock.advance(1.0)
    for task in asyncio.all_tasks():
        if task.get_name() == "check db":
            task.cancel()
    await world.clock.advance(1.0)
    assert world.monitor.report("db").checks == 0
    db.mood = "up"
    await world.clock.advance(10.0)
    assert world.health("db") is HEALTHY


# -- adding and removing


async def test_dependencies_come_and_go_while_it_runs(world: World) -> None:
    db = world.add("db")
    await world.clock.advance(1.0)
    with pytest.raises(ValueError, match="db"):
        world.add("db")
    redis = world.add("redis", Thresholds.REDIS, interval=2.0)
    await world.clock.advance(9.0)
    assert (len(db.asked), len(redis.asked)) == (2, 5)
    assert world.monitor.remove("db")
    assert not world.monitor.remove("db")
    await world.clock.advance(20.0)
    assert len(db.asked) == 2
    assert list(world.monitor.snapshot()) == ["redis"]


async def test_a_check_of_something_removed_tells_nobody(world: World) -> None:
    db = world.add("db")
    db.delay = 1.0
    caller = asyncio.create_task(world.monitor.check_now("db"))
    await world.clock.advance(0.5)
    world.monitor.remove("db")
    await world.clock.advance(1.0)
    assert caller.result().health is DEGRADED
    assert world.heard == []


async def test_something_removed_before_it_ran_is_just_gone() -> None:
    world = World()
    world.add("db")
    assert world.monitor.remove("db")


async def test_the_deadline_of_whoever_adds_a_dependency_is_not_that_of_its_checks(world: World) -> None:
    with deadline_scope(1.0, clock=world.clock):
        db = world.add("db")
        await world.monitor.check_now("db")
    assert db.asked
    assert db.deadline is None


async def test_it_runs_once_and_again_after_it_was_stopped() -> None:
    world = World()
    db = world.add("db")
    for _ in range(2):
        task = asyncio.create_task(world.monitor.run())
        await world.clock.advance(0)
        with pytest.raises(RuntimeError, match="runs already"):
            await world.monitor.run()
        task.cancel()
        await asyncio.wait([task])
    assert len(db.asked) == 2


@pytest.mark.parametrize("turns", range(12))
async def test_it_can_be_stopped_at_any_moment(turns: int) -> None:
    world = World()
    for name in "abc":
        world.add(name).mood = "frozen"
    task = asyncio.create_task(world.monitor.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.clock.advance(0)
    assert (world.clock.pending, len(asyncio.all_tasks())) == (0, 1)


# -- watching


async def test_the_worst_dependency_decides(world: World) -> None:
    db, redis = world.add("db"), world.add("redis", Thresholds.REDIS)
    redis.delay = 0.3
    await world.clock.advance(1.0)
    assert world.monitor.worst is DEGRADED
    db.mood = ConnectionError()
    await world.clock.advance(10.0)
    assert world.monitor.worst is FAILED


async def test_latency_is_smoothed_and_failures_leave_it_alone(world: World) -> None:
    db = world.add("db")
    db.delay = 0.2
    await world.clock.advance(1.0)
    db.delay = 0.4
    await world.clock.advance(10.0)
    db.mood = ConnectionError()
    await world.clock.advance(10.0)
    report = world.monitor.report("db")
    assert report.latency == pytest.approx(0.4)
    assert report.smoothed == pytest.approx(0.2 + 0.3 * 0.2)


async def test_history_is_bounded_and_in_order() -> None:
    clock = FakeClock(wall=0.0)
    monitor, db = HealthMonitor(history=3, clock=clock), Dependency(clock)
    monitor.add("db", db)
    for second in range(5):
        db.mood = ConnectionError() if second == 3 else "up"
        await monitor.check_now("db")
        clock.move(1.0)
    assert [(point.at, point.health, point.error) for point in monitor.history("db")] == [
        (2.0, HEALTHY, None),
        (3.0, FAILED, "ConnectionError"),
        (4.0, HEALTHY, None),
    ]


async def test_the_snapshot_is_plain_data(world: World) -> None:
    db = world.add("db")
    db.delay = 0.25
    await world.clock.advance(2.25)
    assert json.loads(json.dumps(world.monitor.as_json())) == {
        "db": {
            "status": "healthy",
            "state_seconds": 2.0,
            "latency_ms": 250.0,
            "smoothed_ms": 250.0,
            "lag_s": None,
            "last_error": None,
            "checks": 1,
            "failures": 0,
        }
    }
