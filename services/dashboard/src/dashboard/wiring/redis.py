"""Row D2 and what lives in Redis: sessions, limits, copies, and the store of the write queue."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
from redis.asyncio import Redis

from dashboard.degradation import POSTGRES, REDIS
from dashboard.outbound.copies import CopyStore, UserCopies
from dashboard.outbound.login_limit import RedisLoginLimit
from dashboard.outbound.sessions import RedisSessions
from dashboard.settings import Settings
from resilience import MemoryCache, RowPolicy
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit import redis_client
from service_kit.runtime import ServiceRuntime

CATCH_UP_SECONDS = 1.0


class RedisPart:
    """Everything that is plugged into Redis."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self.client: Redis = redis_client.create_client(settings.redis_url or "")
        self.policy: RowPolicy = runtime.policy(
            REDIS,
            classify=redis_client.classify,
            probe=self._ping,
            bulkhead_limit=redis_client.MAX_CONNECTIONS,
            on_closed=self._back,
        )
        self._is_back = asyncio.Event()
        self.memory = MemoryCache(settings.memory_cache_size, settings.memory_cache_ttl, runtime.clock)
        self.copies = CopyStore(
            self.client,
            self.policy.call,
            self.memory,
            runtime.clock,
            shared=settings.enable_cache_fallback,
            local=settings.enable_memory_cache,
        )
        self.users = UserCopies(self.copies)
        self.sessions = RedisSessions(self.client, self.policy, runtime.clock, lifetime=settings.session_lifetime)
        self.login_limit = RedisLoginLimit(self.client, self.policy)
        self.queue = self.queue_store(settings, runtime.name)
        runtime.queue, runtime.queue_row = self.queue, POSTGRES.id
        runtime.background("copies", self.copies.flush_forever)
        runtime.background("sessions", self._catch_up_forever)
        runtime.on_close(self.client.aclose, "redis")

    def queue_store(self, settings: Settings, name: str) -> RedisQueueStore:
        """A write queue of that name (Redis keys ``fallback:queue:NAME`` and ``fallback:dead:NAME``)."""
        return RedisQueueStore(
            self.client,
            name,
            limit=settings.fallback_queue_max_size,
            call=self.policy.call,
            timeout=REDIS.call_timeout,
            loads=orjson.loads,
        )

    async def _ping(self) -> None:
        await self.client.execute_command("PING")  # type: ignore[no-untyped-call]

    def _back(self) -> None:
        self._is_back.set()

    async def _catch_up_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    await self._is_back.wait()
            if self._is_back.is_set():
                self._is_back.clear()
                self.copies.rewrite_all()
                self.sessions.behind = True
            if self.sessions.behind:
                await self.sessions.catch_up()
