"""One direction of one proxied connection.

Without a toxic a chunk goes straight from one socket to the other. With one it waits in a queue until its time has
come; the queue keeps the order and is bounded: when it is full the sender is no longer read from, and TCP slows it
down.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from devstack.faultproxy.toxics import CLEAR, Effect

QUEUE_BYTES = 2**20  # what a delayed direction may hold
EOF = b""


class Pipe:
    """Carries bytes from a source to a sink. ``end(reset)`` ends the whole connection; ``finished()`` is called once
    the source's end of data has been passed on."""

    def __init__(self, end: Callable[[bool], None], finished: Callable[[], None]) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.effect = CLEAR
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._finished = finished
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued = 0
        self._passed = 0  # bytes, for limit_data
        self._last = 0.0  # when the newest queued chunk is due
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._full = False  # our queue
        self._blocked = False  # the sink
        self._source_done = False

    def feed(self, data: bytes) -> None:
        """A chunk from the source; ``EOF`` when it has sent its last."""
        if data == EOF:
            if self._source_done:  # the event loop may report it again
                return
            self._source_done = True
        if self.effect is CLEAR and self.sink is not None and not self._queue:
            self._write(data)
        elif not self.effect.silent:
            self._enqueue(data)
        elif data == EOF:
            self._finished()  # not passed on, but a connection that both sides have left is not kept

    def connect(self, sink: asyncio.Transport) -> None:
        """From now on there is somewhere to send what comes, and what has come before. (A source cannot be kept from
        sending until then: uvloop ignores ``pause_reading`` inside ``connection_made``.)"""
        self.sink = sink
        self._arm()

    def set_effect(self, effect: Effect) -> None:
        """Applies other toxics, also to what is under way: chunks already queued go on at once, in order, when the
        delay ends. A connection that has lost data to a ``timeout`` toxic is closed when that ends (as in Toxiproxy).
        """
        before, self.effect = self.effect, CLEAR if effect.clear else effect
        if before.silent and not effect.silent:
            self._end(False)
            return
        if before != effect:
            self._reschedule()
            self._plan_end()

    def block(self, blocked: bool) -> None:
        """The sink's buffer is full (or has room again)."""
        self._blocked = blocked
        self._throttle()

    def close(self) -> None:
        """Forgets everything; nothing passes any more."""
        for timer in (self._timer, self._ending):
            if timer is not None:
                timer.cancel()
        self._timer = self._ending = None
        self._queue.clear()
        self._queued = 0

    def _write(self, data: bytes) -> None:
        sink = self.sink
        if sink is None or sink.is_closing():
            return  # the connection is being taken down
        if data == EOF:
            sink.write_eof()
            self._finished()
            return
        sink.write(data)

    def _enqueue(self, data: bytes) -> None:
        now = self._loop.time()
        delay = self.effect.latency
        if self.effect.jitter:
            delay = max(0.0, delay + random.uniform(-1, 1) * self.effect.jitter)  # noqa: S311  (no secret)
        if data == EOF:
            delay += self.effect.close_delay
        due = max(now + delay, self._last)
        if self.effect.rate is not None:
            due += len(data) / max(self.effect.rate, 1.0)
        self._last = due
        self._queue.append((due, data))
        self._queued += len(data)
        self._throttle()
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._queue and self.sink is not None:
            self._timer = self._loop.call_at(self._queue[0][0], self._release)

    def _release(self) -> None:
        """Passes on what is due."""
        self._timer = None
        now = self._loop.time() + 0.001  # the clock's resolution: a timer may fire just before its time
        while self._queue and self.sink is not None and self._queue[0][0] <= now:
            _, data = self._queue.popleft()
            self._queued -= len(data)
            if self._beyond_limit(data):
                return
            self._write(data)
        self._throttle()
        self._arm()

    def _beyond_limit(self, data: bytes) -> bool:
        limit = self.effect.limit
        if limit is None:
            return False
        room = max(0, limit - self._passed)
        self._passed += len(data)
        if self._passed < limit:
            return False
        if room:
            self._write(data[:room])
        self._end(False)
        return True

    def _throttle(self) -> None:
        """Reads from the source only while there is room for what it sends."""
        if self._queued >= QUEUE_BYTES:
            self._full = True
        elif self._queued <= QUEUE_BYTES // 2:
            self._full = False
        if self.source is None or self._source_done or self.source.is_closing():
            return
        reading = not (self._full or self._blocked)
        if reading and not self.source.is_reading():
            self.source.resume_reading()
        elif not reading and self.source.is_reading():
            self.source.pause_reading()

    def _reschedule(self) -> None:
        """Gives what is queued the times that the new effect would give it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [data for _, data in self._queue]
        self._queue.clear()
        self._queued, self._last = 0, 0.0
        for data in waiting if not self.effect.silent else ():
            self._enqueue(data)
        self._release()

    def _plan_end(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self.effect.reset_after is not None:
            self._ending = self._loop.call_later(self.effect.reset_after, self._end, True)
        elif self.effect.close_after is not None:
            self._ending = self._loop.call_later(self.effect.close_after, self._end, False)
