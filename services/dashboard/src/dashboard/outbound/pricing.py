"""What prices are made of: participants in Redis (row D2, dashboard.redis), zones in PostgreSQL (row D1).

The participants of a zone are a sorted set, scored with the moment at which they stop counting, by the clock of Redis:
the instances need not agree on the time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import redis.asyncio as redis

from dashboard.model import Zone
from dashboard.outbound.postgres import Database
from dashboard.outbound.reading import number, whole
from resilience import Clock, RowPolicy
from service_kit.redis_client import AWAY

ACTIVE_SECONDS = 900
"""How long somebody who got what is needed to join counts as a participant."""
MAX_PARTICIPANTS = 100_000
"""Of one zone; beyond them those go first that would stop counting first."""
MAX_BEHIND = 10_000
FLUSH_SECONDS = 0.25
MAX_ZONES = 1000
"""Zones with the usual fare and capacity that the table keeps."""

# KEYS the zone's set; ARGV seconds, limit, then participants
_JOIN = """
local now = tonumber(redis.call('TIME')[1])
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
_COUNT = "return redis.call('ZCOUNT', KEYS[1], '(' .. redis.call('TIME')[1], '+inf')"

_GET = """SELECT zone, base_fare::float8 AS base_fare, capacity, active,
    extract(epoch FROM updated_at)::float8 AS updated_at FROM pricing_zones WHERE zone = $1"""
_NOTE = """INSERT INTO pricing_zones (zone, base_fare, capacity, active)
    SELECT zone, $3::float8, $4, active FROM unnest($1::text[], $2::int[]) AS seen (zone, active) ORDER BY zone
    ON CONFLICT (zone) DO UPDATE SET active = excluded.active, updated_at = excluded.updated_at"""
# Rows that nobody gave a fare or a capacity of their own are notes, and anybody can ask for a zone of any name.
_TRIM = """DELETE FROM pricing_zones WHERE zone IN (SELECT zone FROM pricing_zones
    WHERE base_fare = $1::float8::numeric(10, 2) AND capacity = $2 ORDER BY updated_at DESC OFFSET $3)"""


class RedisDemand:
    """See the port."""

    def __init__(self, client: redis.Redis, policy: RowPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._join = client.register_script(_JOIN)
        self._count = client.register_script(_COUNT)
        self._behind: OrderedDict[tuple[str, str], None] = OrderedDict()

    def joined(self, zone: str, user_id: str, room_id: str) -> None:
        """See the port."""
        self._behind[zone, f"{user_id}|{room_id}"] = None
        if len(self._behind) > MAX_BEHIND:
            self._behind.popitem(last=False)

    async def active(self, zone: str) -> int:
        """See the port. Under the policy of Redis."""
        return int(await self._count(keys=[_key(zone)]))

    async def flush_forever(self) -> None:
        """Writes behind until cancelled."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            if self._behind:
                await self.flush()

    async def flush(self) -> None:
        """Writes what waits; what Redis does not take waits on."""
        waiting, self._behind = self._behind, OrderedDict()
        zones: dict[str, list[str]] = {}
        for zone, participant in waiting:
            zones.setdefault(zone, []).append(participant)
        for zone, participants in zones.items():
            try:
                await self._policy.call(self._put, zone, participants)
            except AWAY:
                self._behind.update(((zone, one), None) for one in participants[: MAX_BEHIND - len(self._behind)])

    async def _put(self, zone: str, participants: list[str]) -> None:
        await self._join(keys=[_key(zone)], args=[ACTIVE_SECONDS, MAX_PARTICIPANTS, *participants])


class PostgresZones:
    """See the port. ``base_fare`` and ``capacity`` are those of a new zone."""

    def __init__(self, database: Database, *, base_fare: float, capacity: int) -> None:
        self._database = database
        self._usual = base_fare, capacity

    async def get(self, zone: str) -> Zone | None:
        """See the port."""
        row = await self._database.fetchrow(_GET, zone)
        return None if row is None else self._zone(zone, row)

    async def note(self, active: Any) -> None:
        """See the port."""
        await self._database.fetch(_NOTE, list(active), list(active.values()), *self._usual)
        await self._database.fetch(_TRIM, *self._usual, MAX_ZONES)

    def _zone(self, zone: str, row: Any) -> Zone:
        base_fare, capacity = self._usual
        return Zone(
            zone,
            base_fare=max(0.0, number(row["base_fare"], base_fare)),
            capacity=max(1, whole(row["capacity"], capacity)),
            active=max(0, whole(row["active"])),
            updated_at=number(row["updated_at"]),
        )


def _key(zone: str) -> str:
    return f"pricing:active:{zone}"
