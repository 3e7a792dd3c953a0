"""The mode of a service, worked out from its rows."""

import asyncio
import math
import threading
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from resilience import CircuitState, FakeClock, Mode, ModeTracker, Priority, RowStatus, mode_of
from resilience.events import Events
from resilience.modes import (
    MODES,
    ModeChanged,
    ModeSettings,
    ModeState,
    hold,
    initial,
    next_change,
    release,
    step,
)

UP = RowStatus(
    row="d.db",
    label="D1",
    dependency="db",
    priority=Priority.P0,
    circuit=CircuitState.CLOSED,
    failures=0,
    state_seconds=0.0,
    retry_after=None,
    last_error=None,
    held=False,
    last_latency=None,
    fallback="",
    fallback_failing=False,
)
DOWN = UP._replace(circuit=CircuitState.OPEN)
TRYING = UP._replace(circuit=CircuitState.HALF_OPEN)
OTHER = DOWN._replace(label="D2")
LESSER = DOWN._replace(priority=Priority.P1)
NORMAL, DEGRADED, EMERGENCY = MODES
ROWS = {NORMAL: [UP], DEGRADED: [DOWN], EMERGENCY: [DOWN, OTHER]}


@pytest.mark.parametrize(
    ("statuses", "mode"),
    [
        ([], Mode.NORMAL),
        ([UP, UP], Mode.NORMAL),
        ([UP, DOWN], Mode.DEGRADED),
        ([UP, TRYING], Mode.DEGRADED),
        ([LESSER, LESSER, LESSER], Mode.DEGRADED),
        ([DOWN, LESSER], Mode.DEGRADED),
        ([LESSER._replace(fallback_failing=True)], Mode.DEGRADED),
        ([OTHER, TRYING], Mode.EMERGENCY),
        ([DOWN._replace(fallback_failing=True)], Mode.EMERGENCY),
        ([DOWN, TRYING, DOWN], Mode.DEGRADED),  # one row with three circuits
        ([DOWN, UP, OTHER], Mode.DEGRADED),  # a row of two circuits is not down while one of them is closed
        ([DOWN, TRYING, OTHER], Mode.EMERGENCY),
        ([UP, DOWN._replace(fallback_failing=True)], Mode.DEGRADED),
        ([TRYING, DOWN._replace(fallback_failing=True)], Mode.EMERGENCY),
        ([UP._replace(fallback_failing=True)], Mode.NORMAL),
    ],
)
def test_the_rules(statuses: list[RowStatus], mode: Mode) -> None:
    assert mode_of(statuses) is mode


def test_the_tracker_counts_the_time_in_each_mode() -> None:
    clock, changes = FakeClock(wall=100.0), list[tuple[Mode, Mode]]()
    tracker = ModeTracker(clock, lambda old, new: changes.append((old, new)))
    clock.move(10.0)
    assert tracker.update([DOWN]) is Mode.DEGRADED
    assert tracker.since == 110.0
    clock.move(5.0)
    clock.jump_wall(3600.0)
    tracker.update([DOWN])
    tracker.update([UP])
    clock.move(1.0)
    assert tracker.seconds == {Mode.NORMAL: 11.0, Mode.DEGRADED: 5.0, Mode.EMERGENCY: 0.0}
    assert changes == [(Mode.NORMAL, Mode.DEGRADED), (Mode.DEGRADED, Mode.NORMAL)]


def test_a_held_mode_stays_until_released() -> None:
    tracker = ModeTracker(FakeClock())
    tracker.hold(Mode.EMERGENCY)
    assert tracker.update([UP]) is Mode.EMERGENCY
    assert tracker.held
    tracker.update([DOWN])
    tracker.release()
    assert (tracker.mode, tracker.held) == (Mode.DEGRADED, False)


# -- hysteresis


class Told:
    """A tracker on a fake clock, and what it told."""

    def __init__(self, enter_after: float = 0.0, leave_after: float = 0.0) -> None:
        self.clock = FakeClock()
        self.events = Events()
        self.heard: list[object] = []
        self.events.subscribe(self.heard.append)
        self.tracker = ModeTracker(self.clock, enter_after=enter_after, leave_after=leave_after, events=self.events)

    def ask(self, mode: Mode, after: float = 0.0) -> Mode:
        self.clock.move(after)
        return self.tracker.update(ROWS[mode])


def test_a_worse_mode_is_entered_at_once_and_left_late() -> None:
    world = Told(leave_after=10.0)
    assert world.ask(EMERGENCY) is EMERGENCY
    assert world.ask(NORMAL, after=1.0) is EMERGENCY
    assert world.tracker.next_change == 10.0
    assert world.ask(NORMAL, after=9.5) is EMERGENCY
    world.clock.move(0.5)
    assert world.tracker.mode is EMERGENCY  # nobody has looked
    assert world.tracker.tick() is NORMAL
    assert world.heard == [ModeChanged(NORMAL, EMERGENCY, False), ModeChanged(EMERGENCY, NORMAL, False)]
    assert world.tracker.next_change is None


def test_flapping_inside_the_window_changes_the_mode_once() -> None:
    world = Told(leave_after=10.0)
    for _ in range(50):
        world.ask(DEGRADED, after=1.0)
        world.ask(NORMAL, after=4.0)
    assert world.heard == [ModeChanged(NORMAL, DEGRADED, False)]


def test_it_leaves_step_by_step_when_the_trouble_lessens_step_by_step() -> None:
    world = Told(leave_after=10.0)
    world.ask(EMERGENCY)
    world.ask(DEGRADED, after=1.0)
    world.ask(NORMAL, after=5.0)
    assert world.ask(NORMAL, after=5.0) is DEGRADED  # nothing worse than this for ten seconds
    assert world.ask(NORMAL, after=5.0) is NORMAL


def test_a_worse_mode_can_be_made_to_wait_too() -> None:
    world = Told(enter_after=3.0)
    assert world.ask(EMERGENCY) is NORMAL
    assert world.ask(DEGRADED, after=2.0) is NORMAL
    assert world.tracker.next_change == 1.0
    assert world.ask(EMERGENCY, after=1.0) is DEGRADED  # at least degraded for three seconds, emergency for none
    assert world.ask(EMERGENCY, after=3.0) is EMERGENCY
    assert world.ask(NORMAL) is NORMAL


def test_what_is_held_lies_on_top_of_the_machine() -> None:
    world = Told(leave_after=10.0)
    world.ask(EMERGENCY)
    world.tracker.hold(NORMAL)
    assert world.tracker.next_change is None
    world.ask(NORMAL)
    world.clock.move(5.0)
    world.tracker.release()
    assert world.tracker.mode is EMERGENCY  # as if none had been held: normal for five seconds only
    world.tracker.hold(EMERGENCY)
    world.ask(NORMAL, after=5.0)
    world.tracker.release()
    assert world.heard == [
        ModeChanged(NORMAL, EMERGENCY, False),
        ModeChanged(EMERGENCY, NORMAL, True),
        ModeChanged(NORMAL, EMERGENCY, False),
        ModeChanged(EMERGENCY, NORMAL, False),
    ]


async def test_run_leaves_a_mode_without_any_event() -> None:
    world = Told(leave_after=10.0)
    task = asyncio.create_task(world.tracker.run())
    await world.clock.advance(0.25)
    world.ask(DEGRADED)
    world.ask(NORMAL)
    await world.clock.advance(9.75)
    assert world.tracker.mode is DEGRADED
    await world.clock.advance(0.25)
    assert world.tracker.mode is NORMAL
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.pending == 0


async def test_run_needs_a_pause() -> None:
    with pytest.raises(ValueError, match="every"):
        await ModeTracker(FakeClock()).run(every=0.0)


@pytest.mark.parametrize("field", ["enter_after", "leave_after"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_bad_setting_fails_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        ModeTracker(FakeClock(), **{field: value})  # type: ignore[arg-type]


def test_the_wall_clock_decides_nothing() -> None:
    world = Told(leave_after=10.0)
    world.ask(DEGRADED)
    world.ask(NORMAL)
    world.clock.jump_wall(3_600.0)
    assert world.tracker.tick() is DEGRADED
    world.clock.jump_wall(-7_200.0)
    world.clock.move(10.0)
    assert world.tracker.tick() is NORMAL


# -- listeners and threads


def test_a_listener_that_raises_changes_nothing() -> None:
    def broken(old: Mode, new: Mode) -> None:
        raise LookupError

    events, heard = Events(), list[object]()
    events.subscribe(heard.append)
    tracker = ModeTracker(FakeClock(), broken, events=events)
    assert tracker.update([DOWN]) is DEGRADED
    assert (tracker.listener_errors, len(heard)) == (1, 1)


def test_an_exit_raised_by_a_listener_is_passed_on_and_leaves_no_mark() -> None:
    exits = [KeyboardInterrupt()]

    def leaves(old: Mode, new: Mode) -> None:
        changes.append((old, new))
        if exits:
            raise exits.pop()

    changes = list[tuple[Mode, Mode]]()
    tracker = ModeTracker(FakeClock(), leaves)
    with pytest.raises(KeyboardInterrupt):
        tracker.update([DOWN])
    tracker.update([UP])
    assert changes == [(NORMAL, DEGRADED), (DEGRADED, NORMAL)]


def test_a_listener_that_changes_the_mode_is_told_in_order() -> None:
    changes = list[tuple[Mode, Mode]]()

    def listener(old: Mode, new: Mode) -> None:
        if new is DEGRADED:
            tracker.hold(EMERGENCY)
            assert tracker.mode is EMERGENCY
        changes.append((old, new))

    tracker = ModeTracker(FakeClock(), listener)
    tracker.update([DOWN])
    assert changes == [(NORMAL, DEGRADED), (DEGRADED, EMERGENCY)]


def test_eight_threads_see_one_chain_of_changes() -> None:
    changes = list[tuple[Mode, Mode]]()
    tracker = ModeTracker(FakeClock(), lambda old, new: changes.append((old, new)))
    start = threading.Barrier(8)

    def hammer(mode: Mode) -> None:
        start.wait(5)
        for _ in range(200):
            tracker.update(ROWS[mode])
            tracker.hold(EMERGENCY)
            tracker.release()

    threads = [threading.Thread(target=hammer, args=(MODES[number % 3],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert changes[0][0] is NORMAL
    assert changes[-1][1] is tracker.mode
    assert all(earlier[1] is later[0] for earlier, later in pairwise(changes))
    assert all(old is not new for old, new in changes)


# -- every short story


def asked_during(history: list[tuple[float, Mode]], now: float, window: float) -> list[Mode]:
    """What was asked for in the last `window` seconds, what was in force at its start included."""
    start = now - window
    inside = [mode for at, mode in history if at > start]
    before = [mode for at, mode in history if at <= start]
    return before[-1:] + inside


def expected(free: Mode, history: list[tuple[float, Mode]], now: float, rules: ModeSettings) -> Mode:
    """The rule once more, from the whole history of what was asked for instead of from running marks."""
    rank = MODES.index
    low = min(asked_during(history, now, rules.enter_after), key=rank)
    if rank(low) > rank(free):
        return low
    high = max(asked_during(history, now, rules.leave_after), key=rank)
    return high if rank(high) < rank(free) else free


SHORT, LONG = 1.0, 3.0


class Story:
    """One state of the exploration: the machine, what was asked when, and the oracle's opinion."""

    def __init__(self, rules: ModeSettings) -> None:
        self.rules = rules
        self.now = 0.0
        self.state = initial(0.0)
        self.history = [(-100.0, NORMAL)]
        self.free = NORMAL

    def after(self, event: tuple[str, Mode | float | None]) -> "Story":
        """The story continued, with everything that must hold after each event checked."""
        kind, value = event
        new = Story(self.rules)
        new.now, new.state, new.history, new.free = self.now, self.state, list(self.history), self.free
        change: ModeChanged | None
        if kind == "ask":
            assert isinstance(value, Mode)
            if value is not new.history[-1][1]:
                new.history.append((new.now, value))
            new.state, change = step(self.state, value, new.now, self.rules)
        elif kind == "tick":
            assert isinstance(value, float)
            new.now += value
            new.state, change = step(self.state, None, new.now, self.rules)
        elif kind == "hold":
            assert isinstance(value, Mode)
            new.state, change = hold(self.state, value, new.now)
        else:
            new.state, change = release(self.state, new.now, self.rules)
        if kind != "hold":
            new.free = expected(self.free, new.history, new.now, self.rules)
        new.check(self.state, kind, change)
        return new

    def check(self, before: ModeState, kind: str, change: ModeChanged | None) -> None:
        state, rank = self.state, MODES.index
        assert state.free is self.free
        assert state.held is (kind == "hold" or (before.held and kind != "release"))
        assert state.mode is self.free or state.held
        # One change per crossing, none without a cause, none that says nothing.
        if change is None:
            assert state.mode is before.mode
        else:
            assert change == ModeChanged(before.mode, state.mode, state.held)
            assert change.old is not change.new
            assert state.since == self.now
            assert kind in ("hold", "release") or not before.held
        if kind == "tick" and change is not None:
            assert next_change(before, before.since, self.rules) is not None
        # Never better than what was asked for, unless nothing so bad was asked for lately.
        if not state.held and not self.rules.enter_after:
            worst = max(asked_during(self.history, self.now, self.rules.leave_after), key=rank)
            assert state.mode is worst
        due = next_change(state, self.now, self.rules)
        assert due is None or due > 0  # what is due has been done
        assert sum(state.seconds(self.now).values()) == self.now

    def key(self) -> tuple[object, ...]:
        """Equal for stories that cannot differ any more."""
        old = max(self.rules)

        def age(moment: float) -> float:
            return min(self.now - moment, old)

        state = self.state
        marks = tuple(age(moment) for moment in (*state.worse, *state.better))
        recent = [(age(at), mode) for at, mode in self.history]
        begun = max(at for at, (seconds, _) in enumerate(recent) if seconds >= old)
        return state.mode, state.asked, state.free, state.held, marks, tuple(recent[begun:])


STEPS: list[tuple[str, Mode | float | None]] = [
    *[("ask", mode) for mode in MODES],
    ("tick", SHORT),
    ("tick", LONG),
    *[("hold", mode) for mode in MODES],
    ("release", None),
]


@pytest.mark.parametrize("rules", [ModeSettings(0, 0), ModeSettings(0, 3), ModeSettings(2, 3), ModeSettings(3, 0)])
def test_every_short_story_keeps_the_rules(rules: ModeSettings) -> None:
    """All sequences of six events; those that have led to the same state are continued once."""
    stories = {Story(rules).key(): Story(rules)}
    for _ in range(6):
        stories = {new.key(): new for story in stories.values() for new in map(story.after, STEPS)}
    assert len(stories) > 10


class ModeModel(RuleBasedStateMachine):
    """The tracker against a clear model, in steps of any length. Times are quarters, so that sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(start=0.0)
        self.heard: list[tuple[Mode, Mode]] = []
        self.tracker = ModeTracker(self.clock, lambda *change: self.heard.append(change), leave_after=2.5)
        self.history = [(-100.0, NORMAL)]
        self.held: Mode | None = None
        self.shown = [NORMAL]

    def expected(self) -> Mode:
        if self.held is not None:
            return self.held
        return max(asked_during(self.history, self.clock.monotonic(), 2.5), key=MODES.index)

    @rule(mode=st.sampled_from(MODES))
    def ask(self, mode: Mode) -> None:
        self.history.append((self.clock.monotonic(), mode))
        self.tracker.update(ROWS[mode])

    @rule(quarters=st.integers(1, 20))
    def wait(self, quarters: int) -> None:
        self.clock.move(quarters / 4)
        self.tracker.tick()

    @rule(mode=st.sampled_from(MODES))
    def hold(self, mode: Mode) -> None:
        self.held = mode
        self.tracker.hold(mode)

    @rule()
    def release(self) -> None:
        self.held = None
        self.tracker.release()

    @invariant()
    def agrees(self) -> None:
        mode = self.expected()
        if mode is not self.shown[-1]:
            self.shown.append(mode)
        assert (self.tracker.mode, self.tracker.held) == (mode, self.held is not None)
        assert self.heard == list(pairwise(self.shown))
        assert sum(self.tracker.seconds.values()) == self.clock.monotonic()


ModeModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestModeModel = ModeModel.TestCase
