"""A dependency that has just come back is not knocked over again.

When a circuit closes, three crowds are waiting: users, the queue with everything that was written meanwhile, and caches
full of stale values. Let in together they hit a server with cold caches and few connections, it falls over, and the
circle begins anew. Here they share one budget that begins small and grows with good answers (the rules are in
`ramp.py`): live traffic first, the drain never less than a minimum, revalidation what is left.

How it is used, with `governor = RecoveryGovernor("postgres", full=64)`, 64 being what the pool or bulkhead allows:

* The circuit: `breaker.subscribe(governor.on_transition)`. It begins a ramp when the circuit closes, and ends it when
  the circuit opens.
* A policy, around each call::

      if governor.active:  # all that it costs in normal times
          permit = governor.admit()
          if permit is None:
              raise governor.throttled()  # so that the fallback is used
          ... the call ...
          permit.release(ok)  # True, False, or None when the call says nothing about the dependency

* A drainer: `Drainer(..., call=governor.governed(policy.call))`; it waits for its turn. The policy inside finds that
  its caller has a permit already. Batches: `governor.batch_size(settings.batch_size)`.
* A cache: `may_revalidate=governor.may_revalidate`; what it then loads in the background counts as revalidation when it
  is started inside `with working("revalidate"):`.

The budget is this process's own: with N instances, `full` is the Nth part of what the dependency can bear. A permit
that is lost blocks its units until the ramp ends, which it always does.
"""

import asyncio
import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from resilience.circuit import CLOSED, HELD_CLOSED, OPEN
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import current_deadline
from resilience.errors import BulkheadFull, CircuitBreakerOpen, ClientError, RateLimited
from resilience.events import Events
from resilience.ramp import INDEX, KINDS, LEAST, REVALIDATE, EndReason, Kind, Ramp, RampCut, RampEnded, RampStarted

if TYPE_CHECKING:
    from resilience.breaker import Transition

P = ParamSpec("P")
T = TypeVar("T")

MAX_RELAPSES: Final = 4
"""For each relapse before it, up to so many, a ramp begins with half the budget and is twice as careful ..."""
MAX_LONGER: Final = 2
"""... and, up to so many, takes twice as long."""


class RecoveryThrottled(BulkheadFull):
    """Rejected without a call: the dependency has just come back, and has no room for this yet.

    The ramp is over in `retry_after` seconds, if all goes well.
    """

    def __init__(self, name: str, kind: str, retry_after: float) -> None:
        super().__init__(name)
        self.args = (name, kind, retry_after)  # from which it is made again when it is copied
        self.kind = kind
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.name or 'the dependency'} is recovering and has no room for {self.kind} work yet"


class GovernorSnapshot(NamedTuple):
    """A governor at one moment; numbers by kind are of the current ramp, and 0 without one. Units of work at once."""

    name: str
    active: bool
    budget: int
    full: int
    in_use: dict[Kind, int]
    waiting: dict[Kind, int]
    admitted: dict[Kind, int]
    refused: dict[Kind, int]
    relapses: int
    seconds: float  # that the ramp has lasted


class RampPermit:
    """Room for one piece of work; release it exactly once, whatever happens (more often does no harm).

    As a context manager (`with` or `async with`) it releases by how the block ends.
    """

    __slots__ = ("_began", "_governor", "_outer", "_ramp", "_reported", "_units", "kind")

    def __init__(
        self,
        governor: "RecoveryGovernor | None" = None,
        ramp: Ramp | None = None,
        kind: Kind = "live",
        units: int = 0,
        began: float = 0.0,
        outer: "RampPermit | None" = None,
    ) -> None:
        self.kind: Kind = kind
        self._governor = governor
        self._ramp = ramp
        self._units = units
        self._began = began
        self._outer = outer
        self._reported = False

    def release(self, ok: bool | None = None) -> None:
        """The work has ended, well or not; `None` says nothing about the dependency."""
        governor = self._governor
        if governor is not None:
            governor._release(self, ok)

    def settle(self, error: BaseException) -> None:
        """The work has raised `error`: an answer, a failure, or (a rejection, a cancellation) neither."""
        self.release(_verdict(error))

    def __enter__(self) -> "RampPermit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release(True if error is None else _verdict(error))

    async def __aenter__(self) -> "RampPermit":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


FREE: Final = RampPermit()
"""Given to everybody when no ramp is on."""

_REJECTIONS: Final = (CircuitBreakerOpen, BulkheadFull, RateLimited)


def _verdict(error: BaseException) -> bool | None:
    if isinstance(error, _REJECTIONS) or not isinstance(error, Exception):
        return None
    return isinstance(error, ClientError)


_work: ContextVar["RampPermit | Kind | None"] = ContextVar("resilience_work", default=None)


@contextmanager
def working(kind: Kind) -> Generator[None]:
    """What is called inside, or by tasks started inside, is work of this kind to every governor."""
    token = _work.set(kind)
    try:
        yield
    finally:
        _work.reset(token)


class _Waiter:
    """Somebody waiting in `enter`."""

    __slots__ = ("cost", "future", "kind", "loop", "permit", "units")

    def __init__(self, kind: int, cost: int, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.cost = cost
        self.units = 0  # as which it counts in what is wanted
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.permit: RampPermit | None = None

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed, so nobody waits
            self.loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class RecoveryGovernor:
    """One per dependency. Admits everything until `begin`; from then on what the ramp has room for, until it is over.

    Safe between threads and event loops. Rejects no live traffic unless a ramp is on, and a ramp has an end.

    Args:
        name: used in errors and events.
        full: units of work (calls, batches) at once at which the ramp is over; about what pool or bulkhead allow.
        start: the first budget; a tenth of `full` unless given, at least 2.
        ramp_seconds: from `start` to `full`, if answers are good.
        max_seconds: how long a ramp may last in all; five times `ramp_seconds` unless given.
        live_share: share of the budget that live traffic is guaranteed.
        drain_share: share that the drain is guaranteed; one unit at least.
        slow_seconds: an answer to live traffic that takes longer counts as half a failure. About half of the call's
            timeout is right, and worth giving: overload shows first as slowness.
        max_waiting: how many may wait in `enter`.
        events: told of every `RampStarted`, `RampCut` and `RampEnded`.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        *("_clock", "_events", "_fell", "_lock", "_longest", "_monotonic", "_ramp", "_relapses", "_seconds"),
        *("_settle", "_shares", "_slow_seconds", "_start", "_up", "_waiters", "active", "full", "max_waiting", "name"),
    )

    def __init__(
        self,
        name: str,
        full: int,
        *,
        start: int | None = None,
        ramp_seconds: float = 30.0,
        max_seconds: float | None = None,
        live_share: float = 0.6,
        drain_share: float = 0.2,
        slow_seconds: float | None = None,
        max_waiting: int = 100,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        start = max(LEAST, full // 10) if start is None else start
        longest = 5 * ramp_seconds if max_seconds is None else max_seconds
        if not full >= LEAST:
            raise ValueError(f"full must be at least {LEAST}, not {full!r}")
        if not LEAST <= start <= full:
            raise ValueError(f"start must be from {LEAST} to full ({full}), not {start!r}")
        if not 0 < ramp_seconds < math.inf:
            raise ValueError(f"ramp_seconds must be a positive number of seconds, not {ramp_seconds!r}")
        if not ramp_seconds <= longest < math.inf:
            raise ValueError(f"max_seconds must be at least ramp_seconds ({ramp_seconds}), not {max_seconds!r}")
        if not 0 < live_share <= 1:
            raise ValueError(f"live_share must be a share above 0 and up to 1, not {live_share!r}")
        if not 0 <= drain_share <= 1 - live_share:
            raise ValueError(f"drain_share must be a share of what live_share leaves, not {drain_share!r}")
        if slow_seconds is not None and not slow_seconds > 0:
            raise ValueError(f"slow_seconds must be a positive number of seconds, not {slow_seconds!r}")
        if not max_waiting >= 0:
            raise ValueError(f"max_waiting must be at least 0, not {max_waiting!r}")
        self.name = name
        self.full = full
        self.max_waiting = max_waiting
        self.active = False
        """Whether a ramp is on: the one thing to look at on a hot path."""
        self._start = start
        self._seconds = ramp_seconds
        self._longest = longest
        self._shares = (live_share, drain_share)
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._monotonic = clock.monotonic
        self._events = events
        self._lock = threading.Lock()
        self._ramp: Ramp | None = None
        self._waiters: tuple[deque[_Waiter], ...] = (deque(), deque(), deque())
        self._relapses = 0
        self._up = True
        self._settle = -math.inf  # a failure before this moment is a relapse
        self._fell = 0.0  # the budget at which the last ramp ended

    # -- the dependency comes and goes

    def begin(self) -> None:
        """The dependency is back: a ramp begins, unless one is on."""
        with self._lock:
            if self._ramp is not None:
                return
            now = self._monotonic()
            self._up = True
            ramp = self._next_ramp(now)
            if ramp.over(now):
                return
            self._ramp = ramp
            self.active = True
            started = RampStarted(self.name, ramp.limit, self.full, ramp.left(now), self._relapses)
        self._emit(started)

    def end(self) -> None:
        """The dependency has failed: the ramp, if one is on, is over, and the next one begins smaller and takes longer.

        So it does when the dependency fails soon after a ramp, that is within as many seconds as the ramp took.
        """
        with self._lock:
            if not self._up:
                return
            self._up = False
            now = self._monotonic()
            relapsed = self._ramp is not None or now < self._settle
            self._relapses = self._relapses + 1 if relapsed else 0
            ended = self._finish("failed", now)
        self._emit(ended)

    def on_transition(self, transition: "Transition") -> None:
        """For `breaker.subscribe`: closed begins a ramp (not when an operator holds it closed), open ends it."""
        if transition.new is OPEN:
            self.end()
        elif transition.new is CLOSED and transition.old is not CLOSED and transition.reason != HELD_CLOSED:
            self.begin()

    # -- admission

    def admit(self, kind: Kind | None = None, cost: int = 1) -> RampPermit | None:
        """Room for one piece of work, or `None` when there is none now. Never waits.

        Args:
            kind: of work; if not given, that of the surrounding `working` or `governed`, else live.
            cost: units it takes up; more than the kind's guaranteed share counts as that.

        Raises:
            ValueError: there is no such kind.
        """
        if not self.active:
            return FREE
        outer = _work.get()
        if isinstance(outer, RampPermit) and outer._ramp is not None and outer._ramp is self._ramp:
            return RampPermit(self, outer._ramp, outer.kind, 0, self._monotonic(), outer)
        return self._admit(kind or _kind_of(outer), cost, waits=False)

    async def enter(self, kind: Kind = "drain", cost: int = 1, timeout: float = 5.0) -> RampPermit:
        """`admit`, waiting for room: first come, first served within a kind. Revalidation does not wait.

        Raises:
            RecoveryThrottled: no room within `timeout` seconds or the caller's deadline, or too many wait already.
            ValueError: there is no such kind.
        """
        permit = self._admit(kind, cost, waits=True) if self.active else FREE
        if permit is not None:
            return permit
        deadline = current_deadline()
        limit = timeout if deadline is None else min(timeout, deadline.remaining(self._clock))
        waiter = _Waiter(_index(kind), cost, asyncio.get_running_loop())
        if limit <= 0 or not self._queue(waiter):
            raise self.throttled(kind)
        timer = self._clock.call_later(limit, waiter.end)
        try:
            await waiter.future
        except BaseException:
            permit = self._leave(waiter)
            if permit is not None:  # given a moment ago, and nobody is there to use it
                permit.release()
            raise
        finally:
            timer.cancel()
        permit = self._leave(waiter)
        if permit is None:
            raise self.throttled(kind)
        return permit

    def governed(
        self, call: Callable[P, Awaitable[T]], kind: Kind = "drain", *, cost: int = 1, timeout: float = 5.0
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """`call` as work of that kind, which waits its turn in `enter`.

        What is inside and asks the same governor (the policy) finds that there is a permit already.
        """

        @functools.wraps(call)
        async def turn(*args: P.args, **kwargs: P.kwargs) -> T:
            permit = await self.enter(kind, cost, timeout)
            token = _work.set(kind if permit is FREE else permit)
            try:
                result = await call(*args, **kwargs)
            except BaseException as error:
                permit.settle(error)
                raise
            finally:
                _work.reset(token)
            permit.release(True)
            return result

        return turn

    def throttled(self, kind: Kind | None = None) -> RecoveryThrottled:
        """The error for work that has not been admitted."""
        with self._lock:
            left = 0.0 if self._ramp is None else self._ramp.left(self._monotonic())
        return RecoveryThrottled(self.name, kind or _kind_of(_work.get()), left)

    def may_revalidate(self) -> bool:
        """Whether there is room to refresh something in the background; takes up none of it."""
        if not self.active:
            return True
        with self._lock:
            ramp = self._ramp
            if ramp is None:
                return True
            ramp.roll(self._monotonic())
            return ramp.fits(REVALIDATE, 1)

    def batch_size(self, full: int) -> int:
        """How large a batch may be now: its share of `full` is the budget's; 1 at least."""
        if not self.active:
            return full
        with self._lock:
            ramp = self._ramp
            return full if ramp is None else max(1, int(full * ramp.budget / ramp.full))

    def outcome(self, ok: bool, seconds: float) -> None:
        """A call without a permit has ended, well or not, after so many seconds: evidence for the ramp all the same."""
        if self.active:
            with self._lock:
                now = self._monotonic()
                told = self._learn(ok, now - seconds, now)
            self._emit(told)

    # -- watching

    def snapshot(self) -> GovernorSnapshot:
        """Everything at this moment."""
        with self._lock:
            now = self._monotonic()
            ended = self._watch_time(now)
            ramp, none = self._ramp, (0, 0, 0)
            snapshot = GovernorSnapshot(
                name=self.name,
                active=ramp is not None,
                budget=self.full if ramp is None else ramp.limit,
                full=self.full,
                in_use=_by_kind(none if ramp is None else ramp.used),
                waiting=_by_kind([len(waiters) for waiters in self._waiters]),
                admitted=_by_kind(none if ramp is None else ramp.admitted),
                refused=_by_kind(none if ramp is None else ramp.refused),
                relapses=self._relapses,
                seconds=0.0 if ramp is None else now - ramp.began,
            )
        self._emit(ended)
        return snapshot

    # -- inside

    def _admit(self, kind: Kind, cost: int, *, waits: bool) -> RampPermit | None:
        at = _index(kind)
        if cost < 1:
            raise ValueError(f"cost must be at least 1, not {cost!r}")
        permit: RampPermit | None = FREE
        with self._lock:
            now = self._monotonic()
            ended = self._watch_time(now)
            ramp = self._ramp
            if ramp is not None:
                units = 0 if self._waiters[at] else ramp.admit(at, cost, now)
                permit = RampPermit(self, ramp, kind, units, now) if units else None
                if not (units or waits):
                    ramp.refuse(at, ramp.charge(at, cost))
        self._emit(ended)
        return permit

    def _release(self, permit: RampPermit, ok: bool | None) -> None:
        told: RampCut | RampEnded | None = None
        with self._lock:
            ramp, permit._ramp = permit._ramp, None
            if ramp is None or ramp is not self._ramp:
                return  # released before, or of a ramp that is over
            now = self._monotonic()
            ramp.release(INDEX[permit.kind], permit._units)
            if permit._outer is not None:
                permit._outer._reported = True
            if ok is None or permit._reported:
                self._grant(ramp, now)
            else:
                told = self._learn(ok, permit._began, now, timed=permit.kind == "live")
        self._emit(told)

    def _learn(self, ok: bool, began: float, now: float, *, timed: bool = True) -> RampCut | RampEnded | None:
        """Feed the ramp, if there is one; with the lock held. Returns what there is to tell."""
        ramp = self._ramp
        if ramp is None:
            return None
        old = ramp.limit
        ramp.outcome(ok, began, now, timed=timed)
        ended = self._watch_time(now)
        if ended is not None:
            return ended
        self._grant(ramp, now)
        return RampCut(self.name, old, ramp.limit) if ramp.limit < old else None

    def _next_ramp(self, now: float) -> Ramp:
        """Smaller, slower and more careful with every relapse."""
        longer = 2.0 ** min(self._relapses, MAX_LONGER)
        relapses = min(self._relapses, MAX_RELAPSES)
        return Ramp(
            now,
            start=max(LEAST, self._start >> relapses),
            full=self.full,
            seconds=self._seconds * longer,
            longest=self._longest * longer,
            live_share=self._shares[0],
            drain_share=self._shares[1],
            slow_seconds=self._slow_seconds,
            careful_from=self._fell / 2 if relapses else math.inf,
            careful=2.0**relapses,
        )

    def _watch_time(self, now: float) -> RampEnded | None:
        reason = None if self._ramp is None else self._ramp.over(now)
        return None if reason is None else self._finish(reason, now)

    def _finish(self, reason: EndReason, now: float) -> RampEnded | None:
        """The ramp is over, and nobody has to wait any more; with the lock held."""
        ramp, self._ramp = self._ramp, None
        if ramp is None:
            return None
        self.active = False
        self._fell = ramp.budget  # if it falls over now, or soon
        if reason != "failed":
            self._settle = now + (now - ramp.began)
        for waiters in self._waiters:
            while waiters:
                waiter = waiters.popleft()
                waiter.permit = FREE
                waiter.wake()
        return RampEnded(self.name, reason, now - ramp.began, sum(ramp.admitted), sum(ramp.refused))

    def _queue(self, waiter: _Waiter) -> bool:
        """A place in the line, if there is one."""
        with self._lock:
            ramp = self._ramp
            if ramp is None:  # just over
                waiter.permit = FREE
                waiter.end()
                return True
            if waiter.kind == REVALIDATE or sum(map(len, self._waiters)) >= self.max_waiting:
                ramp.refuse(waiter.kind, ramp.charge(waiter.kind, waiter.cost))
                return False
            waiter.units = ramp.charge(waiter.kind, waiter.cost)
            ramp.wanted[waiter.kind] += waiter.units
            self._waiters[waiter.kind].append(waiter)
            self._grant(ramp, self._monotonic())
            return True

    def _leave(self, waiter: _Waiter) -> RampPermit | None:
        """What the waiter has been given; nothing that frees room may have happened, so that is looked at once more."""
        with self._lock:
            now = self._monotonic()
            ended = self._watch_time(now)
            ramp = self._ramp
            if waiter.permit is None and ramp is not None:
                self._grant(ramp, now)
                if waiter.permit is None:
                    self._waiters[waiter.kind].remove(waiter)
                    ramp.wanted[waiter.kind] -= waiter.units
                    ramp.refuse(waiter.kind, waiter.units)
                    self._grant(ramp, now)
        self._emit(ended)
        return waiter.permit

    def _grant(self, ramp: Ramp, now: float) -> None:
        """Let in who waits and fits, more important kinds first; with the lock held."""
        ramp.roll(now)
        served = True
        while served:
            served = False
            for waiters in self._waiters:
                if waiters and self._serve(ramp, waiters[0], now):
                    waiters.popleft()
                    served = True

    def _serve(self, ramp: Ramp, waiter: _Waiter, now: float) -> bool:
        units = ramp.charge(waiter.kind, waiter.cost)
        if not ramp.fits(waiter.kind, units):
            return False
        ramp.wanted[waiter.kind] -= waiter.units
        ramp.take(waiter.kind, units)
        waiter.permit = RampPermit(self, ramp, KINDS[waiter.kind], units, now)
        waiter.wake()
        return True

    def _emit(self, event: tuple[Any, ...] | None) -> None:
        if event is not None and self._events:
            self._events.emit(event)


def _kind_of(work: RampPermit | Kind | None) -> Kind:
    return work.kind if isinstance(work, RampPermit) else work or "live"


def _index(kind: str) -> int:
    at = INDEX.get(kind)
    if at is None:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return at


def _by_kind(numbers: Sequence[int]) -> dict[Kind, int]:
    return dict(zip(KINDS, numbers, strict=True))
