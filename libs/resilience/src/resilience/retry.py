"""Retrying: the schedule as a pure function, and a loop that keeps within the caller's deadline.

Backoff is exponential with full jitter: a wait drawn evenly from 0 to the exponential bound, so that callers that
failed together do not come back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import current_deadline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """How long to wait after each failed attempt. Times in seconds."""

    attempts: int = 3
    base: float = 0.05
    factor: float = 2.0
    cap: float = 5.0
    random: Random = field(default_factory=Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts!r}")
        for name in ("base", "factor", "cap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")

    def wait(self, attempt: int) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1), or `None` when it was the last."""
        if attempt >= self.attempts:
            return None
        return self.random.uniform(0.0, self.bound(attempt))

    def bound(self, attempt: int) -> float:
        """The longest wait after failed attempt number `attempt`."""
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap


async def retry(
    func: Callable[[], Awaitable[T]],
    *,
    retry_on: Callable[[Exception], bool],
    attempts: int | None = None,
    schedule: RetrySchedule | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> T:
    """Call `func` until it succeeds, raises something else, or the schedule or the current deadline ends.

    `attempts` is short for a schedule with that many attempts. A wait that would outlast the caller's deadline
    is not begun: the error is raised while there is still time to act on it.

    Raises:
        Exception: the last attempt's error, unchanged. Cancellation is never retried.
    """
    if schedule is None:
        schedule = RetrySchedule() if attempts is None else RetrySchedule(attempts=attempts)
    elif attempts is not None:
        raise ValueError("give attempts or schedule, not both")
    attempt = 1
    while True:
        try:
            return await func()
        except Exception as error:
            wait = schedule.wait(attempt) if retry_on(error) else None
            if wait is None or _too_late(wait, clock):
                raise
        await clock.sleep(wait)
        attempt += 1


def _too_late(wait: float, clock: Clock) -> bool:
    deadline = current_deadline()
    return deadline is not None and deadline.remaining(clock) <= wait
