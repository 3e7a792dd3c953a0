"""Deadlines that hold.

`asyncio.timeout` cancels a call and then waits for its clean-up, and a driver's clean-up may itself talk to the frozen
server: a limit of 0.3 s was measured to take over 8 s. `hard_timeout` returns at the limit. It runs the call as
a task, cancels it, and does not wait for it; the abandoned task is kept, counted and bounded until it ends.

`deadline_scope` says how long the caller of the current code will wait, so that every call made inside can be
bounded by the time that is left.
"""

import asyncio
from collections.abc import Awaitable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import BulkheadFull, CallTimeout

T = TypeVar("T")


class AbandonedTasks:
    """Calls that were given up but have not ended yet. Past `limit` of them no further call is begun.

    Without the bound a dependency whose driver never finishes its clean-up would slowly eat the process.
    """

    __slots__ = ("_tasks", "limit")

    def __init__(self, limit: int = 1_000) -> None:
        self.limit = limit
        self._tasks: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """Whether no further call may be begun."""
        return len(self._tasks) >= self.limit

    def abandon(self, task: asyncio.Future[Any]) -> None:
        """Cancel `task`, hold it until it ends, and ignore what comes of it."""
        task.cancel()
        self._tasks.add(task)  # the event loop itself holds only weak references
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not log it as never retrieved


ABANDONED = AbandonedTasks()


async def hard_timeout(
    awaitable: Awaitable[T],
    seconds: float,
    *,
    name: str = "",
    clock: Clock = SYSTEM_CLOCK,
    abandoned: AbandonedTasks = ABANDONED,
) -> T:
    """The result of `awaitable`, or `CallTimeout` after `seconds`, whatever the awaitable does about being cancelled.

    The caller's own cancellation is passed on to the call and raised at once. A late result is dropped, so
    what is awaited should clean up after itself when cancelled.

    Raises:
        CallTimeout: `seconds` passed (at once, and without beginning the call, if they are not positive).
        BulkheadFull: too many abandoned calls have not ended; the call was not begun.
    """
    if seconds <= 0 or abandoned.full:
        _discard(awaitable)
        raise CallTimeout(name, seconds) if seconds <= 0 else BulkheadFull(name)
    loop = asyncio.get_running_loop()
    task: asyncio.Future[T]
    if type(awaitable) is CoroutineType:
        task = loop.create_task(awaitable, name=name)
    else:
        task = asyncio.ensure_future(awaitable)
    waiter: asyncio.Future[None] = loop.create_future()
    wake = partial(_wake, waiter)
    timer = clock.call_later(seconds, wake)
    task.add_done_callback(wake)
    try:
        await waiter
    except BaseException:  # the caller itself is cancelled
        abandoned.abandon(task)
        raise
    finally:
        timer.cancel()
    if not task.done():
        abandoned.abandon(task)
        raise CallTimeout(name, seconds)
    try:
        return task.result()
    finally:
        del task  # a raised result refers to this frame, and the frame to the task that holds it: break the cycle


def _wake(waiter: asyncio.Future[None], _task: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _discard(awaitable: Awaitable[object]) -> None:
    if asyncio.iscoroutine(awaitable):
        awaitable.close()
    elif isinstance(awaitable, asyncio.Future):
        ABANDONED.abandon(awaitable)


class Deadline(NamedTuple):
    """A moment on the monotonic clock by which an answer is wanted."""

    at: float

    def remaining(self, clock: Clock = SYSTEM_CLOCK) -> float:
        """Seconds left; 0 once it has passed."""
        return max(0.0, self.at - clock.monotonic())


_current: ContextVar[Deadline | None] = ContextVar("resilience_deadline", default=None)

current_deadline = _current.get
"""The deadline of the code that is running, or `None`."""


@contextmanager
def deadline_scope(seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> Generator[Deadline]:
    """Everything inside must be done in `seconds`. An inner scope can shorten an outer one, never extend it."""
    deadline = Deadline(clock.monotonic() + seconds)
    outer = _current.get()
    if outer is not None and outer.at < deadline.at:
        deadline = outer
    token = _current.set(deadline)
    try:
        yield deadline
    finally:
        _reset(token)


def replace_deadline(seconds: float | None, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Puts another deadline, or none, in the place of the current one for the rest of this context.

    For the edge where a request comes in, which alone may give it more time; everybody else uses `deadline_scope`.
    """
    _current.set(None if seconds is None else Deadline(clock.monotonic() + seconds))


@contextmanager
def without_deadline() -> Generator[None]:
    """For work that outlives its caller: a task created inside does not inherit the caller's deadline."""
    token = _current.set(None)
    try:
        yield
    finally:
        _reset(token)


def _reset(token: Token[Deadline | None]) -> None:
    # A coroutine that is closed from another context (by the collector, after its loop has gone) takes nothing back.
    with suppress(ValueError):
        _current.reset(token)
