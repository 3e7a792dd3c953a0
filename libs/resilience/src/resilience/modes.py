"""The mode of a whole service, worked out from its rows, and the time spent in each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.matrix import Priority


class Mode(StrEnum):
    """How much of a service works."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatus:
    """One row at one moment, for health pages and for the mode. Times in seconds."""

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
    """Emergency: two P0 rows down at once, or one whose fallback fails too. Degraded: any row down. Else normal."""
    down = [status for status in statuses if status.down]
    critical = [status for status in down if status.priority is Priority.P0]
    if len(critical) >= 2 or any(status.fallback_failing for status in critical):
        return Mode.EMERGENCY
    return Mode.DEGRADED if down else Mode.NORMAL


class ModeTracker:
    """Remembers the mode, since when, and how long each has lasted; an operator can hold one by hand.

    `on_change(old, new)` is called after every change.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, on_change: Callable[[Mode, Mode], None] | None = None) -> None:
        self._clock = clock
        self._on_change = on_change
        self._entered = clock.monotonic()
        self._seconds = dict.fromkeys(Mode, 0.0)
        self._worked_out = Mode.NORMAL
        self.mode = Mode.NORMAL
        self.since = clock.time()
        self.held = False

    def update(self, statuses: Iterable[RowStatus]) -> Mode:
        """Work out the mode anew; a held mode stays."""
        self._worked_out = mode_of(statuses)
        if not self.held:
            self._enter(self._worked_out)
        return self.mode

    def hold(self, mode: Mode) -> None:
        """Stay in `mode` until `release`."""
        self.held = True
        self._enter(mode)

    def release(self) -> None:
        """Go back to the mode that the rows ask for."""
        self.held = False
        self._enter(self._worked_out)

    @property
    def seconds(self) -> dict[Mode, float]:
        """Seconds spent in each mode so far, the current one included."""
        now = self._clock.monotonic()
        return {mode: spent + (now - self._entered) * (mode is self.mode) for mode, spent in self._seconds.items()}

    def _enter(self, mode: Mode) -> None:
        if mode is self.mode:
            return
        self._seconds = self.seconds
        old, self.mode = self.mode, mode
        self._entered = self._clock.monotonic()
        self.since = self._clock.time()
        if self._on_change is not None:
            self._on_change(old, mode)
