"""The circuit as a pure state machine: no clock, no lock, no I/O, no listeners.

Every method is told the time (monotonic seconds) and returns the `Change` it caused, if any. The shell around it
(`breaker.py`) reads the clock, hands out permits and tells listeners; keeping the two apart lets the rules
be checked against a model, explored exhaustively and simulated in virtual time.

Each state change, and each intervention by hand, begins a new *generation*. A result counts only in
the generation in which its call was admitted (the technique is known from gobreaker).
"""

import math
import sys
from collections.abc import Callable
from enum import StrEnum
from random import Random
from typing import Any, Final, NamedTuple

from resilience.ambient import RANDOM
from resilience.backoff import Backoff
from resilience.window import FAILED, SLOW, CountWindow, TimeWindow, Window


class CircuitState(StrEnum):
    """The three states, as written in health pages and metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"

    @property
    def header(self) -> str:
        """The state as written in headers and gRPC metadata: with a hyphen."""
        return self.value.replace("_", "-")


GIL: Final = bool(getattr(sys, "_is_gil_enabled", lambda: True)())

CLOSED: Final = CircuitState.CLOSED
OPEN: Final = CircuitState.OPEN
HALF_OPEN: Final = CircuitState.HALF_OPEN


class Change(NamedTuple):
    """One transition, with what the old state had counted.

    `failures` are consecutive ones; `calls`, `failed` and `slow` those of the window (0 without one). A change from
    a state to itself is what a circuit in shadow would have done.
    """

    old: CircuitState
    new: CircuitState
    reason: str
    failures: int
    calls: int = 0
    failed: int = 0
    slow: int = 0


TOO_MANY_FAILURES = "too many consecutive failures"
FAILURE_RATE = "failure rate too high"
SLOW_RATE = "slow call rate too high"
TOLD_TO_WAIT = "told to wait"
OPEN_TIME_OVER = "open time over"
PROBE_SUCCEEDED = "probe succeeded"
TRIAL_SUCCEEDED = "trial succeeded"
TRIAL_FAILED = "trial failed"
TRIAL_SLOW = "trial too slow"
TRIAL_LOST = "trial never reported"
HELD_OPEN = "held open"
HELD_CLOSED = "held closed"
BY_HAND = "by hand"
RESET = "reset"

MAX_OPEN_SECONDS: Final = 86_400.0
"""An open time that grows, or that a dependency asks for, ends here: a day."""

DEFAULT_FAILURES: Final = 5
DEFAULT_RATE: Final = 0.5
DEFAULT_WINDOW: Final = 100


RULES: Final = (
    "failure_threshold",
    "recovery_timeout",
    "success_threshold",
    "half_open_max_calls",
    "half_open_trials",
    "max_half_open",
    "window",
    "window_seconds",
    "failure_rate",
    "slow_call_seconds",
    "slow_rate",
    "minimum_calls",
    "honour_retry_after",
    "trip_on_retry_after",
)
"""The settings by name, in the order of the constructors."""


class CircuitSettings:
    """When a circuit opens and how it closes; immutable, validated, shared by all breakers that are alike.

    The fields are described at `CircuitBreaker`. Raises ValueError naming the field that is out of range.
    """

    __slots__ = (*RULES, "asked", "bad_trials", "timed")

    def __init__(
        self,
        *,
        failure_threshold: int | None = None,
        recovery_timeout: float | Callable[[int], float] = 60.0,
        success_threshold: int = 2,
        half_open_max_calls: int = 1,
        half_open_trials: int | None = None,
        max_half_open: float | None = None,
        window: int | None = None,
        window_seconds: float | None = None,
        failure_rate: float | None = None,
        slow_call_seconds: float | None = None,
        slow_rate: float | None = None,
        minimum_calls: int = 10,
        honour_retry_after: bool = True,
        trip_on_retry_after: bool = False,
    ) -> None:
        self._set_window(window, window_seconds, failure_rate, slow_call_seconds, slow_rate)
        if failure_threshold is None and self.window is None and self.window_seconds is None:
            failure_threshold = DEFAULT_FAILURES
        self.failure_threshold = None if failure_threshold is None else _count("failure_threshold", failure_threshold)
        self.recovery_timeout = (
            recovery_timeout if callable(recovery_timeout) else _seconds("recovery_timeout", recovery_timeout)
        )
        self.success_threshold = _count("success_threshold", success_threshold)
        self.half_open_max_calls = _count("half_open_max_calls", half_open_max_calls)
        self._set_trials(half_open_trials)
        self.max_half_open = None if max_half_open is None else _seconds("max_half_open", max_half_open)
        # As given, for `changed`: what they come to depends on other fields.
        self.asked: dict[str, Any] = {"half_open_trials": half_open_trials, "minimum_calls": minimum_calls}
        # More than the window holds would never be reached.
        self.minimum_calls = min(_count("minimum_calls", minimum_calls), self.window or minimum_calls)
        self.honour_retry_after = honour_retry_after
        self.trip_on_retry_after = trip_on_retry_after
        self.timed = self.slow_call_seconds is not None or self.window_seconds is not None

    def _set_window(
        self,
        window: int | None,
        window_seconds: float | None,
        failure_rate: float | None,
        slow_call_seconds: float | None,
        slow_rate: float | None,
    ) -> None:
        if window is not None and window_seconds is not None:
            raise ValueError("window and window_seconds exclude each other: count calls or seconds")
        if (slow_rate is None) is not (slow_call_seconds is None):
            raise ValueError("slow_rate and slow_call_seconds go together")
        wanted = failure_rate is not None or slow_rate is not None
        if wanted and window is None and window_seconds is None:
            window = DEFAULT_WINDOW
        if not wanted and (window is not None or window_seconds is not None):
            failure_rate = DEFAULT_RATE
        self.window = None if window is None else _count("window", window)
        self.window_seconds = None if window_seconds is None else _seconds("window_seconds", window_seconds)
        self.failure_rate = None if failure_rate is None else _share("failure_rate", failure_rate)
        self.slow_rate = None if slow_rate is None else _share("slow_rate", slow_rate)
        self.slow_call_seconds = None if slow_call_seconds is None else _seconds("slow_call_seconds", slow_call_seconds)

    def _set_trials(self, trials: int | None) -> None:
        if trials is None:
            self.half_open_trials = max(self.half_open_max_calls, self.success_threshold)
            self.bad_trials = 0
            return
        self.half_open_trials = _count("half_open_trials", trials)
        if trials < self.success_threshold:
            raise ValueError(f"half_open_trials must be at least success_threshold ({self.success_threshold})")
        self.bad_trials = trials - self.success_threshold

    def changed(self, **changes: Any) -> "CircuitSettings":
        """A copy with some fields changed. Raises TypeError for an unknown field, ValueError for a bad value."""
        fields = {name: getattr(self, name) for name in RULES}
        return CircuitSettings(**{**fields, **self.asked, **changes})

    def open_seconds(self, attempt: int) -> float:
        """How long to stay open the `attempt`-th time in a row (from 0); a minute when a function botches it."""
        if not callable(self.recovery_timeout):
            return self.recovery_timeout
        try:
            seconds = float(self.recovery_timeout(attempt))
        except OverflowError:
            return MAX_OPEN_SECONDS
        except Exception:  # noqa: BLE001 - a circuit that has to open opens
            return 60.0
        return 60.0 if math.isnan(seconds) else min(max(seconds, 0.0), MAX_OPEN_SECONDS)

    def new_window(self) -> Window | None:
        """An empty window, if a rate is watched."""
        if self.window is not None:
            return CountWindow(self.window)
        return None if self.window_seconds is None else TimeWindow(self.window_seconds)


def growing(
    base: float, *, factor: float = 2.0, cap: float = 600.0, jitter: float = 0.1, random: Random = RANDOM
) -> Callable[[int], float]:
    """An open time that grows with every opening in a row: `base` × `factor`ⁿ seconds up to `cap`.

    Give or take the share `jitter`, so that instances do not try again in step.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """
    _seconds("base", base)
    backoff = Backoff(base, factor=factor, cap=cap, jitter="proportional", share=jitter)
    return lambda attempt: backoff.wait(attempt + 1, random)


class Circuit:
    """State and rules of one circuit.

    Half-open admits at most `half_open_max_calls` trials at once, and in all no more than can still matter: there are
    `half_open_trials` verdicts. It closes at `success_threshold` successes, and opens as soon as so many
    cannot be reached any more. A neutral trial gives its place back.
    """

    __slots__ = (
        "door",
        "early",
        "failures",
        "generation",
        "held",
        "in_flight",
        "last_error",
        "openings",
        "settings",
        "shadow",
        "shut_until",
        "since",
        "state",
        "successes",
        "told_until",
        "trial_at",
        "until",
        "window",
        "wrong",
    )

    def __init__(self, settings: CircuitSettings, now: float) -> None:
        self.settings = settings
        self.state = CLOSED
        self.held = False
        self.shadow = False
        self.generation = 0
        self.door = 0 if GIL else -1
        """The generation while closed, else -1: whoever finds it not negative may go in without asking further.

        The shell takes three steps without its lock: it counts a call that goes in, a success that changes nothing
        else, and a rejection. They are straight-line code that calls nothing, in which CPython with its global lock
        does not switch threads (it does so where functions begin, at calls and at loops), and does not collect
        garbage, as they make no containers (a tracer or debugger in Python may come between). Without the global lock
        the door is always -1.
        """
        self.shut_until = 0.0
        """While open, when a trial may happen at the earliest, for whoever finds the door shut; 0 says: ask `tick`."""
        self.since = now
        self.failures = 0
        self.last_error: BaseException | None = None
        self.window = settings.new_window()
        self.openings = 0  # in a row, without a close in between
        self.until = now  # open: the earliest time of a trial
        self.told_until = now  # open: not before this, the dependency said
        self.early = False  # open: a probe succeeded, so the trial need not wait for `until`
        self.in_flight = 0  # half-open: trials running
        self.successes = 0  # half-open: trials that succeeded
        self.wrong = 0  # half-open: trials that failed
        self.trial_at = now  # half-open: when the latest trial was admitted

    # -- admission

    def tick(self, now: float) -> Change | None:
        """Apply what the passing of time alone causes: the end of the open time, or a trial given up for lost."""
        if self.held:
            return None
        if self.state is OPEN and (now >= self.until or (self.early and now >= self.told_until)):
            return self._enter(HALF_OPEN, now, PROBE_SUCCEEDED if now < self.until else OPEN_TIME_OVER)
        if self.state is HALF_OPEN and self._trial_lost(now):
            return self._open(now, TRIAL_LOST)
        return None

    def admit(self, now: float) -> bool:
        """Whether a call may run now; in half-open it takes one of the trial places."""
        if not self.has_room():
            return False
        if self.state is HALF_OPEN:
            self.in_flight += 1
            self.trial_at = now
        return True

    def has_room(self) -> bool:
        """Whether a call would be admitted."""
        if self.state is not HALF_OPEN:
            return self.state is CLOSED
        # One at least: `configure` may have asked for fewer than have reported already, and a result has to apply it.
        left = max(1, self.settings.half_open_trials - self.successes - self.wrong)
        return self.in_flight < min(self.settings.half_open_max_calls, left)

    # -- results of calls of the current generation

    def success(self, now: float, began: float) -> Change | None:
        """A call succeeded. Times matter only with `settings.timed`."""
        if self.held:
            return None
        if self.state is CLOSED:
            self.failures = 0
            window = self.window
            if window is None:
                self.last_error = None
                return None
            window.add(SLOW if self._slow(now, began) else 0, began, now)
            return self._judge(now) if window.failures or window.slow else None
        self.in_flight -= 1
        if self._slow(now, began):
            return self._trial_failed(now, TRIAL_SLOW)
        self.successes += 1
        if self.successes < self.settings.success_threshold:
            return None
        return self._enter(CLOSED, now, TRIAL_SUCCEEDED)

    def failure(
        self, now: float, began: float, error: BaseException | None, retry_after: float | None = None
    ) -> Change | None:
        """A call failed; `retry_after` is what the dependency said about coming back, in seconds."""
        if self.held:
            return None
        self.failures += 1
        self.last_error = error
        told = self._told(retry_after)
        if self.state is HALF_OPEN:
            self.in_flight -= 1
            return self._trial_failed(now, TRIAL_FAILED, told)
        if self.window is not None:
            self.window.add(FAILED | (SLOW if self._slow(now, began) else 0), began, now)
        if told > 0 and self.settings.trip_on_retry_after:
            return self._trip(now, TOLD_TO_WAIT, told)
        limit = self.settings.failure_threshold
        if limit is not None and self.failures >= limit:
            return self._trip(now, TOO_MANY_FAILURES, told)
        return None if self.window is None else self._judge(now, told)

    def neutral(self) -> None:
        """A call says nothing about the dependency; a trial's place is given back."""
        if self.state is HALF_OPEN:
            self.in_flight -= 1

    def probed(self) -> None:
        """A probe found the dependency well: the trial need not wait for the open time. A hold ignores it."""
        if self.state is OPEN and not self.held:
            self.early = True
            self._shut()

    # -- by hand

    def hold(self, state: CircuitState, now: float) -> Change | None:
        """Stay in `state` (open or closed) until `reset`, whatever happens."""
        change = self._enter(state, now, HELD_OPEN if state is OPEN else HELD_CLOSED)
        self.held = True
        self.until = math.inf
        self._shut()
        return change

    def watch(self, now: float) -> Change | None:
        """Shadow: count as if, but never reject, until `reset`."""
        change = self._enter(CLOSED, now, RESET)
        self.shadow = True
        return change

    def open_for(self, now: float, seconds: float) -> Change | None:
        """Open now, for at least `seconds`; an open circuit's time can be extended so, never shortened.

        In shadow it would have opened.
        """
        if self.held:
            return None
        until = now + min(seconds, MAX_OPEN_SECONDS)
        if self.state is OPEN:
            self.until, self.told_until = max(self.until, until), max(self.told_until, until)
            self._shut()
            return None
        if self.shadow:
            return self._trip(now, TOLD_TO_WAIT, until - now)
        change = self._enter(OPEN, now, TOLD_TO_WAIT)
        self.until = self.told_until = until
        self._shut()
        return change

    def half_open(self, now: float) -> Change | None:
        """Let trials through now. Raises ValueError when closed: there is nothing to try."""
        if self.state is CLOSED:
            raise ValueError("a closed circuit cannot become half-open: open it first")
        return None if self.state is HALF_OPEN else self._enter(HALF_OPEN, now, BY_HAND)

    def reset(self, now: float) -> Change | None:
        """Closed, nothing counted, neither held nor in shadow."""
        return self._enter(CLOSED, now, RESET)

    def configure(self, settings: CircuitSettings) -> None:
        """Other rules from now on. State, streak, open time and trials stay; a window of calls keeps its latest."""
        old, self.settings = self.settings, settings
        if settings.window != old.window or settings.window_seconds != old.window_seconds:
            window = self.window
            both = isinstance(window, CountWindow) and settings.window is not None
            self.window = window.resized(settings.window) if both else settings.new_window()  # type: ignore[union-attr, arg-type]

    # -- watching

    def retry_after(self, now: float) -> float | None:
        """Seconds until a trial may happen; `None` when closed, or held, since no time ends a hold."""
        if self.held or self.state is CLOSED:
            return None
        if self.state is HALF_OPEN:
            return 0.0
        return max(0.0, (self.told_until if self.early else self.until) - now)

    def rates(self) -> tuple[int, float | None, float | None]:
        """Calls in the window, and its shares of failed and of slow ones: `None` below the minimum of calls."""
        window = self.window
        if window is None or window.calls < self.settings.minimum_calls:
            return (0 if window is None else window.calls), None, None
        return window.calls, window.failures / window.calls, window.slow / window.calls

    # -- inside

    def _slow(self, now: float, began: float) -> bool:
        limit = self.settings.slow_call_seconds
        return limit is not None and now - began > limit

    def _told(self, retry_after: float | None) -> float:
        return (
            0.0 if retry_after is None or not self.settings.honour_retry_after else min(retry_after, MAX_OPEN_SECONDS)
        )

    def _judge(self, now: float, told: float = 0.0) -> Change | None:
        """Whether a rate of the window opens the circuit: at the threshold exactly, it does."""
        window, settings = self.window, self.settings
        if window is None or window.calls < settings.minimum_calls:
            return None
        if settings.failure_rate is not None and window.failures / window.calls >= settings.failure_rate:
            return self._trip(now, FAILURE_RATE, told)
        if settings.slow_rate is not None and window.slow / window.calls >= settings.slow_rate:
            return self._trip(now, SLOW_RATE, told)
        return None

    def _trip(self, now: float, reason: str, told: float) -> Change | None:
        if not self.shadow:
            return self._open(now, reason, told)
        if now < self.until:
            return None  # would be open already
        self.until = now + max(self.settings.open_seconds(0), told)
        return self._change(CLOSED, reason)

    def _trial_failed(self, now: float, reason: str, told: float = 0.0) -> Change | None:
        self.wrong += 1
        return None if self.wrong <= self.settings.bad_trials else self._open(now, reason, told)

    def _trial_lost(self, now: float) -> bool:
        limit = self.settings.max_half_open
        return limit is not None and self.in_flight > 0 and now - self.trial_at >= limit

    def _open(self, now: float, reason: str, told: float = 0.0) -> Change | None:
        openings = self.openings
        change = self._enter(OPEN, now, reason)
        self.openings = openings + 1
        self.told_until = now + told
        self.until = now + max(self.settings.open_seconds(openings), told)
        self._shut()
        return change

    def _enter(self, state: CircuitState, now: float, reason: str) -> Change | None:
        old = self.state
        change = None if old is state else self._change(state, reason)  # a self-transition is legal and silent
        self.state = state
        self.generation += 1
        self.door = self.generation if GIL and state is CLOSED else -1
        self.held = self.shadow = self.early = False
        self.in_flight = self.successes = self.wrong = 0
        self.until = self.told_until = now
        self.shut_until = 0.0
        if state is CLOSED:
            self.failures = self.openings = 0
            self.last_error = None
            self.window = self.settings.new_window()
        if change is not None:
            self.since = now
        return change

    def _shut(self) -> None:
        if GIL and self.state is OPEN:
            self.shut_until = self.told_until if self.early else self.until

    def _change(self, new: CircuitState, reason: str) -> Change:
        window = self.window
        if window is None:
            return Change(self.state, new, reason, self.failures)
        return Change(self.state, new, reason, self.failures, window.calls, window.failures, window.slow)


def _count(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} must be a whole number of at least 1, not {value!r}")
    return value


def _seconds(field: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} must be a positive number of seconds, not {value!r}")
    return float(value)


def _share(field: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{field} must be a share above 0 and up to 1, not {value!r}")
    return float(value)
