"""The write queue of row A1 on real servers: once, in order, nothing lost, whichever of two drainers dies when."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.model import WriteFailed
from resilience import Operation
from services.ai_core.tests.agents_world import AgentsWorld, somebody

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def world(engine: AsyncEngine, redis_client: Redis) -> AgentsWorld:
    return AgentsWorld(engine, redis_client)


def rename(world: AgentsWorld, owner: str, agent_id: str, name: str) -> Operation:
    payload: dict[str, Any] = {"id": agent_id, "fields": {"name": name}}
    return world.writes.operation("agent.update", f"agents:{owner}", owner, payload)


def said(world: AgentsWorld, owner: str, agent_id: str, conversation: str, text: str) -> Operation:
    payload = {"agent": agent_id, "id": conversation, "turns": [{"role": "user", "content": text}]}
    return world.writes.operation("conversation.append", f"agents:{owner}", owner, payload)


async def name_of(world: AgentsWorld, owner: str, agent_id: str) -> str:
    return (await world.store.get(owner, agent_id)).name


async def test_hundreds_of_writes_of_several_owners_are_applied_in_order_by_two_drainers(world: AgentsWorld) -> None:
    owners = [somebody() for _ in range(5)]
    agents = [await world.agent(owner) for owner in owners]
    conversation = str(uuid.uuid4())
    for number in range(60):
        for owner, agent in zip(owners, agents, strict=True):
            await world.queue.append(rename(world, owner, agent.id, f"name {number}"))
            await world.queue.append(said(world, owner, agent.id, conversation, f"turn {number}"))
    drainers = [world.another_drainer(batch_size=50), world.another_drainer(batch_size=50)]
    async with asyncio.timeout(60):
        while (await world.queue.stats()).depth:  # a drain ends at a limit of time, which a busy machine may reach
            await asyncio.gather(*(drainer.drain() for drainer in drainers))
    stats = await world.queue.stats()
    assert (stats.depth, stats.dead) == (0, 0)
    for owner, agent in zip(owners, agents, strict=True):
        found, history = await world.store.opened(owner, agent.id, conversation)
        assert found.name == "name 59"
        assert history is not None
        assert [turn.content for turn in history.turns] == [f"turn {number}" for number in range(40, 60)]


async def test_a_crash_between_commit_and_settling_changes_nothing(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    operation = said(world, owner, agent.id, str(uuid.uuid4()), "once")
    await world.queue.append(operation)
    async with world.target.session() as session:
        assert session is not None
        await session.apply([operation])  # committed; the drainer dies here
    assert await world.drainer.drain() == 1
    _, history = await world.store.opened(owner, agent.id, operation.payload["id"])
    assert history is not None
    assert [turn.content for turn in history.turns] == ["once"]


async def test_a_direct_write_whose_answer_was_lost_and_that_was_queued_is_one(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    operation = said(world, owner, agent.id, str(uuid.uuid4()), "once")
    await world.settled.commit(operation, unordered=False)
    await world.queue.append(operation)
    await world.drainer.drain()
    await world.settled.commit(operation, unordered=False)
    _, history = await world.store.opened(owner, agent.id, operation.payload["id"])
    assert history is not None
    assert len(history.turns) == 1


async def test_a_refused_write_holds_back_its_owner_only_and_is_buried(world: AgentsWorld) -> None:
    alice, bob = somebody(), somebody()
    hers, his = await world.agent(alice), await world.agent(bob)
    nobody = rename(world, alice, str(uuid.uuid4()), "nobody")
    for operation in (
        nobody,
        rename(world, alice, hers.id, "after the bad one"),
        rename(world, bob, his.id, "somebody else"),
        Operation(uuid.uuid4().hex, "agent.explode", f"agents:{bob}", bob, {}),
        rename(world, bob, his.id, "bad \x00 byte"),
        rename(world, bob, his.id, "last"),
    ):
        await world.queue.append(operation)
    await world.drainer.drain()
    assert await name_of(world, alice, hers.id) == "after the bad one"
    assert await name_of(world, bob, his.id) == "last"
    errors = sorted(letter["error"] for letter in await world.queue.dead(10))
    assert errors[0] == "DBAPIError"
    assert errors[1:] == ["NOT_FOUND", "unknown kind agent.explode"]
    with pytest.raises(WriteFailed):
        await world.settled.commit(nobody, unordered=False)


async def test_an_expired_write_is_buried_and_can_be_replayed(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    operation = rename(world, owner, agent.id, "too late")
    await world.queue.append(operation)
    await world.another_drainer(ttl=-1.0).drain()
    [letter] = await world.queue.dead(10)
    assert letter["reason"] == "expired"
    with pytest.raises(WriteFailed):
        await world.settled.commit(operation, unordered=False)
    assert await world.queue.replay(operation.id)
    await world.drainer.drain()
    assert await name_of(world, owner, agent.id) == "too late"


async def test_an_older_queued_change_does_not_undo_one_made_without_asking_the_queue(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    older = rename(world, owner, agent.id, "older")
    await world.queue.append(older)
    world.redis_is_away = True
    await world.agents.update(owner, agent.id, {"name": "newer, direct"})
    world.redis_is_away = False
    await world.drainer.drain()
    assert await name_of(world, owner, agent.id) == "newer, direct"
    await world.queue.append(rename(world, owner, agent.id, "newest"))
    await world.drainer.drain()
    assert await name_of(world, owner, agent.id) == "newest"
    assert (await world.queue.stats()).dead == 0


async def test_a_conversation_deleted_without_asking_the_queue_stays_deleted(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    await world.queue.append(said(world, owner, agent.id, conversation, "older"))
    world.redis_is_away = True
    await world.conversations.delete(owner, agent.id, conversation)
    world.redis_is_away = False
    await world.drainer.drain()
    assert (await world.store.opened(owner, agent.id, conversation))[1] is None
    assert await world.store.conversations(owner, agent.id, 10, None) == []
    await world.queue.append(said(world, owner, agent.id, conversation, "anew"))
    await world.drainer.drain()
    history = (await world.store.opened(owner, agent.id, conversation))[1]
    assert history is not None
    assert [turn.content for turn in history.turns] == ["anew"]


async def test_deleting_twice_what_is_gone_buries_nothing(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    for _ in range(2):
        await world.queue.append(world.writes.operation("agent.delete", f"agents:{owner}", owner, {"id": agent.id}))
    await world.queue.append(said(world, owner, agent.id, str(uuid.uuid4()), "to nobody"))
    await world.drainer.drain()
    stats = await world.queue.stats()
    assert (stats.depth, stats.dead) == (0, 0)


async def test_old_fences_are_forgotten(world: AgentsWorld, engine: AsyncEngine) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    operation = rename(world, owner, agent.id, "x")
    await world.settled.commit(operation, unordered=False)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"UPDATE operations SET settled_at = now() - interval '2 days' WHERE id = '{operation.id}'"
        )
    await world.settled.prune()
    assert await world.settled.operation(operation.id) is None
