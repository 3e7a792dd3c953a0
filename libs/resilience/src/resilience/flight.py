"""Single flight: callers that want the same thing at the same time share one load of it.

The load belongs to none of them: it runs as a task of its own, outside of any caller's deadline but within a limit of
its own, and is cancelled only when the last of those who wait for it has gone. So one caller's cancellation harms no
other, whoever came first. An error reaches each of them as an exception of its own: a shared one would grow with every
note that they add to it.

Tasks cannot be shared between event loops, so each loop has its own flight for a key, and threads without a loop
have one together.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from types import TracebackType
from typing import Any, Final

from resilience.clock import SYSTEM_CLOCK, Clock, Timer
from resilience.deadline import ABANDONED, current_deadline, deadline_scope, without_deadline
from resilience.errors import BulkheadFull, CallTimeout, ResilienceError

THREADS: Final = object()
"""Owns the flights that threads without an event loop share."""


class LoadCancelled(ResilienceError):
    """The load was cancelled, though not by those who wait: a driver may cancel itself, a thread be interrupted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the load of {self.name or 'a value'} was cancelled"


def duplicate(error: Exception) -> Exception | None:
    """A new exception that says the same, without traceback, cause and context; `None` for one that cannot be copied.

    What its attributes refer to is shared; its notes are not.
    """
    for make in (copy.copy, _without_init):
        try:
            twin: Exception = make(error)
            if twin is error or type(twin) is not type(error) or twin.args != error.args:
                continue
            if hasattr(twin, "__notes__"):
                twin.__notes__ = list(twin.__notes__)
        except Exception:  # noqa: BLE001, S112 - other people's constructors do as they please
            continue
        return twin
    return None


def _without_init(error: Exception) -> Exception:
    """For a class whose constructor takes something else than `args`."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin


def _twin(error: Exception) -> Exception:
    twin = duplicate(error)
    if twin is None:
        return error
    twin.__cause__ = error.__cause__
    twin.__context__ = error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin


class Flight:
    """One load. While it is `current`, what it brings may be kept; no longer once something newer happened to its key.

    One in the background has a `report`, which is called when it ends, with its failure or `None`; it goes on when
    nobody waits for it.
    """

    __slots__ = (
        *("_failure", "began", "current", "key", "landed", "owner", "report", "signal", "task", "timer"),
        *("value", "waiters"),
    )

    timer: Timer  # set together with `task`

    def __init__(self, key: Hashable, owner: object, began: float) -> None:
        self.key = key
        self.owner = owner
        self.began = began
        self.current = True
        self.landed = False
        self.value: Any = None
        self.report: Callable[[Flight, Exception | None], None] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.waiters: set[asyncio.Future[None]] = set()
        self.signal = threading.Event() if owner is THREADS else None
        self._failure: tuple[Exception, TracebackType | None] | None = None

    @property
    def dead(self) -> bool:
        """Whether its event loop was closed in the middle of it."""
        return isinstance(self.owner, asyncio.AbstractEventLoop) and self.owner.is_closed()

    def land(self, error: Exception | None) -> None:
        """Tell everyone who waits."""
        self.landed = True
        self.task = None
        if error is not None and (self.waiters or self.signal is not None):
            self._failure = (error, error.__traceback__)
        for waiter in self.waiters:
            _wake(waiter)
        if self.signal is not None:
            self.signal.set()
        if self.report is not None:
            self.report(self, error)

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """`waiter` wants nothing more."""
        self.waiters.discard(waiter)
        if not self.waiters:
            self._failure = None  # its traceback refers to frames that refer to this flight: break the cycle

    def result(self, waiter: asyncio.Future[None] | None = None) -> Any:
        """The value; or the error, the one and only for the last who asks and a copy of it for the others."""
        failure = self._failure
        if waiter is not None:
            self.leave(waiter)
        if failure is None:
            return self.value
        error, traceback = failure
        try:
            raise (error if self._failure is None else _twin(error)).with_traceback(traceback)
        finally:
            del error, failure, traceback


class Flights:
    """The loads under way, by key. The lock is also its owner's, so that a value and its loads are dropped in one step.

    `name` is for errors and tasks; a load may take `limit` seconds.
    """

    __slots__ = ("_by_key", "_clock", "_loop_id", "limit", "lock", "name")

    def __init__(self, name: str, limit: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = name
        self.limit = limit
        self.lock = threading.Lock()
        self._clock = clock
        self._by_key: dict[Hashable, list[Flight]] = {}
        self._loop_id = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    async def share(self, key: Hashable, load: Callable[[Flight], Coroutine[Any, Any, Any]]) -> Any:
        """What `load` brings, or the load that is under way for `key` on this loop.

        Raises:
            CallTimeout: the load has taken longer than it may, or than the caller's deadline allows.
            LoadCancelled: somebody else cancelled it.
            BulkheadFull: too many loads that were given up have not ended yet; none was begun.
            Exception: the load failed.
        """
        deadline = current_deadline()
        patience = self.limit if deadline is None else deadline.remaining(self._clock)
        if patience <= 0:
            raise CallTimeout(self.name, patience)
        loop = asyncio.get_running_loop()
        flight, new = self.board(key, loop)
        if new:
            self.begin(flight, load(flight))
        waiter: asyncio.Future[None] = loop.create_future()
        flight.waiters.add(waiter)
        timer = None if deadline is None else self._clock.call_later(patience, _wake, waiter)
        try:
            await waiter
            if not flight.landed:
                raise CallTimeout(self.name, patience)
            return flight.result(waiter)
        finally:
            if timer is not None:
                timer.cancel()
            flight.leave(waiter)
            if not (flight.waiters or flight.landed or flight.report):
                self.give_up(flight)

    def share_sync(self, key: Hashable, load: Callable[[Flight], Any]) -> Any:
        """`share` between threads: the first one loads, the others wait for it.

        They wait in real time, at most `limit`: a thread that hangs in its load holds up nobody for longer.
        """
        flight, new = self.board(key, THREADS)
        if not new:
            return self._wait(flight)
        error: Exception | None = LoadCancelled(self.name)
        try:
            flight.value = load(flight)
            error = None
        except Exception as failure:
            error = duplicate(failure) or failure
            raise
        finally:
            self.remove(flight)
            flight.land(error)
            del error
        return flight.value

    def _wait(self, flight: Flight) -> Any:
        deadline = current_deadline()
        patience = self.limit if deadline is None else min(self.limit, deadline.remaining(self._clock))
        if flight.signal is None or not flight.signal.wait(patience):
            raise CallTimeout(self.name, patience)
        return flight.result()

    def board(self, key: Hashable, owner: object) -> tuple[Flight, bool]:
        """The flight of `owner` for `key`, and whether it is a new one, which the caller has to begin and to remove."""
        began = self._clock.monotonic()
        with self.lock:
            for flight in self._by_key.get(key, ()):
                if flight.owner is owner:
                    return flight, False
            return self.add(Flight(key, owner, began)), True

    def add(self, flight: Flight) -> Flight:
        """Call it with the lock held."""
        if isinstance(flight.owner, asyncio.AbstractEventLoop) and id(flight.owner) != self._loop_id:
            self._loop_id = id(flight.owner)
            self._sweep()
        self._by_key.setdefault(flight.key, []).append(flight)
        return flight

    def under_way(self, key: Hashable) -> bool:
        """Whether anybody loads `key` now, on whatever loop or thread."""
        return any(not flight.dead for flight in self._by_key.get(key, ()))

    def remove(self, flight: Flight) -> None:
        """Later callers begin anew; those who wait are still served."""
        with self.lock:
            self._discard(flight)

    def outdate(self, key: Hashable) -> None:
        """What is under way for `key` is older than what has happened now. Call it with the lock held."""
        for flight in self._by_key.pop(key, ()):
            flight.current = False

    def outdate_all(self) -> None:
        """`outdate` every key. Call it with the lock held."""
        for key in tuple(self._by_key):
            self.outdate(key)

    def begin(self, flight: Flight, load: Coroutine[Any, Any, Any]) -> None:
        """Run `load` as a task of its own."""
        try:
            if ABANDONED.full:
                raise BulkheadFull(self.name)
            with without_deadline(), deadline_scope(self.limit, clock=self._clock):
                flight.task = asyncio.get_running_loop().create_task(load, name=self.name)
        except BaseException:
            load.close()
            self.remove(flight)
            raise
        flight.task.add_done_callback(partial(self._ended, flight))
        flight.timer = self._clock.call_later(self.limit, self._expire, flight)

    def give_up(self, flight: Flight) -> None:
        """Cancel the load; nothing that comes of it counts."""
        self.remove(flight)
        task, flight.task, flight.current = flight.task, None, False
        if task is not None:
            flight.timer.cancel()
            ABANDONED.abandon(task)

    def _discard(self, flight: Flight) -> None:
        flights = self._by_key.get(flight.key, [])
        if flight in flights:
            flights.remove(flight)
            if not flights:
                del self._by_key[flight.key]

    def _sweep(self) -> None:
        """Forget what was left behind by loops that were closed in the middle of it."""
        for flights in tuple(self._by_key.values()):
            for flight in tuple(flights):
                if flight.dead:
                    self._discard(flight)

    def _expire(self, flight: Flight) -> None:
        self.give_up(flight)
        flight.land(CallTimeout(self.name, self.limit))

    def _ended(self, flight: Flight, task: asyncio.Task[Any]) -> None:
        if flight.task is not task:
            return  # it was given up before it ended
        flight.timer.cancel()
        self.remove(flight)
        if task.cancelled():
            flight.land(LoadCancelled(self.name))
            return
        error = task.exception()
        if error is None:
            flight.value = task.result()
        # What is no Exception ends the loop as well; here it only must not leave anybody waiting.
        flight.land(error if error is None or isinstance(error, Exception) else LoadCancelled(self.name))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
