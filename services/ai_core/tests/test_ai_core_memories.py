"""Writes of memories on a real PostgreSQL, each once, and the background work of several instances at once."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.degradation import EMBEDDINGS, POSTGRES, classify, classify_provider
from ai_core.model import IdTaken, KeyReused, Memory, MemoryUnknown
from ai_core.outbound.memories import PostgresMemories, appliers
from ai_core.outbound.queue_target import AiCoreTarget, PostgresWrites
from ai_core.outbound.vectors import PostgresEmbeddingWork
from ai_core.ports import Vectors
from ai_core.usecases.embedding_worker import EmbeddingWorker
from ai_core.usecases.embeddings import Embeddings
from ai_core.usecases.memory_writes import CREATE, DELETE, creation, entity_of
from resilience import SYSTEM_CLOCK, CircuitBreaker, Fate, Operation, RowPolicy

pytestmark = pytest.mark.asyncio(loop_scope="session")

AT = 1_700_000_000.0
MODEL = f"local:{uuid.uuid4().hex}"  # what other tests have left is not this file's work


class Writing:
    """Writes of one owner."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.owner = f"user-{uuid.uuid4()}"
        self.store = PostgresMemories(engine)
        self.writes = PostgresWrites(engine, appliers([MODEL]))
        self.target = AiCoreTarget(engine, appliers([MODEL]))

    def creation(self, text: str, key: str = "", *, at: float = AT, memory_id: str = "", owner: str = "") -> Operation:
        memory = Memory(memory_id or str(uuid.uuid4()), owner or self.owner, text, ("tag",), "pending", at)
        given = {"at": at, **creation(memory, key, None)}
        return Operation(
            uuid.uuid4().hex, CREATE, entity_of(self.owner), owner or self.owner, given, text if key else ""
        )

    def deletion(self, memory_id: str) -> Operation:
        given = {"at": AT, "id": memory_id}
        return Operation(uuid.uuid4().hex, DELETE, entity_of(self.owner), self.owner, given)

    async def make(self, operation: Operation) -> Memory:
        made: Memory = await self.writes.commit(operation, unordered=False)
        return made

    async def listed(self) -> list[str]:
        return [memory.text for memory in await self.store.page(self.owner, 100, None)]


async def test_an_operation_is_made_once(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    operation = writing.creation("once")
    first, again = await asyncio.gather(*(writing.make(operation) for _ in range(2)))
    assert first == again == replace(first, id=operation.payload["id"])
    assert await writing.listed() == ["once"]


async def test_a_key_makes_one_memory(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    made = await writing.make(writing.creation("text", "key"))
    assert await writing.make(writing.creation("text", "key")) == made
    with pytest.raises(KeyReused):
        await writing.make(writing.creation("other text", "key"))
    await writing.make(writing.deletion(made.id))
    with pytest.raises(KeyReused):
        await writing.make(writing.creation("text", "key"))
    assert await writing.listed() == []


async def test_an_abandoned_key_makes_nothing(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    await writing.store.abandon(writing.owner, "key", AT)
    with pytest.raises(KeyReused):
        await writing.make(writing.creation("text", "key"))


async def test_an_id_is_ones_own(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    made = await writing.make(writing.creation("text"))
    assert await writing.make(writing.creation("text", memory_id=made.id)) == made
    with pytest.raises(IdTaken):
        await writing.make(writing.creation("another text", memory_id=made.id))
    with pytest.raises(IdTaken):
        await writing.make(writing.creation("text", memory_id=made.id, owner="eve"))
    with pytest.raises(MemoryUnknown):
        await writing.make(replace(writing.deletion(made.id), owner="eve"))


async def test_queued_writes_are_applied_in_order_and_once(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    first, second, third = (writing.creation(f"text {number}", at=AT + number) for number in range(3))
    gone = writing.deletion(second.payload["id"])
    queue = [replace(one, accepted_at=AT) for one in (first, second, gone, third, writing.deletion(str(uuid.uuid4())))]
    for _ in range(2):
        async with writing.target.session() as session:
            assert session is not None
            results = await session.apply(queue)
        assert {result.fate for result in results} == {Fate.APPLIED}
    assert await writing.listed() == ["text 2", "text 0"]


async def test_a_deletion_of_nothing_is_an_answer(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    with pytest.raises(MemoryUnknown):
        await writing.make(writing.deletion(str(uuid.uuid4())))


class Slow:
    """A model that yields to others in the middle of its work."""

    name = MODEL
    dimensions: int | None = 1

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    async def embed(self, texts: Sequence[str], limit: float | None = None) -> Vectors:
        await asyncio.sleep(0)
        self.seen += texts
        return Vectors([[1.0]] * len(texts), self.name, 1)

    async def soon(self, text: str) -> Vectors | None:
        return None

    async def load(self) -> None: ...


def policy(engine_row: str) -> RowPolicy:
    row, sort = (POSTGRES, classify) if engine_row == "A1" else (EMBEDDINGS, classify_provider)
    return RowPolicy(row, breaker=CircuitBreaker(row.id, classify=sort))


async def test_several_instances_share_the_work_and_do_nothing_twice(engine: AsyncEngine) -> None:
    writing = Writing(engine)
    expected = [f"text {number:03}" for number in range(100)]
    for number, text in enumerate(expected):
        await writing.make(writing.creation(text, at=AT + number))
    seen: list[str] = []
    workers = []
    for _ in range(3):
        model = Slow(seen)
        embeddings = Embeddings(model, model, policy("A4"))
        workers.append(EmbeddingWorker(PostgresEmbeddingWork(engine, MODEL), embeddings, policy("A1"), SYSTEM_CLOCK))

    async def work(worker: EmbeddingWorker) -> None:
        while await worker.once():
            pass

    await asyncio.gather(*(work(worker) for worker in workers))
    assert sorted(text for text in seen if text in expected) == expected
    memories = await writing.store.page(writing.owner, 200, None)
    assert {(memory.embedding, memory.embedding_model) for memory in memories} == {("ready", MODEL)}
