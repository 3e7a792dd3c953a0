"""Request limits shared by the instances (row D2, dashboard.redis), without asking Redis for every request.

Each key's bucket of tokens is in Redis (`resilience.integrations.redis_limiter`). An instance takes several tokens out
of it at once, a *lease*, and serves requests from that: all instances together let through no more than the bucket
gave. A lease that is used up within its second is followed by one of twice the size, up to an eighth of the burst; what
is left of one after that second is lost, and the next is as small as what was needed. So who comes seldom costs the
bucket little more than a token per request, and who comes often costs Redis a few questions a second.

A refusal is remembered for as long as it holds: a flood costs Redis nothing. While Redis is away there are no limits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from resilience import Clock, Decision, Quota
from resilience.integrations.redis_limiter import RedisRateLimiter

LEASE_SECONDS = 1.0
OFF_SECONDS = 1.0
"""For how long Redis is not asked again after it did not answer."""
MAX_KEYS = 10_000
_LEAST, _MOST = 100, 8  # parts of the burst


class Outage:
    """What the limits of one Redis know about it together. ``away``: whether its circuit or its last calls say so."""

    def __init__(self, clock: Clock, away: Callable[[], bool]) -> None:
        self._clock = clock
        self._away = away
        self._until = float("-inf")

    @property
    def lasts(self) -> bool:
        """Whether there is no use in asking."""
        return self._clock.monotonic() < self._until or self._away()

    def noticed(self) -> None:
        """Redis did not answer."""
        self._until = self._clock.monotonic() + OFF_SECONDS


class _Lease:
    """What this instance holds of one key's bucket; ``free``: what is left there, as far as it knows."""

    __slots__ = ("asking", "free", "refused_until", "size", "taken", "tokens", "until", "waiting")

    def __init__(self, size: int) -> None:
        self.asking = asyncio.Lock()
        self.waiting = 0
        self.size = size
        self.taken = self.tokens = 0
        self.free = 0.0
        self.until = self.refused_until = float("-inf")


class LeasedLimit:
    """See the port. ``limiter`` asks Redis, under the row's policy; ``largest``: of the leases, in tokens."""

    def __init__(self, limiter: RedisRateLimiter, clock: Clock, outage: Outage, *, largest: int | None = None) -> None:
        self.name = limiter.name
        self.quota: Quota = limiter.quota
        self._limiter = limiter
        self._monotonic = clock.monotonic
        self._outage = outage
        self._most = max(1, self.quota.burst // _MOST if largest is None else largest)
        self._least = min(self._most, max(1, self.quota.burst // _LEAST))
        self._leases: OrderedDict[str, _Lease] = OrderedDict()

    def take_now(self, key: str) -> Decision | None:
        """See the port."""
        lease = self._leases.get(key)
        if lease is None:
            return None
        self._leases.move_to_end(key)
        return self._from(lease)

    async def take(self, key: str) -> Decision | None:
        """See the port."""
        lease = self._lease(key)
        lease.waiting += 1
        try:
            async with lease.asking:
                decision = self._from(lease)
                return await self._renewed(lease, key) if decision is None else decision
        finally:
            lease.waiting -= 1

    def _from(self, lease: _Lease) -> Decision | None:
        now = self._monotonic()
        if lease.tokens and now < lease.until:
            lease.tokens -= 1
            free = lease.free + lease.tokens
            return Decision(True, 0.0, free, (self.quota.burst - free) * self.quota.interval)
        wait = lease.refused_until - now
        if wait > 0:
            return Decision(False, wait, lease.free, (self.quota.burst - lease.free) * self.quota.interval)
        return None

    async def _renewed(self, lease: _Lease, key: str) -> Decision | None:
        if self._outage.lasts:
            return None
        self._resize(lease)
        decision = await self._most_of(min(self._most, max(lease.size, lease.waiting)), lease, key)
        now = self._monotonic()
        if decision.degraded:
            self._outage.noticed()
            return None
        lease.free, lease.until = decision.free, now + LEASE_SECONDS
        if not decision:
            lease.refused_until = now + (decision.retry_after or 0.0)
            return decision
        return self._from(lease) or decision

    async def _most_of(self, size: int, lease: _Lease, key: str) -> Decision:
        """Takes ``size`` tokens, or as many as there are."""
        while True:
            decision = await self._limiter.try_acquire(size, key=key)
            if decision or size == 1:
                lease.taken = lease.tokens = size if decision else 0
                return decision
            size = max(1, min(decision.remaining, size // 2))

    def _resize(self, lease: _Lease) -> None:
        if lease.taken and not lease.tokens and self._monotonic() < lease.until:
            lease.size = min(self._most, lease.size * 2)
        else:
            lease.size = min(self._most, max(self._least, lease.taken - lease.tokens))

    def _lease(self, key: str) -> _Lease:
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = _Lease(self._least)
            if len(self._leases) > MAX_KEYS:
                self._leases.popitem(last=False)
        return lease
