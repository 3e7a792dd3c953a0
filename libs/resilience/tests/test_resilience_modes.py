"""The mode of a service, worked out from its rows."""

from dataclasses import replace

import pytest

from resilience import CircuitState, FakeClock, Mode, ModeTracker, Priority, RowStatus, mode_of

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
DOWN = replace(UP, circuit=CircuitState.OPEN)
TRYING = replace(UP, circuit=CircuitState.HALF_OPEN)
LESSER = replace(DOWN, priority=Priority.P1)


@pytest.mark.parametrize(
    ("statuses", "mode"),
    [
        ([], Mode.NORMAL),
        ([UP, UP], Mode.NORMAL),
        ([UP, DOWN], Mode.DEGRADED),
        ([UP, TRYING], Mode.DEGRADED),
        ([LESSER, LESSER, LESSER], Mode.DEGRADED),
        ([DOWN, LESSER], Mode.DEGRADED),
        ([replace(LESSER, fallback_failing=True)], Mode.DEGRADED),
        ([DOWN, TRYING], Mode.EMERGENCY),
        ([replace(DOWN, fallback_failing=True)], Mode.EMERGENCY),
        ([replace(UP, fallback_failing=True)], Mode.NORMAL),
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
