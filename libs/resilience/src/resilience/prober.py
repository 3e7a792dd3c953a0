"""Finding out early that a dependency is back.

The open time is only an upper bound: while a circuit is open, a cheap probe runs about once a second in the background.
One that succeeds lets the half-open trial happen at once, so recovery takes a second or two instead of the
whole open time, and no user's request has to be the guinea pig.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from random import Random

from resilience.ambient import RANDOM
from resilience.breaker import CircuitBreaker, Transition
from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, hard_timeout, without_deadline
from resilience.row_policy import RowPolicy

PROBE_TIMEOUT = 1.0


class Prober:
    """Probes the dependency of `policy` while its circuit is not closed; sleeps, woken by events, while it is.

    Args:
        probe: raises if the dependency is not well. Called directly, past the circuit, and again through the policy
            as the trial, if there is no other.
        trial: what is called through the policy instead, where the probe alone proves too little: a server that lists
            what it has, but does not do it. After each trial that failed the next one comes twice as late, until the
            row's open time, unless a probe has failed meanwhile: one that is always well proves nothing for long.
        interval: seconds between probes, give or take the share `jitter` (instances must not probe in step).
        on_closed: called whenever the circuit closes, by whomever; must not block.
    """

    def __init__(
        self,
        policy: RowPolicy,
        probe: Callable[[], Awaitable[object]],
        *,
        interval: float = 1.0,
        jitter: float = 0.2,
        random: Random | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_closed: Callable[[], None] | None = None,
        trial: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a share from 0 up to 1, not {jitter!r}")
        self._policy = policy
        self._breaker = policy.breaker
        self._probe = probe
        self._interval = interval
        self._jitter = jitter
        self._random = RANDOM if random is None else random
        self._clock = clock
        self._on_closed = on_closed
        self._trial = probe if trial is None else trial
        self._patience = (
            _Patience(interval, policy.row.open_seconds, policy.breaker, clock) if trial is not None else None
        )
        self._changed = asyncio.Event()
        # Probes that hang in their clean-up; past these few, the open time alone decides.
        self._abandoned = AbandonedTasks(limit=8)

    async def run(self) -> None:
        """Watch the circuit until cancelled."""
        unsubscribe = self._breaker.subscribe(self._on_transition)
        try:
            with without_deadline():
                await self._watch()
        finally:
            unsubscribe()

    async def _watch(self) -> None:
        while True:
            await self._wait_until_wanted()
            await self._clock.sleep(self._pause())
            if self._wanted:
                await self._try_once()

    @property
    def _wanted(self) -> bool:
        return self._breaker.state is not CircuitState.CLOSED and not self._breaker.held

    async def _wait_until_wanted(self) -> None:
        while not self._wanted:
            self._changed.clear()
            await self._changed.wait()

    def _pause(self) -> float:
        return self._interval * self._random.uniform(1 - self._jitter, 1 + self._jitter)

    async def _try_once(self) -> None:
        generation = self._breaker.generation
        try:
            if await self._is_well() and (self._patience is None or self._patience.over):
                self._breaker.probe_succeeded(generation)
                if self._wanted:
                    await self._policy.call(self._trial)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # we are being stopped; otherwise a driver cancelled itself, which is a failed probe
        except Exception:  # noqa: BLE001 - still down: what a trial is for finding out
            return

    async def _is_well(self) -> bool:
        try:
            await hard_timeout(
                self._probe(), PROBE_TIMEOUT, name=self._policy.row.id, clock=self._clock, abandoned=self._abandoned
            )
        except Exception:
            if self._patience is not None:
                self._patience.reset()
            raise
        return True

    def _on_transition(self, transition: Transition) -> None:
        self._changed.set()
        if self._patience is not None:
            self._patience.watch(transition)
        if transition.new is CircuitState.CLOSED and self._on_closed is not None:
            with without_deadline():  # the circuit may have been closed by a request, whose deadline is its own
                self._on_closed()


class _Patience:
    """How long a probe that is well is not believed, after trials that failed.

    A trial that succeeded proves as little when the next opening comes soon and no other call has succeeded between.
    """

    def __init__(self, interval: float, longest: float, breaker: CircuitBreaker, clock: Clock) -> None:
        self._interval = interval
        self._longest = longest
        self._breaker = breaker
        self._clock = clock
        self._failed = 0
        self._until = 0.0
        self._closed_at = -math.inf
        self._succeeded = 0

    @property
    def over(self) -> bool:
        return self._clock.monotonic() >= self._until

    def reset(self) -> None:
        self._failed, self._until = 0, 0.0

    def watch(self, transition: Transition) -> None:
        now = self._clock.monotonic()
        if transition.new is CircuitState.CLOSED:
            self._closed_at, self._succeeded = now, self._breaker.counts.succeeded
        elif transition.new is CircuitState.OPEN:
            if transition.old is CircuitState.CLOSED and self._worked(now):
                self.reset()
            else:
                self._failed += 1
                self._until = now + min(self._interval * 2.0 ** min(self._failed, 30), self._longest)

    def _worked(self, now: float) -> bool:
        """Whether it was really in use since the circuit closed."""
        return now - self._closed_at >= self._longest or self._breaker.counts.succeeded > self._succeeded
