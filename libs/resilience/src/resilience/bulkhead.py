"""A bound on how many callers are inside one dependency at once, first come, first served.

A connection pool lets a releasing caller barge in before those that wait, which costs the tail of the latency; a fair
queue in front of it does not. The queue itself is bounded: past it, saying no at once is kinder than a wait that
ends in a timeout.
"""

import asyncio
from collections import deque
from types import TracebackType

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import BulkheadFull, CallTimeout


class Bulkhead:
    """At most `limit` callers inside, at most `max_waiting` queueing. Use as `async with`."""

    __slots__ = ("_clock", "_free", "_waiters", "limit", "max_waiting", "name")

    def __init__(self, name: str, limit: int, max_waiting: int, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}")
        if max_waiting < 0:
            raise ValueError(f"max_waiting must not be negative, not {max_waiting!r}")
        self.name = name
        self.limit = limit
        self.max_waiting = max_waiting
        self._clock = clock
        self._free = limit
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def active(self) -> int:
        """Callers inside."""
        return self.limit - self._free

    @property
    def waiting(self) -> int:
        """Callers queueing."""
        return len(self._waiters)

    def try_acquire(self) -> bool:
        """Take a slot if one is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def acquire(self, timeout: float | None = None) -> None:
        """Take a slot, waiting for one at most `timeout` seconds.

        Raises:
            BulkheadFull: all slots are taken and the queue is full.
            CallTimeout: no slot became free in time.
        """
        if self.try_acquire():
            return
        if len(self._waiters) >= self.max_waiting:
            raise BulkheadFull(self.name)
        await self._wait(timeout)

    def release(self) -> None:
        """Give the slot to the longest waiting caller, or free it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    async def _wait(self, timeout: float | None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        timer = None if timeout is None else self._clock.call_later(timeout, self._give_up, waiter, timeout)
        try:
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self.release()  # the slot was handed over in the very moment of the cancellation
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _give_up(self, waiter: asyncio.Future[None], timeout: float) -> None:
        if not waiter.done():
            waiter.set_exception(CallTimeout(self.name, timeout))

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
