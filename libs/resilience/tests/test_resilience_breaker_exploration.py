"""Every interleaving, exhaustively: all states that three callers, time and an operator can bring a circuit into.

The circuit is pure, so a state can be copied and every event tried on it. States that differ only in the absolute time,
in who of the callers is who, or in counters past the point where they matter, are one; what is left is finite, and
is walked until nothing new is found. Each step is held against the rules; nothing is sampled.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from resilience.circuit import (
    BY_HAND,
    CLOSED,
    FAILURE_RATE,
    HALF_OPEN,
    HELD_CLOSED,
    HELD_OPEN,
    OPEN,
    OPEN_TIME_OVER,
    PROBE_SUCCEEDED,
    RESET,
    SLOW_RATE,
    TOLD_TO_WAIT,
    TOO_MANY_FAILURES,
    TRIAL_FAILED,
    TRIAL_LOST,
    TRIAL_SLOW,
    TRIAL_SUCCEEDED,
    Change,
    Circuit,
    CircuitSettings,
)
from resilience.window import CountWindow

CALLERS = 3
OPEN_SECONDS, SLOW_SECONDS, LOST_SECONDS = 4.0, 1.0, 3.0
STEPS = (1.0, OPEN_SECONDS)

LEGAL = {
    (CLOSED, OPEN, TOO_MANY_FAILURES),
    (CLOSED, OPEN, FAILURE_RATE),
    (CLOSED, OPEN, SLOW_RATE),
    (CLOSED, OPEN, TOLD_TO_WAIT),
    (CLOSED, OPEN, HELD_OPEN),
    (CLOSED, CLOSED, TOO_MANY_FAILURES),  # in shadow: would have opened
    (CLOSED, CLOSED, FAILURE_RATE),
    (CLOSED, CLOSED, SLOW_RATE),
    (CLOSED, CLOSED, TOLD_TO_WAIT),
    (OPEN, HALF_OPEN, OPEN_TIME_OVER),
    (OPEN, HALF_OPEN, PROBE_SUCCEEDED),
    (OPEN, HALF_OPEN, BY_HAND),
    (OPEN, CLOSED, HELD_CLOSED),
    (OPEN, CLOSED, RESET),
    (HALF_OPEN, CLOSED, TRIAL_SUCCEEDED),
    (HALF_OPEN, CLOSED, HELD_CLOSED),
    (HALF_OPEN, CLOSED, RESET),
    (HALF_OPEN, OPEN, TRIAL_FAILED),
    (HALF_OPEN, OPEN, TRIAL_SLOW),
    (HALF_OPEN, OPEN, TRIAL_LOST),
    (HALF_OPEN, OPEN, HELD_OPEN),
    (HALF_OPEN, OPEN, TOLD_TO_WAIT),
}


@dataclass
class Call:
    generation: int
    began: float


@dataclass
class World:
    """A circuit, its shell's bookkeeping, and the calls under way."""

    circuit: Circuit
    now: float = 100.0
    calls: list[Call | None] = field(default_factory=lambda: [None] * CALLERS)
    started: int = 0
    ended: int = 0

    def copy(self) -> World:
        circuit = copy.copy(self.circuit)
        if isinstance(circuit.window, CountWindow):
            circuit.window = copy.copy(circuit.window)
            circuit.window.ring = bytearray(circuit.window.ring)
        return World(circuit, self.now, [copy.copy(call) for call in self.calls], self.started, self.ended)

    def key(self) -> tuple[Any, ...]:
        circuit, now = self.circuit, self.now
        limit = (circuit.settings.failure_threshold or 0) + 1
        window = circuit.window
        oldest = 2.0 if circuit.settings.slow_call_seconds else 0.0  # of the ages of calls that make a difference
        seen = bytes(window.ring[window.at :] + window.ring[: window.at]) if isinstance(window, CountWindow) else b""
        calls = sorted(
            ("", 0.0)
            if call is None
            else ("current" if call.generation == circuit.generation else "stale", min(now - call.began, oldest))
            for call in self.calls
        )
        return (
            circuit.state,
            circuit.held,
            circuit.shadow,
            circuit.early,
            min(circuit.failures, limit),
            seen,
            max(0.0, circuit.until - now) if circuit.state is OPEN or circuit.shadow else 0.0,
            max(0.0, circuit.told_until - now) if circuit.state is OPEN else 0.0,
            circuit.in_flight,
            circuit.successes,
            circuit.wrong,
            min(now - circuit.trial_at, LOST_SECONDS) if circuit.in_flight else 0.0,
            tuple(calls),
        )

    # -- events: as the shell does them

    def admit(self, caller: int) -> Iterator[Change | None]:
        yield self.circuit.tick(self.now)
        if self.circuit.admit(self.now):
            self.calls[caller] = Call(self.circuit.generation, self.now)
            self.started += 1

    def end(self, caller: int, how: str) -> Iterator[Change | None]:
        call = self.calls[caller]
        assert call is not None
        self.calls[caller] = None
        self.ended += 1
        circuit = self.circuit
        if call.generation != circuit.generation:
            return
        if how == "success":
            yield circuit.success(self.now, call.began)
        elif how == "neutral":
            circuit.neutral()
        else:
            yield circuit.failure(self.now, call.began, ValueError(), 2.0 if how == "told" else None)

    def wait(self, seconds: float) -> Iterator[Change | None]:
        self.now += seconds
        return iter(())

    def by_hand(self, change: Callable[[Circuit, float], Change | None]) -> Iterator[Change | None]:
        yield change(self.circuit, self.now)

    def probe(self) -> Iterator[Change | None]:
        self.circuit.probed()
        return iter(())


Event = tuple[str, Callable[[World], Iterator[Change | None]]]


def events_of(world: World) -> Iterator[Event]:
    for caller, call in enumerate(world.calls):
        if call is None:
            yield f"admit {caller}", lambda w, c=caller: w.admit(c)  # type: ignore[misc]
            continue
        for how in ("success", "failure", "told", "neutral"):
            yield f"{how} {caller}", lambda w, c=caller, h=how: w.end(c, h)  # type: ignore[misc]
    for step in STEPS:
        yield f"wait {step}", lambda w, s=step: w.wait(s)  # type: ignore[misc]
    yield "hold open", lambda w: w.by_hand(lambda circuit, now: circuit.hold(OPEN, now))
    yield "hold closed", lambda w: w.by_hand(lambda circuit, now: circuit.hold(CLOSED, now))
    yield "shadow", lambda w: w.by_hand(lambda circuit, now: circuit.watch(now))
    yield "reset", lambda w: w.by_hand(lambda circuit, now: circuit.reset(now))
    yield "open for", lambda w: w.by_hand(lambda circuit, now: circuit.open_for(now, 2.0))
    if world.circuit.state is not CLOSED:
        yield "half-open", lambda w: w.by_hand(lambda circuit, now: circuit.half_open(now))
    yield "probe", lambda w: w.probe()


def check(before: World, event: str, changes: list[Change], after: World) -> None:
    """The rules, for one step."""
    circuit, settings = after.circuit, after.circuit.settings
    live = [call for call in after.calls if call is not None and call.generation == circuit.generation]
    # One transition per event, only legal ones, and none that is not told.
    assert len(changes) <= 1, (event, changes)
    for change in changes:
        assert (change.old, change.new, change.reason) in LEGAL, (event, change)
        assert change.old is before.circuit.state
    if circuit.state is not before.circuit.state:
        assert changes, event
        assert circuit.generation > before.circuit.generation
    # Trials: never more than allowed at once or in all, none lost and none minted.
    if circuit.state is HALF_OPEN:
        assert circuit.in_flight == len(live), event
        assert 0 <= circuit.in_flight <= settings.half_open_max_calls, event
        assert circuit.in_flight + circuit.successes + circuit.wrong <= settings.half_open_trials, event
    else:
        assert (circuit.in_flight, circuit.successes, circuit.wrong) == (0, 0, 0), event
    # Results of an earlier state change nothing.
    ended = [b for b, a in zip(before.calls, after.calls, strict=True) if b is not None and a is None]
    if ended and ended[0].generation != before.circuit.generation:
        assert World.key(before)[:-1] == World.key(after)[:-1], event
    # Nobody is admitted to a circuit that is open, and everybody to one that is closed.
    assert not (circuit.state is OPEN and live), event
    if event.startswith("admit") and before.circuit.state is CLOSED:
        assert after.started == before.started + 1, event
    # Conservation.
    assert after.started == after.ended + sum(call is not None for call in after.calls), event
    # A hold is a hold.
    if before.circuit.held and event.partition(" ")[0] in ("admit", "success", "failure", "told", "neutral", "wait"):
        assert circuit.held, event
        assert circuit.state is before.circuit.state, event
    assert not (circuit.shadow and circuit.state is not CLOSED), event


def check_not_stranded(world: World) -> None:
    """From here, a dependency that behaves gets its circuit closed: by waiting and answering, and a reset if held.

    Calls that never report are left out where `max_half_open` is to deal with them.
    """
    world = world.copy()
    if world.circuit.held:
        list(world.by_hand(lambda circuit, now: circuit.reset(now)))
    if world.circuit.settings.max_half_open is None:
        for caller, call in enumerate(world.calls):
            if call is not None:
                list(world.end(caller, "neutral"))
    else:
        world.calls = [None] * CALLERS
    for _ in range(20):
        if world.circuit.state is CLOSED:
            return
        list(world.wait(OPEN_SECONDS))
        world.calls[0] = None
        list(world.admit(0))
        if world.calls[0] is not None:
            list(world.end(0, "success"))
    raise AssertionError(f"stranded: {world.key()}")


def explore(settings: CircuitSettings) -> tuple[int, int]:
    """Walks everything that can be reached; how many states and steps there are."""
    start = World(Circuit(settings, 100.0))
    seen = {start.key()}
    todo = deque([start])
    steps = 0
    while todo:
        world = todo.popleft()
        check_not_stranded(world)
        for event, apply in events_of(world):
            after = world.copy()
            changes = [change for change in apply(after) if change is not None]
            steps += 1
            check(world, event, changes, after)
            key = after.key()
            if key not in seen:
                seen.add(key)
                todo.append(after)
    return len(seen), steps


CONSECUTIVE = {"failure_threshold": 2, "recovery_timeout": OPEN_SECONDS}


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("one trial", {**CONSECUTIVE, "success_threshold": 1}),
        ("two successes", {**CONSECUTIVE, "success_threshold": 2}),
        ("two at once", {**CONSECUTIVE, "success_threshold": 1, "half_open_max_calls": 2}),
        ("two of three", {**CONSECUTIVE, "success_threshold": 2, "half_open_max_calls": 2, "half_open_trials": 3}),
        ("lost trials", {**CONSECUTIVE, "success_threshold": 1, "max_half_open": LOST_SECONDS}),
        ("told to wait", {**CONSECUTIVE, "success_threshold": 1, "trip_on_retry_after": True}),
        (
            "rates",
            {
                "window": 2,
                "minimum_calls": 2,
                "failure_rate": 1.0,
                "recovery_timeout": OPEN_SECONDS,
                "success_threshold": 1,
            },
        ),
        (
            "slow calls",
            {
                "window": 2,
                "minimum_calls": 2,
                "slow_call_seconds": SLOW_SECONDS,
                "slow_rate": 1.0,
                "recovery_timeout": OPEN_SECONDS,
                "success_threshold": 1,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_reachable_state_keeps_the_rules(
    name: str, rules: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    states, steps = explore(CircuitSettings(**rules))
    record_property("states", states)
    record_property("steps", steps)
    assert states > 100
