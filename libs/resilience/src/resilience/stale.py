"""A cache that knows how old its values are, and still has them when their source does not answer.

The rules are those of HTTP caches: a value is fresh while it is younger than `max_age` (RFC 9111, section 4.2); then it
may be served while it is fetched anew in the background (`stale_while_revalidate`), and served instead of an error
(`stale_if_error`), each for so many seconds more (RFC 5861, sections 3 and 4). Ages are measured on the monotonic clock
from the moment the source was asked, so a slow answer is not taken for a young one.

What keeps it truthful: a value that was loaded before its key was invalidated is never stored after that, a newer
value is never replaced by an older one, a copy says that it is one, and an answer of the source such as "not found" is
never hidden behind a copy.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Hashable
from random import Random
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from resilience.ambient import RANDOM
from resilience.cache import CacheEntry, Shelf
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import hard_timeout
from resilience.errors import CircuitBreakerOpen, ResilienceError
from resilience.events import Events
from resilience.flight import Flight, Flights, duplicate
from resilience.forms import is_awaitable
from resilience.freshness import (
    CacheOutcome,
    CacheServed,
    CacheStats,
    Freshness,
    cache_status,
    freshness,
)
from resilience.outcome import Degradation, Served
from resilience.revalidation import Revalidations

T = TypeVar("T")

if TYPE_CHECKING:
    Load = Callable[[], Awaitable[Served[T] | T] | Served[T] | T]
    """Asks the source. A `Served` that it returns is passed on, and kept only if no fallback took part in it."""
    Errors = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
    """Some kinds of errors: by class, or by what a function says."""


class StaleCache(Generic[T]):
    """Values of one source by key, bounded in number (and in bytes where asked); least recently used goes first.

    Safe between threads, and usable from any number of event loops; each loop loads for itself. Times in seconds.

    Args:
        name: of the cache, for events, tasks and the degradation that a copy served instead of an error carries.
        max_age: for how long a value is fresh.
        stale_while_revalidate: for how long after that it is served at once and fetched anew in the background.
        stale_if_error: for how long after `max_age` it is served when the source fails.
        max_bytes: bound of the memory, by what `size(value)` says; `sys.getsizeof` counts no parts of a value.
        negative: errors that are the source's answer about the value, such as "not found". They replace the copy and
            are remembered for `negative_max_age`: raised again, each time as a new exception, without asking.
        answers: errors that no copy may hide, beside `negative`; if not given, what `resilience.classify.ERRORS` calls
            an answer. They leave the copy as it is.
        jitter: each value's `max_age` is shortened by chance up to this share, so that values that were loaded together
            are not loaded together again.
        load_timeout: how long a load may take.
        revalidate_limit: how many values at most are fetched in the background at once; beyond that, the stale
            value is served and fetched later.
        revalidate_pause: for how long a value is not fetched in the background again after that failed.
        may_revalidate: asked before each background fetch, such as a recovery governor that spares a source which has
            just come back; with False, the stale value is served all the same.
        fallback: what a copy that is served instead of an error is called in headers.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        *("_answers", "_clock", "_events", "_find", "_flights", "_hits", "_jitter", "_loads", "_lock", "_monotonic"),
        *("_negative", "_random", "_revalidations", "_shelf", "_size", "_stale", "_touch"),
        *("fallback", "max_age", "name", "negative_max_age", "stale_if_error", "stale_while_revalidate"),
    )

    ENTRY_OVERHEAD = 280
    """Bytes that an entry takes beside its key and value (measured with tracemalloc on CPython 3.11)."""

    def __init__(
        self,
        name: str,
        *,
        max_age: float = 300.0,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 3_600.0,
        max_entries: int = 10_000,
        max_bytes: int | None = None,
        size: Callable[[T], int] = sys.getsizeof,
        negative: Errors = (),
        negative_max_age: float = 10.0,
        answers: Errors | None = None,
        jitter: float = 0.0,
        load_timeout: float = 30.0,
        revalidate_limit: int = 4,
        revalidate_pause: float = 1.0,
        may_revalidate: Callable[[], bool] | None = None,
        fallback: str = "stale-cache",
        clock: Clock = SYSTEM_CLOCK,
        random: Random | None = None,
        events: Events | None = None,
    ) -> None:
        _check(
            {
                "max_age": max_age,
                "stale_while_revalidate": stale_while_revalidate,
                "stale_if_error": stale_if_error,
                "negative_max_age": negative_max_age,
                "revalidate_limit": revalidate_limit,
                "revalidate_pause": revalidate_pause,
            },
            {"max_entries": max_entries, "max_bytes": max_bytes, "load_timeout": load_timeout},
        )
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be a share from 0 to 1, not {jitter!r}")
        self.name = name
        self.max_age = max_age
        self.stale_while_revalidate = stale_while_revalidate
        self.stale_if_error = stale_if_error
        self.negative_max_age = negative_max_age
        self.fallback = fallback
        self._size = size
        self._negative = _predicate(negative)
        self._answers = _in_table if answers is None else _predicate(answers)
        self._jitter = jitter
        self._clock = clock
        self._monotonic = clock.monotonic
        self._random = RANDOM if random is None else random
        self._events = events
        self._shelf = Shelf(max_entries, max_bytes)
        self._find = self._shelf.find
        self._touch = self._shelf.touch
        self._flights = Flights(name, load_timeout, clock)
        self._lock = self._flights.lock
        self._revalidations = Revalidations(
            self._flights, revalidate_limit, revalidate_pause, may_revalidate, clock, events
        )
        self._hits = self._stale = self._loads = 0

    def __len__(self) -> int:
        return len(self._shelf)

    async def get(self, key: Hashable, load: Load[T]) -> Served[T]:
        """The value of `key`: from the cache while that is allowed, else from `load` (sync or async).

        Identical loads at the same time reach the source once. A fresh copy and a stale one have `as_of`; one that is
        served because the source failed carries a degradation. A sync `load` is called on the event loop, so it
        must not block; and no load may ask for its own key, as it would wait for itself until `load_timeout`.

        Raises:
            CallTimeout: the load took longer than `load_timeout`, or than the caller's deadline, and no copy may serve.
            Exception: what the source answered, or why it failed when no copy may serve.
        """
        fresh = self._fresh(key)
        if fresh is not None:
            return fresh
        state, entry = self._look(key)
        if entry is not None and state != "stale-if-error":
            if state == "stale-while-revalidate":
                self._revalidations.begin(key, entry, lambda flight: self._load(load, None, flight))
            return self._copy(key, entry, state)
        try:
            served: Served[T] = await self._flights.share(key, lambda flight: self._load(load, None, flight))
        except Exception as error:
            copy = self._instead(key, error)
            if copy is None:
                raise
            return copy
        self._tell("miss" if entry is None else "refreshed", 0.0)
        return served

    def get_sync(self, key: Hashable, load: Callable[[], Served[T] | T]) -> Served[T]:
        """`get` for code without an event loop: of the threads that want the same value, one loads it.

        There is no background to revalidate in: a stale value is loaded anew by the first thread that asks, and
        served to those who ask meanwhile.
        """
        fresh = self._fresh(key)
        if fresh is not None:
            return fresh
        state, entry = self._look(key)
        if entry is not None and state != "stale-if-error" and (state == "fresh" or self._flights.under_way(key)):
            return self._copy(key, entry, state)
        try:
            served: Served[T] = self._flights.share_sync(key, lambda flight: self._load_sync(load, flight))
        except Exception as error:
            copy = self._instead(key, error)
            if copy is None:
                raise
            return copy
        self._tell("miss" if entry is None else "refreshed", 0.0)
        return served

    async def source_first(
        self, key: Hashable, load: Load[T], *, max_age: float | None = None, timeout: float | None = None
    ) -> Served[T]:
        """Always ask the source, in the caller's own task; when it fails, the copy if it is at most `max_age` old.

        `max_age` is `max_age + stale_if_error` of the cache if not given; 0 allows no copy. Nothing is shared between
        callers: who has just written reads what he wrote.

        Raises:
            CallTimeout: no answer within `timeout` (which needs an async `load`), and no copy may serve.
            Exception: as for `get`.
        """
        flight, _ = self._flights.board(key, object())
        try:
            served = await self._load(load, timeout, flight)
        except Exception as error:
            copy = self._instead(key, error, self._limit(max_age))
            if copy is None:
                raise
            return copy
        finally:
            self._flights.remove(flight)
        self._tell("miss", 0.0)
        return served

    def source_first_sync(
        self, key: Hashable, load: Callable[[], Served[T] | T], *, max_age: float | None = None
    ) -> Served[T]:
        """`source_first` for code without an event loop."""
        flight, _ = self._flights.board(key, object())
        try:
            served = self._load_sync(load, flight)
        except Exception as error:
            copy = self._instead(key, error, self._limit(max_age))
            if copy is None:
                raise
            return copy
        finally:
            self._flights.remove(flight)
        self._tell("miss", 0.0)
        return served

    def peek(self, key: Hashable) -> Served[T] | None:
        """The copy of `key`, fresh or stale, if it could be served at all. Asks nobody and changes nothing."""
        entry = self._find(key)
        if entry is None or entry.served is None or self._state(entry) == "too old":
            return None
        return Served(entry.value, (), self._clock.time() - self._age(entry))

    def put(self, key: Hashable, value: T) -> None:
        """Store a value that is known to be current, as after a write. Loads that are under way do not replace it."""
        self._store(key, self._entry(key, value, self._monotonic()))

    def invalidate(self, key: Hashable) -> bool:
        """Forget `key`, and what is being loaded for it: who asks from now on is served from a new load.

        Returns whether there was a copy.
        """
        with self._lock:
            self._flights.outdate(key)
            entry = self._shelf.remove(key)
        return entry is not None

    def clear(self) -> None:
        """`invalidate` everything."""
        with self._lock:
            self._flights.outdate_all()
            gone = self._shelf.clear()
        del gone

    async def aclose(self, timeout: float = 5.0) -> None:
        """Begin no background fetch any more; cancel those that run, and wait for their end at most `timeout`.

        Those of other event loops are cancelled there, but not waited for. The cache goes on serving and loading.
        """
        await self._revalidations.aclose(timeout)

    def stats(self) -> CacheStats:
        """Sizes and counts of now."""
        with self._lock:
            return CacheStats(
                len(self._shelf),
                self._shelf.bytes,
                len(self._flights),
                self._hits,
                self._stale,
                self._loads,
                self._revalidations.begun,
                self._revalidations.failed,
                self._shelf.evicted,
            )

    def cache_status(self, served: Served[Any]) -> str:
        """The header field Cache-Status (RFC 9211) for an answer of this cache."""
        if served.as_of is None:
            return cache_status(self.name, "miss")
        ttl = self.max_age - (self._clock.time() - served.as_of)
        if any(entry.row == self.name and entry.fallback == self.fallback for entry in served.degradations):
            return cache_status(self.name, "stale-if-error", ttl=ttl)
        return cache_status(self.name, "hit" if ttl > 0 else "stale-while-revalidate", ttl=ttl)

    # -- finding

    def _fresh(self, key: Hashable) -> Served[T] | None:
        """The hot path. Takes no lock: each of these operations on the dictionary is a single one."""
        entry = self._find(key)
        if entry is None or entry.served is None or self._monotonic() - entry.began >= entry.max_age:
            return None
        try:  # noqa: SIM105 - a third of the time of `suppress`
            self._touch(key)
        except KeyError:
            pass  # another thread has just forgotten it, and it was fresh until then
        self._hits += 1
        if self._events:
            self._events.emit(CacheServed(self.name, "hit", self._age(entry)))
        return entry.served

    def _look(self, key: Hashable) -> tuple[Freshness, CacheEntry | None]:
        """What there is when it is not simply fresh. Raises a remembered error; forgets what is too old."""
        entry = self._find(key)
        if entry is None:
            return "too old", None
        state = self._state(entry)
        if state == "too old":
            with self._lock:
                gone = self._shelf.remove(key) if self._find(key) is entry else None
            del gone
            return state, None
        if entry.error is not None:
            self._tell("negative-hit", self._age(entry))
            raise duplicate(entry.error) or entry.error
        return state, entry

    def _state(self, entry: CacheEntry) -> Freshness:
        if entry.error is not None:
            return freshness(self._age(entry), entry.max_age)
        return freshness(self._age(entry), entry.max_age, self.stale_while_revalidate, self.stale_if_error)

    def _age(self, entry: CacheEntry) -> float:
        return self._monotonic() - entry.began

    def _limit(self, max_age: float | None) -> float:
        return self.max_age + self.stale_if_error if max_age is None else max_age

    def _instead(self, key: Hashable, error: Exception, limit: float | None = None) -> Served[T] | None:
        """The copy that may be served instead of `error`: of any age up to `limit` where one is given."""
        entry = self._find(key)
        if entry is None or entry.served is None or self._is_answer(error):
            return None
        state = self._state(entry) if limit is None else freshness(self._age(entry), 0.0, 0.0, limit)
        if state == "too old":
            return None
        if state == "fresh":
            return self._copy(key, entry, state)  # somebody else has brought it meanwhile
        circuit = "closed"
        if isinstance(error, CircuitBreakerOpen):
            circuit = "half-open" if error.retry_after == 0 else "open"
        retry_after = getattr(error, "retry_after", None) if isinstance(error, ResilienceError) else None
        return self._copy(key, entry, "stale-if-error", Degradation(self.name, self.fallback, circuit, retry_after))

    def _copy(self, key: Hashable, entry: CacheEntry, state: Freshness, *degradations: Degradation) -> Served[T]:
        age = self._age(entry)
        with contextlib.suppress(KeyError):
            self._touch(key)
        if state == "fresh":
            self._hits += 1
            self._tell("hit", age)
        else:
            self._stale += 1
            self._tell("stale-if-error" if degradations else "stale-while-revalidate", age)
        return Served(entry.value, degradations, self._clock.time() - age)

    def _is_answer(self, error: Exception) -> bool:
        return self._negative(error) or self._answers(error)

    def _tell(self, outcome: CacheOutcome, age: float) -> None:
        if self._events:
            self._events.emit(CacheServed(self.name, outcome, age))

    # -- loading

    async def _load(self, load: Load[T], timeout: float | None, flight: Flight) -> Served[T]:
        self._loads += 1
        try:
            value: Any = load()
            if type(value) is CoroutineType or is_awaitable(value):
                value = await (
                    value if timeout is None else hard_timeout(value, timeout, name=self.name, clock=self._clock)
                )
            return self._keep(flight, value)
        except Exception as error:
            self._remember(flight, error)
            raise

    def _load_sync(self, load: Callable[[], Served[T] | T], flight: Flight) -> Served[T]:
        self._loads += 1
        try:
            value = load()
            if is_awaitable(value):
                if isinstance(value, CoroutineType):
                    value.close()
                raise TypeError("an async load needs an event loop: await get() instead of get_sync()")
            return self._keep(flight, value)
        except Exception as error:
            self._remember(flight, error)
            raise

    def _keep(self, flight: Flight, value: Served[T] | T) -> Served[T]:
        """Store what the source gave. What a fallback gave in its place is passed on, and never taken for current."""
        if isinstance(value, Served):
            if value.degradations or value.as_of is not None or value.pending:
                return value
            value = value.value
        self._store(flight.key, self._entry(flight.key, value, flight.began), flight)
        return Served(value)

    def _remember(self, flight: Flight, error: Exception) -> None:
        if not self._negative(error):
            return
        twin = duplicate(error)
        if twin is not None and self.negative_max_age > 0:
            self._store(flight.key, CacheEntry(None, twin, flight.began, self.negative_max_age), flight)
            return
        with self._lock:
            newer = not flight.current or self._is_newer(flight.key, flight.began)
            gone = None if newer else self._shelf.remove(flight.key)
        del gone

    def _entry(self, key: Hashable, value: T, began: float) -> CacheEntry:
        max_age = self.max_age
        if self._jitter:
            max_age *= self._random.uniform(1 - self._jitter, 1)
        entry = CacheEntry(Served(value, (), self._clock.time() - (self._monotonic() - began)), None, began, max_age)
        if self._shelf.max_bytes is not None:
            entry.size = sys.getsizeof(key) + self._size(value) + self.ENTRY_OVERHEAD
        return entry

    def _store(self, key: Hashable, entry: CacheEntry, flight: Flight | None = None) -> None:
        """A load replaces nothing newer: neither an invalidation nor a value whose own load began later."""
        with self._lock:
            if flight is None:
                self._flights.outdate(key)
            elif not flight.current or self._is_newer(key, entry.began):
                return
            gone = self._shelf.put(key, entry)
        del gone

    def _is_newer(self, key: Hashable, began: float) -> bool:
        entry = self._find(key)
        return entry is not None and entry.began > began


def _predicate(errors: Errors) -> Callable[[Exception], bool]:
    if isinstance(errors, type | tuple):
        return lambda error: isinstance(error, errors)
    return errors


def _in_table(error: Exception) -> bool:
    from resilience.classify import ERRORS

    return ERRORS.is_answer(error)


def _check(not_negative: dict[str, float], positive: dict[str, float | None]) -> None:
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, not {value!r}")
    for name, bound in positive.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be positive, not {bound!r}")
