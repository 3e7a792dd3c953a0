"""Structured timeouts that cost little: one timer is shared by all calls with the same limit.

`asyncio.timeout` sets and cancels a timer of the event loop for each call, though nearly all end in time. Here a
call only leaves a note; calls with one limit fall due in the order in which they began, so that a single timer, set
for the oldest note, serves all. It is exact all the same.

The cancellation is structured: the call is cancelled and its clean-up is awaited, so that nothing is left behind. Where
the clean-up itself may hang (a driver that talks to the frozen server once more) use `hard=True`, see `deadline.py`.
"""

import asyncio
import sys
from asyncio import CancelledError, get_running_loop
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from resilience.clock import SYSTEM_CLOCK, Clock, Timer
from resilience.deadline import current_deadline, hard_timeout
from resilience.errors import CallTimeout
from resilience.forms import Guard, is_awaitable

if TYPE_CHECKING:
    from resilience.executor import BulkheadExecutor

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:  # there it is a Python function around this dict
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]

    current_task = _current_tasks.get

T = TypeVar("T")

Note = list[Any]
"""Of a call under way: its task, when it is due, how often the task was cancelled before, whether it is over time."""


_THREADS: Final = "calls under a timeout"
MAX_THREADS: Final = 32
"""Sync calls under a timeout that may run at once, those included that are over time and run on."""


@lru_cache(maxsize=4)
def _threads(clock: Clock) -> "BulkheadExecutor":
    """By clock, as the caller's deadline is a moment on it; outside of tests there is one."""
    from resilience.executor import BulkheadExecutor  # only sync code needs threads

    return BulkheadExecutor(_THREADS, max_workers=MAX_THREADS, clock=clock)


class Shared:
    """The notes of one limit on one event loop, oldest first, and their timer."""

    __slots__ = ("clock", "last", "limit", "loop", "notes", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop | None, limit: float, clock: Clock) -> None:
        self.loop = loop
        self.limit = limit
        self.clock = clock
        self.last = 0
        self.notes: dict[int, Note] = {}
        self.timer: Timer | None = None

    @property
    def idle(self) -> bool:
        """Whether the timer is set for nobody; `FakeClock.pending` does not count it then."""
        return not self.notes

    def watch(self) -> None:
        """Set the timer; only while there is none."""
        self.timer = self.clock.call_later(self.limit, self.ring)

    def ring(self) -> None:
        """Cancel what is due, and set the timer for the next."""
        self.timer = None
        now = self.clock.monotonic()
        while self.notes:
            key = next(iter(self.notes))
            note = self.notes[key]
            if note[1] > now:
                self.timer = self.clock.call_later(note[1] - now, self.ring)
                return
            del self.notes[key]
            expire(note)


def expire(note: Note) -> None:
    """The call is over time."""
    note[3] = True
    note[0].cancel()


def overdue(note: Note, error: BaseException | None = None) -> bool:
    """Takes back the cancellation of a note that was over time; whether `error` was nothing but that.

    When the caller was cancelled as well, its cancellation wins (the rule of `asyncio.timeout`).
    """
    alone = note[0].uncancel() <= note[2]
    return alone and isinstance(error, CancelledError)


class Timeout(Guard):
    """At most `seconds` for a call, and no longer than the caller's own deadline.

    Use it as `await timeout.call(fn, *args)`, `@timeout` or `async with timeout.block():`.

    Args:
        seconds: the limit.
        name: used in errors.
        hard: return at the limit even if the call's clean-up hangs; for calls only, as a block cannot be left so.
        clock: gives time and timers.

    Raises:
        ValueError: `seconds` is not positive.
    """

    __slots__ = ("_clock", "_monotonic", "_shared", "hard", "name", "seconds")

    def __init__(self, seconds: float, *, name: str = "", hard: bool = False, clock: Clock = SYSTEM_CLOCK) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, not {seconds!r}")
        self.seconds = seconds
        self.name = name
        self.hard = hard
        self._clock = clock
        self._monotonic = clock.monotonic
        self._shared = Shared(None, seconds, clock)

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func` and wait for its answer, `seconds` at most.

        Raises:
            CallTimeout: no answer in time. It is a `TimeoutError`.
            BaseException: whatever `func` raises, unchanged; the caller's own cancellation as such.
        """
        now = self._monotonic()
        deadline = current_deadline()
        if self.hard or (deadline is not None and deadline.at - now < self.seconds):
            left = self.seconds if deadline is None else min(self.seconds, deadline.at - now)
            return await self.within(left, func, args, kwargs)
        loop = get_running_loop()
        shared = self._shared
        if shared.loop is not loop:
            shared = self._on(loop)
        if shared.timer is None:
            shared.watch()
        task: Any = current_task(loop)
        note = [task, now + self.seconds, task.cancelling(), False]
        notes = shared.notes
        shared.last = key = shared.last + 1
        notes[key] = note
        try:
            result = func(*args, **kwargs)
            if type(result) is CoroutineType or is_awaitable(result):
                result = await result
        except BaseException as error:
            if not note[3]:
                del notes[key]
            elif overdue(note, error):
                raise CallTimeout(self.name, self.seconds) from error
            raise
        if note[3]:
            overdue(note)  # it had an answer all the same
        else:
            del notes[key]
        return result

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call the sync `func` in a thread, and wait for its answer, `seconds` at most.

        A thread cannot be stopped: one that is over time runs on, and at most `MAX_THREADS` of them may.

        Raises:
            CallTimeout: no answer in time.
            BulkheadFull: too many threads are busy.
            BaseException: whatever `func` raises, unchanged.
        """
        left = self._left(self._monotonic())
        if left <= 0:
            raise CallTimeout(self.name, 0.0)
        try:
            threads = _threads(self._clock)  # type: ignore[arg-type]  # every object that is a clock can be hashed
            result: T = threads.call_sync(partial(func, *args, **kwargs), timeout=left)
        except CallTimeout as late:
            if late.name is not _THREADS:  # the function's own
                raise
            raise CallTimeout(self.name, left) from None
        return result

    def block(self) -> "Block":
        """For `async with`: the block is cancelled at the limit and raises `CallTimeout`."""
        return Block(self.name, self._left(self._monotonic()), self._clock)

    async def within(self, left: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`call` with less time than usual, or a hard limit: a timer of its own."""
        if left <= 0:
            raise CallTimeout(self.name, 0.0)
        if not self.hard:
            async with Block(self.name, left, self._clock):
                result = func(*args, **kwargs)
                return await result if is_awaitable(result) else result
        result = func(*args, **kwargs)
        if not is_awaitable(result):
            return result
        return await hard_timeout(result, left, name=self.name, clock=self._clock)

    def _left(self, now: float) -> float:
        deadline = current_deadline()
        return self.seconds if deadline is None else min(self.seconds, deadline.at - now)

    def _on(self, loop: asyncio.AbstractEventLoop) -> Shared:
        """Notes belong to one loop. Those of another one keep their own timer until they have ended."""
        self._shared = Shared(loop, self.seconds, self._clock)
        return self._shared


class Block:
    """One `async with` under a limit of `seconds`."""

    __slots__ = ("_clock", "_name", "_note", "_seconds", "_timer")

    def __init__(self, name: str, seconds: float, clock: Clock) -> None:
        self._name = name
        self._seconds = seconds
        self._clock = clock

    async def __aenter__(self) -> "Block":
        if self._seconds <= 0:
            raise CallTimeout(self._name, 0.0)
        task: Any = current_task(get_running_loop())
        self._note: Note = [task, 0.0, task.cancelling(), False]
        self._timer = self._clock.call_later(self._seconds, expire, self._note)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._note[3] and overdue(self._note, error):
            raise CallTimeout(self._name, self._seconds) from error
