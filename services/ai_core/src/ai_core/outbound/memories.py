"""Memories in PostgreSQL. Every statement names the owner: there is no way to reach another's memory.

Source of the search by words: PostgreSQL documentation, "Controlling Text Search" (parsing queries, ranking).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ai_core.model import MEMORIES_PER_OWNER, Cursor, IdTaken, KeyReused, Match, Memory, MemoryUnknown, TooManyMemories
from ai_core.outbound.engine import reading, writing
from ai_core.outbound.keys import Keys, moment, moment_us
from ai_core.outbound.queue_target import Applier, Appliers
from ai_core.outbound.tables import memories, memory_creations, memory_embeddings_due
from ai_core.outbound.vectors import Space, compared, exact_enough, keep, line_up, nearest
from ai_core.ports import Vectors
from ai_core.usecases.memory_writes import CREATE, DELETE, memory_made_by, vectors_of
from resilience import Operation

_KEYS = Keys(memory_creations)
_COLUMNS = [column for column in memories.c if column.name != "words"]
_RANK_OF_ONE = 32
"""Normalization of ts_rank_cd: the rank divided by itself plus one, so that it lies between 0 and 1."""


class PostgresMemories:
    """The memory store; ``engine`` is the bounded one of ``outbound.engine``.

    ``spaces``: the models by which can be searched.
    """

    def __init__(self, engine: AsyncEngine, spaces: Sequence[Space] = ()) -> None:
        self._engine = engine
        names = ", ".join(f"m.{column.name}" for column in _COLUMNS)
        columns = *_COLUMNS, sa.column("score", sa.Double)
        self._nearest = {space.model: nearest(space, names).columns(*columns) for space in spaces}

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes a memory."""
        async with writing(self._engine) as connection:
            await _KEYS.abandon(connection, owner_id, key, at)

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Memory]:
        """The newest memories, or those after a cursor."""
        query = sa.select(*_COLUMNS).where(memories.c.owner_id == owner_id)
        if after is not None:
            created = sa.literal(moment_us(after.created_us), memories.c.created_at.type)
            place = sa.tuple_(created, sa.literal(after.id, memories.c.id.type))
            query = query.where(sa.tuple_(memories.c.created_at, memories.c.id) < place)
        query = query.order_by(memories.c.created_at.desc(), memories.c.id.desc()).limit(limit)
        async with reading(self._engine) as connection:
            return [_memory(row) for row in await connection.execute(query)]

    async def search(self, owner_id: str, query: str, limit: int) -> list[Match]:
        """The memories that hold the query's words; quotes, "or" and "-" work as in a web search."""
        asked = sa.func.websearch_to_tsquery(sa.literal_column("'simple'"), query)
        score = sa.func.ts_rank_cd(memories.c.words, asked, _RANK_OF_ONE).label("score")
        found = sa.select(*_COLUMNS, score).where(memories.c.owner_id == owner_id, memories.c.words.op("@@")(asked))
        found = found.order_by(score.desc(), memories.c.created_at.desc(), memories.c.id).limit(limit)
        async with reading(self._engine) as connection:
            return [Match(_memory(row), float(row.score)) for row in await connection.execute(found)]

    async def nearest(self, owner_id: str, query: str, asked: Vectors, limit: int) -> list[Match]:
        """The nearest memories and those with the query's words. Raises VectorsGone."""
        values = {"owner": owner_id, "query": query, "asked": asked.values[0], "limit": limit}
        async with writing(self._engine) as connection:
            await exact_enough(connection)
            try:
                found = await connection.execute(self._nearest[asked.model], values)
            except DBAPIError as error:
                if (gone := compared(error)) is None:
                    raise
                raise gone from error
            return [Match(_memory(row), row.score) for row in found]

    async def behind(self, owner_id: str, model: str) -> bool:
        """Whether some memories wait for this model's vector; those that it has refused for good do not."""
        due = memory_embeddings_due.c
        waits = sa.exists().where(due.owner_id == owner_id, due.model == model, due.due_at < sa.text("'infinity'"))
        async with reading(self._engine) as connection:
            return bool((await connection.execute(sa.select(waits))).scalar_one())


def appliers(models: Sequence[str]) -> Appliers:
    """How writes of memories are made; each memory waits for the vectors of ``models`` that do not come with it."""

    async def create(connection: AsyncConnection, operation: Operation, _: bool) -> Memory:
        memory, key = memory_made_by(operation), operation.payload["key"]
        claim = connection, memory.owner_id, key, memory.id, operation.fingerprint, memory.created_at
        if key and not await _KEYS.claim(*claim):
            return await _made_before(connection, memory.owner_id, key, operation.fingerprint)
        return await _insert(connection, memory, models, vectors_of(operation))

    return {CREATE: Applier(create, _created), DELETE: Applier(_delete)}


async def _created(connection: AsyncConnection, operation: Operation) -> Memory:
    """The memory as it is now. Raises KeyReused when it was deleted since."""
    there = await _find(connection, operation.owner, operation.payload["id"])
    if there is None:
        raise KeyReused
    return there


async def _delete(connection: AsyncConnection, operation: Operation, _: bool) -> None:
    """Of a queued one that finds nothing the wish is fulfilled."""
    deleted = await connection.execute(memories.delete().where(*_own(operation.owner, operation.payload["id"])))
    if deleted.rowcount == 0 and not operation.accepted_at:
        raise MemoryUnknown


async def _made_before(connection: AsyncConnection, owner_id: str, key: str, fingerprint: str) -> Memory:
    made_id = await _KEYS.made(connection, owner_id, key, fingerprint)
    there = await _find(connection, owner_id, made_id)
    if there is None:
        raise KeyReused
    return there


async def _insert(
    connection: AsyncConnection, memory: Memory, models: Sequence[str], vectors: Vectors | None
) -> Memory:
    held = sa.select(sa.func.count()).select_from(memories).where(memories.c.owner_id == memory.owner_id)
    if (await connection.execute(held)).scalar_one() >= MEMORIES_PER_OWNER:
        raise TooManyMemories
    there = vectors.model if vectors else ""
    made = replace(memory, embedding="ready" if there else "pending", embedding_model=there)
    values = {
        "id": memory.id,
        "owner_id": memory.owner_id,
        "text": memory.text,
        "tags": list(memory.tags),
        "embedding": made.embedding,
        "embedding_model": there,
        "created_at": moment(memory.created_at),
    }
    statement = insert(memories).values(values).on_conflict_do_nothing().returning(memories.c.id)
    if (await connection.execute(statement)).one_or_none() is None:
        return await _there(connection, memory)
    if vectors:
        await keep(connection, memory.owner_id, memory.id, vectors)
    waits = [model for model in models if model != there]
    await line_up(connection, memory.id, memory.owner_id, values["created_at"], waits)
    return made


async def _there(connection: AsyncConnection, memory: Memory) -> Memory:
    """What has the id already: fine when it is this memory, made by a try whose answer was lost."""
    there = await _find(connection, memory.owner_id, memory.id)
    if there is None or (there.text, there.tags) != (memory.text, memory.tags):
        raise IdTaken
    return there


async def _find(connection: AsyncConnection, owner_id: str, memory_id: str) -> Memory | None:
    row = (await connection.execute(sa.select(*_COLUMNS).where(*_own(owner_id, memory_id)))).one_or_none()
    return None if row is None else _memory(row)


def _own(owner_id: str, memory_id: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return memories.c.id == memory_id, memories.c.owner_id == owner_id


def _memory(row: Any) -> Memory:
    created = row.created_at.timestamp()
    return Memory(row.id, row.owner_id, row.text, tuple(row.tags), row.embedding, created, row.embedding_model)
