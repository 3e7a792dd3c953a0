"""One object per row of the matrix: everything that happens around a call to that dependency, in one fixed order.

    bulkhead → hard timeout (the wait for the bulkhead included) → circuit → retry → call

with the fallback ladder around it all.

Built once when the service is wired, and cheap per call: no layers of wrappers, one task, one future and one timer.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from resilience.breaker import CircuitBreaker, Transition, Verdict
from resilience.bulkhead import Bulkhead
from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, current_deadline, hard_timeout
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen
from resilience.events import CallFinished, CallOutcome, Events, FallbackUsed, Transitioned
from resilience.fallback import Rung, RungOutcome, descend
from resilience.matrix import Row
from resilience.modes import RowStatus
from resilience.outcome import Degradation, Served

T = TypeVar("T")

FAIR_SHARE: Final = 0.5
"""A call that ran out of time is held against the dependency only if it had at least this share of the row's own
limit. One that was left with scraps, because another dependency had used up the caller's time, proves nothing."""

FAILING_SECONDS: Final = 5.0
"""How long a ladder that could not serve counts as failing: long enough that the mode does not flap per request."""

_NOT_TRIED = (CircuitBreakerOpen, BulkheadFull)
_OWN_FAILURES = (CircuitBreakerOpen, BulkheadFull, CallTimeout)


def never(_error: Exception) -> bool:
    """Retry nothing."""
    return False


class Policy:
    """Guards the calls of one row.

    Args:
        row: what is promised.
        breaker: the row's circuit; it also classifies errors. Made from the row if not given.
        events: told of every call, transition and fallback.
        timeout: seconds for one call in all; the row's own if not given. The caller's deadline can shorten it.
        bulkhead: bounds concurrent calls; given back at the timeout, even if the abandoned call still cleans up.
        retries: further attempts after an error matched by `retry_on`, at once and within the same limit. Meant
            for a stale pooled connection; the circuit sees one result per `call`, not one per attempt.
        max_abandoned: calls that may still be cleaning up after their timeout before new ones are refused.
    """

    __slots__ = (
        "_abandoned",
        "_bulkhead",
        "_clock",
        "_events",
        "_failing_at",
        "_fallback",
        "_retries",
        "_retry_on",
        "breaker",
        "last_latency",
        "row",
        "timeout",
    )

    def __init__(
        self,
        row: Row,
        *,
        breaker: CircuitBreaker | None = None,
        events: Events | None = None,
        timeout: float | None = None,
        bulkhead: Bulkhead | None = None,
        retries: int = 0,
        retry_on: Callable[[Exception], bool] = never,
        clock: Clock = SYSTEM_CLOCK,
        max_abandoned: int = 100,
    ) -> None:
        self.row = row
        self.breaker = _breaker_of(row, clock) if breaker is None else breaker
        self.timeout = row.call_timeout if timeout is None else timeout
        self.last_latency: float | None = None
        """Seconds that the latest answered call took."""
        self._events = Events() if events is None else events
        self._bulkhead = bulkhead
        self._retries = retries
        self._retry_on = retry_on
        self._clock = clock
        self._abandoned = AbandonedTasks(max_abandoned)
        self._fallback = ""
        self._failing_at: float | None = None
        self.breaker.subscribe(self._on_transition)

    # -- calls

    async def call(self, fn: Callable[[], Awaitable[T]]) -> T:
        """Call `fn` if the circuit allows it, for as long as the row and the caller allow.

        Raises:
            CircuitBreakerOpen: not called; the circuit is open.
            BulkheadFull: not called; too many callers.
            CallTimeout: no answer in time, or no time was left to begin with.
            BaseException: whatever `fn` raises, unchanged.
        """
        started = self._clock.monotonic()
        limit = self.timeout
        deadline = current_deadline()
        if deadline is not None and deadline.at - started < limit:
            limit = deadline.at - started
        if self._bulkhead is None:
            return await self._guarded(fn, started, limit)
        return await self._in_bulkhead(self._bulkhead, fn, started, limit)

    async def serve(self, fn: Callable[[], Awaitable[Served[T] | T]], *rungs: Rung[T]) -> Served[T]:
        """`call`, and if the dependency fails, the first rung of the ladder that has something to serve.

        An error that the caller caused (the breaker's verdict on it is SUCCESS: the dependency answered) is raised
        untouched, and no rung is tried.

        Raises:
            Exception: the original failure, with a note per rung, when no rung could serve.
        """
        try:
            value = await self.call(fn)
        except Exception as failure:
            if self._is_answer(failure):
                raise
            return await self._descend(failure, rungs)
        return value if isinstance(value, Served) else Served(value)

    # -- watching

    @property
    def fallback_in_use(self) -> str:
        """The fallback that served last while the circuit is not closed; "" when it is closed."""
        return "" if self.breaker.state is CircuitState.CLOSED else self._fallback

    @property
    def abandoned(self) -> int:
        """Timed-out calls that have not finished their clean-up."""
        return len(self._abandoned)

    def degradation(self, fallback: str) -> Degradation:
        """The mark of an answer served by `fallback` now; a retry makes sense at the next probe at the latest."""
        breaker = self.breaker
        wait = breaker.retry_after()
        if wait is None and not breaker.held:
            wait = self.row.probe_interval
        return Degradation(self.row.id, fallback, breaker.state.header, wait)

    def status(self) -> RowStatus:
        """The row at this moment."""
        snapshot = self.breaker.snapshot()
        return RowStatus(
            row=self.row.id,
            label=self.row.label,
            dependency=self.row.dependency,
            priority=self.row.priority,
            circuit=snapshot.state,
            failures=snapshot.failures,
            state_seconds=snapshot.state_seconds,
            retry_after=snapshot.retry_after,
            last_error=snapshot.last_error,
            held=snapshot.held,
            last_latency=self.last_latency,
            fallback=self.fallback_in_use,
            fallback_failing=self._fallback_failing(),
        )

    def describe(self) -> str:
        """The order of everything around a call, in one line."""
        bulkhead = self._bulkhead
        steps = [
            f"bulkhead {bulkhead.limit} (+{bulkhead.max_waiting} waiting)" if bulkhead else "",
            f"hard timeout {self.timeout:g} s",
            f"circuit {self.breaker.failure_threshold} failures / {self.breaker.recovery_timeout:g} s",
            f"retry {self._retries}" if self._retries else "",
            "call",
        ]
        ladder = " → ".join(self.row.fallbacks) or "none"
        return f"{self.row.id}: {' → '.join(step for step in steps if step)}; fallback: {ladder}"

    # -- inside

    async def _in_bulkhead(self, bulkhead: Bulkhead, fn: Callable[[], Awaitable[T]], started: float, limit: float) -> T:
        try:
            self.breaker.check()  # an open circuit rejects at once: nobody queues for nothing
            await bulkhead.acquire(limit)
        except _OWN_FAILURES as error:
            self._finished("rejected" if isinstance(error, _NOT_TRIED) else "timeout", started)
            raise
        try:
            return await self._guarded(fn, started, limit - (self._clock.monotonic() - started))
        finally:
            bulkhead.release()

    async def _guarded(self, fn: Callable[[], Awaitable[T]], started: float, limit: float) -> T:
        try:
            if limit <= 0:
                raise CallTimeout(self.row.id, 0.0)
            if self._abandoned.full:
                raise BulkheadFull(self.row.id)
            permit = self.breaker.acquire()
        except _OWN_FAILURES as error:
            self._finished("rejected" if isinstance(error, _NOT_TRIED) else "neutral", started)
            raise
        try:
            value = await hard_timeout(
                self._attempts(fn) if self._retries else fn(),
                limit,
                name=self.row.id,
                clock=self._clock,
                abandoned=self._abandoned,
            )
        except BaseException as error:
            if self._cut_short(started, limit) or isinstance(error, BulkheadFull):
                verdict = Verdict.NEUTRAL
                permit.neutral()
            elif isinstance(error, CallTimeout):
                verdict = Verdict.FAILURE
                permit.failure(error)
            else:
                verdict = self.breaker.settle(permit, error)
            self._finished("timeout" if isinstance(error, CallTimeout) else verdict.value, started)
            raise
        permit.success()
        self._finished("success", started)
        return value

    async def _attempts(self, fn: Callable[[], Awaitable[T]]) -> T:
        for _ in range(self._retries):
            try:
                return await fn()
            except Exception as error:
                if not self._retry_on(error):
                    raise
        return await fn()

    def _cut_short(self, started: float, limit: float) -> bool:
        return limit < self.timeout * FAIR_SHARE and self._clock.monotonic() - started >= limit

    def _is_answer(self, error: Exception) -> bool:
        return not isinstance(error, _OWN_FAILURES) and self.breaker.verdict(error) is Verdict.SUCCESS

    async def _descend(self, failure: Exception, rungs: tuple[Rung[T], ...]) -> Served[T]:
        failed = False

        def tried(name: str, outcome: RungOutcome) -> None:
            nonlocal failed
            failed = failed or outcome == "failure"
            if outcome == "success":
                self._fallback = name
            self._events.emit(FallbackUsed(self.row.id, name, outcome))

        try:
            return await descend(failure, rungs, degradation=self.degradation, tried=tried)
        except Exception as error:
            if failed and error is failure:
                self._failing_at = self._clock.monotonic()
            raise

    def _fallback_failing(self) -> bool:
        at = self._failing_at
        return at is not None and self._clock.monotonic() - at < FAILING_SECONDS

    def _finished(self, outcome: CallOutcome, started: float) -> None:
        seconds = self._clock.monotonic() - started
        if outcome == "success":
            self.last_latency = seconds
        if self._events:
            self._events.emit(CallFinished(self.row.id, self.row.dependency, outcome, seconds))

    def _on_transition(self, transition: Transition) -> None:
        if transition.new is CircuitState.CLOSED:
            self._fallback = ""
            self._failing_at = None
        self._events.emit(Transitioned(self.row.id, self.row.dependency, transition))


def _breaker_of(row: Row, clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(
        row.id, failure_threshold=row.max_failures, recovery_timeout=row.open_seconds, success_threshold=1, clock=clock
    )
