"""Copies of users for the time without a database: in Redis, shared by the instances, and in this process.

A copy in Redis starts with the row's revision, and only a newer or equal revision may replace it. Copies are written
behind, in batches, and only when the one in Redis is old: a write per read would cost a quarter of the reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
import redis.asyncio as redis

from dashboard.model import Credentials, User
from resilience import Clock, MemoryCache
from service_kit.redis_client import AWAY

T = TypeVar("T")
Call = Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]

# ARGV ttl, then per KEYS[i] a copy: kept unless the one there has a higher revision
_PUT = """
for i, key in ipairs(KEYS) do
  local there = redis.call('GETRANGE', key, 0, 19)
  local old = tonumber(string.match(there, '^%d+')) or -1
  if tonumber(string.match(ARGV[i + 1], '^%d+')) >= old then redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1]) end
end
"""
_BATCH = 500
_MAX_BEHIND = 10_000
_FLUSH_SECONDS = 0.05


def _key(user_id: str) -> str:
    return f"copy:user:{user_id}"


def _credentials_key(email: str) -> str:
    return f"copy:credentials:{hashlib.sha256(email.encode()).hexdigest()}"


def _encode(user: User, as_of: float) -> bytes:
    return b"%d " % user.revision + orjson.dumps([as_of, user])


def _revision(copy: bytes) -> int:
    return int(copy[: copy.index(b" ")])


def _decode(copy: bytes) -> tuple[User, float] | None:
    """None for a copy that another version of the service wrote and this one cannot read."""
    with contextlib.suppress(orjson.JSONDecodeError, TypeError, ValueError, IndexError):
        as_of, fields = orjson.loads(copy[copy.index(b" ") + 1 :])
        return User(**fields), float(as_of)
    return None


class UserCopies:
    """See the port. ``ttl`` and ``refresh_after`` in seconds; ``call`` is the policy of Redis."""

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
    ) -> None:
        self._client = client
        self._call = call
        self._memory = memory
        self._clock = clock
        self._ttl = ttl
        self._refresh_after = refresh_after
        self._enabled = shared
        self._local = local
        self._put = client.register_script(_PUT)
        self._behind: OrderedDict[str, bytes] = OrderedDict()
        self._fresh: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._flushing = asyncio.Lock()

    def keep(self, user: User) -> None:
        """See the port."""
        copy = _encode(user, self._clock.time())
        if self._local:
            self._memory.set(user.id, copy)
        now = self._clock.monotonic()
        revision, due = self._fresh.get(user.id, (-1, 0.0))
        if self._enabled and (revision != user.revision or now >= due):
            _bounded_set(self._fresh, user.id, (user.revision, now + self._refresh_after))
            _bounded_set(self._behind, _key(user.id), copy)

    def keep_credentials(self, email: str, credentials: Credentials) -> None:
        """See the port. Credentials do not change, so any copy is as good as another."""
        if self._enabled:
            _bounded_set(self._behind, _credentials_key(email), b"0 " + orjson.dumps(credentials))

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
        batch = [self._behind.popitem(last=False) for _ in range(min(_BATCH, len(self._behind)))]
        if not batch:
            return True
        keys, copies = [key for key, _ in batch], [copy for _, copy in batch]
        try:
            await self._call(lambda: self._put(keys=keys, args=[self._ttl, *copies]))
        except AWAY:
            for key, copy in batch:
                self._behind.setdefault(key, copy)
            return False
        return True

    def rewrite_all(self) -> None:
        """Forgets which copies Redis has: it may have come back without them."""
        self._fresh.clear()

    async def forget(self, user_id: str) -> None:
        """See the port."""
        self._memory.delete(user_id)
        self._behind.pop(_key(user_id), None)
        self._fresh.pop(user_id, None)
        with contextlib.suppress(*AWAY):
            await self._call(lambda: self._client.delete(_key(user_id)))

    async def _get(self, key: str) -> bytes | None:
        if not self._enabled:
            return None
        copy: bytes | None = await self._call(lambda: self._client.get(key))
        behind = self._behind.get(key)
        if copy is None or behind is None:
            return copy or behind
        return max(copy, behind, key=_revision)

    async def shared(self, user_id: str) -> tuple[User, float] | None:
        """See the port."""
        copy = await self._get(_key(user_id))
        return _decode(copy) if copy else None

    def local(self, user_id: str) -> tuple[User, float] | None:
        """See the port."""
        copy = self._memory.get(user_id)
        return _decode(copy) if copy else None

    async def login(self, email: str) -> tuple[Credentials, User] | None:
        """See the port."""
        copy = await self._get(_credentials_key(email))
        if copy is None:
            return None
        credentials = Credentials(**orjson.loads(copy[2:]))
        found = await self.shared(credentials.user_id) or self.local(credentials.user_id)
        return (credentials, found[0]) if found else None


def _bounded_set(mapping: OrderedDict[str, T], key: str, value: T) -> None:
    mapping[key] = value
    if len(mapping) > _MAX_BEHIND:
        mapping.popitem(last=False)
