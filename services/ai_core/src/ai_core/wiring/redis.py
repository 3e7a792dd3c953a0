"""Row A3 and what lives in Redis: copies, kept answers, and the store of the write queue."""

from redis.asyncio import Redis

from ai_core.degradation import POSTGRES, REDIS
from ai_core.settings import Settings
from resilience import MemoryCache, RowPolicy
from service_kit import durable, redis_client
from service_kit.copies import CopyStore
from service_kit.runtime import ServiceRuntime


class RedisPart:
    """Everything that is plugged into Redis."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self.client: Redis = redis_client.create_client(settings.redis_url or "")
        self.policy: RowPolicy = runtime.policy(
            REDIS,
            classify=redis_client.classify,
            probe=self._ping,
            bulkhead_limit=redis_client.MAX_CONNECTIONS,
            on_closed=lambda: self.copies.rewrite_all(),
        )
        self.memory = MemoryCache(settings.memory_cache_size, settings.memory_cache_ttl, runtime.clock)
        self.copies = CopyStore(
            self.client,
            self.policy.call,
            self.memory,
            runtime.clock,
            shared=settings.enable_cache_fallback,
            local=settings.enable_memory_cache,
        )
        self.queue = durable.queue_store(runtime, self.client, self.policy, runtime.name)
        runtime.queue, runtime.queue_row = self.queue, POSTGRES.id
        runtime.background("copies", self.copies.flush_forever)
        durable.say_when_away(
            self.policy,
            "Redis is away: copies and kept answers in memory, no queue",
            "Redis is back: copies and kept answers shared, writes can be queued",
        )
        runtime.on_close(self.client.aclose, "redis")

    async def _ping(self) -> None:
        await self.client.execute_command("PING")  # type: ignore[no-untyped-call]
