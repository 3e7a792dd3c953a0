"""The write path of row D1 (dashboard.postgres): direct when that is safe, queued when not, and always in order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dashboard.degradation import POSTGRES, REDIS_QUEUE
from dashboard.model import User, UserUnknown
from dashboard.outbound import postgres
from dashboard.outbound.copies import UserCopies
from dashboard.outbound.passwords import Argon2Hasher
from dashboard.outbound.postgres import Database
from dashboard.outbound.queue_target import UserQueueTarget
from dashboard.outbound.users import PostgresUsers
from dashboard.ports import Users
from dashboard.usecases.accounts import Accounts, Queued
from dashboard.usecases.reads import Reads
from resilience import (
    SYSTEM_CLOCK,
    Accepted,
    CircuitBreaker,
    Drainer,
    DrainSettings,
    DurableWriter,
    MemoryCache,
    Operation,
    OperationStatus,
    RowPolicy,
    Served,
    WriteRefused,
    Written,
)
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit.copies import CopyStore

pytestmark = pytest.mark.asyncio(loop_scope="session")


class World:
    """A writer on real servers whose circuit, queue and clock of waiting the test holds in its hand."""

    def __init__(self, database: Database, client: Redis) -> None:
        self.queue_is_away = False
        self.store = RedisQueueStore(client, "dashboard", limit=3, call=self._call)
        breaker = CircuitBreaker(POSTGRES.id, success_threshold=1, classify=postgres.classify)
        self.policy = RowPolicy(POSTGRES, breaker=breaker)
        self.users = PostgresUsers(database)
        settings = DrainSettings(interval=3600, retry_waits=(0.01,) * 3, contended_wait=0.01)
        self.drainer = Drainer(self.store, UserQueueTarget(database), call=self.policy.call, settings=settings)
        self.writer = DurableWriter(self.policy, self.store, self.drainer, fallback=REDIS_QUEUE, settle_wait=5.0)

    async def _call(self, action: Callable[[], Awaitable[Any]]) -> Any:
        if self.queue_is_away:
            raise OSError
        return await action()

    async def rename(self, user_id: str, name: str) -> Served[Written[User] | Accepted]:
        operation = Operation(uuid.uuid4().hex, "user.update", f"user:{user_id}", user_id, {"display_name": name})
        return await self.writer.write(operation, lambda un: self.users.change(operation, unordered=un))

    async def name(self, user_id: str) -> str:
        return (await self.users.get(user_id)).display_name


@pytest.fixture
def world(database: Database, redis_client: Redis) -> World:
    return World(database, redis_client)


@pytest_asyncio.fixture(loop_scope="session")
async def user_id(world: World) -> AsyncIterator[str]:
    new = str(uuid.uuid4())
    payload = {"id": new, "email": f"{new}@example.org", "display_name": "First", "password_hash": "x"}
    await world.users.create(Operation(new, "user.create", f"email:{new}", "", payload))
    yield new


async def test_direct_while_all_is_well(world: World, user_id: str) -> None:
    served = await world.rename(user_id, "direct")
    assert isinstance(served.value, Written)
    assert not served.degraded
    assert (await world.store.stats()).depth == 0


async def test_queued_and_pending_while_the_circuit_is_open(world: World, user_id: str) -> None:
    world.policy.breaker.force_open()
    served = await world.rename(user_id, "queued")
    assert isinstance(served.value, Accepted)
    assert served.value.record.status is OperationStatus.QUEUED
    assert [degradation.fallback for degradation in served.degradations] == [REDIS_QUEUE]
    assert [o.payload for o in await world.writer.pending(f"user:{user_id}")] == [{"display_name": "queued"}]
    assert await world.name(user_id) == "First"


async def test_a_write_after_recovery_waits_for_the_older_one(world: World, user_id: str) -> None:
    world.policy.breaker.force_open()
    await world.rename(user_id, "older")
    world.policy.breaker.reset()
    draining = asyncio.create_task(world.drainer.run())
    served = await world.rename(user_id, "newer")
    draining.cancel()
    assert isinstance(served.value, Accepted)
    assert served.value.record.status is OperationStatus.APPLIED
    assert not served.degraded
    assert await world.name(user_id) == "newer"
    assert (await world.users.get(user_id)).revision == 3


async def test_a_write_that_cannot_be_applied_is_no_promise(
    world: World, database: Database, redis_client: Redis, user_id: str
) -> None:
    """The account vanished during the outage: the author of the next change hears that, not that it is queued."""
    memory = MemoryCache(1_000_000, 60)
    copies = UserCopies(CopyStore(redis_client, world.policy.call, memory, SYSTEM_CLOCK))
    reads: Reads[Users] = Reads(world.policy, world.users)
    accounts = Accounts(world.users, reads, copies, world.policy, world.writer, Argon2Hasher(), key_secret=b"k")
    world.policy.breaker.force_open()
    assert isinstance((await accounts.change(user_id, user_id, {"display_name": "queued"}, None)).value, Queued)
    await database.fetch("DELETE FROM users WHERE id = $1", user_id)
    world.policy.breaker.reset()
    draining = asyncio.create_task(world.drainer.run())
    with pytest.raises(UserUnknown):
        await accounts.change(user_id, user_id, {"display_name": "newer"}, None)
    draining.cancel()


class Gone(PostgresUsers):
    """A database that refuses connections from now on."""

    async def get(self, user_id: str) -> User:
        raise ConnectionRefusedError


async def test_the_first_read_that_finds_the_database_gone_shows_what_another_instance_has_queued(
    world: World, database: Database, redis_client: Redis, user_id: str
) -> None:
    other = World(database, redis_client)
    copies = UserCopies(CopyStore(redis_client, other.policy.call, MemoryCache(1_000_000, 60), SYSTEM_CLOCK))
    copies.keep(await world.users.get(user_id))
    world.policy.breaker.force_open()
    await world.rename(user_id, "queued elsewhere")
    reads: Reads[Users] = Reads(other.policy, Gone(database))
    accounts = Accounts(other.users, reads, copies, other.policy, other.writer, Argon2Hasher(), key_secret=b"k")
    served = await accounts.read(user_id, user_id)
    assert (served.degraded, served.pending, served.value.display_name) == (True, True, "queued elsewhere")


async def test_a_full_queue_refuses(world: World, user_id: str) -> None:
    world.policy.breaker.force_open()
    for number in range(3):
        await world.rename(user_id, f"n{number}")
    with pytest.raises(WriteRefused) as refused:
        await world.rename(user_id, "one too many")
    assert refused.value.full


async def test_without_queue_and_database_nothing_is_accepted(world: World, user_id: str) -> None:
    world.policy.breaker.force_open()
    world.queue_is_away = True
    with pytest.raises(WriteRefused) as refused:
        await world.rename(user_id, "nowhere")
    assert not refused.value.full
    world.queue_is_away = False
    assert (await world.store.stats()).depth == 0


async def test_without_the_queue_a_direct_write_is_not_undone_by_an_older_one(world: World, user_id: str) -> None:
    world.policy.breaker.force_open()
    await world.rename(user_id, "older, queued")
    world.policy.breaker.reset()
    world.queue_is_away = True
    await asyncio.sleep(0.002)  # the two servers' clocks tick in milliseconds
    served = await world.rename(user_id, "newer, direct")
    assert isinstance(served.value, Written)
    world.queue_is_away = False
    await world.drainer.drain()
    assert await world.name(user_id) == "newer, direct"
    assert (await world.users.get(user_id)).revision == 3, "both count"
