"""What the simulation found in the queue's store (row D1, dashboard.postgres), on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from dashboard.outbound.postgres import Database
from dashboard.outbound.queue_target import UserQueueTarget
from resilience import Drainer, DrainSettings, Operation, OperationStatus, QueueFull, QueueUnavailable
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen
from resilience.integrations.redis_queue import RedisQueueStore
from resilience.queue import Burial, QueueUnanswered

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOBODY = "00000000-0000-4000-8000-000000000000"


def rename(number: int) -> Operation:
    return Operation(f"operation{number}", "user.update", f"user:{NOBODY}", NOBODY, {"display_name": "x"})


async def buried(store: RedisQueueStore, number: int) -> Operation:
    """A dead letter."""
    operation = rename(number)
    await store.append(operation)
    (entry,) = [one for one in (await store.read(100))[0] if one.operation and one.operation.id == operation.id]
    await store.settle([], [Burial(entry, "failed", "NOT_FOUND")])
    return operation


@pytest.fixture
def store(redis_client: Redis) -> RedisQueueStore:
    return RedisQueueStore(redis_client, "dashboard", limit=2)


async def test_a_failure_is_not_noted_of_an_operation_that_waits_no_more(
    store: RedisQueueStore, redis_client: Redis
) -> None:
    """Two drainers: the slower one comes with its failure when the other one has buried or settled the operation."""
    dead = await buried(store, 1)
    assert await store.note_failure(dead.id, "late") == 0
    assert await store.note_failure("never heard of", "late") == 0
    assert await redis_client.exists("fallback:attempts:dashboard") == 0
    assert await store.replay(dead.id)
    assert [await store.note_failure(dead.id, "again") for _ in range(2)] == [1, 2]
    assert (await store.list(10))[0]["last_error"] == "again"


async def test_a_discard_that_loses_against_a_replay_leaves_the_replayed_one_alone(
    store: RedisQueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = await buried(store, 1)
    letter_of = store._letter_of

    async def overtaken(operation_id: str) -> Any:
        found = await letter_of(operation_id)
        monkeypatch.setattr(store, "_letter_of", letter_of)
        assert await store.replay(operation_id)
        return found

    monkeypatch.setattr(store, "_letter_of", overtaken)
    assert not await store.discard(operation.id)
    record = await store.record(operation.id)
    assert record is not None
    assert record.status is OperationStatus.QUEUED
    assert (await store.append(operation)).status is OperationStatus.QUEUED
    assert (await store.stats()).depth == 1


async def test_a_replay_keeps_to_the_limit(store: RedisQueueStore) -> None:
    operation = await buried(store, 1)
    for number in (2, 3):
        await store.append(rename(number))
    with pytest.raises(QueueFull):
        await store.replay(operation.id)
    assert ((await store.stats()).depth, (await store.stats()).dead) == (2, 1)


async def test_a_letter_that_cannot_be_found_does_not_keep_clear_busy_for_ever(
    store: RedisQueueStore, redis_client: Redis
) -> None:
    await buried(store, 1)
    await buried(store, 2)
    await redis_client.hdel("fallback:index:dashboard", "operation1")
    async with asyncio.timeout(5):
        assert await store.clear() == 1


async def test_what_was_accepted_before_and_discarded_is_not_called_applied(
    store: RedisQueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = await buried(store, 1)

    async def nothing(_: str) -> None:
        return None

    monkeypatch.setattr(store, "record", nothing)
    assert (await store.append(operation)).status is OperationStatus.DEAD


async def test_what_was_accepted_before_stays_so_when_its_status_cannot_be_asked(
    store: RedisQueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = rename(1)
    await store.append(operation)

    async def away(_: str) -> None:
        raise QueueUnavailable

    monkeypatch.setattr(store, "record", away)
    assert (await store.append(operation)).status is OperationStatus.QUEUED


@pytest.mark.parametrize(
    ("error", "begun", "unanswered"),
    [
        (CallTimeout("redis", 0.6), True, True),
        (ConnectionResetError(), True, True),
        (CallTimeout("redis", 0.0), False, False),
        (CircuitBreakerOpen("redis"), False, False),
        (BulkheadFull("redis"), False, False),
    ],
)
async def test_an_append_that_was_not_answered_is_not_called_refused(
    redis_client: Redis, error: Exception, begun: bool, unanswered: bool
) -> None:
    async def call(action: Callable[[], Awaitable[Any]]) -> Any:
        if begun:
            await action()  # it is carried out, and the answer is lost
        raise error

    store = RedisQueueStore(redis_client, "dashboard", call=call)
    with pytest.raises(QueueUnavailable) as refused:
        await store.append(rename(1))
    assert isinstance(refused.value, QueueUnanswered) is unanswered
    assert (await RedisQueueStore(redis_client, "dashboard").stats()).depth == begun


async def test_expired_but_applied_before_is_no_dead_letter(redis_client: Redis, database: Database) -> None:
    """The commit's answer was lost, and the database stayed away for longer than the queue keeps a write."""

    async def plain(action: Callable[[], Awaitable[Any]]) -> Any:
        return await action()

    store = RedisQueueStore(redis_client, "dashboard")
    made = Operation(
        "creation",
        "user.create",
        f"user:{NOBODY}",
        "",
        {"id": NOBODY, "email": "a@example.org", "display_name": "First", "password_hash": "x"},
    )
    await store.append(made)
    async with UserQueueTarget(database).session() as session:
        assert session is not None
        await session.apply([made])
    expiring = Drainer(store, UserQueueTarget(database), call=plain, settings=DrainSettings(ttl=-1))
    assert await expiring.drain() == 1
    assert ((await store.stats()).depth, (await store.stats()).dead) == (0, 0)
    record = await store.record(made.id)
    assert record is not None
    assert record.status is OperationStatus.APPLIED
