"""The prober: early recovery, and nothing more than that."""

import asyncio
from collections.abc import AsyncGenerator
from random import Random

import pytest

from resilience import (
    CircuitBreakerOpen,
    CircuitState,
    FakeClock,
    Priority,
    Prober,
    Row,
    RowPolicy,
    current_deadline,
    deadline_scope,
)

ROW = Row(
    id="d.db",
    label="D1",
    service="d",
    dependency="db",
    title="DB",
    priority=Priority.P0,
    impact="critical",
    max_failures=1,
    open_seconds=60.0,
    call_timeout=1.0,
    fallbacks=(),
    promise="",
    recovery="",
    data_loss="",
    user_text="",
)


class World:
    """A dependency that is up, down or frozen, and a running prober."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.policy = RowPolicy(ROW, clock=self.clock)
        self.mood = "up"
        self.probes = 0
        self.closed = 0
        self.deadline_at_close: object = None
        self.prober = Prober(
            self.policy, self.probe, jitter=0.2, random=Random(1), clock=self.clock, on_closed=self.on_closed
        )

    def on_closed(self) -> None:
        self.closed += 1
        self.deadline_at_close = current_deadline()

    async def probe(self) -> None:
        self.probes += 1
        match self.mood:
            case "down":
                raise ConnectionRefusedError
            case "frozen":
                await asyncio.Event().wait()
            case "self-cancelling":
                raise asyncio.CancelledError

    async def break_it(self, mood: str = "down") -> None:
        self.mood = mood
        self.policy.breaker.acquire().failure(ConnectionRefusedError())
        assert self.state() is CircuitState.OPEN
        await self.clock.advance(0)

    def state(self) -> CircuitState:
        return self.policy.breaker.state


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    world = World()
    task = asyncio.create_task(world.prober.run())
    await world.clock.advance(0)
    yield world
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.pending == 0


async def test_it_sleeps_while_closed(world: World) -> None:
    await world.clock.advance(3_600)
    assert world.probes == 0
    assert world.clock.pending == 0


async def test_it_probes_about_once_a_second_while_open(world: World) -> None:
    await world.break_it()
    await world.clock.advance(30.0)
    assert 25 <= world.probes <= 36


@pytest.mark.parametrize("mood", ["down", "frozen", "self-cancelling"])
async def test_a_dependency_that_is_back_is_in_use_within_seconds(world: World, mood: str) -> None:
    await world.break_it(mood)
    await world.clock.advance(20.0)
    assert world.state() is CircuitState.OPEN
    world.mood = "up"
    await world.clock.advance(2.5)
    assert world.state() is CircuitState.CLOSED
    assert world.closed == 1


async def test_a_frozen_probe_ends_after_a_second(world: World) -> None:
    await world.break_it("frozen")
    await world.clock.advance(20.0)
    assert 8 <= world.probes <= 13  # a pause of about a second, then a second of waiting, each time


async def test_a_probe_result_from_before_a_state_change_does_not_count(world: World) -> None:
    breaker = world.policy.breaker
    await world.break_it("frozen")
    answer = asyncio.Event()

    async def slow_probe() -> None:
        world.probes += 1
        await answer.wait()

    world.prober._probe = slow_probe
    await world.clock.advance(1.3)
    assert world.probes == 1
    breaker.reset()
    breaker.acquire().failure(ConnectionRefusedError())
    answer.set()
    await world.clock.advance(0)
    assert world.state() is CircuitState.OPEN


async def test_a_held_circuit_is_left_alone(world: World) -> None:
    world.policy.breaker.force_open()
    await world.clock.advance(60.0)
    assert (world.probes, world.state()) == (0, CircuitState.OPEN)
    world.policy.breaker.reset()
    await world.break_it()
    await world.clock.advance(5.0)
    assert world.probes > 2


async def test_an_abandoned_trial_is_finished_by_the_prober(world: World) -> None:
    await world.break_it()
    world.policy.breaker.probe_succeeded()
    world.policy.breaker.acquire().neutral()
    assert world.state() is CircuitState.HALF_OPEN
    world.mood = "up"
    await world.clock.advance(2.0)
    assert world.state() is CircuitState.CLOSED


async def test_a_trial_of_a_caller_in_progress_is_not_disturbed(world: World) -> None:
    await world.break_it()
    world.mood = "up"
    world.policy.breaker.probe_succeeded()
    trial = world.policy.breaker.acquire()
    await world.clock.advance(5.0)
    assert world.state() is CircuitState.HALF_OPEN
    with pytest.raises(CircuitBreakerOpen):
        world.policy.breaker.acquire()
    trial.success()
    assert world.state() is CircuitState.CLOSED


async def test_on_closed_does_not_inherit_a_requests_deadline(world: World) -> None:
    await world.break_it()
    world.clock.move(60.0)
    with deadline_scope(1.0, clock=world.clock):
        world.policy.breaker.acquire().success()
    assert world.closed == 1
    assert world.deadline_at_close is None


async def test_a_stopped_prober_is_gone() -> None:
    world = World()
    task = asyncio.create_task(world.prober.run())
    await world.break_it()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.clock.advance(10.0)
    world.policy.breaker.reset()
    assert (world.probes, world.closed, world.clock.pending) == (0, 0, 0)


@pytest.mark.parametrize("settings", [{"interval": 0.0}, {"jitter": 1.0}])
def test_a_bad_setting_fails_by_name(settings: dict[str, float]) -> None:
    async def probe() -> None: ...

    with pytest.raises(ValueError, match=next(iter(settings))):
        Prober(RowPolicy(ROW), probe, **settings)  # type: ignore[arg-type]


class Trying:
    """A dependency whose list of what it has answers (or not), and whose work fails (or not)."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.policy = RowPolicy(ROW, clock=self.clock)
        self.listed = self.works = True
        self.trials: list[float] = []
        prober = Prober(self.policy, self.probe, jitter=0.0, clock=self.clock, trial=self.trial)
        self.task = asyncio.ensure_future(prober.run())

    async def probe(self) -> None:
        if not self.listed:
            raise ConnectionRefusedError

    async def trial(self) -> None:
        self.trials.append(self.clock.monotonic())
        if not self.works:
            raise ConnectionResetError

    async def fail(self) -> None:
        await self.clock.advance(0)
        self.policy.breaker.acquire().failure(ConnectionRefusedError())
        await self.clock.advance(0)

    def state(self) -> CircuitState:
        return self.policy.breaker.state


@pytest.fixture
async def trying() -> AsyncGenerator[Trying]:
    trying = Trying()
    yield trying
    trying.task.cancel()


async def test_a_trial_of_its_own_decides_and_not_the_probe(trying: Trying) -> None:
    trying.works = False
    await trying.fail()
    began = trying.clock.monotonic()
    await trying.clock.advance(130.0)
    assert trying.state() is CircuitState.OPEN
    waits = [round(at - began) for at in trying.trials]
    assert waits == [1, 3, 7, 15, 31, 63, 123], "twice as late each time, at most the row's open time"
    trying.works = True
    await trying.clock.advance(60.0)
    assert trying.state() is CircuitState.CLOSED


async def test_a_probe_that_failed_makes_the_next_good_one_news(trying: Trying) -> None:
    trying.works = False
    await trying.fail()
    await trying.clock.advance(20.0)
    tried = len(trying.trials)
    trying.listed = False
    await trying.clock.advance(20.0)
    assert len(trying.trials) == tried, "no trial without a good probe"
    trying.listed = trying.works = True
    await trying.clock.advance(1.0)
    assert trying.state() is CircuitState.CLOSED


async def test_a_circuit_that_flaps_is_tried_later_each_time_and_a_rare_failure_is_not(trying: Trying) -> None:
    for wait in (1.0, 2.0, 4.0):
        await trying.fail()
        await trying.clock.advance(wait - 0.5)
        assert trying.state() is CircuitState.OPEN
        await trying.clock.advance(1.0)
        assert trying.state() is CircuitState.CLOSED
    await trying.clock.advance(61.0)
    await trying.fail()
    await trying.clock.advance(1.0)
    assert trying.state() is CircuitState.CLOSED


async def test_an_outage_after_real_use_is_a_new_one(trying: Trying) -> None:
    for _ in range(5):
        await trying.fail()
        await trying.clock.advance(1.0)
        assert trying.state() is CircuitState.CLOSED
        trying.policy.breaker.acquire().success()
