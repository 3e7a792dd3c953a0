"""Row A3 on a real Valkey: copies that outlive it in memory, never go back in time, and come back with it."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.model import AgentUnknown
from resilience import MISSING, CircuitBreakerOpen
from services.ai_core.tests.agents_world import AgentsWorld, somebody

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def world(engine: AsyncEngine, redis_client: Redis) -> AgentsWorld:
    return AgentsWorld(engine, redis_client)


@pytest_asyncio.fixture(loop_scope="session")
async def other(engine: AsyncEngine, redis_client: Redis) -> AgentsWorld:
    """A second instance on the same servers."""
    return AgentsWorld(engine, redis_client)


async def test_without_redis_everything_works_directly(world: AgentsWorld) -> None:
    world.redis_is_away = True
    owner = somebody()
    agent = await world.agent(owner)
    assert not (await world.agents.update(owner, agent.id, {"name": "Bea"})).value.operation_id
    replied = await world.chat.reply(owner, agent.id, "hello")
    assert not replied.degraded
    shown = await world.conversations.get(owner, agent.id, replied.value.conversation_id)
    assert ([turn.content for turn in shown.value.turns], shown.degraded) == (["hello", "answer of gpt-4"], False)
    assert [one.name for one in (await world.agents.page(owner)).value.items] == ["Bea"]
    await world.agents.delete(owner, agent.id)
    assert (await world.agents.page(owner)).value.items == []


async def test_when_redis_is_back_nothing_stale_is_written_over_newer_copies(
    world: AgentsWorld, other: AgentsWorld
) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    await world.agents.page(owner)
    world.redis_is_away = True  # this instance alone: its copies wait to be written
    world.stored.keep(agent)
    await other.agents.update(owner, agent.id, {"name": "newer"})
    await other.agents.page(owner)
    await other.copies.flush_all()
    world.redis_is_away = False
    world.copies.rewrite_all()
    world.stored.keep(agent)
    await world.copies.flush_all()
    other.database_goes()
    other.memory.clear()
    assert (await other.agents.get(owner, agent.id)).value.name == "newer"
    assert [one.name for one in (await other.agents.page(owner)).value.items] == ["newer"]


async def test_what_one_instance_deletes_no_other_serves_again(world: AgentsWorld, other: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    await world.copies.flush_all()
    await other.agents.get(owner, agent.id)
    await world.agents.delete(owner, agent.id)
    await world.copies.flush_all()
    other.copies.rewrite_all()
    other.stored.keep(agent)  # a read that the deletion has overtaken
    await other.copies.flush_all()
    step = world.stored.agent(owner, agent.id)[0]
    world.memory.clear()
    with pytest.raises(AgentUnknown):
        await step.call(RuntimeError())


async def test_a_copy_that_another_version_wrote_is_none(world: AgentsWorld, redis_client: Redis) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    await world.copies.flush_all()
    for value in (b"", b"7", b"1 {}", b'1 [1, {"id": 5}]', b'1 [1, {"items": 3}]', b"1 [1, null]", b"\xff"):
        for key in (f"copy:ai:agent:{owner}:{agent.id}", f"copy:ai:agents:{owner}"):
            await redis_client.set(key, value)
        for step in (world.stored.agent(owner, agent.id)[0], world.stored.page(owner, 5, None)[0]):
            assert await step.call(RuntimeError()) is MISSING


async def test_concurrent_changes_leave_the_newest_copy(world: AgentsWorld, other: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    await asyncio.gather(
        *((world, other)[number % 2].agents.update(owner, agent.id, {"name": f"n{number}"}) for number in range(20))
    )
    live = (await world.store.get(owner, agent.id)).name
    await asyncio.gather(world.copies.flush_all(), other.copies.flush_all())
    world.memory.clear()
    world.database_goes()
    assert (await world.agents.get(owner, agent.id)).value.name == live


async def test_keys_of_owners_never_meet(world: AgentsWorld) -> None:
    """An owner whose name looks like a part of another's key gets nothing of it."""
    owner = somebody()
    agent = await world.agent(owner)
    await world.copies.flush_all()
    world.database_goes()
    for eve in (f"{owner}:{agent.id}", owner[:-1], f"{owner}:", ""):
        with pytest.raises(CircuitBreakerOpen):
            await world.agents.get(eve, agent.id)
        with pytest.raises(CircuitBreakerOpen):
            await world.agents.page(eve)
