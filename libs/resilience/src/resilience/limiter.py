"""Limiters of the rate of calls in one process: one for all callers, or one for each key. The rule is in `gcra.py`.

Who is turned away hears when to come again; who may wait reserves its turn at once, so that nobody overtakes it.
"""

import math
from collections.abc import Awaitable, Callable, Hashable
from heapq import heappop, heappush, heapreplace
from itertools import count
from threading import Lock
from types import CoroutineType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar, overload

from resilience.circuit import GIL
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import current_deadline
from resilience.errors import RateLimited
from resilience.events import Events
from resilience.forms import Guard, is_awaitable
from resilience.gcra import Decision as Decision
from resilience.gcra import Quota as Quota
from resilience.gcra import gcra as gcra
from resilience.gcra import rate_limit_headers as rate_limit_headers

T = TypeVar("T")
Turn = tuple[float, float, int, float]
"""A place in the queue: seconds to wait, when it is due, its number, and what it poured in."""

_LOOKS: Final = 32  # entries of a heap that are looked at before somebody has to make room

_new = tuple.__new__  # a third of the time of a NamedTuple's own constructor


class RateLimitRejected(NamedTuple):
    """A call was turned away; `retry_after` in seconds, `None` when it asked for more than the limit can ever give."""

    name: str
    key: Hashable | None
    retry_after: float | None


class RateLimiter(Guard):
    """`rate` calls per `per` seconds, `burst` of them at once. Safe between threads, and exact between them.

    Use it as `await limiter.call(fn)`, `limiter.call_sync(fn)`, `@limiter`, `async with limiter:` or `with limiter:`,
    all of which wait up to `max_wait` for their turn; or ask with `try_acquire` and `acquire`, which do not wait.

    Args:
        name: used in errors and events.
        rate: calls per `per` seconds.
        per: seconds.
        burst: calls that may come at once after a pause; the whole `rate` if not given.
        max_wait: seconds that a call may wait for its turn, first come, first served; so `rate` bounds how many wait.
        clock: only its monotonic time is used, and its waiting.
        events: told of every rejection (`RateLimitRejected`).

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_at",
        "_clock",
        "_events",
        "_first",
        "_interval",
        "_last",
        "_level",
        "_limit",
        "_lock",
        "_monotonic",
        "_quick",
        "_room",
        "max_wait",
        "name",
        "quota",
    )

    def __init__(
        self,
        name: str,
        rate: float,
        per: float = 1.0,
        burst: int | None = None,
        *,
        max_wait: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait must be finite and not negative, not {max_wait!r}")
        self.name = name
        self.quota = Quota(rate, per, burst)
        self.max_wait = max_wait
        self._clock = clock
        self._monotonic = clock.monotonic
        self._events = events
        self._interval = self.quota.interval
        self._room = self.quota.tolerance + self._interval
        self._limit = self._room + self.quota.slack
        # The quick path goes without the lock: from reading the clock to the last assignment it is straight-line
        # arithmetic on floats, in which CPython with its global lock does not switch threads. Without that lock no
        # level is low enough for it.
        self._quick = self._limit if GIL else -1.0
        self._lock = Lock()
        self._level = 0.0  # at the moment `_at`; the TAT is their sum
        self._at = clock.monotonic()
        self._last = 0  # number of the latest reservation
        self._first = Decision(True, 0.0, (self._limit - self._interval) / self._interval, self._interval)

    # -- asking

    def try_acquire(self, cost: float = 1) -> Decision:
        """Take `cost` if it is there now.

        Raises:
            ValueError: `cost` is not positive.
        """
        need = self._interval if cost == 1 else self._need(cost)
        now = self._monotonic()
        level = self._level - (now - self._at)
        filled = level + need if level > 0.0 else need
        if filled <= self._quick:
            self._level = filled
            self._at = now
            if filled == self._interval:
                return self._first
            return _new(Decision, (True, 0.0, (self._limit - filled) / self._interval, filled, False))
        if not GIL:
            filled, _, ticket = self._step(need, 0.0)
            if ticket == 0:
                return Decision(True, 0.0, (self._limit - filled) / self._interval, filled)
        return self._refused(filled, need)

    def acquire(self, cost: float = 1) -> Decision:
        """Take `cost` now.

        Raises:
            RateLimited: it is not there. `retry_after` is `None` if `cost` is greater than the burst.
            ValueError: `cost` is not positive.
        """
        decision = self.try_acquire(cost)
        if not decision.allowed:
            raise RateLimited(self.name, decision.retry_after)
        return decision

    async def wait(self, cost: float = 1) -> float:
        """Take `cost` when it is there, and return the seconds waited: at most `max_wait`, and never past the caller's
        deadline. Its turn is reserved at once, so that nobody overtakes it.

        If it is cancelled its turn is given back, unless others have queued behind it: their turns stay as they are,
        and this one stays unused.

        Raises:
            RateLimited: at once, if its turn would come too late.
            ValueError: `cost` is not positive.
        """
        need = self._interval if cost == 1 else self._need(cost)
        if self._took(need):
            return 0.0
        turn = self._reserve(need)
        if turn[0] > 0.0:
            try:
                await self._clock.sleep(turn[0])
            except BaseException:
                self._give_back(turn)
                raise
        return turn[0]

    def wait_sync(self, cost: float = 1) -> float:
        """`wait` for code without an event loop: it blocks the thread."""
        turn = self._reserve(self._need(cost))
        if turn[0] > 0.0:
            try:
                self._clock.block(turn[0])
            except BaseException:  # the user interrupts it
                self._give_back(turn)
                raise
        return turn[0]

    # -- around a call

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, when it is its turn.

        Raises:
            RateLimited: its turn would come later than `max_wait` or the caller's deadline; not called.
            BaseException: whatever `func` raises, unchanged.
        """
        if not self._took(self._interval):
            await self.wait()
        result = func(*args, **kwargs)
        if type(result) is CoroutineType or is_awaitable(result):
            return await result
        return result

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call the sync `func` when it is its turn; waiting blocks the thread. Raises like `call`."""
        self.wait_sync()
        return func(*args, **kwargs)

    async def __aenter__(self) -> None:
        if not self._took(self._interval):
            await self.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __enter__(self) -> None:
        self.wait_sync()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    # -- inside

    def _need(self, cost: float) -> float:
        """What `cost` pours into the bucket; infinite if it can never hold that."""
        self.quota.check(cost)
        need = cost * self._interval
        return need if need <= self._limit else math.inf

    def _took(self, need: float) -> bool:
        """The quick path of `_enter`: whether `need` was there. False may also mean that a lock has to be taken."""
        now = self._monotonic()
        level = self._level - (now - self._at)
        filled = level + need if level > 0.0 else need
        if filled > self._quick:
            return False
        self._level = filled
        self._at = now
        return True

    def _step(self, need: float, patience: float) -> tuple[float, float, int]:
        if GIL:
            return self._enter(need, patience)
        with self._lock:
            return self._enter(need, patience)

    def _enter(self, need: float, patience: float) -> tuple[float, float, int]:
        """Pour in `need`, if what is too much has leaked out within `patience` seconds.

        Returns how full the bucket is then (or would have been), the moment, and the number of the reservation: 0 if
        there is nothing to wait for, -1 if it was refused. Straight-line code, see `__init__`.
        """
        limit = self._limit + patience
        ticket = -1
        now = self._monotonic()
        level = self._level - (now - self._at)
        filled = level + need if level > 0.0 else need
        if filled <= limit:
            ticket = 0
            if filled > self._limit:
                self._last = ticket = self._last + 1
            self._level = filled
            self._at = now
        return filled, now, ticket

    def _reserve(self, need: float) -> Turn:
        patience, deadline = self.max_wait, current_deadline()
        if deadline is not None:
            patience = max(0.0, min(patience, deadline.at - self._monotonic()))
        filled, now, ticket = self._step(need, patience)
        if ticket < 0:
            raise RateLimited(self.name, self._refused(filled, need).retry_after)
        seconds = filled - self._room if ticket else 0.0
        return seconds, now + seconds, ticket, need

    def _give_back(self, turn: Turn) -> None:
        """Take a reservation back if it is the latest and not due yet: nothing else was taken since, as the bucket
        was too full for it. Straight-line code, see `__init__`."""
        _, due, ticket, need = turn
        with self._lock:
            now = self._monotonic()
            if self._last == ticket and now < due:
                self._level -= need
                self._last = ticket - 1

    def _refused(self, filled: float, need: float) -> Decision:
        retry_after: float | None = None
        if need < math.inf:
            level, retry_after = filled - need, filled - self._room
        else:
            level = self._step(0.0, -math.inf)[0]
        if self._events:
            self._events.emit(RateLimitRejected(self.name, None, retry_after))
        return _new(Decision, (False, retry_after, max(0.0, self._limit - level) / self._interval, level, False))


class KeyedRateLimiter:
    """A limit of its own for each key: for each user, each address. Safe between threads.

    A key that has its whole burst back is forgotten, as it is like a new one. Only `max_keys` can be remembered: past
    that the key nearest to its whole burst makes room. If it has not got it yet, what it owes is kept by its hash, in
    `max_keys` places that keys may come to share: whoever comes back finds at least its own debt there. So no flood of
    keys buys anybody a second burst; the price is that a newcomer may find a stranger's debt, while the flood lasts.

    Args:
        name: used in errors and events.
        rate: calls per `per` seconds and key.
        per: seconds.
        burst: calls that may come at once after a pause; the whole `rate` if not given.
        max_keys: how many keys are told apart at a time.
        clock: only its monotonic time is used.
        events: told of every rejection (`RateLimitRejected`).

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_buckets",
        "_debts",
        "_events",
        "_heap",
        "_lock",
        "_monotonic",
        "_order",
        "crowded_out",
        "max_keys",
        "name",
        "quota",
    )

    def __init__(
        self,
        name: str,
        rate: float,
        per: float = 1.0,
        burst: int | None = None,
        *,
        max_keys: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, not {max_keys!r}")
        self.name = name
        self.quota = Quota(rate, per, burst)
        self.max_keys = max_keys
        self.crowded_out = 0
        """Keys that had to make room before they had their whole burst back: if it grows, `max_keys` is too small."""
        self._monotonic = clock.monotonic
        self._events = events
        self._lock = Lock()
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # level, and when
        self._heap: list[tuple[float, int, Hashable]] = []  # one entry per key: when it is empty, at the earliest
        self._order = count()
        self._debts: list[float] = []  # by hash: when what was crowded out is empty

    def __len__(self) -> int:
        return len(self._buckets)

    def try_acquire(self, key: Hashable, cost: float = 1) -> Decision:
        """Take `cost` of `key` if it is there now.

        Raises:
            ValueError: `cost` is not positive.
        """
        self.quota.check(cost)
        with self._lock:
            decision = self._decide(key, cost, self._monotonic())
        if not decision.allowed and self._events:
            self._events.emit(RateLimitRejected(self.name, key, decision.retry_after))
        return decision

    def acquire(self, key: Hashable, cost: float = 1) -> Decision:
        """Take `cost` of `key` now.

        Raises:
            RateLimited: it is not there. `retry_after` is `None` if `cost` is greater than the burst.
            ValueError: `cost` is not positive.
        """
        decision = self.try_acquire(key, cost)
        if not decision.allowed:
            raise RateLimited(self.name, decision.retry_after)
        return decision

    def _decide(self, key: Hashable, cost: float, now: float) -> Decision:
        known = self._buckets.get(key)
        level, at = known or (self._debt(key, now), now)
        decision, _ = gcra(level, now - at, self.quota.interval, self.quota.tolerance, cost, self.quota.slack)
        if decision.allowed:
            if known is None:
                self._make_room(now)
                heappush(self._heap, (now + decision.reset_after, next(self._order), key))
            self._buckets[key] = decision.reset_after, now
        return decision

    def _make_room(self, now: float) -> None:
        """Forget keys that have their whole burst back, two for each one that comes; and if there is no other way, the
        one nearest to it. The heap's entries are brought up to date when they come up, a few at a time."""
        heap, forgotten = self._heap, 0
        for _ in range(_LOOKS):
            if not heap or forgotten == 2:
                break
            was, order, key = heap[0]
            level, at = self._buckets[key]
            if at + level > was:
                heapreplace(heap, (at + level, order, key))
            elif was > now:
                break
            else:
                heappop(heap)
                del self._buckets[key]
                forgotten += 1
        if len(self._buckets) >= self.max_keys:
            key = heappop(heap)[2]
            level, at = self._buckets.pop(key)
            if at + level > now:
                self._owe(key, at + level)

    def _owe(self, key: Hashable, until: float) -> None:
        self.crowded_out += 1
        if not self._debts:
            self._debts = [-math.inf] * self.max_keys
        place = hash(key) % self.max_keys
        self._debts[place] = max(self._debts[place], until)

    def _debt(self, key: Hashable, now: float) -> float:
        return max(0.0, self._debts[hash(key) % self.max_keys] - now) if self._debts else 0.0
