"""The write queue of row D1 (dashboard.postgres) on real servers: once, in order, nothing lost, nothing silent."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dashboard.model import WriteFailed
from dashboard.outbound.postgres import Database
from dashboard.outbound.queue_target import UserQueueTarget
from dashboard.outbound.users import PostgresUsers
from resilience import (
    Drainer,
    DrainSettings,
    Entry,
    Operation,
    OperationStatus,
    QueueFull,
    QueueUnavailable,
    Result,
)
from resilience.integrations.redis_queue import RedisQueueStore

pytestmark = pytest.mark.asyncio(loop_scope="session")
FAST = DrainSettings(batch_size=50, retry_waits=(0.01, 0.01, 0.01), contended_wait=0.01)


async def plain(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


@pytest.fixture
def store(redis_client: Redis) -> RedisQueueStore:
    return RedisQueueStore(redis_client, "dashboard", limit=500)


@pytest.fixture
def drainer(store: RedisQueueStore, database: Database) -> Drainer:
    return Drainer(store, UserQueueTarget(database), call=plain, settings=FAST)


def create(name: str = "First") -> Operation:
    user_id = str(uuid.uuid4())
    payload = {"id": user_id, "email": f"{user_id}@example.org", "display_name": name, "password_hash": "x"}
    return Operation(uuid.uuid4().hex, "user.create", f"email:{user_id}", "", payload)


def rename(user_id: str, name: str, **fields: Any) -> Operation:
    return Operation(uuid.uuid4().hex, "user.update", f"user:{user_id}", user_id, {"display_name": name}, **fields)


@pytest_asyncio.fixture(loop_scope="session")
async def users(database: Database) -> AsyncIterator[list[str]]:
    """Ids of five accounts."""
    made = [await PostgresUsers(database).create(create()) for _ in range(5)]
    yield [user.id for user in made]


async def name_of(database: Database, user_id: str) -> str:
    return (await PostgresUsers(database).get(user_id)).display_name


async def test_applied_once_in_order_and_forgotten(
    store: RedisQueueStore, drainer: Drainer, database: Database, users: list[str]
) -> None:
    operations = [rename(random.choice(users), f"name {number}") for number in range(200)]
    for operation in operations:
        await store.append(operation)
    assert (await store.stats()).depth == 200
    assert await drainer.drain() == 200
    for user_id in users:
        own = [o for o in operations if o.owner == user_id]
        user = await PostgresUsers(database).get(user_id)
        assert user.display_name == own[-1].payload["display_name"]
        assert user.revision == 1 + len(own)
        assert await store.waiting(f"user:{user_id}") == []
    stats = await store.stats()
    assert (stats.depth, stats.dead, stats.oldest_age) == (0, 0, 0.0)
    record = await store.record(operations[0].id)
    assert record is not None
    assert record.status is OperationStatus.APPLIED
    assert record.operation is not None
    assert record.operation.owner == operations[0].owner


async def test_a_crash_between_commit_and_settling_changes_nothing(
    store: RedisQueueStore, drainer: Drainer, database: Database, users: list[str]
) -> None:
    operation = rename(users[0], "once")
    await store.append(operation)
    async with UserQueueTarget(database).session() as session:
        assert session is not None
        await session.apply([operation])  # committed; the drainer dies here
    assert await drainer.drain() == 1
    assert (await PostgresUsers(database).get(users[0])).revision == 2


async def test_repeating_an_accepted_operation_is_the_same_operation(
    store: RedisQueueStore, drainer: Drainer, users: list[str]
) -> None:
    operation = rename(users[0], "again")
    first, second = await store.append(operation), await store.append(operation)
    assert (first.status, second.status) == (OperationStatus.QUEUED, OperationStatus.QUEUED)
    assert (await store.stats()).depth == 1
    await drainer.drain()
    assert (await store.append(operation)).status is OperationStatus.APPLIED
    assert (await store.stats()).depth == 0


async def test_two_drainers_at_once(
    store: RedisQueueStore, drainer: Drainer, database: Database, users: list[str]
) -> None:
    other = Drainer(store, UserQueueTarget(database), call=plain, settings=FAST)
    for number in range(300):
        await store.append(rename(users[number % 5], f"n{number}"))
    await asyncio.gather(drainer.drain(), other.drain())
    assert (await store.stats()).depth == 0
    assert [await name_of(database, user_id) for user_id in users] == [f"n{295 + index}" for index in range(5)]
    assert [(await PostgresUsers(database).get(user_id)).revision for user_id in users] == [61] * 5


async def test_a_failing_operation_holds_back_its_entity_only_and_is_buried_after_three_retries(
    store: RedisQueueStore, drainer: Drainer, database: Database, users: list[str]
) -> None:
    poison = rename(users[0], "bad \x00 byte")
    await store.append(poison)
    await store.append(rename(users[0], "after the bad one"))
    await store.append(rename(users[1], "somebody else"))
    await drainer.drain()
    assert await name_of(database, users[0]) == "after the bad one"
    assert await name_of(database, users[1]) == "somebody else"
    (letter,) = await store.dead(10)
    assert letter["id"] == poison.id
    assert letter["reason"] == "failed"
    record = await store.record(poison.id)
    assert record is not None
    assert record.status is OperationStatus.DEAD


async def test_a_retry_that_is_due_at_once_still_goes_before_later_writes(
    store: RedisQueueStore, database: Database
) -> None:
    """The account appears after the first attempt: the older write has to be repeated before the newer one is tried."""
    new = create()
    user_id = new.payload["id"]
    attempts = 0

    async def call(action: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal attempts
        result = await action()
        attempts += 1
        if attempts == 1:
            await PostgresUsers(database).create(new)
        return result

    await store.append(rename(user_id, "older"))
    await store.append(rename(user_id, "newer"))
    settings = DrainSettings(batch_size=1, retry_waits=(0.0, 0.0, 0.0), contended_wait=0.01)
    await Drainer(store, UserQueueTarget(database), call=call, settings=settings).drain()
    assert await name_of(database, user_id) == "newer"
    assert (await PostgresUsers(database).get(user_id)).revision == 3


async def test_after_a_burial_the_rest_of_the_entity_keeps_its_order(
    store: RedisQueueStore, database: Database, users: list[str]
) -> None:
    await store.append(rename(users[0], "bad \x00 byte"))
    for number in range(5):
        await store.append(rename(users[0], f"n{number}"))
    settings = DrainSettings(batch_size=2, retry_waits=(), contended_wait=0.01)
    await Drainer(store, UserQueueTarget(database), call=plain, settings=settings).drain()
    assert await name_of(database, users[0]) == "n4"
    assert (await store.stats()).dead == 1


async def test_failing_attempts_are_visible_while_they_last(
    store: RedisQueueStore, database: Database, users: list[str]
) -> None:
    slow = DrainSettings(retry_waits=(30.0, 30.0, 30.0))
    drainer = Drainer(store, UserQueueTarget(database), call=plain, settings=slow)
    await store.append(rename(str(uuid.uuid4()), "nobody"))
    draining = asyncio.create_task(drainer.drain())
    async with asyncio.timeout(10):
        while not (await store.list(1))[0]["attempts"]:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
    draining.cancel()
    (item,) = await store.list(10)
    assert (item["attempts"], item["last_error"]) == (1, "NOT_FOUND")


async def test_conflict_and_unknown_kind_are_buried(
    store: RedisQueueStore, drainer: Drainer, database: Database
) -> None:
    first = create()
    twin = Operation(uuid.uuid4().hex, "user.create", first.entity, "", {**first.payload, "id": str(uuid.uuid4())})
    await store.append(first)
    await store.append(twin)
    await store.append(Operation(uuid.uuid4().hex, "user.explode", "user:x", "", {}))
    await drainer.drain()
    assert sorted(letter["error"] for letter in await store.dead(10)) == ["CONFLICT", "unknown kind user.explode"]
    assert await name_of(database, first.payload["id"]) == "First"


async def test_malformed_items_are_buried_whole(store: RedisQueueStore, drainer: Drainer, redis_client: Redis) -> None:
    for body in (b"no json", b"[]", b'{"id": 1}', b"\xff\xfe"):
        await redis_client.xadd("fallback:queue:dashboard", {"op": body})
    await drainer.drain()
    letters = await store.dead(10)
    assert [letter["reason"] for letter in letters] == ["malformed"] * 4
    assert await store.discard(letters[0]["id"])
    assert (await store.stats()).dead == 3


async def test_expired_operations_are_buried_and_can_be_replayed(
    store: RedisQueueStore, database: Database, users: list[str]
) -> None:
    operation = rename(users[0], "too late")
    await store.append(operation)
    expiring = Drainer(store, UserQueueTarget(database), call=plain, settings=DrainSettings(ttl=-1))
    await expiring.drain()
    (letter,) = await store.dead(10)
    assert letter["reason"] == "expired"
    assert await name_of(database, users[0]) == "First"
    assert await store.replay(operation.id)
    assert not await store.replay(operation.id)
    await Drainer(store, UserQueueTarget(database), call=plain, settings=FAST).drain()
    assert await name_of(database, users[0]) == "too late"
    assert (await store.stats()).dead == 0


async def test_a_buried_operation_cannot_be_applied_by_a_late_duplicate(
    store: RedisQueueStore, database: Database, users: list[str]
) -> None:
    operation = rename(users[0], "late duplicate")
    await store.append(operation)
    await Drainer(store, UserQueueTarget(database), call=plain, settings=DrainSettings(ttl=-1)).drain()
    with pytest.raises(WriteFailed):
        await PostgresUsers(database).change(operation, unordered=False)
    assert await name_of(database, users[0]) == "First"


async def test_full_queue_refuses_and_keeps_nothing(redis_client: Redis, users: list[str]) -> None:
    store = RedisQueueStore(redis_client, "dashboard", limit=2)
    await store.append(rename(users[0], "one"))
    await store.append(rename(users[0], "two"))
    with pytest.raises(QueueFull):
        await store.append(rename(users[0], "three"))
    assert len(await store.waiting(f"user:{users[0]}")) == 2


async def test_an_older_queued_write_does_not_undo_a_newer_direct_one(
    store: RedisQueueStore, drainer: Drainer, database: Database, users: list[str]
) -> None:
    """The direct write was made while the queue could not be asked; what was queued after it still counts."""
    await store.append(rename(users[0], "older"))
    await asyncio.sleep(0.002)  # the two servers' clocks tick in milliseconds
    await PostgresUsers(database).change(rename(users[0], "newer, direct"), unordered=True)
    await store.append(rename(users[1], "somebody else"))
    await drainer.drain()
    assert await name_of(database, users[0]) == "newer, direct"
    await store.append(rename(users[0], "older again"))
    await asyncio.sleep(0.002)
    await PostgresUsers(database).change(rename(users[0], "direct again"), unordered=True)
    await asyncio.sleep(0.002)
    await store.append(rename(users[0], "newest"))
    await drainer.drain()
    assert await name_of(database, users[0]) == "newest"


async def test_create_rename_delete_in_one_batch(store: RedisQueueStore, drainer: Drainer, database: Database) -> None:
    new = create()
    user_id = new.payload["id"]
    chain: Sequence[Operation] = [
        Operation(new.id, new.kind, f"user:{user_id}", "", new.payload),
        rename(user_id, "second"),
        rename(user_id, "third"),
    ]
    for operation in chain:
        await store.append(operation)
    await drainer.drain()
    assert await name_of(database, user_id) == "third"
    await store.append(Operation(uuid.uuid4().hex, "user.delete", f"user:{user_id}", user_id, {}))
    await drainer.drain()
    assert await database.fetchrow("SELECT 1 FROM users WHERE id = $1", user_id) is None


async def test_store_away_is_said_and_nothing_is_accepted(redis_client: Redis, users: list[str]) -> None:
    async def away(_: Callable[[], Awaitable[Any]]) -> Any:
        raise OSError

    store = RedisQueueStore(redis_client, "dashboard", call=away)
    with pytest.raises(QueueUnavailable):
        await store.append(rename(users[0], "lost?"))


async def test_an_append_that_arrives_after_its_deadline_has_no_effect(redis_client: Redis, users: list[str]) -> None:
    """What a frozen Redis does when it wakes up after the caller was told that nothing was accepted."""
    store = RedisQueueStore(redis_client, "dashboard", timeout=-0.001)
    await store.stats()
    with pytest.raises(QueueUnavailable):
        await store.append(rename(users[0], "zombie"))
    assert (await store.stats()).depth == 0


async def test_results_carry_fresh_users(store: RedisQueueStore, database: Database, users: list[str]) -> None:
    seen: list[Result] = []

    async def remember(results: Sequence[Result]) -> None:
        seen.extend(results)

    await store.append(rename(users[0], "fresh"))
    await Drainer(store, UserQueueTarget(database), call=plain, settings=FAST, on_applied=remember).drain()
    assert [result.value.display_name for result in seen] == ["fresh"]


async def test_entries_of_a_read_carry_the_servers_time(store: RedisQueueStore, users: list[str]) -> None:
    await store.append(rename(users[0], "now"))
    entries, now = await store.read(10)
    entry: Entry = entries[0]
    assert entry.operation is not None
    assert 0 <= now - entry.operation.accepted_at < 5
