"""The mode of a whole service, worked out from its rows, and the time spent in each.

The rule is a pure function, `step`: a worse mode is entered at once (or once it has been asked for without a break for
`enter_after` seconds), and left for a better one only when nothing worse than that has been asked for during the last
`leave_after` seconds. A circuit that flaps so changes the mode once, not every time. What an operator
holds lies on top: underneath the machine goes on, and `release` shows where it has come to.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.events import Events
from resilience.matrix import Priority


class Mode(StrEnum):
    """How much of a service works; from the best to the worst."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    EMERGENCY = "emergency"


MODES: Final = tuple(Mode)
"""From the best to the worst."""
_RANK: Final = {mode: rank for rank, mode in enumerate(MODES)}


class RowStatus(NamedTuple):
    """One row at one moment, for health pages and for the mode; made with keywords. Times in seconds."""

    row: str
    label: str
    dependency: str
    priority: Priority
    circuit: CircuitState
    failures: int
    state_seconds: float
    retry_after: float | None
    last_error: str | None
    held: bool
    last_latency: float | None
    fallback: str  # the fallback in use, "" when none
    fallback_failing: bool  # the fallback, too, could not serve lately

    @property
    def down(self) -> bool:
        """Whether the dependency is not in normal use."""
        return self.circuit is not CircuitState.CLOSED


def mode_of(statuses: Iterable[RowStatus]) -> Mode:
    """Emergency: two P0 rows down at once, or one whose fallback fails too. Degraded: any circuit open. Else normal.

    Statuses with one label are one row with several circuits: it is down when none of them is closed.
    """
    rows: dict[str, list[RowStatus]] = {}
    for status in statuses:
        rows.setdefault(status.label, []).append(status)
    critical = [row for row in rows.values() if row[0].priority is Priority.P0 and all(one.down for one in row)]
    if len(critical) >= 2 or any(one.fallback_failing for row in critical for one in row):
        return Mode.EMERGENCY
    return Mode.DEGRADED if any(one.down for row in rows.values() for one in row) else Mode.NORMAL


class ModeChanged(NamedTuple):
    """A service went from one mode to another; `held` says whether an operator holds the new one."""

    old: Mode
    new: Mode
    held: bool


class ModeSettings(NamedTuple):
    """For how many seconds a mode must be asked for before it is entered, or a worse one left. 0: at once."""

    enter_after: float = 0.0
    leave_after: float = 0.0


class ModeState(NamedTuple):
    """Where the machine is. Moments are monotonic seconds; tuples run from the best mode to the worst."""

    mode: Mode  # in force
    since: float
    spent: tuple[float, ...]  # seconds in each mode before `since`
    asked: Mode  # by the rows, lately
    free: Mode  # in force as soon as nobody holds another
    held: bool
    worse: tuple[float, ...]  # since when this mode or a worse one is asked for; infinity when it is not
    better: tuple[float, ...]  # since when this mode or a better one is asked for

    def seconds(self, now: float) -> dict[Mode, float]:
        """Seconds spent in each mode until `now`."""
        spent = dict(zip(MODES, self.spent, strict=True))
        spent[self.mode] += now - self.since
        return spent


def initial(now: float) -> ModeState:
    """Normal, and nothing is asked for but that."""
    return ModeState(
        mode=Mode.NORMAL,
        since=now,
        spent=(0.0, 0.0, 0.0),
        asked=Mode.NORMAL,
        free=Mode.NORMAL,
        held=False,
        worse=(now, math.inf, math.inf),
        better=(now, now, now),
    )


def step(
    state: ModeState, asked: Mode | None, now: float, settings: ModeSettings
) -> tuple[ModeState, ModeChanged | None]:
    """The state after the rows ask for `asked` at `now`, and the change of the mode in force, if any.

    `None` asks for the same as before: time alone has passed. A held mode never changes here.
    """
    asked = state.asked if asked is None else asked
    rank = _RANK[asked]
    worse = tuple(min(since, now) if at <= rank else math.inf for at, since in enumerate(state.worse))
    better = tuple(min(since, now) if at >= rank else math.inf for at, since in enumerate(state.better))
    free = _due(state.free, worse, better, now, settings)
    state = state._replace(asked=asked, free=free, worse=worse, better=better)
    return (state, None) if state.held else _enter(state, free, now)


def hold(state: ModeState, mode: Mode, now: float) -> tuple[ModeState, ModeChanged | None]:
    """`mode` by hand, until `release`."""
    return _enter(state._replace(held=True), mode, now)


def release(state: ModeState, now: float, settings: ModeSettings) -> tuple[ModeState, ModeChanged | None]:
    """Back to the mode that would be in force now if none had been held."""
    return step(state._replace(held=False), None, now, settings)


def next_change(state: ModeState, now: float, settings: ModeSettings) -> float | None:
    """Seconds until time alone changes the mode; `None` when it does not."""
    if state.held:
        return None
    rank = _RANK[state.free]
    moments = [since + settings.enter_after for since in state.worse[rank + 1 :]]
    moments += [since + settings.leave_after for since in state.better[:rank]]
    first = min(moments, default=math.inf)
    return None if first == math.inf else max(0.0, first - now)


def _due(mode: Mode, worse: tuple[float, ...], better: tuple[float, ...], now: float, settings: ModeSettings) -> Mode:
    rank = _RANK[mode]
    for at in range(len(MODES) - 1, rank, -1):  # the worst that has been asked for long enough
        if now >= worse[at] + settings.enter_after:
            return MODES[at]
    for at in range(rank):  # or the best
        if now >= better[at] + settings.leave_after:
            return MODES[at]
    return mode


def _enter(state: ModeState, mode: Mode, now: float) -> tuple[ModeState, ModeChanged | None]:
    if mode is state.mode:
        return state, None
    spent = tuple(state.seconds(now).values())
    return state._replace(mode=mode, since=now, spent=spent), ModeChanged(state.mode, mode, state.held)


class ModeTracker:
    """Remembers the mode, since when, and how long each has lasted; an operator can hold one by hand.

    Safe between threads. Nothing is timed in the background: call `update` or `tick` now and then (or let `run` do
    it), so that a mode is also left when nothing happens any more.

    Args:
        clock: gives the time.
        on_change: called as `on_change(old, new)` after every change, one at a time and in order; if it raises, that
            is counted in `listener_errors` and changes nothing.
        enter_after: seconds for which a worse mode must be asked for before it is entered.
        leave_after: seconds for which nothing worse must be asked for before a better mode is entered.
        events: told of every `ModeChanged`.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    def __init__(
        self,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[Mode, Mode], None] | None = None,
        *,
        enter_after: float = 0.0,
        leave_after: float = 0.0,
        events: Events | None = None,
    ) -> None:
        for name, value in (("enter_after", enter_after), ("leave_after", leave_after)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of seconds of at least 0, not {value!r}")
        self.settings = ModeSettings(enter_after, leave_after)
        self.listener_errors = 0
        self._clock = clock
        self._on_change = on_change
        self._events = events
        self._lock = threading.Lock()
        self._untold: deque[ModeChanged] = deque()
        self._telling = False
        self._state = initial(clock.monotonic())
        self._stamp = clock.time()

    @property
    def mode(self) -> Mode:
        """The mode in force."""
        return self._state.mode

    @property
    def held(self) -> bool:
        """Whether an operator holds it."""
        return self._state.held

    @property
    def since(self) -> float:
        """Unix time at which it was entered, for people to read."""
        return self._stamp

    @property
    def seconds(self) -> dict[Mode, float]:
        """Seconds spent in each mode so far, the current one included."""
        with self._lock:
            return self._state.seconds(self._clock.monotonic())

    @property
    def next_change(self) -> float | None:
        """Seconds until time alone changes the mode; `None` when it does not."""
        with self._lock:
            return next_change(self._state, self._clock.monotonic(), self.settings)

    def update(self, statuses: Iterable[RowStatus], *, at_once: bool = False) -> Mode:
        """Work out the mode anew; a held mode stays. `at_once`: without waiting, after what an operator has done."""
        asked = mode_of(statuses)
        settings = ModeSettings() if at_once else self.settings
        return self._apply(lambda state, now: step(state, asked, now, settings))

    def tick(self) -> Mode:
        """What the passing of time alone causes: call it from a timer."""
        return self._apply(lambda state, now: step(state, None, now, self.settings))

    def hold(self, mode: Mode) -> None:
        """Stay in `mode` until `release`."""
        self._apply(lambda state, now: hold(state, mode, now))

    def release(self) -> None:
        """Go back to the mode that the rows ask for."""
        self._apply(lambda state, now: release(state, now, self.settings))

    async def run(self, every: float = 1.0) -> None:
        """`tick` until cancelled: when a change is due, and at least every so many seconds.

        Raises:
            ValueError: `every` is not positive.
        """
        if not every > 0:
            raise ValueError(f"every must be a positive number of seconds, not {every!r}")
        while True:
            due = self.next_change
            await self._clock.sleep(every if due is None else min(every, due))
            self.tick()

    def _apply(self, change: Callable[[ModeState, float], tuple[ModeState, ModeChanged | None]]) -> Mode:
        with self._lock:
            self._state, changed = change(self._state, self._clock.monotonic())
            mode = self._state.mode
            if changed is not None:
                self._stamp = self._clock.time()
                self._untold.append(changed)
        if changed is not None:
            self._tell()
        return mode

    def _tell(self) -> None:
        """Tell of what is untold, without the lock; whoever comes meanwhile (a listener itself) leaves it to us."""
        while True:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                changed = self._untold.popleft()
            try:
                self._tell_one(changed)
            finally:
                self._telling = False

    def _tell_one(self, changed: ModeChanged) -> None:
        if self._on_change is not None:
            try:
                self._on_change(changed.old, changed.new)
            except Exception:  # noqa: BLE001 - the mode has changed, whatever a listener makes of it
                self.listener_errors += 1
        if self._events:
            self._events.emit(changed)
