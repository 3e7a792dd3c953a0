"""Events that wait in memory while their stream is away, and are sent when it is back.

What it promises, and what not:

* *At least once.* A batch leaves only after `send` has returned; one that was cut off is sent again. Each event has
  an id, by which consumers drop doubles.
* *In order*, but for an event that the stream refuses: it is set aside so that the others pass, tried again later,
  and given up as dead after its tries.
* *Bounded.* At most so many events and so old; the oldest is dropped first, and every drop is counted with its reason.
* *An outage uses up no tries.* While the stream is away nothing is refused: the events wait until they are too old.

The rules are `resilience.backlog`, which knows neither clock nor stream; this is the shell around them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from threading import Lock
from typing import Any

from resilience.ambient import RANDOM
from resilience.backlog import (
    Backlog,
    BufferedEvent,
    BufferStats,
    DeadEvent,
    DropReason,
    EventsDropped,
    EventsSent,
)
from resilience.backoff import Backoff
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import hard_timeout, without_deadline
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, RateLimited, TransientError
from resilience.events import Events
from resilience.flight import duplicate


class EventBuffer:
    """A bounded buffer in front of `send`, which hands a batch of events to the stream or raises.

    `put` from any thread; `run` and `flush` on one event loop. Times in seconds.

    Args:
        name: for events and tasks.
        send: given the next events in order; when it returns, they are safe.
        max_events: the oldest is dropped for a new one beyond this.
        max_age: an event that has waited for longer is dropped.
        batch: events at most in one `send`.
        tries: how often an event may be refused when it is sent alone; then it is dead.
        interval: how long a smaller batch waits for more events.
        backoff: waits between the tries of an event, and between attempts during an outage, counted from 1 each.
        send_timeout: how long a `send` may take; then it counts as an outage.
        is_outage: whether an error of `send` means that the stream is away, so that the same batch is sent again later.
            Any other is a refusal of what is in the batch. If not given, all are outages except those that
            `resilience.classify.ERRORS` blames on the caller. Rejections before the call (an open circuit, a full
            bulkhead, a rate limit), timeouts and `TransientError` are outages without asking.
        admit: awaited with the size of the next batch before it is sent; if it raises, the batch waits as in an
            outage. What gives out permits that have to be returned goes around `send` instead, as in
            `send=governor.governed(send)`.
        dead: told of each event that is given up. The last `max_dead` are kept in `dead_events` as well.
        new_id: makes the ids; the default is as good as unique even between forked processes.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        *("_admit", "_backlog", "_backoff", "_clock", "_dead", "_dropped", "_events", "_is_outage", "_kicked", "_lock"),
        *("_monotonic", "_new_id", "_outages", "_random", "_refusals", "_send", "_sent", "_sleepers"),
        *("callback_errors", "dead_events", "interval", "name", "send_timeout"),
    )

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[BufferedEvent]], Awaitable[object]],
        *,
        max_events: int = 10_000,
        max_age: float = 300.0,
        batch: int = 100,
        tries: int = 5,
        interval: float = 1.0,
        backoff: Backoff | None = None,
        send_timeout: float = 10.0,
        is_outage: Callable[[Exception], bool] | None = None,
        admit: Callable[[int], Awaitable[object]] | None = None,
        dead: Callable[[DeadEvent], object] | None = None,
        max_dead: int = 1_000,
        new_id: Callable[[], str] = lambda: os.urandom(16).hex(),
        clock: Clock = SYSTEM_CLOCK,
        random: Random | None = None,
        events: Events | None = None,
    ) -> None:
        for field, value in {
            "max_events": max_events,
            "max_age": max_age,
            "batch": batch,
            "tries": tries,
            "interval": interval,
            "send_timeout": send_timeout,
        }.items():
            if not value > 0:
                raise ValueError(f"{field} must be positive, not {value!r}")
        if max_dead < 0:
            raise ValueError(f"max_dead must not be negative, not {max_dead!r}")
        self.name = name
        self.interval = interval
        self.send_timeout = send_timeout
        self.callback_errors = 0
        self.dead_events: deque[DeadEvent] = deque(maxlen=max_dead)
        self._backlog = Backlog(max_events, max_age, batch, tries)
        self._send = send
        self._backoff = Backoff(1.0, cap=30.0, jitter="equal") if backoff is None else backoff
        self._is_outage = _not_the_callers_fault if is_outage is None else is_outage
        self._admit = admit
        self._dead = dead
        self._new_id = new_id
        self._clock = clock
        self._monotonic = clock.monotonic
        self._random = RANDOM if random is None else random
        self._events = events
        self._lock = Lock()
        self._sent = 0
        self._dropped: dict[DropReason, int] = {"overflow": 0, "expired": 0, "refused": 0}
        self._outages = self._refusals = 0
        self._kicked = False
        self._sleepers: list[_Sleeper] = []

    def __len__(self) -> int:
        return len(self._backlog)

    def put(self, value: Any, event_id: str | None = None) -> bool:
        """Add an event; never blocks and never raises because of a full buffer.

        Returns whether it was taken: not if there is no room beside the events that are just being sent. `event_id`
        is the event's own, where it has one.
        """
        now = self._monotonic()
        event = BufferedEvent(self._new_id() if event_id is None else event_id, value, now)
        with self._lock:
            expired = self._expire(now)
            gone = self._backlog.put(event)
            self._dropped["overflow"] += gone is not None
            full = self._backlog.waiting >= self._backlog.batch
        self._tell("expired", len(expired))
        self._tell("overflow", gone is not None)
        if full:
            self._wake(only_idle=True)
        return gone is not event

    def kick(self) -> None:
        """Try again at once, as when the stream's circuit has closed. From any thread."""
        with self._lock:
            self._kicked = True
        self._outages = 0
        self._wake()

    async def run(self) -> None:
        """Send what there is until cancelled; a batch that is cut off by that returns to the front."""
        with without_deadline():
            while True:
                await self._pause(*await self._drain())

    async def flush(self, timeout: float) -> int:
        """Send everything that can be sent within `timeout`, as at shutdown; returns how many events are left."""
        with contextlib.suppress(CallTimeout, BulkheadFull), without_deadline():
            await hard_timeout(self._flush(), timeout, name=self.name, clock=self._clock)
        return len(self)

    def stats(self) -> BufferStats:
        """Sizes and counts of now."""
        now = self._monotonic()
        with self._lock:
            oldest = self._backlog.oldest
            age = 0.0 if oldest is None else now - oldest
            dropped = self._dropped
            return BufferStats(
                len(self._backlog), age, self._sent, dropped["overflow"], dropped["expired"], dropped["refused"]
            )

    async def _flush(self) -> None:
        while True:
            pause = await self._drain()
            if not len(self):
                return
            await self._pause(*pause)

    async def _drain(self) -> tuple[float, bool]:
        """Send batches until there is a reason to wait; returns for how long, and whether only for want of events."""
        wait: float | None = None
        while wait is None:
            count = self._ready()
            if not count:
                return self._until_due(), True
            wait = await self._send_some(count)
        return wait, False

    def _ready(self) -> int:
        """The size of the next batch, without what is too old."""
        now = self._monotonic()
        with self._lock:
            expired = self._expire(now)
            count = self._backlog.ready(now)
        self._tell("expired", len(expired))
        return count

    def _until_due(self) -> float:
        with self._lock:
            due = self._backlog.due
        return self.interval if due is None else min(self.interval, max(0.0, due - self._monotonic()))

    async def _send_some(self, count: int) -> float | None:
        """Send a batch of at most `count`; returns how long to wait before the next one, `None` for not at all."""
        if self._admit is not None:
            if await self._attempt(self._admit, count, self._backlog.max_age) is not None:
                return self._next_attempt()
            count = min(count, self._ready())  # that may have taken its time
        with self._lock:
            batch = self._backlog.take(self._monotonic(), count)
        if not batch:
            return None  # another sender was quicker, or they are gone
        failure: Exception | None = None
        unjudged = True
        try:
            failure = await self._attempt(self._send, batch, self.send_timeout)
            unjudged = failure is not None and self._stream_is_away(failure)
            if failure is None:
                self._took(len(batch))
                return None
            return self._next_attempt() if unjudged else self._refuse(batch, failure)
        finally:
            if unjudged:  # the stream is away, or we are being stopped
                self._back()
            del failure  # it refers to this frame by its traceback: break the cycle

    async def _attempt(self, call: Callable[[Any], Awaitable[object]], what: object, limit: float) -> Exception | None:
        """Why it failed, or `None`. Raises only if we are being stopped ourselves."""
        try:
            await hard_timeout(call(what), limit, name=self.name, clock=self._clock)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return TransientError("the call was cancelled, but not by us")
        except Exception as error:  # noqa: BLE001 - judged by the caller
            return error
        return None

    def _stream_is_away(self, failure: Exception) -> bool:
        if isinstance(failure, _NO_VERDICT):
            return True
        try:
            return self._is_outage(failure)
        except Exception:  # noqa: BLE001 - keeping the events is the safe side
            return True

    def _took(self, count: int) -> None:
        self._outages = self._refusals = 0
        with self._lock:
            self._backlog.sent()
            self._sent += count
        if self._events:
            self._events.emit(EventsSent(self.name, count))

    def _back(self) -> None:
        with self._lock:
            self._backlog.back(self._monotonic())

    def _next_attempt(self) -> float:
        self._outages += 1
        return self._backoff.wait(self._outages, self._random)

    def _refuse(self, batch: Sequence[BufferedEvent], error: Exception) -> float | None:
        wait = self._backoff.wait(batch[0].tries + 1, self._random)
        with self._lock:
            dead = self._backlog.refused(self._monotonic() + wait)
            self._dropped["refused"] += dead is not None
        if dead is not None:
            self._bury(DeadEvent(dead, duplicate(error) or error.with_traceback(None)))
        if len(batch) > 1:
            return None
        # A stream that takes nothing at all, event after event, is asked ever more slowly.
        self._refusals += 1
        return self._backoff.wait(self._refusals - 1, self._random) if self._refusals > 1 else None

    def _bury(self, dead: DeadEvent) -> None:
        self.dead_events.append(dead)
        self._tell("refused", 1)
        if self._dead is not None:
            try:
                self._dead(dead)
            except Exception:  # noqa: BLE001 - it must not stop the others
                self.callback_errors += 1

    def _expire(self, now: float) -> list[BufferedEvent]:
        """Call it with the lock held, and let what it returns die outside: its end may run anybody's code."""
        gone = self._backlog.expire(now)
        self._dropped["expired"] += len(gone)
        return gone

    def _tell(self, reason: DropReason, count: int) -> None:
        if count and self._events:
            self._events.emit(EventsDropped(self.name, reason, count))

    async def _pause(self, seconds: float, idle: bool) -> None:
        """Wait, until kicked at most; if `idle`, until there is a full batch at most."""
        sleeper = _Sleeper(asyncio.get_running_loop(), idle)
        with self._lock:
            kicked, self._kicked = self._kicked, False
            self._sleepers.append(sleeper)
        timer = self._clock.call_later(0.0 if kicked else seconds, _wake, sleeper.waiter)
        try:
            await sleeper.waiter
        finally:
            timer.cancel()
            with self._lock:
                self._sleepers.remove(sleeper)
                self._kicked = False

    def _wake(self, only_idle: bool = False) -> None:
        with self._lock:
            sleepers = [one for one in self._sleepers if not one.woken and (one.idle or not only_idle)]
            for sleeper in sleepers:
                sleeper.woken = True  # once is enough, and not cheap
        for sleeper in sleepers:
            with contextlib.suppress(RuntimeError):  # its loop has been closed
                sleeper.loop.call_soon_threadsafe(_wake, sleeper.waiter)


_NO_VERDICT = (CircuitBreakerOpen, BulkheadFull, RateLimited, CallTimeout, TransientError)
"""Errors of which none says anything about the events: the stream has not judged them."""


class _Sleeper:
    __slots__ = ("idle", "loop", "waiter", "woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, idle: bool) -> None:
        self.loop = loop
        self.idle = idle
        self.woken = False
        self.waiter: asyncio.Future[None] = loop.create_future()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _not_the_callers_fault(error: Exception) -> bool:
    from resilience.classify import ERRORS, Category

    return ERRORS.category(error) is not Category.CLIENT
