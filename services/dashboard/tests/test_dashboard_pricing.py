"""Prices: the formula, and the tiers in their order (rows D1 and D2), on real servers and on none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from dashboard.degradation import DATABASE_PRICE, DEFAULT_PRICE, MEMORY_CACHE, POSTGRES, REDIS, STALE_PRICE
from dashboard.inbound.http.pricing import PriceView, price_body
from dashboard.model import Zone
from dashboard.outbound import postgres, pricing
from dashboard.outbound.postgres import Database
from dashboard.outbound.pricing import PostgresZones, RedisDemand
from dashboard.ports import Zones
from dashboard.usecases.pricing import BASE_FARE, NOTE_SECONDS, STALE_SECONDS, TARIFF_SECONDS, Pricing, multiplier
from dashboard.usecases.reads import Reads
from resilience import SYSTEM_CLOCK, CircuitBreaker, Clock, FakeClock, RowPolicy, Served
from service_kit import redis_client as client_options

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 10


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - a database row has no event
            await asyncio.sleep(0.02)


class World:
    """Pricing whose circuits the test holds in its hand."""

    def __init__(self, client: Redis, database: Database, clock: Clock = SYSTEM_CLOCK, zones: Any = None) -> None:
        def policy(row: Any, classify: Any) -> RowPolicy:
            return RowPolicy(row, breaker=CircuitBreaker(row.id, classify=classify, clock=clock), clock=clock)

        self.redis = policy(REDIS, client_options.classify)
        self.postgres = policy(POSTGRES, postgres.classify)
        self.zones = zones or PostgresZones(database, base_fare=BASE_FARE, capacity=CAPACITY)
        self.demand = RedisDemand(client, self.redis, clock)
        reads: Reads[Zones] = Reads(self.postgres, self.zones)
        self.pricing = Pricing(
            self.demand, self.redis, self.zones, reads, self.postgres, capacity=CAPACITY, clock=clock
        )

    async def join(self, zone: str, *users: str) -> None:
        for user in users:
            self.demand.joined(zone, user, "room")
        await self.demand.flush()

    async def quote(self, zone: str = "eu") -> tuple[dict[str, Any], list[str]]:
        """The body, and the fallbacks that took part."""
        served = await self.pricing.quote(zone)
        body = price_body(served.value)
        PriceView.model_validate(body)
        return body, [one.fallback for one in served.degradations]


@pytest_asyncio.fixture(loop_scope="session")
async def world(redis_client: Redis, database: Database) -> AsyncIterator[World]:
    world = World(redis_client, database)
    work = asyncio.create_task(world.pricing.write_behind())
    yield world
    work.cancel()


@pytest.mark.parametrize(
    ("active", "capacity", "factor"),
    [(0, 10, 1.0), (5, 10, 1.0), (6, 10, 1.4), (75, 100, 2.0), (10, 10, 3.0), (99, 10, 3.0), (1, 0, 3.0)],
)
async def test_the_multiplier(active: int, capacity: int, factor: float) -> None:
    assert multiplier(active, capacity) == factor


async def test_more_demand_never_makes_it_cheaper() -> None:
    @given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
    def check(active: int, more: int, capacity: int) -> None:
        assert 1.0 <= multiplier(active, capacity) <= multiplier(active + more, capacity) <= 3.0

    check()


async def test_the_price_of_this_moment(world: World) -> None:
    await world.join("eu", *(f"user{number}" for number in range(6)), "user1")
    body, fallbacks = await world.quote()
    assert fallbacks == []
    assert (body["source"], body["freshness"], body["confidence"]) == ("redis", "real-time", 1.0)
    assert (body["active_participants"], body["multiplier"], body["price"]) == (6, 1.4, 17.5)
    assert body["fallback_reason"] is body["warning"] is None
    body, _ = await world.quote("never-heard-of")
    assert (body["source"], body["active_participants"], body["price"]) == ("redis", 0, BASE_FARE)


async def test_a_zone_with_a_fare_and_a_capacity_of_its_own(world: World, database: Database) -> None:
    await database.fetch("INSERT INTO pricing_zones (zone, base_fare, capacity, active) VALUES ('us', 20, 2, 0)")
    await world.join("us", "ann", "bob")
    body, _ = await world.quote("us")
    assert (body["base_fare"], body["capacity"], body["multiplier"], body["price"]) == (20.0, 2, 3.0, 60.0)


async def test_the_tiers_one_after_the_other(world: World, database: Database) -> None:
    await world.join("eu", *(f"user{number}" for number in range(10)))
    live, _ = await world.quote()

    async def noted() -> bool:
        return await world.zones.get("eu") is not None

    await until(noted)
    world.redis.breaker.force_open()
    body, fallbacks = await world.quote()
    assert (body["source"], body["freshness"], fallbacks) == ("database", "stale", [DATABASE_PRICE])
    assert body["price"] == live["price"] == 37.5
    assert body["fallback_reason"]
    assert body["warning"]
    world.postgres.breaker.force_open()
    body, fallbacks = await world.quote()
    assert (body["source"], body["freshness"], fallbacks) == ("stale_cache", "very_stale", [STALE_PRICE])
    assert body["price"] == 37.5
    body, fallbacks = await world.quote("us")
    assert (body["source"], body["freshness"], fallbacks) == ("default", "unknown", [DEFAULT_PRICE])
    assert (body["price"], body["multiplier"], body["confidence"]) == (BASE_FARE, 1.0, 0.1)
    world.redis.breaker.reset()
    assert (await world.quote())[0]["source"] == "redis"


async def test_without_redis_a_zone_that_the_database_does_not_know_has_the_usual_price(world: World) -> None:
    world.redis.breaker.force_open()
    body, fallbacks = await world.quote("nowhere")
    assert (body["source"], fallbacks) == ("default", [DEFAULT_PRICE])


async def test_everything_frozen_is_answered_in_time() -> None:
    """Both accept connections and never answer."""
    server = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = client_options.create_client(f"redis://127.0.0.1:{port}/0")
    database = Database(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    await database.open()
    try:
        world, begun = World(client, database), time.monotonic()
        body, fallbacks = await world.quote()
        assert time.monotonic() - begun < 1.5
        assert (body["source"], fallbacks) == ("default", [DEFAULT_PRICE])
    finally:
        await client.aclose()
        await database.close()
        server.close()


async def test_who_does_not_join_again_stops_counting(world: World, redis_client: Redis) -> None:
    await redis_client.zadd("pricing:active:eu", {"gone|room": time.time() - 1, "there|room": time.time() + 60})
    assert await world.demand.active("eu") == 1
    await world.join("eu", "ann")
    assert await world.demand.active("eu") == 2
    assert await redis_client.zcard("pricing:active:eu") == 2
    assert 0 < await redis_client.ttl("pricing:active:eu") <= pricing.ACTIVE_SECONDS


async def test_participants_of_a_zone_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "MAX_PARTICIPANTS", 3)
    await world.join("eu", *"abcdef")
    assert await world.demand.active("eu") == 3


async def test_who_joins_while_redis_is_away_counts_when_it_is_back(world: World) -> None:
    world.redis.breaker.force_open()
    await world.join("eu", "ann")
    world.redis.breaker.reset()
    await world.demand.flush()
    assert await world.demand.active("eu") == 1


async def test_notes_of_zones_are_bounded_and_given_fares_stay(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "MAX_ZONES", 2)
    await database.fetch("INSERT INTO pricing_zones VALUES ('mine', 20, 2, 0, '2020-01-01Z')")
    for zone in "abc":
        await world.zones.note({zone: 1})
    rows = await database.fetch("SELECT zone FROM pricing_zones ORDER BY zone")
    assert [row[0] for row in rows] == ["b", "c", "mine"]


class Away:
    """Zones of a database that may be away."""

    def __init__(self) -> None:
        self.is_away = False
        self.rows = {"eu": Zone("eu", 20.0, CAPACITY, 0, 0.0)}
        self.reads = 0
        self.notes: list[dict[str, int]] = []

    async def get(self, zone: str) -> Zone | None:
        self.reads += 1
        if self.is_away:
            raise OSError
        return self.rows.get(zone)

    async def note(self, active: dict[str, int]) -> None:
        if self.is_away:
            raise OSError
        self.notes.append(active)


@pytest.fixture
def timed(redis_client: Redis, database: Database) -> tuple[World, Away, FakeClock]:
    clock, zones = FakeClock(), Away()
    return World(redis_client, database, clock, zones), zones, clock


async def test_fare_and_capacity_are_read_once_a_minute(timed: tuple[World, Away, FakeClock]) -> None:
    world, zones, clock = timed
    for _ in range(3):
        assert (await world.quote())[0]["price"] == 20.0
    assert zones.reads == 1
    clock.move(TARIFF_SECONDS)
    await world.quote()
    assert zones.reads == 2


async def test_a_fare_that_cannot_be_read_again_is_marked(timed: tuple[World, Away, FakeClock]) -> None:
    world, zones, clock = timed
    await world.quote()
    zones.is_away = True
    assert (await world.quote())[1] == []
    clock.move(TARIFF_SECONDS)
    served: Served[Any] = await world.pricing.quote("eu")
    assert [one.fallback for one in served.degradations] == [MEMORY_CACHE]
    assert served.as_of == clock.time() - TARIFF_SECONDS
    assert (served.value.tier.source, served.value.price) == ("redis", 20.0)
    body, fallbacks = await world.quote("us")
    assert (body["source"], body["price"], fallbacks) == ("redis", BASE_FARE, [DEFAULT_PRICE])
    zones.is_away = False
    assert (await world.quote())[1] == []


async def test_the_database_is_told_at_most_every_ten_seconds(timed: tuple[World, Away, FakeClock]) -> None:
    world, zones, clock = timed
    work = asyncio.create_task(world.pricing.write_behind())
    try:
        for _ in range(3):
            await world.quote()
            await clock.advance(1.0)
        assert zones.notes == [{"eu": 0}]
        zones.is_away = True
        clock.move(NOTE_SECONDS)
        await world.join("eu", "ann")
        await world.quote()
        await clock.advance(1.0)
        zones.is_away = False
        await clock.advance(1.0)
        assert zones.notes == [{"eu": 0}, {"eu": 1}]
    finally:
        work.cancel()


async def test_what_was_seen_long_ago_is_not_served(timed: tuple[World, Away, FakeClock]) -> None:
    world, zones, clock = timed
    await world.quote()
    zones.is_away = True
    world.redis.breaker.force_open()
    assert (await world.quote())[0]["source"] == "stale_cache"
    clock.move(STALE_SECONDS + 1)
    assert (await world.quote())[0]["source"] == "default"


async def test_zones_remembered_are_bounded(
    timed: tuple[World, Away, FakeClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.usecases.pricing.MAX_ZONES", 2)
    world, _, _ = timed
    for zone in ("eu", "us", "as"):
        await world.quote(zone)
    assert list(world.pricing._known) == ["us", "as"]
    assert len(world.pricing._due) == 2
