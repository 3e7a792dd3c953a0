"""Retrying within what the caller, the dependency and the operation allow.

A wait is never begun that would reach past the caller's deadline or `max_elapsed`: the last error is raised while there
is still time to act on it. The dependency's `Retry-After` makes a wait longer, never shorter. An operation that may not
happen twice is repeated only after an error that proves that it did not begin. A budget shared by all callers keeps
retries from becoming the load that holds a dependency down. Cancellation is never retried, and ends a wait at once.

The rules are in `Retry.next_wait`, which does everything but wait; `call`, `call_sync`, the blocks and whoever builds a
loop of his own drive it:

    run = None
    while True:
        try:
            return await func()
        except Exception as error:
            if run is None:
                run = retry.begin(started)
            wait = retry.next_wait(run, error, clock.monotonic(), deadline_at)
            if wait is None:
                raise
        await clock.sleep(wait)

`started` is read before the first attempt and needed only with `max_elapsed`; a budget wants `budget.deposit()` once
before the first attempt.
"""

import math
from collections.abc import Awaitable, Callable
from enum import StrEnum
from random import Random
from types import CoroutineType, TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar, overload

from resilience.ambient import RANDOM, TESTING
from resilience.backoff import Backoff, check_attempts
from resilience.classify import ERRORS, Category, ErrorTable, never_began
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import current_deadline
from resilience.events import Events
from resilience.forms import Guard, is_awaitable
from resilience.retry_after import retry_after_of
from resilience.retry_budget import RetryBudget as RetryBudget

T = TypeVar("T")
RetryOn = Callable[[Exception], bool] | type[Exception] | tuple[type[Exception], ...]
GiveUpReason = Literal["attempts", "not retryable", "not idempotent", "retry-after", "deadline", "elapsed", "budget"]


class Idempotency(StrEnum):
    """What doing an operation twice would do (RFC 9110, section 9.2)."""

    SAFE = "safe"  # nothing: it only reads
    IDEMPOTENT = "idempotent"  # the same as doing it once
    NOT_IDEMPOTENT = "not-idempotent"  # it would happen twice


class Retried(NamedTuple):
    """Attempt number `attempt` failed and another follows after `wait` seconds. `error_type` is `None` for a result."""

    name: str
    attempt: int
    wait: float
    error_type: str | None


class GaveUp(NamedTuple):
    """The last of `attempts` attempts failed. Not told of an error that was none of the retry's from the start."""

    name: str
    attempts: int
    reason: GiveUpReason
    error_type: str | None


class RetryRun:
    """One call's way through its attempts. `reason` says why `next_wait` gave up."""

    __slots__ = ("attempt", "previous", "reason", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.attempt = 1
        self.previous = 0.0
        self.reason: GiveUpReason | None = None


DEFAULT_BACKOFF: Final = Backoff()
_MAX_NOTES: Final = 10  # an error object that is raised again and again must not grow


class Retry(Guard):
    """Calls again what failed in a way that may pass. Keeps no state, so one serves any number of tasks and threads.

    Args:
        name: used in events and notes.
        attempts: tries in all, the first included.
        backoff: how long to wait between them.
        retry_on: which errors, as types or as a predicate (one that raises means no); those that `table` calls
            transient if not given.
        retry_result: which results to try again after (a predicate that raises means no). When attempts run out, the
            last result is returned.
        max_elapsed: seconds after the call began from which no further attempt begins.
        budget: shared by all callers of one dependency.
        idempotency: of the operation; `for_operation` gives the same retry for another kind.
        honour_retry_after: whether the `Retry-After` or `retry_after` of an error, or of an unwanted result, makes the
            wait longer.
        max_retry_after: seconds; a dependency that asks for more is not retried.
        clock: monotonic time, and the wall clock for nothing but a `Retry-After` that is a date.
        random: the source of jitter.
        events: told of `Retried` and `GaveUp`.
        table: the table of errors.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_clock",
        "_events",
        "_honours",
        "_monotonic",
        "_plain",
        "_random",
        "_retry_on",
        "_retry_result",
        "_table",
        "backoff",
        "budget",
        "idempotency",
        "max_attempts",
        "max_elapsed",
        "max_retry_after",
        "name",
    )

    def __init__(
        self,
        name: str = "",
        *,
        attempts: int = 3,
        backoff: Backoff = DEFAULT_BACKOFF,
        retry_on: RetryOn | None = None,
        retry_result: Callable[[Any], bool] | None = None,
        max_elapsed: float | None = None,
        budget: RetryBudget | None = None,
        idempotency: Idempotency = Idempotency.IDEMPOTENT,
        honour_retry_after: bool = True,
        max_retry_after: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        random: Random | None = None,
        events: Events | None = None,
        table: ErrorTable = ERRORS,
    ) -> None:
        check_attempts(attempts)
        if max_elapsed is not None and not max_elapsed > 0:
            raise ValueError(f"max_elapsed must be positive, not {max_elapsed!r}")
        if not 0 <= max_retry_after < math.inf:
            raise ValueError(f"max_retry_after must be finite and not negative, not {max_retry_after!r}")
        self.name = name
        self.max_attempts = attempts
        self.backoff = backoff
        self.max_elapsed = max_elapsed
        self.budget = budget
        self.idempotency = Idempotency(idempotency)
        self.max_retry_after = max_retry_after
        self._retry_on = _predicate(retry_on)
        self._retry_result = retry_result
        self._honours = honour_retry_after
        self._clock = clock
        self._monotonic = clock.monotonic
        self._random = RANDOM if random is None else random
        self._events = events
        self._table = table
        self._plain = budget is None and max_elapsed is None and retry_result is None

    def for_operation(self, idempotency: Idempotency) -> Self:
        """The same retry, budget and all, for operations of that kind."""
        other = object.__new__(type(self))
        for slot in Retry.__slots__:
            setattr(other, slot, getattr(self, slot))
        other.idempotency = Idempotency(idempotency)
        return other

    # -- the forms

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, until it succeeds or must not be tried again.

        Raises:
            BaseException: the last attempt's error, the same object, with a note of how many attempts there were.
        """
        run, started = None, 0.0
        if self._plain:  # the first attempt, where nothing is to be done before it and nothing after a success
            try:
                result = func(*args, **kwargs) if kwargs else func(*args) if args else func()  # cheaper than unpacking
                if type(result) is CoroutineType:
                    return await result
                return await result if is_awaitable(result) else result
            except Exception as error:
                run = RetryRun(started)
                wait = self._step(run, error)
                if wait is None:
                    raise
            await self._clock.sleep(wait)
        else:
            started = self._open()
        while True:
            try:
                result = func(*args, **kwargs)
                if type(result) is CoroutineType or is_awaitable(result):
                    result = await result
            except Exception as error:
                run = run or RetryRun(started)
                wait = self._step(run, error)
                if wait is None:
                    raise
            else:
                if self._retry_result is None or not self._unwanted(result):
                    return result
                run = run or RetryRun(started)
                wait = self._step(run, None, result)
                if wait is None:
                    return result
            await self._clock.sleep(wait)

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for code without an event loop; the waits block the thread."""
        run, started = None, self._open()
        while True:
            try:
                result = func(*args, **kwargs)
            except Exception as error:
                run = run or RetryRun(started)
                wait = self._step(run, error)
                if wait is None:
                    raise
            else:
                if self._retry_result is None or not self._unwanted(result):
                    return result
                run = run or RetryRun(started)
                wait = self._step(run, None, result)
                if wait is None:
                    return result
            self._block(wait)

    def attempts(self) -> "Attempts":
        """A block that is tried again: `async for attempt in retry.attempts():` and inside it `with attempt:`.

        `retry_result` does not apply: a block has no result.
        """
        return Attempts(self)

    def attempts_sync(self) -> "AttemptsSync":
        """`attempts` for code without an event loop: `for attempt in retry.attempts_sync():`."""
        return AttemptsSync(self)

    # -- the rules

    def begin(self, started: float = 0.0) -> RetryRun:
        """The state of one call, which `next_wait` wants: made at its first failure, so that a success costs nothing.

        `started` is when the first attempt began (monotonic seconds); only `max_elapsed` needs it.
        """
        return RetryRun(started)

    def retryable(self, error: Exception) -> bool:
        """Whether `error` is one that this retry is for."""
        if self._retry_on is None:
            return self._table.category(error) is Category.TRANSIENT
        try:
            return bool(self._retry_on(error))
        except Exception:  # noqa: BLE001 - the error at hand matters, not the predicate's
            return False

    def next_wait(
        self,
        run: RetryRun,
        error: Exception | None,
        now: float,
        deadline_at: float | None = None,
        result: object = None,
    ) -> float | None:
        """Seconds to wait before the next attempt, or `None`: no further attempt, for `run.reason`.

        Counts the attempt, draws on the budget, tells the events, and when it gives up leaves a note on the error.
        Called once per failed attempt with what it raised; without an error, `result` is what it returned and nobody
        wants. `now` and `deadline_at` are monotonic seconds.
        """
        attempt = run.attempt
        wait = self._decide(run, error, now, deadline_at, result)
        if wait is None:
            self._gave_up(run, error)
        elif self._events:
            self._events.emit(Retried(self.name, attempt, wait, _type_of(error)))
        return wait

    def _decide(
        self, run: RetryRun, error: Exception | None, now: float, deadline_at: float | None, result: object
    ) -> float | None:
        run.reason = self._refusal(run, error)
        if run.reason is not None:
            return None
        wait = run.previous = self.backoff.wait(run.attempt, self._random, run.previous)
        if self._honours:
            asked = retry_after_of(result if error is None else error, clock=self._clock)
            if asked is not None and asked > self.max_retry_after:
                run.reason = "retry-after"
                return None
            wait = max(wait, asked or 0.0)
        if not TESTING.backoff:
            wait = 0.0
        if deadline_at is not None and deadline_at - now <= wait:
            run.reason = "deadline"
        elif self.max_elapsed is not None and now - run.started + wait >= self.max_elapsed:
            run.reason = "elapsed"
        elif self.budget is not None and not self.budget.withdraw():
            run.reason = "budget"
        else:
            run.attempt += 1
            return wait
        return None

    def _refusal(self, run: RetryRun, error: Exception | None) -> GiveUpReason | None:
        if error is not None and not self.retryable(error):
            return "not retryable"
        if self.idempotency is Idempotency.NOT_IDEMPOTENT and (error is None or not never_began(error)):
            return "not idempotent"
        cap = TESTING.attempts
        limit = self.max_attempts if cap is None else min(cap, self.max_attempts)
        return "attempts" if run.attempt >= limit else None

    def _gave_up(self, run: RetryRun, error: Exception | None) -> None:
        reason = run.reason
        if reason is None or (reason == "not retryable" and run.attempt == 1):
            return
        if error is not None:
            _note(error, self.name, run.attempt, reason)
        if self._events:
            self._events.emit(GaveUp(self.name, run.attempt, reason, _type_of(error)))

    # -- inside

    def _open(self) -> float:
        """What a call does before its first attempt, if anything: pay into the budget, and read the clock."""
        if self.budget is not None:
            self.budget.deposit()
        return 0.0 if self.max_elapsed is None else self._monotonic()

    def _step(self, run: RetryRun, error: Exception | None, result: object = None) -> float | None:
        deadline = current_deadline()
        return self.next_wait(run, error, self._monotonic(), None if deadline is None else deadline.at, result)

    def _unwanted(self, result: object) -> bool:
        try:
            return self._retry_result is not None and bool(self._retry_result(result))
        except Exception:  # noqa: BLE001 - there is a result, and a broken predicate must not lose it
            return False

    def _block(self, wait: float) -> None:
        if wait > 0:
            self._clock.block(wait)


class _Block:
    """The attempts of one block; each is this object, entered once. Not meant to be shared between tasks."""

    __slots__ = ("_entered", "_more", "_retry", "_run", "_wait")

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._run: RetryRun | None = None
        self._wait = 0.0
        self._more = True
        self._entered = False

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return 1 if self._run is None else self._run.attempt

    def _next(self) -> float | None:
        """Seconds to wait before the next attempt; `None` when the block is done."""
        if not self._more:
            return None
        if self._run is None:
            self._run = RetryRun(self._retry._open())
        elif not self._entered:
            raise RuntimeError("every attempt needs its `with attempt:`")
        self._entered = False
        return self._wait

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        wait = None
        if isinstance(error, Exception) and self._run is not None:
            wait = self._retry._step(self._run, error)
        self._more = wait is not None
        self._wait = wait or 0.0
        return self._more


class Attempts(_Block):
    """What `Retry.attempts` gives."""

    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        first = self._run is None
        wait = self._next()
        if wait is None:
            raise StopAsyncIteration
        if not first:
            await self._retry._clock.sleep(wait)
        return self

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, traceback)


class AttemptsSync(_Block):
    """What `Retry.attempts_sync` gives."""

    __slots__ = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Self:
        wait = self._next()
        if wait is None:
            raise StopIteration
        self._retry._block(wait)
        return self


def _predicate(retry_on: RetryOn | None) -> Callable[[Exception], bool] | None:
    if isinstance(retry_on, (type, tuple)):
        types = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
            raise ValueError(f"retry_on must hold kinds of Exception, not {retry_on!r}")
        return lambda error: isinstance(error, types)
    if retry_on is not None and not callable(retry_on):
        raise ValueError(f"retry_on must be types or a function, not {retry_on!r}")
    return retry_on


def _type_of(error: Exception | None) -> str | None:
    return None if error is None else type(error).__name__


def _note(error: Exception, name: str, attempts: int, reason: GiveUpReason) -> None:
    tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    try:
        notes = getattr(error, "__notes__", ())
        if len(notes) < _MAX_NOTES:
            error.add_note(f"retry{f' {name!r}' if name else ''}: gave up after {tries} ({reason})")
    except Exception:  # noqa: BLE001 - the error matters, not the note on it
        return
