"""A user's numbers, and safe defaults instead of an error (row D1, dashboard.postgres)."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from dashboard.degradation import MEMORY_CACHE, POSTGRES, SAFE_DEFAULTS
from dashboard.inbound.http.analytics import NOTE, analytics_body
from dashboard.model import Analytics, NotAllowed
from dashboard.outbound import postgres
from dashboard.outbound.analytics import PostgresActivity, analytics_of, analytics_version
from dashboard.outbound.kept import KeptCopies
from dashboard.outbound.postgres import Database
from dashboard.usecases.analytics import UserAnalytics
from dashboard.usecases.reads import Reads
from resilience import SYSTEM_CLOCK, CircuitBreaker, MemoryCache, RowPolicy
from service_kit.copies import CopyStore

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLS = """INSERT INTO calls (id, room_id, started_at, ended_at) VALUES
    ('half', 'r', '2026-03-01 10:00Z', '2026-03-01 10:30Z'), ('long', 'r', '2026-03-02 10:00Z', '2026-03-02 11:15Z'),
    ('open', 'r', '2026-03-03 10:00Z', NULL), ('odd', 'r', '2026-03-03 10:00Z', '2026-03-03 09:00Z')"""
MEMBERS = """INSERT INTO call_members (user_id, call_id, started_at)
    SELECT 'ann', id, started_at FROM calls UNION ALL SELECT 'bob', id, started_at FROM calls WHERE id = 'half'"""
ROOMS = """INSERT INTO rooms (id, owner_id, name, max_participants, created_at, deleted_at) VALUES
    ('r1', 'ann', '', 2, '2026-02-01Z', NULL), ('r2', 'ann', '', 2, '2026-02-05Z', now()),
    ('r3', 'bob', '', 2, '2026-03-04Z', NULL)"""


@pytest.fixture
def policy() -> RowPolicy:
    return RowPolicy(POSTGRES, breaker=CircuitBreaker(POSTGRES.id, classify=postgres.classify))


async def made(database: Database, policy: RowPolicy, client: Redis) -> UserAnalytics:
    """On the history of Ann, who is known best, and Bob."""
    for statement in (CALLS, MEMBERS, ROOMS):
        await database.fetch(statement)
    store = CopyStore(client, asyncio.wait_for, MemoryCache(100_000, 300.0), SYSTEM_CLOCK, shared=False)  # type: ignore[arg-type]
    return UserAnalytics(
        Reads(policy, PostgresActivity(database)), KeptCopies(store, "analytics", analytics_of, analytics_version)
    )


async def test_numbers_of_a_user(database: Database, policy: RowPolicy, redis_client: Redis) -> None:
    analytics = await made(database, policy, redis_client)
    ann = await analytics.read("ann", "ann")
    assert not ann.degraded
    assert (ann.value.calls_total, ann.value.minutes_total, ann.value.rooms_total) == (4, 105.0, 1)
    body = analytics_body(ann)
    assert body["last_active_at"] == "2026-03-03T10:00:00.000Z"
    assert "note" not in body
    bob = (await analytics.read("bob", None)).value
    assert (bob.calls_total, bob.minutes_total, bob.rooms_total) == (1, 30.0, 1)
    nobody = (await analytics.read("nobody", None)).value
    assert (nobody.calls_total, nobody.minutes_total, nobody.last_active_at) == (0, 0.0, None)


async def test_another_users_numbers_are_not_shown(database: Database, policy: RowPolicy, redis_client: Redis) -> None:
    analytics = await made(database, policy, redis_client)
    await analytics.read("ann", "ann")
    policy.breaker.force_open()
    with pytest.raises(NotAllowed):
        await analytics.read("ann", "bob")


async def test_a_copy_and_then_safe_defaults_while_the_database_is_away(
    database: Database, policy: RowPolicy, redis_client: Redis
) -> None:
    analytics = await made(database, policy, redis_client)
    fresh = (await analytics.read("ann", "ann")).value
    policy.breaker.force_open()
    copy = await analytics.read("ann", "ann")
    assert copy.value == fresh
    assert [one.fallback for one in copy.degradations] == [MEMORY_CACHE]
    assert copy.as_of is not None
    unknown = await analytics.read("bob", "bob")
    assert unknown.value == Analytics("bob")
    assert [one.fallback for one in unknown.degradations] == [SAFE_DEFAULTS]
    assert unknown.as_of is None
    body = analytics_body(unknown)
    assert body["note"] == NOTE
    assert body["calls_total"] is body["minutes_total"] is body["last_active_at"] is None


@pytest.mark.parametrize("fields", [None, [], {}, {"user_id": None}, {"user_id": 3}])
async def test_a_copy_of_nobody_cannot_be_used(fields: object) -> None:
    assert analytics_of(fields) is None


async def test_odd_fields_of_a_copy_get_their_defaults() -> None:
    odd: dict[str, object] = {
        "user_id": "ann",
        "calls_total": "many",
        "minutes_total": None,
        "last_active_at": [],
        "more": 1,
    }
    assert analytics_of(odd) == Analytics("ann", 0, 0.0, 0, 0.0, None)
