"""Last known good copies for the time without their source: in Redis, shared by the instances, and in this process.

A copy in Redis starts with its version, and only a newer or equal version may replace it. Copies are written behind, in
batches, and only when the one in Redis is old: a write per read would cost a quarter of the reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
import redis.asyncio as redis

from resilience import MISSING, Clock, MemoryCache, Missing, Rung, Served
from resilience.deadline import hard_timeout

from .redis_client import AWAY

T = TypeVar("T")
Call = Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]

REDIS_CACHE = "redis-cache"
MEMORY_CACHE = "memory-cache"
"""What serves, as headers and metrics name it."""

# ARGV ttl, then per KEYS[i] a copy: kept unless the one there has a higher version
_PUT = """
for i, key in ipairs(KEYS) do
  local there = redis.call('GETRANGE', key, 0, 19)
  local old = tonumber(string.match(there, '^%d+')) or -1
  if tonumber(string.match(ARGV[i + 1], '^%d+')) >= old then redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1]) end
end
"""
_BATCH = 500
_BATCH_BYTES = 1_000_000
_MAX_BEHIND = 10_000
_MAX_BEHIND_BYTES = 20_000_000
_FLUSH_SECONDS = 0.05
_LAST_MOMENT = 253_402_300_799.0  # the end of the year 9999, in unix seconds
_SOON_SECONDS = 0.2  # for a reader who has something to show already


class Copy(NamedTuple):
    """A value as plain JSON data, when it was read from its source (unix seconds), and its version."""

    value: Any
    as_of: float
    version: int


class CopyStore:
    """Versioned copies by key. ``ttl`` and ``refresh_after`` in seconds; ``call`` is the policy of Redis.

    ``stretch`` says by how much copies in memory live longer at this moment (1: not at all): a degraded service keeps
    what it has.
    """

    def __init__(
        self,
        client: redis.Redis,
        call: Call[Any],
        memory: MemoryCache,
        clock: Clock,
        *,
        ttl: int = 86_400,
        refresh_after: float = 60.0,
        shared: bool = True,
        local: bool = True,
        stretch: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._client = client
        self._call = call
        self._memory = memory
        self._clock = clock
        self._ttl = ttl
        self._refresh_after = refresh_after
        self._enabled = shared
        self._local = local
        self._stretch = stretch
        self._put = client.register_script(_PUT)
        self._behind = _Behind()
        self._forgotten: set[str] = set()  # names, since the batch under way was begun
        self._fresh: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._flushing = asyncio.Lock()

    def keep(self, key: str, value: Any, version: int | None = None) -> None:
        """Takes note of a value fresh from its source; cheap, writes behind. ``value``: anything that orjson writes.

        ``version``: a whole number that grows with every change; the moment itself (microseconds) when None. A read
        that a change has overtaken leaves the newer copy alone.
        """
        as_of = self._clock.time()
        version = int(as_of * 1e6) if version is None else version
        copy = b"%d " % version + orjson.dumps([as_of, value])
        if self._local:
            there = self._memory.get(key)
            if there is not None and _version(there) > version:
                return
            self._memory.set(key, copy, self._memory.ttl * self._stretch())
        now = self._clock.monotonic()
        known, due = self._fresh.get(key, (-1, 0.0))
        if self._enabled and (known != version or now >= due):
            _bounded_set(self._fresh, key, (version, now + self._refresh_after))
            self._behind.put(_name(key), copy)

    async def shared(self, key: str) -> Copy | None:
        """The copy in Redis, or one that is on its way there. Raises what the policy of Redis raises."""
        if not self._enabled:
            return None
        name = _name(key)
        copy: bytes | None = await self._call(lambda: self._client.get(name))
        there, behind = _decode(copy), _decode(self._behind.get(name))
        if there is not None and behind is not None:
            return max(there, behind, key=lambda one: one.version)
        return there or behind

    def local(self, key: str) -> Copy | None:
        """The copy in this process's memory."""
        return _decode(self._memory.get(key))

    async def any(self, key: str) -> Copy | None:
        """The copy in Redis, else the one in memory; never raises for an absent Redis."""
        with contextlib.suppress(*AWAY):
            if found := await self.shared(key):
                return found
        return self.local(key)

    async def soon(self, key: str) -> Copy | None:
        """The copy in Redis if it is here within a moment; None otherwise, and when Redis is away."""
        with contextlib.suppress(*AWAY):
            return await hard_timeout(self.shared(key), _SOON_SECONDS, name="copy")
        return None

    def rungs(self, key: str, read: Callable[[Any], T | None]) -> tuple[Rung[T], Rung[T]]:
        """The two steps of a ladder that serve a copy: from Redis, then from memory. ``read`` makes the value of the
        plain data; None from it means that the copy cannot be used."""

        def served(copy: Copy | None) -> Served[T] | Missing:
            value = None if copy is None else read(copy.value)
            return MISSING if copy is None or value is None else Served(value, as_of=copy.as_of)

        async def from_redis(_: BaseException) -> Any:
            return served(await self.shared(key))

        async def from_memory(_: BaseException) -> Any:
            return served(self.local(key))

        return Rung(REDIS_CACHE, from_redis), Rung(MEMORY_CACHE, from_memory)

    async def forget(self, *keys: str) -> None:
        """Drops copies of what is gone; best effort."""
        for key in keys:
            self._memory.delete(key)
            self._behind.drop(_name(key))
            self._fresh.pop(key, None)
            if self._flushing.locked():
                self._forgotten.add(_name(key))
        with contextlib.suppress(*AWAY):
            await self._call(lambda: self._client.delete(*map(_name, keys)))

    async def flush_forever(self) -> None:
        """Writes behind until cancelled."""
        while True:
            await self._clock.sleep(_FLUSH_SECONDS)
            if self._behind:
                await self.flush_all()

    async def flush_all(self) -> None:
        """Returns when every copy kept so far is in Redis, those of a batch under way too, or Redis is away."""
        while await self.flush() and self._behind:
            pass

    async def flush(self) -> bool:
        """Writes one batch; False when Redis is away, and the batch is kept for later."""
        async with self._flushing:
            return await self._flush_batch()

    async def _flush_batch(self) -> bool:
        batch = self._behind.take()
        if not batch:
            return True
        self._forgotten.clear()
        try:
            await self._call(lambda: self._put(keys=list(batch), args=[self._ttl, *batch.values()]))
            if gone := [name for name in batch if name in self._forgotten]:
                await self._call(lambda: self._client.delete(*gone))
        except AWAY:
            self._behind.give_back({name: copy for name, copy in batch.items() if name not in self._forgotten})
            return False
        return True

    def rewrite_all(self) -> None:
        """Forgets which copies Redis has: it may have come back without them."""
        self._fresh.clear()


class _Behind:
    """Copies that Redis has not got yet, by name: the latest of each. Full, the oldest go."""

    def __init__(self) -> None:
        self._copies: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self.get = self._copies.get

    def __len__(self) -> int:
        return len(self._copies)

    def put(self, name: str, copy: bytes) -> None:
        self.drop(name)
        self._copies[name] = copy
        self._bytes += len(copy)
        while len(self._copies) > _MAX_BEHIND or self._bytes > _MAX_BEHIND_BYTES:
            self._bytes -= len(self._copies.popitem(last=False)[1])

    def drop(self, name: str) -> None:
        self._bytes -= len(self._copies.pop(name, b""))

    def take(self) -> dict[str, bytes]:
        """A batch of the oldest, at least one."""
        taken: dict[str, bytes] = {}
        size = 0
        while self._copies and len(taken) < _BATCH and size < _BATCH_BYTES:
            name, copy = self._copies.popitem(last=False)
            taken[name] = copy
            size += len(copy)
        self._bytes -= size
        return taken

    def give_back(self, copies: Mapping[str, bytes]) -> None:
        """Behind what came meanwhile: a newer copy of the same name stays."""
        for name, copy in copies.items():
            if name not in self._copies:
                self.put(name, copy)


def _name(key: str) -> str:
    return f"copy:{key}"


def _version(copy: bytes) -> int:
    return int(copy[: copy.index(b" ")])


def _decode(copy: bytes | None) -> Copy | None:
    """None also for a copy that another version of the service wrote and this one cannot read."""
    if copy is None:
        return None
    with contextlib.suppress(orjson.JSONDecodeError, TypeError, ValueError):
        as_of, value = orjson.loads(copy[copy.index(b" ") + 1 :])
        if _is_moment(as_of):
            return Copy(value, float(as_of), _version(copy))
    return None


def _is_moment(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_MOMENT


def _bounded_set(mapping: OrderedDict[str, T], key: str, value: T) -> None:
    mapping[key] = value
    if len(mapping) > _MAX_BEHIND:
        mapping.popitem(last=False)
