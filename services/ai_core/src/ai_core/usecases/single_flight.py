"""Identical queries at the same time reach a provider once: within this process, and among all of them.

Within the process the callers share a task that belongs to none of them, so that a cancelled one harms no other. Among
processes one holds a claim on the query for as long as it asks, and the others read its answer where answers are
kept; a store that is away, or a holder that brings none, costs them the sharing and not the answer.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ai_core.ports import Answers
from ai_core.query import Completion
from resilience import Clock, current_deadline, deadline_scope
from resilience.flight import Flight, Flights

T = TypeVar("T")

SPARED = 0.1
"""Share of the caller's time that is left for what comes after the providers: the kept answer, its own work."""
MOST_SPARED = 0.25
"""Seconds of that at most."""
WORTHWHILE = 0.5
"""Who shared a call that failed tries again with at least this share of the time that one may take."""
LEASE_MARGIN = 1.0


class SingleFlight:
    """``limit``: seconds for one call of the whole chain."""

    def __init__(self, name: str, limit: float, answers: Answers, clock: Clock) -> None:
        self._limit = limit
        self._answers = answers
        self._clock = clock
        self._flights = Flights(name, limit + LEASE_MARGIN, clock)

    async def share(self, key: str, load: Callable[[], Coroutine[Any, Any, T]], failures: type[Exception]) -> T:
        """What ``load`` brings within the caller's time, or the same load of somebody who came before.

        A load is bounded by the time of who began it; one that has shared in a failure and still has time begins anew.
        Raises what ``load`` raises, CallTimeout, LoadCancelled, BulkheadFull.
        """
        begun = False

        def begin(_: Flight) -> Coroutine[Any, Any, T]:
            nonlocal begun
            begun = True
            return self._bounded(load, seconds)

        seconds = self._seconds()
        try:
            found: T = await self._flights.share(key, begin)
        except failures:
            seconds = self._seconds()
            if begun or seconds < self._limit * WORTHWHILE:
                raise
            found = await self._flights.share(key, begin)
        return found

    async def among_processes(
        self, key: str, ask: Callable[[], Awaitable[Completion]], keepable: Callable[[Completion], bool]
    ) -> Completion:
        """The answer of the process that asks already, or what ``ask`` brings; kept for the others if ``keepable``."""
        claim = await self._answers.claim(key, self._limit + LEASE_MARGIN)
        if claim.holder:
            followed = await self._answers.follow(key, claim.holder, self._seconds() / 2)
            if followed is not None:
                return followed.also(as_of=None)
        try:
            answer = await ask()
        except BaseException:
            if claim.mine:
                self._answers.release(key, claim.mine)
            raise
        if keepable(answer):
            self._answers.keep(key, answer, claim.mine)
        elif claim.mine:
            self._answers.release(key, claim.mine)
        return answer

    def _seconds(self) -> float:
        """The time that a load may take if the current caller begins it."""
        deadline = current_deadline()
        if deadline is None:
            return self._limit
        left = deadline.remaining(self._clock)
        return min(self._limit, left - min(MOST_SPARED, left * SPARED))

    async def _bounded(self, load: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        with deadline_scope(seconds, clock=self._clock):
            return await load()
