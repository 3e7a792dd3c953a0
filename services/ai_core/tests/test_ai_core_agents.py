"""Agents on real servers: an owner's own, made once, readable and writable without the database (row A1)."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

import ai_core.outbound.postgres as postgres_module
from ai_core.model import AgentUnknown, IdTaken, Invalid, KeyReused, OperationUnknown, TooManyAgents, WriteFailed
from resilience import CircuitBreakerOpen, OperationStatus, WriteRefused
from services.ai_core.tests.agents_world import AgentsWorld, somebody

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def world(engine: AsyncEngine, redis_client: Redis) -> AgentsWorld:
    return AgentsWorld(engine, redis_client)


async def names(world: AgentsWorld, owner: str) -> list[str]:
    return [agent.name for agent in (await world.agents.page(owner)).value.items]


async def test_agents_belong_to_their_owner(world: AgentsWorld) -> None:
    owner, eve = somebody(), somebody()
    agent = await world.agent(owner)
    for attempt in (
        world.agents.get(eve, agent.id),
        world.agents.update(eve, agent.id, {"name": "Eve"}),
        world.agents.delete(eve, agent.id),
        world.conversations.page(eve, agent.id),
        world.chat.reply(eve, agent.id, "hello"),
        world.agents.get(owner, "not-an-id"),
    ):
        with pytest.raises(AgentUnknown):
            await attempt
    assert await names(world, eve) == []
    assert (await world.agents.get(owner, agent.id)).value == agent


async def test_nobody_is_served_anothers_copy(world: AgentsWorld) -> None:
    owner, eve = somebody(), somebody()
    agent = await world.agent(owner)
    assert await names(world, owner) == ["Ada"]
    world.database_goes()
    for attempt in (world.agents.get(eve, agent.id), world.agents.page(eve)):
        with pytest.raises(CircuitBreakerOpen):
            await attempt
    assert (await world.agents.get(owner, agent.id)).value == agent
    with pytest.raises(CircuitBreakerOpen):
        await world.chat.reply(eve, agent.id, "hello")


async def test_pages_show_every_agent_once_newest_first(world: AgentsWorld) -> None:
    owner = somebody()
    for number in range(5):
        await world.agent(owner, name=f"agent {number}")
    assert await paged(world, owner) == [f"agent {number}" for number in (4, 3, 2, 1, 0)]
    with pytest.raises(Invalid):
        await world.agents.page(owner, 101)


async def paged(world: AgentsWorld, owner: str) -> list[str]:
    seen, cursor = [], ""
    while True:
        page = (await world.agents.page(owner, 2, cursor)).value
        seen += [agent.name for agent in page.items]
        if not (cursor := page.next_cursor):
            return seen


async def test_an_update_changes_what_it_names(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    changed = (await world.agents.update(owner, agent.id, {"name": "Bea"})).value.value
    assert changed is not None
    assert (changed.name, changed.system_prompt) == ("Bea", "Be brief.")
    assert changed.updated_at > agent.updated_at
    assert (await world.agents.update(owner, agent.id, {})).value.value == changed
    with pytest.raises(Invalid):
        await world.agents.update(owner, agent.id, {"message": "x"})
    await world.agents.delete(owner, agent.id)
    with pytest.raises(AgentUnknown):
        await world.agents.get(owner, agent.id)


async def test_a_key_makes_one_agent_however_often_and_at_once_it_is_sent(world: AgentsWorld) -> None:
    owner, texts = somebody(), ("Ada", "", "")
    made = await asyncio.gather(*(world.agents.create(owner, *texts, "key") for _ in range(8)))
    assert len({one.value.value.id for one in made}) == 1
    assert await names(world, owner) == ["Ada"]
    with pytest.raises(KeyReused):
        await world.agents.create(owner, "Bea", "", "", "key")
    other = await world.agents.create(somebody(), *texts, "key")
    assert other.value.value.id != made[0].value.value.id
    await world.agents.delete(owner, made[0].value.value.id)
    with pytest.raises(KeyReused):
        await world.agents.create(owner, *texts, "key")


async def test_an_abandoned_key_makes_nothing_any_more_also_from_the_queue(world: AgentsWorld) -> None:
    owner = somebody()
    world.database_goes()
    queued = (await world.agents.create(owner, "Late", "", "", "late")).value
    world.policy.breaker.reset()
    await world.agents.abandon(owner, "late")
    await world.drainer.drain()
    assert await names(world, owner) == []
    record = (await world.operations.status(owner, queued.operation_id)).value
    assert (record.status, record.error) == (OperationStatus.DEAD, "CONFLICT")
    with pytest.raises(WriteFailed):
        await world.agents.create(owner, "Late", "", "", "late")


async def test_an_agent_gets_the_id_that_its_caller_chose(world: AgentsWorld) -> None:
    owner, chosen = somebody(), str(uuid.uuid4())
    made = (await world.agents.create(owner, "Ada", "", "", "key", chosen)).value.value
    assert made.id == chosen
    assert (await world.agents.create(owner, "Ada", "", "", "key", chosen)).value.value == made
    with pytest.raises(IdTaken):
        await world.agents.create(owner, "Bea", "", "", "", chosen)
    with pytest.raises(IdTaken):
        await world.agents.create(somebody(), "Ada", "", "", "", chosen)


async def test_an_owner_has_a_bounded_number_also_of_queued_ones(
    world: AgentsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "AGENTS_PER_OWNER", 2)
    owner = somebody()
    await world.agent(owner)
    world.database_goes()
    for name in ("second", "third"):
        assert (await world.agents.create(owner, name, "", "")).value.operation_id
    await world.database_comes()
    assert await names(world, owner) == ["second", "Ada"]
    assert (await world.queue.stats()).dead == 1
    with pytest.raises(TooManyAgents):
        await world.agents.create(owner, "fourth", "", "")


async def test_reads_without_the_database_come_from_a_copy_and_say_so(world: AgentsWorld) -> None:
    owner = somebody()
    agents = [await world.agent(owner, name=f"agent {number}") for number in range(5)]
    await world.agents.page(owner)
    world.database_goes()
    for redis_is_away, fallback in ((False, "redis-cache"), (True, "memory-cache")):
        await world.copies.flush_all()
        world.redis_is_away = redis_is_away
        one, page = await world.agents.get(owner, agents[0].id), await world.agents.page(owner)
        assert (one.value, page.value.items) == (agents[0], agents[::-1])
        for served in (one, page):
            assert [degradation.fallback for degradation in served.degradations] == [fallback]
            assert served.as_of is not None
            assert not served.pending
        assert await paged(world, owner) == [agent.name for agent in agents[::-1]]


async def test_an_agent_that_was_deleted_is_in_no_copy(world: AgentsWorld) -> None:
    owner = somebody()
    agent, kept = await world.agent(owner), await world.agent(owner, name="Kept")
    await world.agents.page(owner)
    await world.agents.delete(owner, agent.id)
    world.stored.keep(agent)  # a read that the deletion has overtaken
    world.database_goes()
    for world.redis_is_away in (False, True):
        with pytest.raises(AgentUnknown):
            await world.agents.get(owner, agent.id)
        assert await names(world, owner) == [kept.name]


async def test_queued_writes_are_shown_at_once_and_applied_once_in_order(world: AgentsWorld) -> None:
    owner = somebody()
    old, gone = await world.agent(owner, name="old"), await world.agent(owner, name="gone")
    await world.agents.page(owner)
    world.database_goes()
    new = (await world.agents.create(owner, "new", "", "", "key")).value
    assert (await world.agents.create(owner, "new", "", "", "key")).value.operation_id == new.operation_id
    for name in ("newer", "newest"):
        changed = (await world.agents.update(owner, new.value.id, {"name": name})).value
        assert changed.value is not None
        assert changed.value.name == name
    await world.agents.update(owner, old.id, {"name": "renamed"})
    await world.agents.delete(owner, gone.id)
    with pytest.raises(AgentUnknown):
        await world.agents.update(owner, gone.id, {"name": "x"})
    page = await world.agents.page(owner)
    assert page.pending
    shown = [agent.name for agent in page.value.items]
    assert shown == ["newest", "renamed"]
    assert await paged(world, owner) == shown
    one = await world.agents.get(owner, new.value.id)
    assert (one.value.name, one.pending) == ("newest", True)
    await world.database_comes()
    live = await world.agents.page(owner)
    assert not live.pending
    assert not live.degraded
    assert live.value.items == page.value.items
    record = (await world.operations.status(owner, new.operation_id)).value
    assert record.status is OperationStatus.APPLIED
    with pytest.raises(OperationUnknown):
        await world.operations.status(somebody(), new.operation_id)
    world.database_goes()
    assert (await world.agents.page(owner)).value == live.value


async def test_without_a_copy_what_waits_is_still_shown(world: AgentsWorld) -> None:
    owner = somebody()
    world.database_goes()
    made = (await world.agents.create(owner, "first", "", "")).value
    page = await world.agents.page(owner)
    assert ([agent.name for agent in page.value.items], page.pending) == (["first"], True)
    assert (await world.agents.get(owner, made.value.id)).value.name == "first"
    replied = await world.chat.reply(owner, made.value.id, "hello")
    assert replied.value.reply == "answer of gpt-4"
    world.policy.breaker.reset()  # the database is there, and the queue not drained yet
    assert (await world.agents.get(owner, made.value.id)).pending
    assert await names(world, owner) == ["first"]
    await world.drainer.drain()
    assert not (await world.agents.get(owner, made.value.id)).pending
    history = (await world.conversations.get(owner, made.value.id, replied.value.conversation_id)).value
    assert [turn.content for turn in history.turns] == ["hello", "answer of gpt-4"]


async def test_with_database_and_queue_away_a_write_is_refused(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    world.database_goes()
    world.redis_is_away = True
    with pytest.raises(WriteRefused) as raised:
        await world.agents.update(owner, agent.id, {"name": "Bea"})
    assert raised.value.queued is False
    world.redis_is_away = False
    await world.database_comes()
    assert await names(world, owner) == ["Ada"]


async def test_a_repeated_deletion_with_its_key_is_the_same_write(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    world.database_goes()
    first, second = [(await world.agents.delete(owner, agent.id, "key")).value for _ in range(2)]
    assert first.operation_id == second.operation_id != ""
    with pytest.raises(AgentUnknown):
        await world.agents.delete(owner, agent.id)
    await world.database_comes()
    assert not (await world.agents.delete(owner, agent.id, "key")).value.operation_id
    assert (await world.queue.stats()).dead == 0


async def test_an_owner_cannot_fill_the_queue(world: AgentsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai_core.usecases.agents.AGENTS_PER_OWNER", 2)
    owner = somebody()
    world.database_goes()
    first = (await world.agents.create(owner, "first", "", "", "key")).value
    await world.agents.create(owner, "second", "", "")
    with pytest.raises(TooManyAgents):
        await world.agents.create(owner, "third", "", "")
    assert (await world.agents.create(owner, "first", "", "", "key")).value == first


async def test_an_agent_that_waits_where_nobody_can_ask_is_not_denied(world: AgentsWorld) -> None:
    owner = somebody()
    world.database_goes()
    waits = (await world.agents.create(owner, "first", "", "")).value.value
    world.redis_is_away = True
    world.policy.breaker.reset()
    assert (await world.agents.get(owner, waits.id)).value.name == "first"
    for attempt in (world.agents.update(owner, waits.id, {"name": "x"}), world.agents.delete(owner, waits.id)):
        with pytest.raises(WriteRefused):
            await attempt
    world.redis_is_away = False
    await world.drainer.drain()
    assert (await world.agents.get(owner, waits.id)).value == waits


async def test_a_change_of_nobody_is_buried_and_its_author_told(world: AgentsWorld) -> None:
    owner, nobody = somebody(), str(uuid.uuid4())
    world.database_goes()
    changed = (await world.agents.update(owner, nobody, {"name": "x"}, "key")).value
    assert changed.value is None
    await world.database_comes()
    record = (await world.operations.status(owner, changed.operation_id)).value
    assert (record.status, record.error) == (OperationStatus.DEAD, "NOT_FOUND")
    with pytest.raises(AgentUnknown):
        await world.agents.update(owner, nobody, {"name": "x"}, "key")
