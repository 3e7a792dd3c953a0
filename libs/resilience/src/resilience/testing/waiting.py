"""Who waits for what: moving a fake clock by what is to happen, and finding what was left behind."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from resilience import clock as clock_module
from resilience.clock import FakeClock

_CLOCK_FILE: Final = clock_module.__file__
_BLIND_TURNS: Final = 100
"""Turns granted on an event loop that does not show whether it has anything to do."""


async def settle(turns: int = 1_000) -> bool:
    """Let all other tasks of this loop run until each of them waits for something.

    What waits for the outside (a socket, a thread) counts as waiting. Exact on asyncio's own loops; others get 100
    turns. Returns whether it came to rest: a task that never waits is left running after so many turns.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    for _ in range(turns if ready is not None else min(turns, _BLIND_TURNS)):
        await asyncio.sleep(0)
        if ready is not None and not ready:
            return True
    return ready is None


async def run_until(clock: FakeClock, condition: Callable[[], object], *, within: float = 3600.0) -> float:
    """Move `clock` from one timer to the next until `condition()` is true; returns the seconds that took.

    They are rounded to the nanosecond, so that they can be compared.

    Raises:
        AssertionError: it is not true after `within` seconds, or nothing is left that could make it so; the text says
            what is still waiting.
    """
    __tracebackhide__ = True
    start = clock.monotonic()
    await settle()
    while not condition():
        due = min((due for due, _ in _waiting(clock)), default=None)
        if due is None or due > start + within:
            why = "nothing is waiting any more" if due is None else f"the next timer is later than {within:g} s"
            raise AssertionError(
                f"not true after {clock.monotonic() - start:g} s: {why}\n{_lines(_waiting(clock), clock)}"
            )
        await clock.advance(max(0.0, due - clock.monotonic()))
        await settle()
    return round(clock.monotonic() - start, 9)


def assert_nothing_pending(clock: FakeClock) -> None:
    """No timer and no sleeper waits on `clock`.

    Raises:
        AssertionError: the text lists them, sleepers with the line that they sleep at.
    """
    __tracebackhide__ = True
    if clock.pending:
        raise AssertionError(_left(_waiting(clock), clock))


def assert_no_sleepers(clock: FakeClock) -> None:
    """`assert_nothing_pending` that minds only what the end of its event loop would wake or cancel.

    Raises:
        AssertionError: the text lists them.
    """
    __tracebackhide__ = True
    waiting = [(due, timer) for due, timer in _waiting(clock) if _future(timer) is not None]
    if waiting:
        raise AssertionError(_left(waiting, clock))


def assert_no_tasks_left(*, besides: Iterable[asyncio.Task[Any]] = ()) -> None:
    """No task of the running loop is left but this one, and those named.

    Raises:
        AssertionError: the text lists them, with the line that each waits at.
    """
    __tracebackhide__ = True
    left = asyncio.all_tasks() - {asyncio.current_task(), *besides}
    if left:
        lines = sorted(_task(task) for task in left)
        raise AssertionError(f"tasks left: {len(left)}\n" + "\n".join(f"  {line}" for line in lines))


def _waiting(clock: FakeClock) -> list[tuple[float, Any]]:
    """When each timer that waits for somebody is due, and the timer; the earliest first."""
    return [(due, timer) for due, _, timer in sorted(clock._timers) if not timer.cancelled and not timer.idle]


def _left(waiting: list[tuple[float, Any]], clock: FakeClock) -> str:
    return f"{len(waiting)} still waiting on the fake clock\n{_lines(waiting, clock)}"


def _lines(waiting: list[tuple[float, Any]], clock: FakeClock) -> str:
    lines = [f"  in {due - clock.monotonic():g} s: {_timer(timer)}" for due, timer in waiting]
    return "\n".join(lines) or "  no timers"


def _timer(timer: Any) -> str:
    future = _future(timer)
    for task in () if future is None else asyncio.all_tasks(future.get_loop()):
        if getattr(task, "_fut_waiter", None) is future:
            return _task(task)
    callback = timer.callback.func if isinstance(timer.callback, partial) else timer.callback
    return f"timer {getattr(callback, '__qualname__', None) or repr(callback)}"


def _future(timer: Any) -> asyncio.Future[Any] | None:
    """What the timer wakes, if that is all that it does."""
    args = timer.callback.args if isinstance(timer.callback, partial) else timer.args
    return next((arg for arg in args if isinstance(arg, asyncio.Future)), None)


def _task(task: asyncio.Task[Any]) -> str:
    cancelled = ", being cancelled" if task.cancelling() else ""
    return f"task {task.get_name()!r}{cancelled}, {_where(task.get_coro())}"


def _where(coro: Any) -> str:
    """The innermost line that waits, not counting the clock's own."""
    where = "nothing known of where"
    while (frame := getattr(coro, "cr_frame", None)) is not None:
        if frame.f_code.co_filename != _CLOCK_FILE:
            where = f"at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        coro = coro.cr_await
    return where
