"""The circuit as a pure state machine: no clock, no I/O, no listeners.

Every method is told the time (monotonic seconds) and returns the `Change` it caused, if any. The shell around it
(`breaker.py`) reads the clock, hands out permits and tells listeners; keeping the two apart lets the rules
be checked against a model and simulated in virtual time.

Each state change, and each intervention by hand, begins a new *generation*. A result counts only in
the generation in which its call was admitted (the technique is known from gobreaker).
"""

import math
from enum import StrEnum
from typing import NamedTuple


class CircuitState(StrEnum):
    """The three states, as written in health pages and metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"

    @property
    def header(self) -> str:
        """The state as written in headers and gRPC metadata: with a hyphen."""
        return self.value.replace("_", "-")


class Change(NamedTuple):
    """One transition; `failures` is the number of consecutive failures that the old state had seen."""

    old: CircuitState
    new: CircuitState
    reason: str
    failures: int


TOO_MANY_FAILURES = "too many consecutive failures"
OPEN_TIME_OVER = "open time over"
PROBE_SUCCEEDED = "probe succeeded"
TRIAL_SUCCEEDED = "trial succeeded"
TRIAL_FAILED = "trial failed"
TRIAL_LOST = "trial never reported"
HELD_OPEN = "held open"
HELD_CLOSED = "held closed"
RESET = "reset"


class Circuit:
    """State and rules of one circuit.

    Half-open admits at most `half_open_max_calls` trials at once, and in all no more than can still matter: the larger
    of `half_open_max_calls` and `success_threshold` trials get a verdict. A neutral trial gives its place back.
    """

    __slots__ = (
        "early",
        "failure_threshold",
        "failures",
        "generation",
        "half_open_max_calls",
        "held",
        "in_flight",
        "last_error",
        "max_half_open",
        "recovery_timeout",
        "since",
        "state",
        "success_threshold",
        "successes",
        "trial_at",
        "until",
    )

    def __init__(
        self,
        now: float,
        *,
        failure_threshold: int,
        recovery_timeout: float,
        success_threshold: int,
        half_open_max_calls: int,
        max_half_open: float | None,
    ) -> None:
        self.failure_threshold = _count("failure_threshold", failure_threshold)
        self.recovery_timeout = _seconds("recovery_timeout", recovery_timeout)
        self.success_threshold = _count("success_threshold", success_threshold)
        self.half_open_max_calls = _count("half_open_max_calls", half_open_max_calls)
        self.max_half_open = None if max_half_open is None else _seconds("max_half_open", max_half_open)
        self.state = CircuitState.CLOSED
        self.held = False
        self.generation = 0
        self.since = now
        self.failures = 0
        self.last_error: BaseException | None = None
        self.until = now  # open: the earliest time of a trial
        self.early = False  # open: a probe succeeded, so the trial need not wait for `until`
        self.in_flight = 0  # half-open: trials running
        self.successes = 0  # half-open: trials that succeeded
        self.trial_at = now  # half-open: when the latest trial was admitted

    def tick(self, now: float) -> Change | None:
        """Apply what the passing of time alone causes: the end of the open time, or a trial given up for lost."""
        if self.held:
            return None
        if self.state is CircuitState.OPEN and (self.early or now >= self.until):
            return self._enter(CircuitState.HALF_OPEN, now, PROBE_SUCCEEDED if self.early else OPEN_TIME_OVER)
        if self.state is CircuitState.HALF_OPEN and self._trial_lost(now):
            return self._enter(CircuitState.OPEN, now, TRIAL_LOST)
        return None

    def admit(self, now: float) -> bool:
        """Whether a call may run now; in half-open it takes one of the trial places."""
        if not self.has_room():
            return False
        if self.state is CircuitState.HALF_OPEN:
            self.in_flight += 1
            self.trial_at = now
        return True

    def has_room(self) -> bool:
        """Whether a call would be admitted."""
        if self.state is not CircuitState.HALF_OPEN:
            return self.state is CircuitState.CLOSED
        verdicts = max(self.half_open_max_calls, self.success_threshold)
        return self.in_flight < self.half_open_max_calls and self.in_flight + self.successes < verdicts

    def success(self, now: float) -> Change | None:
        """A call of this generation succeeded."""
        if self.held:
            return None
        if self.state is CircuitState.CLOSED:
            self.failures = 0
            self.last_error = None
            return None
        self.in_flight -= 1
        self.successes += 1
        if self.successes < self.success_threshold:
            return None
        return self._enter(CircuitState.CLOSED, now, TRIAL_SUCCEEDED)

    def failure(self, now: float, error: BaseException | None) -> Change | None:
        """A call of this generation failed."""
        if self.held:
            return None
        self.failures += 1
        self.last_error = error
        if self.state is CircuitState.HALF_OPEN:
            return self._enter(CircuitState.OPEN, now, TRIAL_FAILED)
        if self.failures >= self.failure_threshold:
            return self._enter(CircuitState.OPEN, now, TOO_MANY_FAILURES)
        return None

    def neutral(self) -> None:
        """A call of this generation says nothing about the dependency; a trial's place is given back."""
        if self.state is CircuitState.HALF_OPEN:
            self.in_flight -= 1

    def hold(self, state: CircuitState, now: float) -> Change | None:
        """Stay in `state` (open or closed) until `reset`, whatever happens."""
        change = self._enter(state, now, HELD_OPEN if state is CircuitState.OPEN else HELD_CLOSED)
        self.held = True
        return change

    def reset(self, now: float) -> Change | None:
        """Closed, nothing counted, not held."""
        return self._enter(CircuitState.CLOSED, now, RESET)

    def retry_after(self, now: float) -> float | None:
        """Seconds until a trial may happen; `None` when closed, or held, since no time ends a hold."""
        if self.held or self.state is CircuitState.CLOSED:
            return None
        if self.state is CircuitState.HALF_OPEN or self.early:
            return 0.0
        return max(0.0, self.until - now)

    def _trial_lost(self, now: float) -> bool:
        return self.max_half_open is not None and self.in_flight > 0 and now - self.trial_at >= self.max_half_open

    def _enter(self, state: CircuitState, now: float, reason: str) -> Change | None:
        old, failures = self.state, self.failures
        self.state = state
        self.generation += 1
        self.held = False
        self.early = False
        self.in_flight = 0
        self.successes = 0
        self.until = now + self.recovery_timeout
        if state is CircuitState.CLOSED:
            self.failures = 0
            self.last_error = None
        if old is state:
            return None  # a self-transition is legal and silent
        self.since = now
        return Change(old, state, reason, failures)


def _count(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} must be a whole number of at least 1, not {value!r}")
    return value


def _seconds(field: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} must be a positive number of seconds, not {value!r}")
    return float(value)
