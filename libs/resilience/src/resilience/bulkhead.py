"""A bound on how many callers are inside one dependency at once, first come, first served.

A connection pool lets a releasing caller barge in before those that wait, which costs the tail of the latency; a fair
queue in front of it does not. The queue itself is bounded: past it, saying no at once is kinder than a wait that
ends in a timeout.

Exact between threads and event loops, yet without a lock for whoever finds a slot free. Such a caller only steps a
counter, in straight-line code that calls nothing, and CPython with its global lock switches threads, runs signal
handlers and collects garbage only where functions begin, at calls and at loops (3.11 to 3.14). What keeps this apart
from the queue, which has a lock, is one flag, and one rule:

    While somebody waits the bulkhead is `_busy`: no slot is free, so that nobody comes in without the lock, and whoever
    leaves takes the lock, to hand his slot to the longest waiting.

Without the global lock the counter of free slots is kept far below zero and the flag always up: all take the lock.
"""

from asyncio import AbstractEventLoop, Future, _get_running_loop, get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable
from threading import TIMEOUT_MAX, Lock, RLock
from types import CoroutineType, TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeVar, overload

from resilience.circuit import GIL
from resilience.clock import SYSTEM_CLOCK, Clock, SystemClock
from resilience.deadline import current_deadline
from resilience.errors import BulkheadFull, CallTimeout
from resilience.events import Events
from resilience.forms import Guard, is_awaitable

T = TypeVar("T")

_HIDDEN: Final = 0 if GIL else -(1 << 40)
"""Where the counter of free slots has its zero."""


class BulkheadRejected(NamedTuple):
    """A caller was turned away: the queue was full, or its wait in it too long."""

    name: str
    active: int
    waiting: int
    reason: Literal["full", "timeout"] = "full"


# -- those who wait, here and for an executor; `state` changes under the lock of whom they wait for

_WAITING: Final = 0
_INSIDE: Final = 1
_EXPIRED: Final = 2
_REFUSED: Final = 3
_GONE: Final = 4


class TaskWaiter:
    """A task of the running event loop; it awaits `future`."""

    __slots__ = ("future", "loop", "state")

    def __init__(self) -> None:
        self.state = _WAITING
        self.loop: AbstractEventLoop = get_running_loop()
        self.future: Future[None] = self.loop.create_future()

    def wake(self) -> bool:
        """Wake it, from any thread; false if that is impossible, as its event loop is closed."""
        if self.loop is _get_running_loop():
            self._set()
            return True
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class ThreadWaiter:
    """A thread that blocks until `gate` can be acquired."""

    __slots__ = ("gate", "state")

    def __init__(self) -> None:
        self.state = _WAITING
        self.gate = Lock()
        self.gate.acquire()

    def wake(self) -> bool:
        """Wake it, once, from any thread."""
        self.gate.release()
        return True


Waiter = TaskWaiter | ThreadWaiter
W = TypeVar("W", TaskWaiter, ThreadWaiter)


class Bulkhead(Guard):
    """At most `limit` callers inside, at most `max_waiting` queueing; safe between threads and event loops.

    Use it as `await bulkhead.call(fn, *args)`, `bulkhead.call_sync(fn, *args)`, `@bulkhead`, `async with bulkhead:`,
    `with bulkhead:`, or in two steps, `await bulkhead.acquire()` and `bulkhead.release()`.

    Args:
        name: used in errors and events.
        limit: callers inside at once; `resize` changes it.
        max_waiting: callers that may queue for a slot; 0 rejects at once.
        max_wait: seconds that a caller may queue; `None` sets no bound beyond the caller's own timeout and deadline.
        events: told of every caller turned away.
        clock: gives timers. A thread waits in real time; under a virtual clock its wait takes no time and
            fails if there is no slot then.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_busy",
        "_clock",
        "_events",
        "_free",
        "_lock",
        "_waiters",
        "_zero",
        "limit",
        "max_wait",
        "max_waiting",
        "name",
    )

    def __init__(
        self,
        name: str,
        limit: int,
        max_waiting: int = 0,
        *,
        max_wait: float | None = None,
        events: Events | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must not be negative, not {max_waiting!r}")
        if max_wait is not None and not max_wait > 0:
            raise ValueError(f"max_wait must be positive, not {max_wait!r}")
        self.name = name
        self.limit = _at_least_one(limit)
        self.max_waiting = max_waiting
        self.max_wait = max_wait
        self._events = events
        self._clock = clock
        # One that a thread can take twice: a forgotten task may be collected in the middle of anything, and gives its
        # slot back then. All that is done under the lock is therefore consistent at every call.
        self._lock = RLock()
        self._waiters: deque[Waiter] = deque()
        self._zero = _HIDDEN
        self._free = self._zero + limit  # below zero after the limit shrank: as many leave before the next comes in
        self._busy = bool(self._zero)

    # -- calls

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, in a slot of its own.

        Raises:
            BulkheadFull: not called; all slots are taken and the queue is full.
            CallTimeout: not called; no slot became free in time.
            BaseException: whatever `func` raises, unchanged.
        """
        if self._free > 0:
            self._free -= 1
        elif not self._zero and len(self._waiters) >= self.max_waiting:
            raise self._rejected(None)
        else:
            await self._enter(None)
        try:
            result = func(*args, **kwargs)
            if type(result) is CoroutineType or is_awaitable(result):
                return await result
            return result
        finally:
            if self._busy:
                self._leave()
            else:
                self._free += 1

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for a sync `func`; it blocks the thread while it waits. Raises the same."""
        if self._free > 0:
            self._free -= 1
        else:
            self._enter_sync(None)
        try:
            return func(*args, **kwargs)
        finally:
            if self._busy:
                self._leave()
            else:
                self._free += 1

    async def __aenter__(self) -> None:
        if self._free > 0:
            self._free -= 1
        else:
            await self._enter(None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __enter__(self) -> None:
        if self._free > 0:
            self._free -= 1
        else:
            self._enter_sync(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    # -- in two steps

    def try_acquire(self) -> bool:
        """Take a slot if one is free; nobody who waits is overtaken."""
        if self._free > 0:
            self._free -= 1
            return True
        return self._zero < 0 and self._try()

    async def acquire(self, timeout: float | None = None) -> None:
        """Take a slot, waiting for one at most `timeout` seconds, `max_wait`, and for what the deadline leaves.

        Raises:
            BulkheadFull: all slots are taken and the queue is full.
            CallTimeout: no slot became free in time; the error says so by `not_sent`.
        """
        if self._free > 0:
            self._free -= 1
        else:
            await self._enter(timeout)

    def acquire_sync(self, timeout: float | None = None) -> None:
        """`acquire` for code without an event loop: blocks the thread.

        On a thread that runs an event loop it does not wait, as nothing else could happen there meanwhile: the queue
        counts as full. Raises the same.
        """
        if self._free > 0:
            self._free -= 1
        else:
            self._enter_sync(timeout)

    def release(self) -> None:
        """Give the slot to the longest waiting caller, or free it. From any thread.

        Raises:
            RuntimeError: more slots were released than taken.
        """
        if self._busy or self._free >= self.limit:
            self._leave()
        else:
            self._free += 1

    def check(self) -> None:
        """Raise what a caller that will not wait would get, without taking a slot.

        Raises:
            BulkheadFull: a caller would be turned away now.
        """
        if self._free <= 0 and self.full:
            raise self._rejected(None)

    def resize(self, limit: int) -> None:
        """Change the limit. More slots go to those who wait, in order; when there are fewer, those inside may finish.

        Raises:
            ValueError: `limit` is less than 1.
        """
        _at_least_one(limit)
        with self._lock:
            more = limit - self.limit
            if more < 0:
                self.limit = limit
                self._free += more
            woken = [self._grow() for _ in range(more)]
        for waiter in woken:
            self._wake(waiter)

    def refuse_waiting(self) -> None:
        """Turn away everybody who waits now, with `BulkheadFull`: nobody shall come in any more."""
        with self._lock:
            refused = list(self._waiters)
            for waiter in refused:
                self._remove(waiter, _REFUSED)
        for waiter in refused:
            waiter.wake()

    # -- watching

    @property
    def active(self) -> int:
        """Callers inside; more than `limit` only after the limit has shrunk."""
        with self._lock:
            return self.limit - self._free + self._zero

    @property
    def waiting(self) -> int:
        """Callers queueing."""
        return len(self._waiters)

    @property
    def full(self) -> bool:
        """Whether a caller would be turned away now: no slot is free and nobody more may wait."""
        with self._lock:
            return self._free <= self._zero and len(self._waiters) >= self.max_waiting

    # -- inside

    def _try(self) -> bool:
        """`try_acquire` without the global lock."""
        with self._lock:
            if self._free > self._zero:
                self._free -= 1
                return True
            return False

    async def _enter(self, timeout: float | None) -> None:
        """`acquire` when no slot is free at first sight."""
        if not self._zero and len(self._waiters) >= self.max_waiting:
            raise self._rejected(None)  # needs no lock: if so many wait, or none may, there was no slot just now
        bound = self._bound(timeout)
        waiter = self._queue(TaskWaiter, bound)
        if waiter is None:
            return
        timer = None
        try:
            if bound is not None:
                timer = self._clock.call_later(bound, self._expire, waiter)
            await waiter.future
        except BaseException:
            self._give_up(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self._admitted(waiter, bound)

    def _enter_sync(self, timeout: float | None) -> None:
        """`acquire_sync` when no slot is free at first sight."""
        bound = self._bound(timeout)
        waiter = self._queue(ThreadWaiter if _get_running_loop() is None else None, bound)
        if waiter is None:
            return
        try:
            if bound is None:
                waiter.gate.acquire()
            elif isinstance(self._clock, SystemClock):
                waiter.gate.acquire(timeout=min(bound, TIMEOUT_MAX))
            else:
                self._clock.block(bound)
        except BaseException:
            self._give_up(waiter)
            raise
        self._expire(waiter)
        self._admitted(waiter, bound)

    def _bound(self, timeout: float | None) -> float | None:
        """The seconds that a caller may wait."""
        deadline = current_deadline()
        if deadline is not None:
            left = deadline.at - self._clock.monotonic()
            timeout = left if timeout is None else min(timeout, left)
        if timeout is None or self.max_wait is None:
            return self.max_wait if timeout is None else timeout
        return min(timeout, self.max_wait)

    def _queue(self, kind: Callable[[], W] | None, bound: float | None) -> W | None:
        """A place in the queue, or `None` for a slot. Raises what the caller gets if there is neither."""
        patient = bound is None or bound > 0
        with self._lock:
            room = kind is not None and len(self._waiters) < self.max_waiting
            waiter = kind() if kind is not None and room and patient else None
            # From here on nothing is called: a slot that is given back meanwhile, without the lock, would go unseen.
            if self._free > self._zero:
                self._free -= 1
                return None
            if waiter is not None:
                self._busy = True
                self._waiters.append(waiter)
                return waiter
        raise self._rejected(bound if room else None)

    def _leave(self) -> None:
        """`release` when somebody may be waiting."""
        with self._lock:
            waiter = self._hand_over()
        self._wake(waiter)

    def _hand_over(self) -> Waiter | None:
        """With the lock: a slot has become free. Who gets it, to be woken; `None` when nobody waits or none is due."""
        if self._free < self._zero or not self._waiters:
            if self._free - self._zero >= self.limit:
                raise RuntimeError(f"a slot of {self.name} was released that nobody had taken")
            self._free += 1
            return None
        waiter = self._waiters[0]
        self._remove(waiter, _INSIDE)
        return waiter

    def _grow(self) -> Waiter | None:
        """With the lock: one slot more. One after the other, as none may be free while somebody waits."""
        self.limit += 1
        return self._hand_over()

    def _remove(self, waiter: Waiter, state: int) -> None:
        """With the lock: `waiter` waits no more."""
        waiter.state = state
        self._waiters.remove(waiter)
        if not self._waiters:
            self._busy = self._zero < 0

    def _wake(self, waiter: Waiter | None) -> None:
        """Tell who got a slot; if its event loop is closed, the next one gets it."""
        while waiter is not None and not waiter.wake():
            with self._lock:
                lost = waiter.state == _INSIDE  # else the waiter has given the slot back itself
                waiter.state = _GONE
                waiter = self._hand_over() if lost else None

    def _expire(self, waiter: Waiter) -> None:
        """The time of `waiter` is over, unless it has a slot by now."""
        with self._lock:
            if waiter.state != _WAITING:
                return
            self._remove(waiter, _EXPIRED)
        waiter.wake()

    def _give_up(self, waiter: Waiter) -> None:
        """`waiter` was cancelled; a slot that it got in this very moment goes on to the next."""
        with self._lock:
            state = waiter.state
            if state == _WAITING:
                self._remove(waiter, _GONE)
            waiter.state = _GONE
        if state == _INSIDE:
            self._leave()

    def _admitted(self, waiter: Waiter, bound: float | None) -> None:
        """Raises what a caller gets that was woken without having a slot."""
        if waiter.state != _INSIDE:
            raise self._rejected(bound if waiter.state == _EXPIRED else None)

    def _rejected(self, bound: float | None) -> BulkheadFull | CallTimeout:
        """The error for a caller that had waited for `bound` seconds, or could not wait, and its event."""
        if self._events:
            reason: Literal["full", "timeout"] = "full" if bound is None else "timeout"
            self._events.emit(BulkheadRejected(self.name, self.active, self.waiting, reason))
        return BulkheadFull(self.name) if bound is None else too_late(self.name, bound)


def _at_least_one(limit: int) -> int:
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}")
    return limit


def too_late(name: str, bound: float) -> CallTimeout:
    """The error for a caller whose time ended before there was a slot."""
    error = CallTimeout(name, max(0.0, bound))
    vars(error)["not_sent"] = True  # nothing was begun, so that repeating can do no harm: see `never_began`
    error.add_note("no slot became free in time; the call was not begun")
    return error
