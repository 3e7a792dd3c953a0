"""A limit of concurrent calls that finds itself, from latency and drops, where nobody knows what a dependency bears.

The rule is the gradient of Netflix' concurrency-limits (`GradientLimit`, 2018) with the measured baseline of Envoy's
adaptive concurrency filter (2019): the limit shrinks by the ratio of the latency without load to the latency now, and
grows by its square root while the two are about the same. To learn the former, half the limit is used now and then.

Why not `Gradient2`, which compares a short-term with a long-term average: a latency that stays high becomes its normal,
so that under a constant overload, or while every call times out, its limit grows to the maximum (issue 137 there). Why
not Vegas: its baseline is the smallest latency ever seen, which means little where latencies scatter, as they do when
requests differ. The mean of a round of calls at low load bears both.

Drops shrink the limit by half their share of the calls, as in DCTCP (Alizadeh et al., 2010). With `tolerance=None` only
they count, and the rule is additive increase with multiplicative decrease (AIMD).
"""

from collections.abc import Awaitable, Callable
from math import inf, sqrt
from threading import RLock
from types import CoroutineType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar, overload

from resilience.bulkhead import Bulkhead
from resilience.classify import peek
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import BulkheadFull, RateLimited
from resilience.events import Events
from resilience.forms import Guard, is_awaitable

T = TypeVar("T")

MANY: Final = 50
"""Calls at least whose mean latency is compared: fewer scatter too much (50 by 14 % if latencies are exponential)."""

FEW: Final = 10
"""Calls at least of which a share of drops is taken."""

STEEPEST: Final = 0.5
"""A round's latency shrinks the limit to no less than this share, before smoothing."""

CALM: Final = 0.9
"""A gradient from here on is taken for steady: a good moment to measure the baseline."""

NEWS: Final = 0.25
"""A measurement that differs from the baseline by more than this share is news, and less than this is chance."""

PAUSES: Final = (5, 40)
"""Rounds between two measurements: few after news, twice as many each time without, at most so many."""


class LimitChanged(NamedTuple):
    """From now on `new` calls may run at once. Told of measurements as well, which halve the limit for a while."""

    name: str
    old: int
    new: int


class Gradient:
    """The rule as a pure machine, without clock and lock: `step` takes in one ended call, `allowed` is the limit.

    Time is counted in rounds of as many calls as are allowed at once, so of about one latency each under full load.
    A measurement of the baseline takes two, as an error in it lasts.
    """

    __slots__ = (
        "_dropped",
        "_left",
        "_mark",
        "_pause",
        "_seen",
        "_skip",
        "_total",
        "allowed",
        "baseline",
        "ended",
        "estimate",
        "max_limit",
        "min_limit",
        "probing",
        "smoothing",
        "tolerance",
        "used_from",
    )

    def __init__(
        self,
        initial: int = 20,
        min_limit: int = 1,
        max_limit: int = 200,
        smoothing: float = 0.3,
        tolerance: float | None = 1.5,
    ) -> None:
        if min_limit < 1:
            raise ValueError(f"min_limit must be at least 1, not {min_limit!r}")
        if max_limit < min_limit:
            raise ValueError(f"max_limit must be at least min_limit, {min_limit!r}, not {max_limit!r}")
        if not min_limit <= initial <= max_limit:
            raise ValueError(f"initial must be between min_limit and max_limit, not {initial!r}")
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing must be above 0 and at most 1, not {smoothing!r}")
        if tolerance is not None and not 1 <= tolerance < 2:
            raise ValueError(f"tolerance must be at least 1 and less than 2, not {tolerance!r}")
        self.min_limit = min_limit
        self.max_limit = max_limit
        self.smoothing = smoothing
        self.tolerance = tolerance
        self.estimate = float(initial)
        self.baseline: float | None = None
        """Seconds that a call takes where nothing queues; `None` until the first round is over."""
        self.ended = self._dropped = self._seen = 0
        self._total = 0.0
        self._pause = self._left = PAUSES[0]
        self._mark = self.estimate  # the estimate when the baseline was last measured
        # The first round is a measurement at the full limit, whether or not it is used.
        self.allowed = self._skip = initial
        self.probing = tolerance is not None
        self.used_from = 0 if self.probing else (initial + 1) // 2
        """A success with fewer in flight when it began, itself included, needs no step: only `ended` counts it."""

    def step(self, seconds: float, in_flight: int, *, dropped: bool = False) -> None:
        """A call has ended after `seconds`; `in_flight`, itself included, were under way when it began."""
        if dropped and not self._dropped:
            self.ended = 0  # what came before the first drop is another story
        self._dropped += dropped
        self.ended += 1
        if self._dropped and self.ended >= max(FEW, self.allowed):
            self._shed(self._dropped / self.ended)
        if not dropped and 0 < seconds < inf and self._counts(in_flight):
            self._seen += 1
            self._total += seconds
            if self._seen >= max(MANY, self.allowed) * (2 if self.probing else 1):
                self._round(self._total / self._seen)

    def _counts(self, in_flight: int) -> bool:
        """Whether the latency of a call with so many in flight belongs to the round."""
        if in_flight > self.allowed if self.probing else in_flight < self.used_from:
            return False
        if self._skip:
            self._skip -= 1
            return False
        return True

    def _shed(self, share: float) -> None:
        """This share of the latest calls was dropped."""
        self._dropped = 0
        self.estimate = max(self.min_limit, self.estimate * (1 - share / 2))
        self._set(probing=self.probing)

    def _round(self, mean: float) -> None:
        """A round has ended, in which a call took `mean` seconds."""
        self._seen = 0
        self._total = 0.0
        if self.probing:
            self._measured(mean)
        else:
            self._adjust(mean)

    def _adjust(self, mean: float) -> None:
        gradient = self._gradient(mean)
        target = self.estimate * gradient + (sqrt(self.estimate) if gradient == 1 else 0.0)
        smooth = self.estimate + self.smoothing * (target - self.estimate)
        self.estimate = min(self.max_limit, max(self.min_limit, smooth))
        self._left -= 1
        self._set(probing=self._must_probe(gradient))

    def _gradient(self, mean: float) -> float:
        if self.tolerance is None or self.baseline is None:
            return 1.0
        if mean < self.baseline * (1 - NEWS):
            self.baseline = (self.baseline + mean) / 2  # too high, as no load makes calls faster
        return max(STEEPEST, min(1.0, self.tolerance * self.baseline / mean))

    def _must_probe(self, gradient: float) -> bool:
        """Whether to measure the baseline now.

        Not while the limit is falling, as half of it may be too much as well. But if the fall does not end, it is not
        our queue that makes the calls slow: then the baseline is out of date.
        """
        if self.tolerance is None:
            return False
        if self.estimate <= self._mark / 2:
            return True
        return self._left <= 0 and (gradient >= CALM or self.estimate <= self.min_limit)

    def _measured(self, mean: float) -> None:
        """A measurement has ended. News is believed at once, chance only half."""
        old = self.baseline
        if old is None or abs(mean - old) > NEWS * old:
            self.baseline = mean
            self._pause = PAUSES[0]
        else:
            self.baseline = (old + mean) / 2
            self._pause = min(2 * self._pause, PAUSES[1])
        self._left = self._pause
        self._mark = self.estimate
        self._set(probing=False)

    def _set(self, *, probing: bool) -> None:
        half = probing and self.baseline is not None
        self.allowed = max(self.min_limit, int(self.estimate) // (2 if half else 1))
        if probing is not self.probing:
            self._skip = self.allowed  # of many that begin together the fast ones end first: they are not the mean
        self.probing = probing
        self.used_from = 0 if probing else (self.allowed + 1) // 2


def overloaded(error: BaseException) -> bool:
    """Whether `error` says that the dependency has too much to do.

    Timeouts (also of clients that do not derive theirs from `TimeoutError`: any class with "Timeout" in its name), rate
    limits, full bulkheads, and HTTP status 429, 503 and 504 where the error carries it.
    """
    if isinstance(error, (TimeoutError, RateLimited, BulkheadFull)):
        return True
    if any("Timeout" in kind.__name__ for kind in type(error).__mro__):
        return True
    statuses = (peek(thing, name) for thing in (error, peek(error, "response")) for name in ("status_code", "status"))
    return any(isinstance(status, int) and status in (429, 503, 504) for status in statuses)


class LimitPermit:
    """The right to make one call. Settle it once; later settlements are ignored, and a lost permit is given back.

    As a context manager (`with` or `async with`) it settles by how the block ends.
    """

    __slots__ = ("_began", "_in_flight", "_limit")

    def __init__(self, limit: "AdaptiveLimit", in_flight: int, began: float) -> None:
        self._limit: AdaptiveLimit | None = limit
        self._in_flight = in_flight
        self._began = began

    def success(self) -> None:
        """The dependency answered; the time it took counts."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit._returned(self._in_flight, self._began)

    def dropped(self) -> None:
        """The dependency had too much to do."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit._dropped(self._in_flight, self._began)

    def ignored(self) -> None:
        """The call ended without saying anything about the load."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit._slots.release()

    def settle(self, error: BaseException) -> None:
        """The call raised `error`; what that means is for the limit to judge."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit._raised(self._in_flight, self._began, error)

    def __del__(self) -> None:
        self.ignored()

    def __enter__(self) -> "LimitPermit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.success()
        else:
            self.settle(error)

    async def __aenter__(self) -> "LimitPermit":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class AdaptiveLimit(Guard):
    """As many calls at once as the dependency bears without much queueing; more are rejected.

    Safe between threads and event loops. Use it as `await limit.call(fn, *args)`, `limit.call_sync(fn, *args)`,
    `@limit`, `with limit.acquire():` (also `async with`), or in two steps: `permit = limit.acquire()`, then
    `permit.success()`, `.dropped()` or `.ignored()`.

    It settles where calls take up to `tolerance` times as long as they would alone, so at about as many as that times
    what the dependency works on at once. A call counts only if the limit was at least half used when it began: one that
    is not needed does not grow. After every 40 rounds in use (fewer after a change) it is halved for three, to measure.

    Args:
        name: used in errors and events.
        initial: calls at once, to begin with.
        min_limit: the limit is never less ...
        max_limit: ... and never more.
        smoothing: how far one round moves the limit towards its aim, from just above 0 to 1.
        tolerance: latency, as a multiple of that without load, up to which the limit grows; less than 2, as what is
            measured at half the limit could not be told from it otherwise. `None` judges by drops alone.
        is_drop: whether an exception means overload. What does not is ignored, as an error's latency says nothing; so
            is cancellation, about which it is never asked. One that raises means no.
        events: told of every change (`LimitChanged`) and every rejection (`BulkheadRejected`).
        clock: only its monotonic time is used.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("_events", "_is_drop", "_lock", "_monotonic", "_rule", "_slots", "name")

    def __init__(
        self,
        name: str = "",
        *,
        initial: int = 20,
        min_limit: int = 1,
        max_limit: int = 200,
        smoothing: float = 0.3,
        tolerance: float | None = 1.5,
        is_drop: Callable[[BaseException], bool] = overloaded,
        events: Events | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self._rule = Gradient(initial, min_limit, max_limit, smoothing, tolerance)
        self._slots = Bulkhead(name, initial, 0, events=events, clock=clock)
        self._is_drop = is_drop
        self._events = events
        self._monotonic = clock.monotonic
        self._lock = RLock()

    # -- calls

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, if the limit allows it, and learn from how long it takes.

        Raises:
            BulkheadFull: not called; as many calls are under way as are allowed.
            BaseException: whatever `func` raises, unchanged.
        """
        slots = self._slots
        if slots._free > 0:
            slots._free -= 1
        else:
            self._enter()
        in_flight = slots.limit - slots._free + slots._zero
        began = self._monotonic()
        try:
            result = func(*args, **kwargs)
            if type(result) is CoroutineType or is_awaitable(result):
                result = await result
        except BaseException as error:
            self._raised(in_flight, began, error)
            raise
        self._returned(in_flight, began)
        return result

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for a sync `func`, without an event loop. Raises the same."""
        with self.acquire():
            return func(*args, **kwargs)

    def acquire(self) -> LimitPermit:
        """A permit for one call.

        Raises:
            BulkheadFull: the call must not be made.
        """
        slots = self._slots
        if slots._free > 0:
            slots._free -= 1
        else:
            self._enter()
        return LimitPermit(self, slots.limit - slots._free + slots._zero, self._monotonic())

    # -- watching

    @property
    def limit(self) -> int:
        """Calls that may be under way at once now."""
        return self._rule.allowed

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._slots.active

    @property
    def baseline(self) -> float | None:
        """Seconds that a call takes without load, as last measured."""
        return self._rule.baseline

    @property
    def full(self) -> bool:
        """Whether a call would be rejected now."""
        return self._slots.full

    def check(self) -> None:
        """Raise what `acquire` would raise, without taking a permit.

        Raises:
            BulkheadFull: a call would be rejected now.
        """
        self._slots.check()

    # -- inside

    def _enter(self) -> None:
        if not self._slots.try_acquire():
            raise self._slots._rejected(None)

    def _returned(self, in_flight: int, began: float) -> None:
        seconds = self._monotonic() - began
        self._slots.release()
        rule = self._rule
        if in_flight >= rule.used_from:
            self._step(seconds, in_flight, dropped=False)
        else:
            rule.ended += 1  # without the lock: should one get lost, no harm is done

    def _dropped(self, in_flight: int, began: float) -> None:
        self._slots.release()
        self._step(self._monotonic() - began, in_flight, dropped=True)

    def _raised(self, in_flight: int, began: float, error: BaseException) -> None:
        if isinstance(error, Exception) and self._means_drop(error):
            self._dropped(in_flight, began)
        else:
            self._slots.release()

    def _means_drop(self, error: Exception) -> bool:
        try:
            return self._is_drop(error)
        except Exception:  # noqa: BLE001 - the error at hand matters, not the predicate's
            return False

    def _step(self, seconds: float, in_flight: int, *, dropped: bool) -> None:
        rule = self._rule
        with self._lock:
            old = rule.allowed
            rule.step(seconds, in_flight, dropped=dropped)
            new = rule.allowed
            if new != old:
                self._slots.resize(new)
        if new != old and self._events:
            self._events.emit(LimitChanged(self.name, old, new))
