"""Everything that happens around a call, in one object and one fixed order:

    total deadline → limiter → retry → hedge → governor → attempt timeout → circuit → bulkhead → call

with the fallback around it all.

The attempt timeout includes the wait for the bulkhead, an open circuit rejects before anybody queues, and every attempt
counts for the circuit. Each part may be left out, and each works by itself as well.

Built once and cheap per call: while all is well the parts are stepped through in one flat coroutine instead of one
around the other. Whatever is unusual (a trial, a queue, little time left, a hard limit) goes by the parts' own methods.
"""

import math
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from resilience.breaker import CircuitBreaker, Permit, Transition, Verdict, default_classify
from resilience.bulkhead import Bulkhead
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, current_deadline, deadline_scope, hard_timeout
from resilience.errors import POLICY_FAILURES, BulkheadFull, CallTimeout, CircuitBreakerOpen
from resilience.events import CallFinished, CallOutcome, Events, Transitioned
from resilience.fallback import Fallback
from resilience.forms import Guard, is_awaitable
from resilience.retry import Retry, RetryRun
from resilience.timeout import Block, Note, Timeout, current_task, overdue

if TYPE_CHECKING:
    from resilience.governor import RampPermit, RecoveryGovernor

T = TypeVar("T")
Arguments = tuple[Any, ...]
Named = dict[str, Any]

FAIR_SHARE: Final = 0.5
"""A call that ran out of time is held against the dependency only if it had at least this share of the attempt's own
limit. One that was left with scraps, because another dependency had used up the caller's time, proves nothing."""

_NOT_TRIED = (CircuitBreakerOpen, BulkheadFull)


class Limiter(Protocol):
    """What a policy needs of a rate limiter; `RateLimiter` is one."""

    async def wait(self, cost: int = 1) -> object:
        """Return when the call may be made. Raises RateLimited."""
        ...

    def wait_sync(self, cost: int = 1) -> object:
        """The same, blocking the thread. Raises RateLimited."""
        ...


class Hedger(Protocol):
    """What a policy needs of a hedge; `Hedge` is one."""

    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, and again where that may help."""
        ...


class Policy(Guard):
    """Guards the calls of one operation: `await policy.call(fn, *args)`, `policy.call_sync(fn, *args)` or `@policy`.

    Args:
        name: used in errors and events.
        timeout: seconds for one attempt, or a `Timeout`; the caller's deadline can shorten it.
        total: seconds for the call in all, waits included; passed on to what is called, as its deadline.
        retry: which failures are tried again, and when.
        hedge: a second attempt when the first is slow.
        breaker: the circuit; it also classifies errors.
        bulkhead: bounds concurrent attempts.
        limiter: bounds the rate of calls.
        governor: bounds attempts while the dependency has just come back; it hears of the circuit's transitions.
        fallback: serves when all that failed.
        events: told of every attempt, and of the circuit's transitions.
        hard: attempts end at their limit even if the call's clean-up hangs (see `deadline.py`).
        max_abandoned: hard calls that may still be cleaning up before new ones are refused.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_abandoned",
        "_clock",
        "_events",
        "_inner",
        "_limit",
        "_monotonic",
        "_needs",
        "_step_by_step",
        "breaker",
        "bulkhead",
        "fallback",
        "governor",
        "hard",
        "hedge",
        "limiter",
        "name",
        "retry",
        "total",
    )

    def __init__(
        self,
        name: str = "",
        *,
        timeout: float | Timeout | None = None,
        total: float | None = None,
        retry: Retry | None = None,
        hedge: Hedger | None = None,
        breaker: CircuitBreaker | None = None,
        bulkhead: Bulkhead | None = None,
        limiter: Limiter | None = None,
        governor: "RecoveryGovernor | None" = None,
        fallback: Fallback | None = None,
        events: Events | None = None,
        hard: bool = False,
        max_abandoned: int = 100,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if total is not None and not total > 0:
            raise ValueError(f"total must be a positive number of seconds, not {total!r}")
        self.name = name
        self.total = total
        self.retry = retry
        self.hedge = hedge
        self.breaker = breaker
        self.bulkhead = bulkhead
        self.limiter = limiter
        self.governor = governor
        self.fallback = fallback
        self._events = Events() if events is None else events
        self._clock = clock
        self._monotonic = clock.monotonic
        self._limit = Timeout(timeout, name=name, clock=clock) if isinstance(timeout, int | float) else timeout
        self._needs = math.inf if self._limit is None else self._limit.seconds  # less time than that is unusual
        self.hard = hard or (self._limit is not None and self._limit.hard)
        self._step_by_step = self.hard or hedge is not None
        self._abandoned = AbandonedTasks(max_abandoned)
        self._inner: Policy | None = None
        if limiter is not None or total is not None:
            self._inner = Policy(
                name,
                timeout=self._limit,
                retry=retry,
                hedge=hedge,
                breaker=breaker,
                bulkhead=bulkhead,
                governor=governor,
                events=events,
                hard=hard,
                max_abandoned=max_abandoned,
                clock=clock,
            )
        elif breaker is not None:
            breaker.subscribe(self._on_transition)
            if governor is not None:
                breaker.subscribe(governor.on_transition)

    @property
    def timeout(self) -> float | None:
        """Seconds for one attempt."""
        return None if self._limit is None else self._limit.seconds

    # -- calls

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, under the whole policy.

        Raises:
            RateLimited, BulkheadFull, CircuitBreakerOpen: not called.
            CallTimeout: no answer in time, or no time was left to begin with.
            BaseException: whatever `func` raises, unchanged; of several attempts, the last.
        """
        if self._inner is not None:
            return await self._shaped(self._inner, func, args, kwargs)
        now = started = self._monotonic()
        deadline = current_deadline()
        at = math.inf if deadline is None else deadline.at
        breaker, bulkhead, retry, governor = self.breaker, self.bulkhead, self.retry, self.governor
        if retry is not None and retry.budget is not None:
            retry.budget.deposit()
        run: RetryRun | None = None
        while True:
            try:
                door = 0 if breaker is None else breaker._circuit.door
                if (
                    door < 0
                    or at - now < self._needs
                    or self._step_by_step
                    or (governor is not None and governor.active)
                    or (bulkhead is not None and not bulkhead.try_acquire())
                ):
                    result = await self._attempt(func, args, kwargs, now, at)
                else:  # all is well: the parts' own steps, without the parts' own coroutines
                    note: Note | None = None
                    if breaker is not None:
                        breaker._started += 1
                    try:
                        if self._limit is not None:
                            loop = get_running_loop()
                            shared = self._limit._shared
                            if shared.loop is not loop:
                                shared = self._limit._on(loop)
                            if shared.timer is None:
                                shared.watch()
                            task: Any = current_task(loop)
                            note = [task, now + shared.limit, task.cancelling(), False]
                            shared.last = key = shared.last + 1
                            shared.notes[key] = note
                        result = func(*args, **kwargs) if kwargs else func(*args) if args else func()
                        if type(result) is CoroutineType or is_awaitable(result):
                            result = await result
                    except BaseException as error:
                        if note is not None:
                            if not note[3]:
                                del shared.notes[key]
                            elif overdue(note, error):
                                late = CallTimeout(self.name, shared.limit)
                                self._failed(door, now, late)
                                raise late from error
                        self._failed(door, now, error)
                        raise
                    finally:
                        if bulkhead is not None:
                            bulkhead.release()
                    if note is not None:
                        if note[3]:
                            overdue(note)  # it had an answer all the same
                        else:
                            del shared.notes[key]
                    if breaker is not None:
                        breaker._returned(door, now, result)
                    if self._events:
                        self._finished("success", now)
                if retry is None or retry._retry_result is None or not retry._unwanted(result):
                    return result
                if run is None:
                    run = retry.begin(started)
                wait = retry.next_wait(run, None, self._monotonic(), None if at == math.inf else at, result)
                if wait is None:
                    return result
            except Exception as error:
                wait = None
                if retry is not None:
                    if run is None:
                        run = retry.begin(started)
                    wait = retry.next_wait(run, error, self._monotonic(), None if at == math.inf else at)
                if wait is None:
                    fallback = self.fallback
                    if fallback is None or not fallback.handles(error):
                        raise
                    return await fallback.recover(error)
            await self._clock.sleep(wait)
            now = self._monotonic()

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for code without an event loop. Waits block the thread; with a timeout, `func` runs in another one.

        Raises:
            RateLimited, BulkheadFull, CircuitBreakerOpen: not called.
            CallTimeout: no answer in time; `func` may still be running.
            TypeError: the policy hedges, which needs an event loop.
            BaseException: whatever `func` raises, unchanged; of several attempts, the last.
        """
        if self.hedge is not None:
            raise TypeError("hedging needs an event loop: use `await policy.call(...)`")
        if self._inner is not None:
            return self._shaped_sync(self._inner, func, args, kwargs)
        try:
            if self.retry is None:
                return self._attempt_sync(func, args, kwargs)
            result: T = self.retry.call_sync(self._attempt_sync, func, args, kwargs)
            return result
        except Exception as failure:
            if self.fallback is None or not self.fallback.handles(failure):
                raise
            value: T = self.fallback.recover_sync(failure)
            return value

    # -- watching

    @property
    def abandoned(self) -> int:
        """Timed-out hard calls that have not finished their clean-up."""
        return len(self._abandoned)

    def describe(self) -> str:
        """The order of everything around a call, in one line."""
        steps = [
            f"total {self.total:g} s" if self.total else "",
            f"limiter {getattr(self.limiter, 'name', '')}".rstrip() if self.limiter else "",
            f"retry up to {self.retry.max_attempts} attempts" if self.retry else "",
            "hedge" if self.hedge else "",
            "governor" if self.governor else "",
            f"{'hard ' if self.hard else ''}timeout {self._limit.seconds:g} s" if self._limit else "",
            f"circuit {_rules(self.breaker)}" if self.breaker else "",
            f"bulkhead {self.bulkhead.limit} (+{self.bulkhead.max_waiting} waiting)" if self.bulkhead else "",
            "call",
        ]
        ladder = " → ".join(rung.name for rung in self.fallback.rungs) if self.fallback else "none"
        return f"{self.name}: {' → '.join(step for step in steps if step)}; fallback: {ladder}"

    # -- the parts, one around the other

    async def _shaped(self, inner: "Policy", func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
        """What happens once per call: the total deadline, and the limiter within it; then the attempts."""
        try:
            if self.total is None:
                return await self._limited(inner, func, args, kwargs)
            with deadline_scope(self.total, clock=self._clock):
                return await self._limited(inner, func, args, kwargs)
        except Exception as failure:
            if self.fallback is None or not self.fallback.handles(failure):
                raise
            return await self.fallback.recover(failure)

    async def _limited(self, inner: "Policy", func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
        if self.limiter is not None:
            await self.limiter.wait()
        return await inner.call(func, *args, **kwargs)

    def _shaped_sync(self, inner: "Policy", func: Callable[..., T], args: Arguments, kwargs: Named) -> T:
        try:
            with deadline_scope(math.inf if self.total is None else self.total, clock=self._clock):
                if self.limiter is not None:
                    self.limiter.wait_sync()
                return inner.call_sync(func, *args, **kwargs)
        except Exception as failure:
            if self.fallback is None or not self.fallback.handles(failure):
                raise
            value: T = self.fallback.recover_sync(failure)
            return value

    async def _attempt(
        self, func: Callable[..., Any], args: Arguments, kwargs: Named, started: float, at: float
    ) -> Any:
        """One attempt that began at `started` and must end at `at`, by the parts' own methods."""
        if self.hedge is not None:
            return await self.hedge.call(self._guarded, func, args, kwargs, started, at)
        return await self._guarded(func, args, kwargs, started, at)

    async def _guarded(
        self, func: Callable[..., Any], args: Arguments, kwargs: Named, started: float, at: float
    ) -> Any:
        if self.governor is None:
            return await self._queued(func, args, kwargs, started, at)
        room = self._room(self.governor, started)
        try:
            result = await self._queued(func, args, kwargs, started, at)
        except BaseException as error:
            room.release(self._said(error))
            raise
        room.release(ok=True)
        return result

    async def _queued(self, func: Callable[..., Any], args: Arguments, kwargs: Named, started: float, at: float) -> Any:
        bulkhead, limit = self.bulkhead, min(self._needs, at - started)
        try:
            self._begin(limit)
            if bulkhead is not None:
                await bulkhead.acquire(None if limit == math.inf else limit)
        except POLICY_FAILURES as error:
            self._refused(error, started, waited=limit > 0)
            raise
        if bulkhead is None:
            return await self._tried(func, args, kwargs, started, limit)
        try:
            return await self._tried(func, args, kwargs, started, limit - (self._monotonic() - started))
        finally:
            bulkhead.release()

    async def _tried(
        self, func: Callable[..., Any], args: Arguments, kwargs: Named, started: float, limit: float
    ) -> Any:
        permit = self._permitted(started, limit)
        try:
            result = await self._timed(func, args, kwargs, limit)
        except BaseException as error:
            self._raised(permit, error, started, limit)
            raise
        self._answered(permit, result, started)
        return result

    async def _timed(self, func: Callable[..., Any], args: Arguments, kwargs: Named, limit: float) -> Any:
        result = func(*args, **kwargs)
        if not is_awaitable(result):
            return result
        if self.hard:
            return await hard_timeout(result, limit, name=self.name, clock=self._clock, abandoned=self._abandoned)
        if limit == math.inf:
            return await result
        async with Block(self.name, limit, self._clock):
            return await result

    def _attempt_sync(self, func: Callable[..., T], args: Arguments, kwargs: Named) -> T:
        started = self._monotonic()
        if self.governor is None:
            return self._queued_sync(func, args, kwargs, started)
        room = self._room(self.governor, started)
        try:
            result = self._queued_sync(func, args, kwargs, started)
        except BaseException as error:
            room.release(self._said(error))
            raise
        room.release(ok=True)
        return result

    def _queued_sync(self, func: Callable[..., T], args: Arguments, kwargs: Named, started: float) -> T:
        deadline = current_deadline()
        limit = self._needs if deadline is None else min(self._needs, deadline.at - started)
        bulkhead = self.bulkhead
        try:
            self._begin(limit)
            if bulkhead is not None:
                bulkhead.acquire_sync(None if limit == math.inf else limit)
        except POLICY_FAILURES as error:
            self._refused(error, started, waited=limit > 0)
            raise
        if bulkhead is None:
            return self._tried_sync(func, args, kwargs, started, limit)
        try:
            return self._tried_sync(func, args, kwargs, started, limit - (self._monotonic() - started))
        finally:
            bulkhead.release()

    def _tried_sync(self, func: Callable[..., T], args: Arguments, kwargs: Named, started: float, limit: float) -> T:
        permit = self._permitted(started, limit)
        try:
            if self._limit is None:
                result = func(*args, **kwargs)
            else:
                result = Timeout(limit, name=self.name, clock=self._clock).call_sync(func, *args, **kwargs)
        except BaseException as error:
            self._raised(permit, error, started, limit)
            raise
        self._answered(permit, result, started)
        return result

    # -- inside

    def _room(self, governor: "RecoveryGovernor", started: float) -> "RampPermit":
        """Raises RecoveryThrottled: the dependency has just come back, and has no room yet."""
        room = governor.admit()
        if room is None:
            self._finished("rejected", started)
            raise governor.throttled()
        return room

    def _said(self, error: BaseException) -> bool | None:
        """What the governor learns from `error`."""
        if isinstance(error, _NOT_TRIED):
            return None
        verdict = self._verdict(error, 0.0, math.inf)
        return None if verdict is Verdict.NEUTRAL else verdict is Verdict.SUCCESS

    def _begin(self, limit: float) -> None:
        """Whether an attempt makes sense at all. Raises CallTimeout, BulkheadFull, CircuitBreakerOpen."""
        if limit <= 0:
            raise CallTimeout(self.name, 0.0)
        if self._abandoned.full:
            raise BulkheadFull(self.name)
        if self.breaker is not None:
            self.breaker.check()

    def _permitted(self, started: float, limit: float) -> Permit | None:
        """The circuit's permit, for who has waited for the bulkhead. Raises CallTimeout, CircuitBreakerOpen."""
        try:
            if limit <= 0:
                raise CallTimeout(self.name, 0.0)
            return None if self.breaker is None else self.breaker.acquire()
        except POLICY_FAILURES as error:
            self._refused(error, started, waited=False)
            raise

    def _raised(self, permit: Permit | None, error: BaseException, started: float, limit: float) -> None:
        verdict = self._verdict(error, started, limit)
        if permit is not None:
            permit.settle(error, verdict)
        self._finished("timeout" if isinstance(error, CallTimeout) else verdict.value, started)

    def _answered(self, permit: Permit | None, result: object, started: float) -> None:
        if permit is not None:
            permit.returned(result)
        self._finished("success", started)

    def _refused(self, error: Exception, started: float, *, waited: bool) -> None:
        if isinstance(error, _NOT_TRIED):
            self._finished("rejected", started)
        else:
            self._finished("timeout" if waited else "neutral", started)

    def _failed(self, door: int, began: float, error: BaseException) -> None:
        """An attempt on the flat way, which had its whole limit, raised `error`."""
        verdict = self._verdict(error, began, math.inf)
        if self.breaker is not None:
            self.breaker._settled(door, began, verdict, error)
        self._finished("timeout" if isinstance(error, CallTimeout) else verdict.value, began)

    def _verdict(self, error: BaseException, started: float, limit: float) -> Verdict:
        if self._cut_short(started, limit) or isinstance(error, BulkheadFull):
            return Verdict.NEUTRAL
        if isinstance(error, CallTimeout):
            return Verdict.FAILURE
        return default_classify(error) if self.breaker is None else self.breaker.verdict(error)

    def _cut_short(self, started: float, limit: float) -> bool:
        return limit < self._needs * FAIR_SHARE and self._monotonic() - started >= limit

    def _finished(self, outcome: CallOutcome, started: float) -> None:
        if self._events:
            self._events.emit(CallFinished(self.name, self._dependency, outcome, self._monotonic() - started))

    @property
    def _dependency(self) -> str:
        return self.name

    def _on_transition(self, transition: Transition) -> None:
        self._events.emit(Transitioned(self.name, self._dependency, transition))


def _rules(breaker: CircuitBreaker) -> str:
    settings = breaker.settings
    rules = [
        f"{settings.failure_threshold} failures" if settings.failure_threshold else "",
        f"{settings.failure_rate:.0%} failing" if settings.failure_rate else "",
        f"{settings.slow_rate:.0%} over {settings.slow_call_seconds:g} s" if settings.slow_rate else "",
    ]
    open_time = settings.recovery_timeout
    shown = "growing" if callable(open_time) else f"{open_time:g} s"
    return f"{' or '.join(rule for rule in rules if rule)} / {shown}"
