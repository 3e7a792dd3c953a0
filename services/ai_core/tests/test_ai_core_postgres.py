"""The agent store and its migrations on a real PostgreSQL of its own, which the tests may kill."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.model import Agent, AgentUnknown, Cursor
from ai_core.outbound.engine import create_engine
from ai_core.outbound.postgres import APPLIERS, PostgresAgents
from ai_core.outbound.queue_target import PostgresWrites
from ai_core.ports import StoreUnavailable
from ai_core.wiring.postgres import MIGRATIONS
from devstack import Stack, Topology
from resilience import Operation
from service_kit.migrations import upgrade

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"postgres"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("ai-core-postgres"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def migrated(stack: Stack) -> AsyncIterator[AsyncEngine]:
    url = stack.database_url("ai_core")
    await asyncio.gather(*(upgrade(url, MIGRATIONS) for _ in range(4)))
    engine = create_engine(url)
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(migrated: AsyncEngine) -> PostgresAgents:
    return PostgresAgents(migrated)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def writes(migrated: AsyncEngine) -> PostgresWrites:
    return PostgresWrites(migrated, APPLIERS)


def creation(agent: Agent) -> Operation:
    texts = {"name": agent.name, "system_prompt": agent.system_prompt, "model": agent.model}
    payload = {"id": agent.id, **texts, "at": agent.created_at}
    return Operation(uuid.uuid4().hex, "agent.create", f"agents:{agent.owner_id}", agent.owner_id, payload)


def new_agent(owner: str, at: float = 1_700_000_000.0, name: str = "Ada") -> Agent:
    return Agent(str(uuid.uuid4()), owner, name, "Be brief.", "", at, at)


def somebody() -> str:
    return f"user-{uuid.uuid4()}"


async def test_four_instances_migrate_at_once_and_a_fifth_finds_nothing_to_do(
    stack: Stack, store: PostgresAgents
) -> None:
    await upgrade(stack.database_url("ai_core"), MIGRATIONS)
    await store.ping()


async def test_after_a_rollback_a_newer_versions_database_is_used_as_it_is(stack: Stack, migrated: AsyncEngine) -> None:
    async def stamp(revision: str) -> str:
        """Exchanges the revision, and says which it was."""
        async with migrated.begin() as connection:
            was = (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar_one()
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = :new"), {"new": revision})
            return str(was)

    ours = await stamp("9999")
    await upgrade(stack.database_url("ai_core"), MIGRATIONS)
    assert await stamp(ours) == "9999"


async def test_what_is_stored_is_read_back_exactly(store: PostgresAgents, writes: PostgresWrites) -> None:
    owner = somebody()
    agent = replace(new_agent(owner, 1_700_000_000.123456), name="'); DROP TABLE agents; -- ☎")
    assert await writes.commit(creation(agent), unordered=False) == agent
    assert await store.get(owner, agent.id) == agent
    assert (await store.opened(owner, agent.id, str(uuid.uuid4()))) == (agent, None)


async def test_times_of_changes_only_grow(writes: PostgresWrites) -> None:
    owner = somebody()
    agent = new_agent(owner)
    await writes.commit(creation(agent), unordered=False)
    seen = [agent.updated_at]
    for at in (1_700_000_005.0, 1_700_000_001.0, 1_700_000_005.0):
        payload = {"id": agent.id, "fields": {"name": f"at {at}"}, "at": at}
        operation = Operation(uuid.uuid4().hex, "agent.update", f"agents:{owner}", owner, payload)
        seen.append((await writes.commit(operation, unordered=False)).updated_at)
    assert seen == sorted(set(seen))


async def test_nobody_reaches_anothers_agent(store: PostgresAgents, writes: PostgresWrites) -> None:
    agent, eve = new_agent(somebody()), somebody()
    await writes.commit(creation(agent), unordered=False)
    for attempt in (
        store.get(eve, agent.id),
        store.opened(eve, agent.id, str(uuid.uuid4())),
        store.conversations(eve, agent.id, 10, None),
    ):
        with pytest.raises(AgentUnknown):
            await attempt
    given = {"at": 1_700_000_001.0, "id": agent.id}
    turn = {"role": "user", "content": "hi"}
    said = {**given, "id": str(uuid.uuid4()), "agent": agent.id, "turns": [turn]}
    for kind, payload in (("agent.update", {**given, "fields": {"name": "Eve"}}), ("agent.delete", given)):
        with pytest.raises(AgentUnknown):
            await writes.commit(Operation(uuid.uuid4().hex, kind, f"agents:{eve}", eve, payload), unordered=False)
    append = Operation(uuid.uuid4().hex, "conversation.append", f"agents:{eve}", eve, said)
    assert await writes.commit(append, unordered=False) is None
    assert await store.page(eve, 10, None) == []
    assert await store.get(agent.owner_id, agent.id) == agent
    assert await store.conversations(agent.owner_id, agent.id, 10, None) == []


async def test_pages_are_exact_also_among_equal_times(store: PostgresAgents, writes: PostgresWrites) -> None:
    owner = somebody()
    made = [new_agent(owner, 1_700_000_000.0 + number // 3) for number in range(9)]
    for agent in made:
        await writes.commit(creation(agent), unordered=False)
    seen: list[Agent] = []
    while page := await store.page(owner, 2, Cursor.after(seen[-1]) if seen else None):
        seen += page
    assert seen == sorted(made, key=lambda agent: (agent.created_at, agent.id), reverse=True)


async def test_outages_are_named_without_addresses(stack: Stack) -> None:
    for url in (stack.database_url("ai_core").replace("/ai_core", "/nowhere"), "postgresql://u:secret@127.0.0.1:1/x"):
        engine = create_engine(url)
        with pytest.raises(StoreUnavailable) as raised:
            await PostgresAgents(engine).ping()
        assert "127.0.0.1" not in str(raised.value)
        assert "secret" not in str(raised.value)
        await engine.dispose()


async def test_a_restart_of_the_database_is_survived_by_one_more_try(
    stack: Stack, store: PostgresAgents, writes: PostgresWrites
) -> None:
    agent = new_agent(somebody())
    await writes.commit(creation(agent), unordered=False)
    await stack.kill("postgres")
    with pytest.raises(StoreUnavailable):
        await store.get(agent.owner_id, agent.id)
    await stack.heal("postgres")
    assert await store.get(agent.owner_id, agent.id) == agent
