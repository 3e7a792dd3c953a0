"""Attempts to bring a dependency back: reconnect pools, make clients anew; seldom, and only so often.

The prober asks about once a second whether the dependency is back, which costs next to nothing. An attempt is the
heavier thing, for what does not come back by itself: it is made after 30 s × 2ⁿ (n from 0), give or take some jitter,
at most five times, and then somebody has to be told.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from resilience.ambient import RANDOM
from resilience.circuit import CLOSED, HELD_OPEN, OPEN
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, without_deadline
from resilience.errors import BulkheadFull, CallTimeout
from resilience.events import Events
from resilience.health import tried

if TYPE_CHECKING:
    from resilience.breaker import Transition

MAX_WAIT: Final = 86_400.0
"""No wait between attempts is longer than a day."""

AttemptOutcome = Literal["success", "failure", "timeout", "rejected"]
"""Rejected: not begun, since the one before it has not ended its clean-up."""

RecoveryPhase = Literal["idle", "waiting", "attempting", "exhausted"]


class RecoveryAttempted(NamedTuple):
    """An attempt ended; the next one follows in `next_in` seconds, if any does."""

    name: str
    attempt: int
    outcome: AttemptOutcome
    next_in: float | None


class RecoveryExhausted(NamedTuple):
    """The last attempt failed, `seconds` after the failure was noticed: somebody should look."""

    name: str
    attempts: int
    seconds: float


class Recovered(NamedTuple):
    """The dependency is back, after so many attempts and so many seconds."""

    name: str
    attempts: int
    seconds: float


class RecoverySnapshot(NamedTuple):
    """A recovery at one moment. Times in seconds; `last_error` is the type only, as a text may hold secrets."""

    name: str
    phase: RecoveryPhase
    attempts: int
    next_in: float | None
    seconds: float
    last_error: str | None


# -- the rules


class RecoverySchedule:
    """How long to wait before each attempt, in seconds.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("attempts", "base", "factor", "jitter")

    def __init__(self, base: float = 30.0, *, factor: float = 2.0, attempts: int = 5, jitter: float = 0.1) -> None:
        if not 0 < base < math.inf:
            raise ValueError(f"base must be a positive number of seconds, not {base!r}")
        if not 1 <= factor < math.inf:
            raise ValueError(f"factor must be at least 1, not {factor!r}")
        if not attempts >= 1:
            raise ValueError(f"attempts must be at least 1, not {attempts!r}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a share from 0 up to 1, not {jitter!r}")
        self.base = base
        self.factor = factor
        self.attempts = attempts
        self.jitter = jitter

    def next_attempt(self, n: int, random: Random = RANDOM) -> float | None:
        """The wait after `n` attempts have failed: `base` × `factor`ⁿ, give or take the jitter; `None`: no more."""
        if n >= self.attempts:
            return None
        try:
            wait = self.base * float(self.factor) ** n
        except OverflowError:
            wait = MAX_WAIT
        return min(MAX_WAIT, wait * random.uniform(1 - self.jitter, 1 + self.jitter))


class RecoveryMachine:
    """The rules as a state machine without a clock: `idle → waiting → attempting → waiting … → exhausted`, and back.

    A result counts only if nothing else has happened since its attempt began: `generation` tells.
    """

    __slots__ = ("attempts", "began", "due", "ended", "generation", "phase", "relapse", "schedule")

    def __init__(self, schedule: RecoverySchedule, relapse: float) -> None:
        self.schedule = schedule
        self.relapse = relapse
        self.phase: RecoveryPhase = "idle"
        self.attempts = 0
        self.began = 0.0
        self.due = 0.0
        self.ended = -math.inf  # when an attempt last succeeded, without anybody's confirmation so far
        self.generation = 0

    def begin(self, now: float, random: Random) -> bool:
        """The dependency has failed. Only idle begins; true when there is nothing left to try."""
        if self.phase != "idle":
            return False
        if now - self.ended > self.relapse:
            self.attempts = 0
            self.began = now
        return self._wait(now, random) is None

    def retry(self, now: float) -> bool:
        """By hand: an attempt is due now, the first of a new row unless a row is going on; false during an attempt."""
        if self.phase == "attempting":
            return False
        if self.phase != "waiting":
            self.attempts = 0
            self.began = now
        self._enter("waiting")
        self.due = now
        return True

    def recovered(self) -> bool:
        """The dependency is back, whoever says so; whether that is news."""
        news = self.phase != "idle"
        self._enter("idle")
        self.ended = -math.inf
        return news

    def start(self, now: float) -> int | None:
        """Begin the attempt that is due; the ticket to end it with, or `None` when none is due."""
        if self.phase != "waiting" or now < self.due:
            return None
        self._enter("attempting")
        self.attempts += 1
        return self.generation

    def succeeded(self, ticket: int, now: float) -> bool:
        """The attempt brought it back, as far as it can tell; whether that counts."""
        if ticket != self.generation:
            return False
        self._enter("idle")
        self.ended = now
        return True

    def failed(self, ticket: int, now: float, random: Random) -> tuple[bool, float | None]:
        """It did not: whether that counts, and the wait for the next attempt (`None`: exhausted)."""
        if ticket != self.generation:
            return False, None
        return True, self._wait(now, random)

    def aborted(self, ticket: int) -> None:
        """The attempt was cancelled by whoever runs this: it is made again when somebody runs it again."""
        if ticket == self.generation:
            self._enter("waiting")
            self.attempts -= 1

    def next_in(self, now: float) -> float | None:
        """Seconds until an attempt is due; `None` when none is waited for."""
        return max(0.0, self.due - now) if self.phase == "waiting" else None

    def _wait(self, now: float, random: Random) -> float | None:
        wait = self.schedule.next_attempt(self.attempts, random)
        self._enter("exhausted" if wait is None else "waiting")
        self.due = math.inf if wait is None else now + wait
        return wait

    def _enter(self, phase: RecoveryPhase) -> None:
        self.phase = phase
        self.generation += 1


# -- the shell


class Recovery:
    """Tries to bring one dependency back, from `begin` until `recovered`, while `run` runs.

    All but `run` may be called from any thread, and as often as one likes. Follows a circuit with
    `breaker.subscribe(recovery.on_transition)`.

    Args:
        name: used in events.
        attempt: re-establishes what can be, and is done when the dependency is back. It raises when it is not, or
            returns `False` when it is not or cannot be told: then attempts go on until `recovered` is called. It must
            stand being cancelled, and is never begun while the one before it still cleans up.
        base: seconds before the first attempt, give or take the share `jitter`.
        factor: by which every further wait is longer.
        attempts: how many there are before `RecoveryExhausted`.
        limit: seconds that an attempt may take.
        relapse: a dependency that fails again within so many seconds of an attempt that seemed to succeed had not
            recovered: the count goes on.
        events: told of every `RecoveryAttempted`, `RecoveryExhausted` and `Recovered`.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    def __init__(
        self,
        name: str,
        attempt: Callable[[], Awaitable[object]],
        *,
        base: float = 30.0,
        factor: float = 2.0,
        attempts: int = 5,
        jitter: float = 0.1,
        limit: float = 10.0,
        relapse: float = 120.0,
        random: Random | None = None,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if not 0 < limit < math.inf:
            raise ValueError(f"limit must be a positive number of seconds, not {limit!r}")
        if not 0 <= relapse < math.inf:
            raise ValueError(f"relapse must be a number of seconds of at least 0, not {relapse!r}")
        self.name = name
        self.limit = limit
        self._attempt = attempt
        self._machine = RecoveryMachine(
            RecoverySchedule(base, factor=factor, attempts=attempts, jitter=jitter), relapse
        )
        self._random = RANDOM if random is None else random
        self._clock = clock
        self._monotonic = clock.monotonic
        self._events = events
        self._lock = threading.Lock()
        self._abandoned = AbandonedTasks(limit=1)
        self._last_error: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    # -- being told

    def begin(self) -> None:
        """The dependency has failed. Nothing new while attempts go on, or when they are exhausted."""
        with self._lock:
            now = self._monotonic()
            exhausted = self._machine.begin(now, self._random)
            attempts, seconds = self._machine.attempts, now - self._machine.began
        if exhausted:
            self._emit(RecoveryExhausted(self.name, attempts, seconds))
        self._wake()

    def recovered(self) -> None:
        """The dependency is back, by whatever means: no more attempts, and the next failure begins anew."""
        with self._lock:
            now = self._monotonic()
            news = self._machine.recovered()
            attempts, seconds = self._machine.attempts, now - self._machine.began
        if news:
            self._emit(Recovered(self.name, attempts, seconds))
        self._wake()

    def retry(self) -> bool:
        """By hand: attempt it now, also when attempts are exhausted. False when an attempt is being made already."""
        with self._lock:
            due = self._machine.retry(self._monotonic())
        self._wake()
        return due

    def on_transition(self, transition: "Transition") -> None:
        """For `breaker.subscribe`: open begins, unless an operator holds it open; closed ends it."""
        if transition.new is CLOSED:
            self.recovered()
        elif transition.new is OPEN and transition.reason != HELD_OPEN:
            self.begin()

    # -- running

    async def run(self) -> None:
        """Make the attempts until cancelled.

        Raises:
            RuntimeError: it runs already.
        """
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(f"recovery {self.name!r} runs already")
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        try:
            with without_deadline():
                while True:
                    await self._make(await self._wait_until_due())
        finally:
            self._loop = None

    # -- watching

    @property
    def phase(self) -> RecoveryPhase:
        """What it is doing."""
        return self._machine.phase

    def snapshot(self) -> RecoverySnapshot:
        """Everything at this moment; `attempts` and `seconds` are those of the outage, 0 while idle."""
        with self._lock:
            machine, now = self._machine, self._monotonic()
            idle = machine.phase == "idle"
            return RecoverySnapshot(
                name=self.name,
                phase=machine.phase,
                attempts=0 if idle else machine.attempts,
                next_in=machine.next_in(now),
                seconds=0.0 if idle else now - machine.began,
                last_error=self._last_error,
            )

    # -- inside

    async def _wait_until_due(self) -> int:
        while True:
            self._changed.clear()
            with self._lock:
                now = self._monotonic()
                ticket = self._machine.start(now)
                wait = self._machine.next_in(now)
            if ticket is not None:
                return ticket
            timer = None if wait is None else self._clock.call_later(wait, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _make(self, ticket: int) -> None:
        try:
            value, error = await tried(
                self._attempt, self.limit, name=self.name, clock=self._clock, abandoned=self._abandoned
            )
        except BaseException:
            with self._lock:
                self._machine.aborted(ticket)
            raise
        self._ended(ticket, _outcome(value, error), None if error is None else type(error).__name__)

    def _ended(self, ticket: int, outcome: AttemptOutcome, error: str | None) -> None:
        wait: float | None = None
        with self._lock:
            machine, now = self._machine, self._monotonic()
            self._last_error = error
            if outcome == "success":
                counts = machine.succeeded(ticket, now)
            else:
                counts, wait = machine.failed(ticket, now, self._random)
            attempts, seconds = machine.attempts, now - machine.began
        if not counts:
            return  # recovered meanwhile
        self._emit(RecoveryAttempted(self.name, attempts, outcome, wait))
        if outcome == "success":
            self._emit(Recovered(self.name, attempts, seconds))
        elif wait is None:
            self._emit(RecoveryExhausted(self.name, attempts, seconds))

    def _emit(self, event: tuple[Any, ...]) -> None:
        if self._events:
            self._events.emit(event)

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(self._changed.set)


def _outcome(value: object, error: BaseException | None) -> AttemptOutcome:
    if error is None:
        return "failure" if value is False else "success"
    if isinstance(error, CallTimeout):
        return "timeout"
    return "rejected" if isinstance(error, BulkheadFull) else "failure"
