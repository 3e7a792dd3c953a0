"""Row D2 and what lives in Redis: sessions, limits, copies, and the store of the write queue."""

from __future__ import annotations

import asyncio
import contextlib

from redis.asyncio import Redis

from dashboard.degradation import EFFECTS, POSTGRES, REDIS
from dashboard.inbound.http.limits import Addresses, RequestLimits
from dashboard.outbound.copies import UserCopies
from dashboard.outbound.ended_sessions import EndedSessions
from dashboard.outbound.limits import LeasedLimit, Outage
from dashboard.outbound.login_limit import RedisLoginLimit
from dashboard.outbound.postgres import Database
from dashboard.outbound.sessions import RedisSessions
from dashboard.settings import Rate, Settings
from resilience import CircuitState, MemoryCache, Result, RowPolicy
from resilience.integrations.redis_limiter import RedisRateLimiter
from service_kit import durable, redis_client
from service_kit.copies import CopyStore
from service_kit.runtime import ServiceRuntime

CATCH_UP_SECONDS = 1.0
PRUNE_SECONDS = 60.0
LIMIT_SECONDS = 0.1
"""How long a request waits to hear of its limit: Redis answers in a thousandth of that, or is in trouble."""


class RedisPart:
    """Everything that is plugged into Redis."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
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
            stretch=lambda: EFFECTS[runtime.mode].copies_live,
        )
        self.users = UserCopies(self.copies)
        self.login_limit = RedisLoginLimit(self.client, self.policy)
        self.queue = durable.queue_store(runtime, self.client, self.policy, runtime.name)
        runtime.queue, runtime.queue_row = self.queue, POSTGRES.id
        runtime.background("copies", self.copies.flush_forever)
        durable.say_when_away(
            self.policy,
            "Redis is away: sessions in memory, rate limits off",
            "Redis is back: sessions shared, rate limits on",
        )
        runtime.on_close(self.client.aclose, "redis")

    def open_sessions(self, database: Database, policy: RowPolicy) -> RedisSessions:
        """The sessions, whose ends PostgreSQL knows as well: ``database``, under the ``policy`` of row D1."""
        clock, lifetime = self._runtime.clock, self._settings.session_lifetime
        ended = EndedSessions(database, policy)
        sessions = RedisSessions(self.client, self.policy, clock, ended, lifetime=lifetime)
        self._runtime.background("sessions", lambda: self._catch_up_forever(sessions))
        self._runtime.background("ended sessions", lambda: self._prune_forever(ended, policy))
        self._runtime.on_close(ended.close, "ended sessions")
        return sessions

    def request_limits(self) -> RequestLimits:
        """The limits of requests, as configured."""
        breaker, settings = self.policy.breaker, self._settings
        # One failure is enough not to wait for the next one in the same request.
        outage = Outage(
            self._runtime.clock, lambda: breaker.state is not CircuitState.CLOSED or breaker.snapshot().failures > 0
        )

        def limit(name: str, rate: Rate | None, largest: int | None = None) -> LeasedLimit | None:
            if rate is None:
                return None
            limiter = RedisRateLimiter(
                self.client, name, *rate, call=self.policy.call, timeout=LIMIT_SECONDS, clock=self._runtime.clock
            )
            return LeasedLimit(limiter, self._runtime.clock, outage, largest=largest)

        return RequestLimits(
            limit("user", settings.rate_limit_user),
            limit("address", settings.rate_limit_address),
            limit("login", settings.rate_limit_login, 1),  # so slow that each may ask
            Addresses(settings.trusted_proxies),
        )

    async def _ping(self) -> None:
        await self.client.execute_command("PING")  # type: ignore[no-untyped-call]

    def _back(self) -> None:
        self._is_back.set()

    async def _catch_up_forever(self, sessions: RedisSessions) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    await self._is_back.wait()
            if self._is_back.is_set():
                self._is_back.clear()
                self.copies.rewrite_all()
                sessions.doubt_redis()
            if sessions.behind:
                await sessions.catch_up()

    async def _prune_forever(self, ended: EndedSessions, policy: RowPolicy) -> None:
        while True:
            await self._runtime.clock.sleep(PRUNE_SECONDS)
            if policy.breaker.state is CircuitState.CLOSED:
                await ended.prune()


def end_sessions_of_deleted(sessions: RedisSessions, result: Result) -> None:
    """Told of a queued write that has been applied: an account that is gone has no sessions."""
    if result.operation.kind == "user.delete":
        sessions.end_all_later(result.operation.entity.removeprefix("user:"))
