"""The agent store and its migrations on a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

import ai_core.model as model
import ai_core.outbound.postgres as postgres_module
from ai_core.model import Agent, AgentUnknown, Cursor, KeyReused, TooManyAgents, Turn
from ai_core.outbound.engine import create_engine
from ai_core.outbound.postgres import PostgresAgents
from ai_core.ports import StoreUnavailable
from ai_core.wiring.postgres import MIGRATIONS
from devstack import Stack, Topology
from service_kit.migrations import upgrade

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"postgres"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("ai-core-postgres"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(stack: Stack) -> AsyncIterator[PostgresAgents]:
    url = stack.database_url("ai_core")
    await asyncio.gather(*(upgrade(url, MIGRATIONS) for _ in range(4)))
    engine = create_engine(url)
    yield PostgresAgents(engine)
    await engine.dispose()


def new_agent(owner: str, at: float = 1_700_000_000.0, name: str = "Ada") -> Agent:
    return Agent(str(uuid.uuid4()), owner, name, "Be brief.", "", at, at)


def somebody() -> str:
    return f"user-{uuid.uuid4()}"


async def test_four_instances_migrate_at_once_and_a_fifth_finds_nothing_to_do(
    stack: Stack, store: PostgresAgents
) -> None:
    await upgrade(stack.database_url("ai_core"), MIGRATIONS)
    await store.ping()


async def test_what_is_stored_is_read_back(store: PostgresAgents) -> None:
    owner = somebody()
    agent = replace(new_agent(owner, 1_700_000_000.123456), name="'); DROP TABLE agents; -- ☎")
    assert await store.create(agent, "", "") == agent
    assert await store.get(owner, agent.id) == agent
    changed = await store.update(owner, agent.id, {"name": "Bea"}, 1_700_000_001.5)
    assert (changed.name, changed.system_prompt, changed.updated_at) == ("Bea", "Be brief.", 1_700_000_001.5)
    await store.delete(owner, agent.id)
    with pytest.raises(AgentUnknown):
        await store.get(owner, agent.id)
    with pytest.raises(AgentUnknown):
        await store.delete(owner, agent.id)


async def test_nobody_reaches_anothers_agent(store: PostgresAgents) -> None:
    agent = await store.create(new_agent(somebody()), "", "")
    eve = somebody()
    for attempt in (
        store.get(eve, agent.id),
        store.update(eve, agent.id, {"name": "x"}, 0.0),
        store.delete(eve, agent.id),
        store.conversation(eve, agent.id, str(uuid.uuid4())),
    ):
        with pytest.raises(AgentUnknown):
            await attempt
    assert await store.page(eve, 10, None) == []
    assert await store.get(agent.owner_id, agent.id) == agent


async def test_pages_are_exact_also_among_equal_times(store: PostgresAgents) -> None:
    owner = somebody()
    made = [await store.create(new_agent(owner, 1_700_000_000.0 + number // 3), "", "") for number in range(9)]
    seen: list[Agent] = []
    while page := await store.page(owner, 2, Cursor.after(seen[-1]) if seen else None):
        seen += page
    assert seen == sorted(made, key=lambda agent: (agent.created_at, agent.id), reverse=True)


async def test_a_key_makes_one_agent_however_often_and_at_once_it_is_sent(store: PostgresAgents) -> None:
    owner = somebody()
    answers = await asyncio.gather(*(store.create(new_agent(owner), "key", "print") for _ in range(8)))
    assert len({agent.id for agent in answers}) == 1
    assert len(await store.page(owner, 10, None)) == 1
    with pytest.raises(KeyReused):
        await store.create(new_agent(owner), "key", "another print")
    other = await store.create(new_agent(somebody()), "key", "print")
    assert other.id != answers[0].id
    await store.delete(owner, answers[0].id)
    with pytest.raises(KeyReused):
        await store.create(new_agent(owner), "key", "print")
    tomorrow = new_agent(owner, 1_700_000_000.0 + 25 * 3600)
    assert await store.create(tomorrow, "key", "print") == tomorrow


async def test_an_owner_has_a_bounded_number(store: PostgresAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "AGENTS_PER_OWNER", 2)
    owner = somebody()
    await store.create(new_agent(owner), "", "")
    await store.create(new_agent(owner), "", "")
    with pytest.raises(TooManyAgents):
        await store.create(new_agent(owner), "key", "print")
    assert len(await store.page(owner, 10, None)) == 2


async def test_a_conversation_keeps_its_newest_turns(store: PostgresAgents) -> None:
    agent = await store.create(new_agent(somebody()), "", "")
    conversation = str(uuid.uuid4())
    for number in range(15):
        turns = [Turn("user", f"question {number}"), Turn("assistant", f"answer {number}")]
        await store.remember(agent, conversation, turns, 1_700_000_000.0 + number)
    found, kept = await store.conversation(agent.owner_id, agent.id, conversation)
    assert found == agent
    assert len(kept) == model.HISTORY_TURNS
    assert kept[0] == Turn("user", "question 5")
    assert kept[-1] == Turn("assistant", "answer 14")
    assert (await store.conversation(agent.owner_id, agent.id, str(uuid.uuid4())))[1] == []


async def test_concurrent_exchanges_are_both_kept(store: PostgresAgents) -> None:
    agent = await store.create(new_agent(somebody()), "", "")
    conversation = str(uuid.uuid4())
    turns = [[Turn("user", f"q{number}"), Turn("assistant", f"a{number}")] for number in range(5)]
    await asyncio.gather(*(store.remember(agent, conversation, pair, 1.0) for pair in turns))
    kept = (await store.conversation(agent.owner_id, agent.id, conversation))[1]
    assert sorted(turn.content for turn in kept) == sorted(turn.content for pair in turns for turn in pair)


async def test_an_agent_has_a_bounded_number_of_conversations(
    store: PostgresAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "CONVERSATIONS_PER_AGENT", 2)
    agent = await store.create(new_agent(somebody()), "", "")
    ids = [str(uuid.uuid4()) for _ in range(4)]
    for number, conversation in enumerate(ids):
        await store.remember(agent, conversation, [Turn("user", "hi")], 1_700_000_000.0 + number)
    kept = [bool((await store.conversation(agent.owner_id, agent.id, one))[1]) for one in ids]
    assert kept == [False, False, True, True]


async def test_remembering_for_a_deleted_agent_does_nothing(store: PostgresAgents) -> None:
    agent = await store.create(new_agent(somebody()), "", "")
    await store.remember(agent, str(uuid.uuid4()), [Turn("user", "hi")], 1.0)
    await store.delete(agent.owner_id, agent.id)
    await store.remember(agent, str(uuid.uuid4()), [Turn("user", "hi")], 1.0)


async def test_outages_are_named_without_addresses(stack: Stack) -> None:
    for url in (stack.database_url("ai_core").replace("/ai_core", "/nowhere"), "postgresql://u:secret@127.0.0.1:1/x"):
        engine = create_engine(url)
        with pytest.raises(StoreUnavailable) as raised:
            await PostgresAgents(engine).ping()
        assert "127.0.0.1" not in str(raised.value)
        assert "secret" not in str(raised.value)
        await engine.dispose()


async def test_a_restart_of_the_database_is_survived_by_one_more_try(stack: Stack, store: PostgresAgents) -> None:
    agent = await store.create(new_agent(somebody()), "", "")
    await stack.kill("postgres")
    with pytest.raises(StoreUnavailable):
        await store.get(agent.owner_id, agent.id)
    await stack.heal("postgres")
    assert await store.get(agent.owner_id, agent.id) == agent
