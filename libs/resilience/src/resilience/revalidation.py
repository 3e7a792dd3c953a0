"""Fetching stale values anew in the background, without becoming a burden to the source that is fetched from.

At most one load for a key, at most so many at once, none for a while after a failure, and none without the permission
of whoever spares the source. Nobody waits for these loads, so nobody sees their errors: they are counted and told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any

from resilience.cache import CacheEntry
from resilience.clock import Clock
from resilience.deadline import hard_timeout
from resilience.errors import BulkheadFull, CallTimeout
from resilience.events import Events
from resilience.flight import Flight, Flights
from resilience.freshness import RefreshFailed


class Revalidations:
    """The background loads of one cache; `begun` and `failed` count them. Times in seconds.

    Args:
        limit: how many at once.
        pause: how long a value is left alone after a failure.
        may_revalidate: asked before each.
    """

    __slots__ = (
        *("_clock", "_closed", "_events", "_flights", "_limit", "_may_revalidate", "_monotonic", "_pause"),
        *("_under_way", "begun", "failed"),
    )

    def __init__(
        self,
        flights: Flights,
        limit: int,
        pause: float,
        may_revalidate: Callable[[], bool] | None,
        clock: Clock,
        events: Events | None,
    ) -> None:
        self._flights = flights
        self._limit = limit
        self._pause = pause
        self._may_revalidate = may_revalidate
        self._clock = clock
        self._monotonic = clock.monotonic
        self._events = events
        self._under_way: set[Flight] = set()
        self._closed = False
        self.begun = 0
        self.failed = 0

    def begin(self, key: Hashable, entry: CacheEntry, load: Callable[[Flight], Coroutine[Any, Any, Any]]) -> None:
        """Load `key` in the background, if that may be done now. Raises nothing."""
        flight = self._board(key, entry)
        if flight is None:
            return
        begun = False
        try:
            if self._may_revalidate is None or self._may_revalidate():
                self._flights.begin(flight, load(flight))
                begun = True
                self.begun += 1
        except Exception as error:  # noqa: BLE001 - the caller has a value; this is for whoever listens
            self._ended(entry, flight, error)
        finally:
            if not begun:
                self._flights.remove(flight)
                self._under_way.discard(flight)

    async def aclose(self, timeout: float) -> None:
        """Begin none any more; cancel those under way, and wait at most `timeout` for the end of those on this loop."""
        with self._flights.lock:
            self._closed = True
            flights = tuple(self._under_way)
            self._under_way.clear()
        loop = asyncio.get_running_loop()
        ours = [flight.task for flight in flights if flight.owner is loop and flight.task is not None]
        for flight in flights:
            owner: Any = flight.owner
            if owner is loop:
                self._stop(flight)
            else:
                with contextlib.suppress(RuntimeError):  # that loop is closed, and its tasks with it
                    owner.call_soon_threadsafe(self._stop, flight)
        if ours:
            with contextlib.suppress(CallTimeout, BulkheadFull):
                await hard_timeout(asyncio.wait(ours), timeout, name=self._flights.name, clock=self._clock)

    def _board(self, key: Hashable, entry: CacheEntry) -> Flight | None:
        """A place for one more, if there may be one."""
        loop = asyncio.get_running_loop()
        now = self._monotonic()
        with self._flights.lock:
            if self._closed or now < entry.retry_at or self._flights.under_way(key):
                return None
            if len(self._under_way) >= self._limit:
                self._under_way = {flight for flight in self._under_way if not flight.dead}
                if len(self._under_way) >= self._limit:
                    return None
            flight = self._flights.add(Flight(key, loop, now))
            flight.report = partial(self._ended, entry)
            self._under_way.add(flight)
            return flight

    def _ended(self, entry: CacheEntry, flight: Flight, error: Exception | None) -> None:
        with self._flights.lock:
            self._under_way.discard(flight)
            self.failed += error is not None
            # If it went well there is a new entry by now, unless a fallback has answered, which is not kept.
            entry.retry_at = self._monotonic() + self._pause
        if error is not None and self._events:
            self._events.emit(RefreshFailed(self._flights.name, error))

    def _stop(self, flight: Flight) -> None:
        flight.report = None  # from now on it lives for those who wait for it, if any do
        if not flight.waiters:
            self._flights.give_up(flight)
