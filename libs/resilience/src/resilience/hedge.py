"""A second attempt while the first is late: hedged requests (Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013).

When a call has not answered after `delay`, the same call is made once more, and the first success wins. It cuts the
tail of the latency for a few per cent more load, if `delay` is about the 95th percentile; the others are cancelled.

It is for operations that may happen twice: both attempts may take effect, even the one that was cancelled. So it has
to be said in so many words, `idempotent=True`, and there is no default.

It is not a retry: an attempt that fails starts no other one. There is no sync form, as a thread cannot be cancelled:
each hedge would leave one behind that goes on calling.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from threading import Lock
from types import CoroutineType
from typing import Any, Final, Literal, NamedTuple, NoReturn, ParamSpec, Protocol, TypeVar, overload

from resilience.clock import SYSTEM_CLOCK, Clock, Timer
from resilience.deadline import AbandonedTasks, current_deadline
from resilience.events import Events
from resilience.forms import Guard, is_async, is_awaitable

P = ParamSpec("P")
T = TypeVar("T")

_TURNS: Final = 5  # of the event loop, in which cancelled attempts may end before the answer is given
_LOWEST: Final = 1e-4  # seconds; where the buckets of latencies begin
_GROWTH: Final = 1.1  # each is so much wider than the one before: an error of a tenth
_BUCKETS: Final = 146  # up to 110 seconds


class Budget(Protocol):
    """What may be spent on further attempts; `RetryBudget` is one, and may be shared with retries."""

    def deposit(self) -> None:
        """A call is being made."""
        ...

    def withdraw(self) -> bool:
        """Whether a further attempt may be made."""
        ...


class Hedged(NamedTuple):
    """A further attempt was begun; the first one of a call has number 1."""

    name: str
    attempt: int


class HedgeWon(NamedTuple):
    """A further attempt answered first."""

    name: str
    attempt: int


class LatencyPercentile:
    """A percentile of recent latencies, to the tenth, as a delay for `Hedge`, which records them.

    A histogram of fixed size whose buckets grow by a tenth each, from 0.1 ms to 110 s. Whenever `memory` latencies have
    come in all counts are halved, so that old ones fade. Safe between threads.

    Args:
        percentile: a share; 0.95 hedges about one call in twenty.
        minimum: latencies that have to be known before it says anything.
        memory: latencies after which old ones count half.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("_at", "_counts", "_lock", "_memory", "_minimum", "_percentile", "_total", "_upto")

    def __init__(self, percentile: float = 0.95, *, minimum: int = 20, memory: int = 1_000) -> None:
        if not 0 < percentile < 1:
            raise ValueError(f"percentile must be a share between 0 and 1, not {percentile!r}")
        if minimum < 1:
            raise ValueError(f"minimum must be at least 1, not {minimum!r}")
        if memory < 2 * minimum:
            raise ValueError(f"memory must be at least twice the minimum, not {memory!r}")
        self._percentile = percentile
        self._minimum = minimum
        self._memory = memory
        self._lock = Lock()
        self._counts = [0.0] * _BUCKETS
        self._total = 0.0
        self._at = 0  # the bucket that holds the percentile
        self._upto = 0.0  # the counts up to and with it

    def record(self, seconds: float) -> None:
        """A call took `seconds`."""
        bucket = 0
        if seconds > _LOWEST:
            bucket = min(int(math.log(seconds / _LOWEST) / math.log(_GROWTH)), _BUCKETS - 1)
        with self._lock:
            self._counts[bucket] += 1
            self._total += 1
            if bucket <= self._at:
                self._upto += 1
            if self._total >= self._memory:
                self._fade()
            self._move()

    def __call__(self) -> float | None:
        """Seconds, rounded up to the end of a bucket; `None` while too few latencies are known."""
        if self._total < self._minimum:
            return None
        return float(_LOWEST * _GROWTH ** (self._at + 1))

    def _fade(self) -> None:
        self._counts = [count / 2 if count > 1e-3 else 0.0 for count in self._counts]
        self._total = sum(self._counts)
        self._upto = sum(self._counts[: self._at + 1])

    def _move(self) -> None:
        """Find the percentile's bucket again, from where it was: it is seldom far."""
        wanted = self._total * self._percentile
        while self._upto < wanted:
            self._at += 1
            self._upto += self._counts[self._at]
        while self._upto - self._counts[self._at] >= wanted:
            self._upto -= self._counts[self._at]
            self._at -= 1


class Hedge(Guard):
    """Calls once more what is late, and takes the first success: `await hedge.call(fn, *args)` or `@hedge`.

    Args:
        name: used in events.
        delay: seconds to wait for an answer before each further attempt; or what gives them for a call, `None` for no
            hedging. A `LatencyPercentile` is told the latencies too: the first attempt's, which for one that a hedge
            has beaten is what it had taken till then.
        idempotent: must be said, and must be `True`: the operation may happen more than once.
        max_hedges: further attempts per call.
        budget: asked before each further attempt, told of each call.
        max_abandoned: cancelled attempts that may still be cleaning up before calls are no longer hedged.
        clock: gives time and timers.
        events: told of hedges begun and won (`Hedged`, `HedgeWon`).

    Raises:
        ValueError: a setting is out of range, or the operation is not idempotent; the text names it.
    """

    __slots__ = ("_abandoned", "_budget", "_clock", "_delay", "_events", "_latencies", "max_hedges", "name")

    def __init__(
        self,
        name: str,
        delay: float | Callable[[], float | None],
        *,
        idempotent: Literal[True],
        max_hedges: int = 1,
        budget: Budget | None = None,
        max_abandoned: int = 100,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if idempotent is not True:
            raise ValueError(f"idempotent must be True, not {idempotent!r}: a hedged call may happen twice")
        if not callable(delay) and not 0 <= delay < math.inf:
            raise ValueError(f"delay must be finite and not negative, not {delay!r}")
        if max_hedges < 1:
            raise ValueError(f"max_hedges must be at least 1, not {max_hedges!r}")
        self.name = name
        self.max_hedges = max_hedges
        self._delay = delay
        self._latencies = delay if isinstance(delay, LatencyPercentile) else None
        self._budget = budget
        self._abandoned = AbandonedTasks(max_abandoned)
        self._clock = clock
        self._events = events

    @property
    def abandoned(self) -> int:
        """Cancelled attempts that have not finished their clean-up."""
        return len(self._abandoned)

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, and once more if it is late; the first success. A sync `func` simply returns.

        Each attempt is a task, with the caller's context. A further one is begun only if the caller's deadline leaves
        it at least `delay`: with less it would hardly answer in time. Those that lost are cancelled; what does not end
        in a few turns of the event loop is not waited for. The caller's own cancellation cancels all.

        Raises:
            BaseException: if every attempt that was begun has failed: the first one's error, the others as its notes.
        """
        if self._budget is not None:
            self._budget.deposit()
        delay = self._delay_now()
        began = self._clock.monotonic()
        deadline = current_deadline()
        at = math.inf if deadline is None else deadline.at
        if delay == math.inf or at - began < 2 * delay or self._abandoned.full:  # a hedge would never be begun
            return await self._alone(func, args, kwargs, began)
        context = copy_context()
        first = func(*args, **kwargs)
        if not is_awaitable(first):
            return first
        race = _Race(self, lambda: func(*args, **kwargs), context, delay, at)
        race.begin(first, None)
        try:
            await race.decided
        finally:
            race.stop()
        await race.settle()
        self._note(race, began)
        if race.winner is None:
            raise race.first_error()
        return race.winner.result()

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG002
        """Not offered, see the module.

        Raises:
            TypeError: always.
        """
        raise TypeError("a hedged call needs an event loop: a thread cannot be cancelled")

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate the async `func`. Raises TypeError for a sync one."""
        if not is_async(func):
            raise TypeError("only an async function can be hedged: a thread cannot be cancelled")
        return super().__call__(func)

    async def _alone(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], began: float
    ) -> Any:
        result = func(*args, **kwargs)
        if type(result) is CoroutineType or is_awaitable(result):
            result = await result
            if self._latencies is not None:
                self._latencies.record(self._clock.monotonic() - began)
        return result

    def _delay_now(self) -> float:
        """Infinite for no hedging."""
        delay = self._delay() if callable(self._delay) else self._delay
        return delay if delay is not None and delay >= 0 else math.inf

    def _allows(self, attempt: int) -> bool:
        if self._abandoned.full or not (self._budget is None or self._budget.withdraw()):
            return False
        if self._events:
            self._events.emit(Hedged(self.name, attempt))
        return True

    def _note(self, race: "_Race", began: float) -> None:
        if race.winner is None:
            return
        if self._latencies is not None and 0 not in race.errors:
            self._latencies.record(self._clock.monotonic() - began)
        if race.won and self._events:
            self._events.emit(HedgeWon(self.name, race.won))


class _Race:
    """The attempts of one call. `decided` is done when one has succeeded or all have failed."""

    __slots__ = (
        "_at",
        "_context",
        "_delay",
        "_hedge",
        "_losers",
        "_make",
        "_running",
        "_timer",
        "decided",
        "errors",
        "winner",
        "won",
    )

    def __init__(self, hedge: Hedge, make: Callable[[], Any], context: Context, delay: float, at: float) -> None:
        self._hedge = hedge
        self._make = make
        self._context = context
        self._delay = delay
        self._at = at
        self._running: dict[asyncio.Future[Any], int] = {}
        self._losers: tuple[asyncio.Future[Any], ...] = ()
        self.errors: dict[int, BaseException] = {}
        self.winner: asyncio.Future[Any] | None = None
        self.won = 0
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: Timer = hedge._clock.call_later(delay, self._late, 1)

    def begin(self, result: Any, context: Context | None) -> None:
        """Wait for `result` as well, in `context` (`None`: a copy of the current one)."""
        attempt = len(self._running) + len(self.errors)
        task = _task_of(result, context)
        self._running[task] = attempt
        task.add_done_callback(self._ended)

    def stop(self) -> None:
        """Cancel what still runs."""
        self._timer.cancel()
        self._losers = tuple(self._running)
        for task in self._losers:
            self._hedge._abandoned.abandon(task)

    async def settle(self) -> None:
        """Let what was cancelled end, if it does so at once."""
        for _ in range(_TURNS):
            if all(task.done() for task in self._losers):
                break
            await asyncio.sleep(0)

    def first_error(self) -> BaseException:
        """The first attempt's error; the others as its notes."""
        (_, error), *others = sorted(self.errors.items())
        self.errors.clear()  # an error refers to the frames that it comes through, and they to this race: no cycle
        for attempt, other in others:
            note = f"hedge {attempt} failed: {type(other).__name__}"  # a driver's text may hold an address or a value
            if note not in getattr(error, "__notes__", ()):  # one error object may be raised again and again
                error.add_note(note)
        return error

    def _late(self, attempt: int) -> None:
        """No answer yet: begin the next attempt, if there is time and budget for it."""
        hedge = self._hedge
        if self.decided.done() or self._at - hedge._clock.monotonic() < self._delay or not hedge._allows(attempt):
            return
        context = self._context.copy()
        try:
            self.begin(context.run(self._make), context)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a failed attempt; another one runs
            self.errors[attempt] = error
        if attempt < hedge.max_hedges:
            self._timer = hedge._clock.call_later(self._delay, self._late, attempt + 1)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        attempt = self._running.pop(task, 0)
        if self.decided.done():
            return
        if error is None:
            self.winner, self.won = task, attempt
        else:
            self.errors[attempt] = error
        if error is None or not self._running:
            self.decided.set_result(None)


def _task_of(result: Any, context: Context | None) -> "asyncio.Future[Any]":
    loop = asyncio.get_running_loop()
    if type(result) is CoroutineType:
        return loop.create_task(result, context=context)
    if isinstance(result, asyncio.Future):
        return result
    if is_awaitable(result):
        return loop.create_task(_wait_for(result), context=context)
    answered = loop.create_future()
    answered.set_result(result)
    return answered


async def _wait_for(awaitable: Awaitable[T]) -> T:
    return await awaitable
