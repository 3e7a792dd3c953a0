"""The policy of one row of the matrix: a `Policy` that knows what is promised, keeps the ladder and reports the row.

    hard timeout (the wait for the bulkhead included) → circuit → bulkhead → retry of a lost connection → call

with the fallback ladder around it all.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from resilience.breaker import CircuitBreaker, Transition, Verdict
from resilience.bulkhead import Bulkhead
from resilience.circuit import CLOSED
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import POLICY_FAILURES
from resilience.events import CallOutcome, Events, FallbackUsed
from resilience.fallback import Rung, RungOutcome, descend
from resilience.matrix import Row
from resilience.modes import RowStatus
from resilience.outcome import Degradation, Served
from resilience.policy import Policy

if TYPE_CHECKING:
    from resilience.governor import RecoveryGovernor

T = TypeVar("T")

FAILING_SECONDS: Final = 5.0
"""How long a ladder that could not serve counts as failing: long enough that the mode does not flap per request."""


def never(_error: Exception) -> bool:
    """Retry nothing."""
    return False


class RowPolicy(Policy):
    """Guards the calls of one row.

    Args:
        row: what is promised.
        breaker: the row's circuit; it also classifies errors. Made from the row if not given.
        events: told of every call, transition and fallback.
        timeout: seconds for one call in all; the row's own if not given. The caller's deadline can shorten it.
        bulkhead: bounds concurrent calls; given back at the timeout, even if the abandoned call still cleans up.
        governor: bounds calls while the dependency has just come back; those beyond take their fallback.
        retries: further attempts after an error matched by `retry_on`, at once and within the same limit. Meant
            for a stale pooled connection; the circuit sees one result per `call`, not one per attempt.
        max_abandoned: calls that may still be cleaning up after their timeout before new ones are refused.
    """

    __slots__ = ("_failing_at", "_in_use", "_retries", "_retry_on", "last_latency", "row")

    breaker: CircuitBreaker

    def __init__(
        self,
        row: Row,
        *,
        breaker: CircuitBreaker | None = None,
        events: Events | None = None,
        timeout: float | None = None,
        bulkhead: Bulkhead | None = None,
        governor: "RecoveryGovernor | None" = None,
        retries: int = 0,
        retry_on: Callable[[Exception], bool] = never,
        clock: Clock = SYSTEM_CLOCK,
        max_abandoned: int = 100,
    ) -> None:
        self.row = row
        self._in_use = ""
        self._failing_at: float | None = None
        self._retries = retries
        self._retry_on = retry_on
        self.last_latency: float | None = None
        """Seconds that the latest answered call took."""
        super().__init__(
            row.id,
            timeout=row.call_timeout if timeout is None else timeout,
            breaker=_breaker_of(row, clock) if breaker is None else breaker,
            bulkhead=bulkhead,
            governor=governor,
            events=events,
            hard=True,
            max_abandoned=max_abandoned,
            clock=clock,
        )

    # -- calls

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func` if the circuit allows it, for as long as the row and the caller allow.

        Raises:
            CircuitBreakerOpen: not called; the circuit is open.
            BulkheadFull: not called; too many callers.
            CallTimeout: no answer in time, or no time was left to begin with.
            BaseException: whatever `func` raises, unchanged.
        """
        if self._retries:
            return await super().call(self._connected, func, args, kwargs)
        return await super().call(func, *args, **kwargs)

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
    def timeout(self) -> float:
        """Seconds for one call in all."""
        return self._needs

    @property
    def fallback_in_use(self) -> str:
        """The fallback that served last while the circuit is not closed; "" when it is closed."""
        return "" if self.breaker.state is CLOSED else self._in_use

    def degradation(self, fallback: str) -> Degradation:
        """The mark of an answer served by `fallback` now; a retry makes sense at the next probe at the latest."""
        breaker = self.breaker
        wait = breaker.retry_after()
        if wait is None and not breaker.held:
            wait = self.row.probe_interval
        return Degradation(self.row.id, fallback, breaker.state.header, wait)

    def note_fallback(self, fallback: str) -> None:
        """Take note that `fallback` serves, where it is no rung of a ladder: a buffer for what cannot be sent."""
        self._in_use = fallback
        self._events.emit(FallbackUsed(self.row.id, fallback, "success"))

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
        steps, _, _ = super().describe().partition("; fallback: ")
        if self._retries:
            steps = f"{steps.removesuffix('call')}retry {self._retries} → call"
        return f"{steps}; fallback: {' → '.join(self.row.fallbacks) or 'none'}"

    # -- inside

    async def _connected(
        self, func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        for _ in range(self._retries):
            try:
                return await func(*args, **kwargs)
            except Exception as error:
                if not self._retry_on(error):
                    raise
        return await func(*args, **kwargs)

    def _is_answer(self, error: Exception) -> bool:
        return not isinstance(error, POLICY_FAILURES) and self.breaker.verdict(error) is Verdict.SUCCESS

    async def _descend(self, failure: Exception, rungs: tuple[Rung[T], ...]) -> Served[T]:
        failed = False

        def tried(name: str, outcome: RungOutcome) -> None:
            nonlocal failed
            failed = failed or outcome in ("failure", "rejected")
            if outcome == "success":
                self._in_use = name
            self._events.emit(FallbackUsed(self.row.id, name, outcome))

        try:
            return await descend(failure, rungs, degradation=self.degradation, tried=tried)
        except Exception as error:
            if failed and error is failure:
                self._failing_at = self._monotonic()
            raise
        finally:
            del failure  # as in `descend`

    def _fallback_failing(self) -> bool:
        at = self._failing_at
        return at is not None and self._monotonic() - at < FAILING_SECONDS

    def _finished(self, outcome: CallOutcome, started: float) -> None:
        if outcome == "success":
            self.last_latency = self._monotonic() - started
        super()._finished(outcome, started)

    @property
    def _dependency(self) -> str:
        return self.row.dependency

    def _on_transition(self, transition: Transition) -> None:
        if transition.new is CLOSED:
            self._in_use = ""
            self._failing_at = None
        super()._on_transition(transition)


def _breaker_of(row: Row, clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(
        row.id, failure_threshold=row.max_failures, recovery_timeout=row.open_seconds, success_threshold=1, clock=clock
    )
