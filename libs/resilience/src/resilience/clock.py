"""The only place that reads time or sets a timer.

Everything else in this library asks a `Clock`, so that every rule can be tested without waiting and
replayed under a virtual clock. Two kinds of time are kept apart: `monotonic` measures durations and never
jumps; `time` is for stamps that people and other machines read, and no decision is taken on it.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol, final


class Timer(Protocol):
    """A callback that is due later and can be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time in seconds, and waiting."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes backwards."""
        ...

    def time(self) -> float:
        """Unix time in seconds; may jump, so it is for stamps only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...

    def block(self, seconds: float) -> None:
        """Return after `seconds`, blocking the thread: for code without an event loop."""
        ...

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call `callback(*args)` on the running loop after `seconds`, unless cancelled."""
        ...


@final
class SystemClock:
    """The real clock of this machine and of the running event loop."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    block = staticmethod(time.sleep)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


SYSTEM_CLOCK: Clock = SystemClock()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class _FakeTimer:
    __slots__ = ("args", "callback", "cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def idle(self) -> bool:
        return bool(getattr(getattr(self.callback, "__self__", None), "idle", False))


@final
class FakeClock:
    """A clock that stands still until a test moves it.

    `await advance(s)` wakes sleepers and fires timers in the order in which they are due, and lets the tasks
    they woke run until they wait again. `move(s)` does the same for code without an event loop.
    """

    # Loop turns granted after each timer at the most: a wake-up travels through a chain of tasks one by one, but tasks
    # that keep each other awake must not hold a test for ever.
    _TURNS = 1_000

    def __init__(self, start: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = start
        self._wall_offset = wall - start
        self._timers: list[tuple[float, int, _FakeTimer]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._wall_offset

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forwards or backwards, as an operator or NTP does."""
        self._wall_offset += seconds

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = _FakeTimer(callback, args)
        heapq.heappush(self._timers, (self._now + seconds, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    def block(self, seconds: float) -> None:
        """Nobody else will move time while this thread is blocked, so it moves by `seconds`."""
        self.move(max(0.0, seconds))

    @property
    def pending(self) -> int:
        """Timers and sleepers still waiting: a test asserts 0 to show that nothing was left behind.

        A shared timer that waits for nobody any more (its owner is `idle`) is not counted.
        """
        return sum(not timer.cancelled and not timer.idle for _, _, timer in self._timers)

    def move(self, seconds: float) -> None:
        """Move time and fire what is due, without giving the event loop a turn."""
        end = self._now + seconds
        while self._fire_next(end):
            pass
        self._now = end

    async def advance(self, seconds: float) -> None:
        """Move time, letting tasks run after each timer that fires."""
        end = self._now + seconds
        await self._settle()
        while self._fire_next(end):
            await self._settle()
        self._now = end
        await self._settle()

    def _fire_next(self, end: float) -> bool:
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now = max(self._now, due)
                timer.callback(*timer.args)
                return True
        return False

    async def _settle(self) -> None:
        """Lets tasks run until none has anything to do; on an event loop that hides its queue, for a while."""
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        for _ in range(100 if ready is None else self._TURNS):
            await asyncio.sleep(0)
            if ready is not None and not ready:
                return
