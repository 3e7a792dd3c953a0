"""Vectors of memories on a real PostgreSQL: what waits, what is near, and pgvector coming and going."""

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core import model
from ai_core.model import Memory, TooManyMemories
from ai_core.outbound import memories as memories_module
from ai_core.outbound.engine import create_engine
from ai_core.outbound.memories import PostgresMemories, appliers
from ai_core.outbound.queue_target import PostgresWrites
from ai_core.outbound.vector_schema import VectorSchema
from ai_core.outbound.vectors import PostgresEmbeddingWork, Space
from ai_core.ports import Vectors, VectorsGone
from ai_core.usecases.memory_writes import CREATE, DELETE, creation, entity_of
from devstack import Stack, Topology
from resilience import Operation
from service_kit.migrations import upgrade

MIGRATIONS = Path(model.__file__).parent / "migrations"
pytestmark = pytest.mark.asyncio(loop_scope="module")

FLAT = Space("local:flat", 3)
BEST = Space("openai:wide", 4)
LOOSE = Space("openai:loose", None)
HUGE = Space("openai:huge", 3_000)
SPACES = [FLAT, BEST, LOOSE]
AT = 1_700_000_000.0


class Base:
    """A migrated database of its own."""

    def __init__(self, url: str, engine: AsyncEngine) -> None:
        self.url = url
        self.store = PostgresMemories(engine, SPACES)
        self.writes = PostgresWrites(engine, appliers([FLAT.model, BEST.model]))
        self.work = PostgresEmbeddingWork(engine, BEST.model)
        self.schema = VectorSchema(engine, url, [*SPACES, HUGE])

    async def memory(self, owner: str, text: str, at: float = AT, vector: Sequence[float] | None = None) -> Memory:
        memory = Memory(str(uuid.uuid4()), owner, text, (), "pending", at)
        vectors = Vectors([unit(vector)], FLAT.model, 1) if vector else None
        payload = {"at": at, **creation(memory, "", vectors)}
        operation = Operation(uuid.uuid4().hex, CREATE, entity_of(owner), owner, payload)
        made: Memory = await self.writes.commit(operation, unordered=False)
        return made

    async def delete(self, owner: str, memory_id: str) -> None:
        operation = Operation(uuid.uuid4().hex, DELETE, entity_of(owner), owner, {"id": memory_id, "at": AT})
        await self.writes.commit(operation, unordered=False)

    async def sql(self, text: str, *values: Any) -> list[Any]:
        connection = await asyncpg.connect(self.url, timeout=5)
        try:
            return list(await connection.fetch(text, *values, timeout=20))
        finally:
            await connection.close(timeout=5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"postgres"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("ai-core-vectors"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base(stack: Stack) -> AsyncIterator[Base]:
    url = stack.database_url("ai_core")
    await upgrade(url, MIGRATIONS)
    engine = create_engine(url)
    found = Base(url, engine)
    await found.schema.ping()
    assert await found.schema.build()
    yield found
    await engine.dispose()


def somebody() -> str:
    return f"user-{uuid.uuid4()}"


def unit(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector]


def asked(*vector: float, model: str = FLAT.model) -> Vectors:
    return Vectors([unit(vector)], model, 1)


async def claimed(base: Base, model: str, owner_ids: set[str], limit: int = 100) -> list[str]:
    found = await base.work.claim(model, limit, 60.0)
    return [due.memory_id for due in found if due.memory_id in owner_ids]


async def test_a_memory_with_its_vector_is_ready_and_waits_for_the_other_model_only(base: Base) -> None:
    owner = somebody()
    ready = await base.memory(owner, "blue sky", vector=(1, 0, 0))
    pending = await base.memory(owner, "green grass")
    assert (ready.embedding, ready.embedding_model) == ("ready", FLAT.model)
    assert (pending.embedding, pending.embedding_model) == ("pending", "")
    rows = await base.sql("SELECT memory_id::text, model FROM memory_embeddings_due WHERE owner_id = $1", owner)
    waits = {(row["memory_id"], row["model"]) for row in rows}
    assert waits == {(ready.id, BEST.model), (pending.id, BEST.model), (pending.id, FLAT.model)}
    assert await base.store.page(owner, 10, None) == sorted([ready, pending], key=lambda one: one.id, reverse=True)


async def test_nearest_comes_first_with_its_cosine_and_what_is_far_does_not_come(base: Base) -> None:
    owner = somebody()
    near = await base.memory(owner, "near", vector=(1, 0.1, 0))
    aside = await base.memory(owner, "aside", vector=(1, 1, 0))
    await base.memory(owner, "across", vector=(0, 0, 1))
    await base.memory(owner, "opposite", vector=(-1, 0, 0))
    found = await base.store.nearest(owner, "nothing of that", asked(1, 0, 0), 10)
    assert [match.memory for match in found] == [near, aside]
    assert [match.score for match in found] == pytest.approx([1 / math.hypot(1, 0.1), math.sqrt(0.5)], abs=1e-6)
    assert len(await base.store.nearest(owner, "nothing", asked(1, 0, 0), 1)) == 1


async def test_words_find_what_has_no_vector_yet(base: Base) -> None:
    owner = somebody()
    await base.memory(owner, "the weather in spring", vector=(0, 1, 0))
    waiting = await base.memory(owner, "my passport number is X-4711")
    found = await base.store.nearest(owner, "x-4711", asked(1, 0, 0), 10)
    assert [match.memory for match in found] == [waiting]
    assert 0.5 < found[0].score <= 1


async def test_nobody_finds_anothers_memories(base: Base) -> None:
    alice, eve = somebody(), somebody()
    secret = await base.memory(alice, "the safe is behind the painting", vector=(1, 0, 0))
    own = await base.memory(eve, "mine", vector=(1, 0.5, 0))
    found = await base.store.nearest(eve, "safe behind the painting", asked(1, 0, 0), 100)
    assert [match.memory for match in found] == [own]
    assert secret.id not in [match.memory.id for match in found]


async def test_models_do_not_mix(base: Base) -> None:
    owner = somebody()
    memory = await base.memory(owner, "one", vector=(1, 0, 0))
    await base.work.keep([memory.id], Vectors([unit((0, 0, 0, 1))], BEST.model, 1))
    assert await base.store.nearest(owner, "x", asked(1, 0, 0, 0, model=BEST.model), 10) == []
    found = await base.store.nearest(owner, "x", asked(0, 0, 0, 1, model=BEST.model), 10)
    assert [match.memory.id for match in found] == [memory.id]
    assert found[0].score == pytest.approx(1.0)


async def test_a_model_of_unknown_size_is_searched_without_an_index(base: Base) -> None:
    owner = somebody()
    memory = await base.memory(owner, "one")
    await base.work.keep([memory.id], Vectors([unit((1, 2, 3, 4, 5))], LOOSE.model, 1))
    found = await base.store.nearest(owner, "x", asked(1, 2, 3, 4, 5, model=LOOSE.model), 10)
    assert [match.memory.id for match in found] == [memory.id]


async def test_the_oldest_are_claimed_first_and_by_one_only(base: Base) -> None:
    owner = somebody()
    made = [await base.memory(owner, f"text {number}", at=AT - 1_000 + number) for number in (3, 1, 2, 0)]
    ids = {memory.id for memory in made}
    batches = await asyncio.gather(*(claimed(base, FLAT.model, ids) for _ in range(3)))
    order = [memory.id for memory in sorted(made, key=lambda one: one.created_at)]
    assert all(batch == sorted(batch, key=order.index) for batch in batches)
    assert sorted(one for batch in batches for one in batch) == sorted(ids)
    assert await claimed(base, FLAT.model, ids) == []


async def test_a_lease_runs_out(base: Base) -> None:
    memory = await base.memory(somebody(), "text", at=AT - 2_000)
    first = await base.work.claim(FLAT.model, 1_000, 0.0)
    again = await base.work.claim(FLAT.model, 1_000, 60.0)
    attempts = [due.attempts for batch in (first, again) for due in batch if due.memory_id == memory.id]
    assert attempts == [1, 2]


async def test_kept_vectors_make_memories_ready_once(base: Base) -> None:
    owner = somebody()
    memory = await base.memory(owner, "text")
    await claimed(base, FLAT.model, {memory.id})
    await base.work.keep([memory.id], Vectors([unit((1, 0, 0))], FLAT.model, 1))
    assert [one.embedding_model for one in await base.store.page(owner, 10, None)] == [FLAT.model]
    assert await base.store.behind(owner, BEST.model)
    for vector in ((0, 0, 0, 1), (0, 0, 1, 0)):
        await base.work.keep([memory.id], Vectors([unit(vector)], BEST.model, 1))
    await base.work.keep([memory.id], Vectors([unit((0, 1, 0))], FLAT.model, 1))
    assert [one.embedding_model for one in await base.store.page(owner, 10, None)] == [BEST.model]
    assert not await base.store.behind(owner, BEST.model)
    rows = await base.sql("SELECT model, embedding FROM memory_vectors WHERE owner_id = $1 ORDER BY model", owner)
    assert [(row["model"], row["embedding"]) for row in rows] == [
        (FLAT.model, [0.0, 1.0, 0.0]),
        (BEST.model, [0.0, 0.0, 1.0, 0.0]),
    ]


async def test_a_memory_that_is_deleted_meanwhile_is_passed_over(base: Base) -> None:
    owner = somebody()
    gone, there = await base.memory(owner, "gone"), await base.memory(owner, "there")
    await claimed(base, FLAT.model, {gone.id, there.id})
    await base.delete(owner, gone.id)
    await base.work.keep([gone.id, there.id], Vectors([unit((1, 0, 0))] * 2, FLAT.model, 2))
    assert [memory.id for memory in await base.store.page(owner, 10, None)] == [there.id]
    assert await base.sql("SELECT 1 FROM memory_vectors WHERE memory_id = $1", uuid.UUID(gone.id)) == []


async def test_what_was_refused_for_good_does_not_keep_its_owner_behind(base: Base) -> None:
    owner = somebody()
    memory = await base.memory(owner, "poison")
    await claimed(base, BEST.model, {memory.id})
    await base.work.postpone([memory.id], BEST.model, 3_600.0, counted=True)
    assert await base.store.behind(owner, BEST.model)
    await base.work.postpone([memory.id], BEST.model, None, counted=True)
    assert not await base.store.behind(owner, BEST.model)
    assert await claimed(base, BEST.model, {memory.id}) == []


async def test_a_wait_that_was_no_attempt_is_not_counted(base: Base) -> None:
    memory = await base.memory(somebody(), "text", at=AT - 3_000)
    await base.work.claim(BEST.model, 1_000, 60.0)
    await base.work.postpone([memory.id], BEST.model, 0.0, counted=False)
    again = [due for due in await base.work.claim(BEST.model, 1_000, 60.0) if due.memory_id == memory.id]
    assert [due.attempts for due in again] == [1]


async def test_memories_of_an_earlier_version_are_found_and_lined_up(base: Base) -> None:
    owner = somebody()
    made = [await base.memory(owner, f"text {number}", vector=(1, 0, 0) if number else None) for number in range(5)]
    await base.sql("DELETE FROM memory_embeddings_due WHERE owner_id = $1", owner)
    after, pages = "", 0
    while after or not pages:
        after, pages = await base.work.add_missing(FLAT.model, after, 2), pages + 1
    assert pages > 2
    rows = await base.sql("SELECT memory_id::text FROM memory_embeddings_due WHERE owner_id = $1", owner)
    assert [row["memory_id"] for row in rows] == [made[0].id]


async def test_another_best_model_is_named_once_its_vectors_are_there(base: Base, stack: Stack) -> None:
    owner = somebody()
    memory = await base.memory(owner, "text", vector=(1, 0, 0))
    await base.work.keep([memory.id], Vectors([unit((1, 0, 0, 0))], BEST.model, 1))
    engine = create_engine(stack.database_url("ai_core"))
    try:
        assert await PostgresEmbeddingWork(engine, FLAT.model).add_missing(FLAT.model, "", 10_000) == ""
    finally:
        await engine.dispose()
    assert [one.embedding_model for one in await base.store.page(owner, 10, None)] == [FLAT.model]


async def test_too_many(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories_module, "MEMORIES_PER_OWNER", 1)
    owner = somebody()
    await base.memory(owner, "first")
    with pytest.raises(TooManyMemories):
        await base.memory(owner, "second")


async def test_the_index_is_used(base: Base) -> None:
    rows = await base.sql("SELECT indexname FROM pg_indexes WHERE tablename = 'memory_vectors'")
    names = {row["indexname"] for row in rows}
    assert {FLAT.index, BEST.index, HUGE.index} <= names
    assert LOOSE.index not in names
    connection = await asyncpg.connect(base.url, timeout=5)
    try:
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off")
        plan = await connection.fetch(
            f"EXPLAIN SELECT memory_id FROM memory_vectors v WHERE model = '{FLAT.model}' "
            "ORDER BY v.embedding::vector(3) <=> ARRAY[1,0,0]::real[]::vector(3) LIMIT 1"
        )
    finally:
        await connection.close(timeout=5)
    assert FLAT.index in "\n".join(row[0] for row in plan)


async def test_the_index_finds_ones_own_behind_thousands_of_others_that_are_nearer(base: Base) -> None:
    """Without the iterative scan an index gives its nearest 40, all of them somebody else's, and nothing is left."""
    crowd = "INSERT INTO memories (id, owner_id, text, tags, embedding, created_at) "
    crowd += "SELECT gen_random_uuid(), 'crowd', 'text', '{}', 'ready', now() FROM generate_series(1, 3000)"
    await base.sql(crowd)
    vectors = "INSERT INTO memory_vectors SELECT id, $1, 'crowd', ARRAY[1, random() / 10, random() / 10] "
    await base.sql(vectors + "FROM memories WHERE owner_id = 'crowd'", FLAT.model)
    owner = somebody()
    own = [await base.memory(owner, f"own {number}", vector=(1, 2, number / 10)) for number in range(20)]
    await base.sql("ALTER DATABASE ai_core SET enable_sort = off")
    engine = create_engine(base.url)
    try:
        found = await PostgresMemories(engine, SPACES).nearest(owner, "x", asked(1, 0, 0), 20)
    finally:
        await engine.dispose()
        await base.sql("ALTER DATABASE ai_core RESET enable_sort")
    assert [match.memory for match in found] == own


async def test_without_the_extension_vectors_are_kept_and_come_back(base: Base) -> None:
    owner = somebody()
    before = await base.memory(owner, "before", vector=(1, 0, 0))
    await base.sql("DROP EXTENSION vector CASCADE")
    with pytest.raises(VectorsGone):
        await base.store.nearest(owner, "x", asked(1, 0, 0), 10)
    during = await base.memory(owner, "during", vector=(1, 0.1, 0))
    assert [match.memory for match in await base.store.search(owner, "during", 10)] == [during]

    await base.schema.ping()
    found = await base.store.nearest(owner, "x", asked(1, 0, 0), 10)
    assert [match.memory for match in found] == [before, during]
    assert await base.schema.build()
    rows = await base.sql("SELECT 1 FROM pg_indexes WHERE indexname = $1", FLAT.index)
    assert len(rows) == 1


async def test_an_extension_that_is_not_installed_stops_no_migration(base: Base) -> None:
    await base.sql("CREATE DATABASE bare")
    url = base.url.rsplit("/", 1)[0] + "/bare"
    await base.sql("ALTER SYSTEM SET extension_control_path = '/nowhere'")
    await base.sql("SELECT pg_reload_conf()")
    try:
        engine = create_engine(url)
        await upgrade(url, MIGRATIONS)
        bare = Base(url, engine)
        owner = somebody()
        memory = await bare.memory(owner, "kept all the same", vector=(1, 0, 0))
        with pytest.raises(VectorsGone):
            await bare.schema.ping()
        with pytest.raises(VectorsGone):
            await bare.store.nearest(owner, "x", asked(1, 0, 0), 10)
        assert [match.memory for match in await bare.store.search(owner, "kept", 10)] == [memory]
    finally:
        await base.sql("ALTER SYSTEM RESET extension_control_path")
        await base.sql("SELECT pg_reload_conf()")
    await bare.schema.ping()
    assert [one.memory for one in await bare.store.nearest(owner, "x", asked(1, 0, 0), 10)] == [memory]
    await engine.dispose()


async def test_four_instances_create_it_at_once(base: Base) -> None:
    await base.sql("DROP EXTENSION vector CASCADE")
    outcomes = await asyncio.gather(*(base.schema.ping() for _ in range(4)), return_exceptions=True)
    assert {type(one) for one in outcomes} <= {type(None), VectorsGone}
    await base.schema.ping()
    assert any(await asyncio.gather(*(base.schema.build() for _ in range(4))))
