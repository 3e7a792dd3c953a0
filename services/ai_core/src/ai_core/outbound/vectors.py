"""Vectors of memories in PostgreSQL: what waits for one, and which are nearest (row A6, ai_core.vectors).

They are stored as arrays of numbers and become pgvector's type in the query, so that they are safe and can be added to
while the extension is missing. A vector belongs to a model, and only those of one model are ever compared: the model's
name is a constant in the statement, because a partial index is used for a constant only.

Source: pgvector's README, "HNSW", "Iterative Index Scans" (0.8 or newer), "Cosine distance".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, REAL, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ai_core.model import MODEL_PATTERN
from ai_core.outbound.engine import reading, writing
from ai_core.outbound.tables import memory_embeddings_due as due
from ai_core.outbound.tables import memory_vectors
from ai_core.ports import Due, Vectors, VectorsGone

LEAST_SCORE: Final = 0.1
"""Cosine below which two texts have nothing to do with each other, in every model that is known here."""
EXACT_ABOVE: Final = 4_000
"""Dimensions that an index can have (pgvector: 2,000 of ``vector``, 4,000 of ``halfvec``)."""

_HALF_ABOVE: Final = 2_000
_GONE: Final = ("42704", "42883", "58P01", "0A000", "42501", "22000", "XX")
"""SQLSTATE classes and codes (PostgreSQL documentation, appendix A) that mean that vectors cannot be compared: no such
type, no such operator, no such library, no such extension, not allowed to create it, vectors of different sizes,
internal errors such as a broken index."""


@dataclass(frozen=True, slots=True)
class Space:
    """A model and the size of its vectors; None when that is not known: then there is no index."""

    model: str
    dimensions: int | None

    @property
    def literal(self) -> str:
        """The model's name in SQLAlchemy's SQL text. Raises ValueError for one that is no model's name."""
        if not re.fullmatch(MODEL_PATTERN, self.model):
            raise ValueError("not a model's name")
        name = self.model.replace(":", r"\:")
        return f"'{name}'"

    @property
    def kind(self) -> str:
        """pgvector's type of its vectors."""
        if self.dimensions is None:
            return "vector"
        return f"{'vector' if self.dimensions <= _HALF_ABOVE else 'halfvec'}({self.dimensions})"

    @property
    def index(self) -> str:
        """Name of its index."""
        shape = f"{self.model} {self.dimensions}"
        return f"memory_vectors_near_{hashlib.sha256(shape.encode()).hexdigest()[:12]}"

    def distance(self, asked: str) -> str:
        """Cosine distance (0 to 2) of a vector to the parameter ``asked``; the same expression as the index's."""
        return f"(v.embedding::{self.kind} <=> CAST(:{asked} AS real[])::{self.kind})"


def nearest(space: Space, columns: str) -> sa.TextClause:
    """The memories nearest to ``asked``, and those that hold all words of ``query``, best first.

    The score is the cosine; for a memory with the words it is one from 0.5 up by their rank, if that is more: words
    count for names and for languages that a model does not know, and for memories without a vector yet.
    """
    distance = space.distance("asked")
    return _typed(f"""
        WITH near AS (
            SELECT v.memory_id, 1 - {distance} AS cosine FROM memory_vectors v
            WHERE v.model = {space.literal} AND v.owner_id = :owner ORDER BY {distance} LIMIT :limit
        ), said AS (
            SELECT m.id AS memory_id, 0.5 + ts_rank_cd(m.words, q, 32) / 2 AS rank
            FROM memories m, websearch_to_tsquery('simple', :query) q
            WHERE m.owner_id = :owner AND m.words @@ q ORDER BY rank DESC, m.created_at DESC LIMIT :limit
        ), found AS (
            SELECT memory_id, LEAST(1, GREATEST(cosine, rank))::float8 AS score
            FROM near FULL JOIN said USING (memory_id)
        )
        SELECT {columns}, found.score FROM found JOIN memories m ON m.id = found.memory_id AND m.owner_id = :owner
        WHERE found.score >= {LEAST_SCORE} ORDER BY found.score DESC, m.created_at DESC, m.id LIMIT :limit
    """)  # noqa: S608 - constants only


def _typed(text: str) -> sa.TextClause:
    types: dict[str, Any] = {"asked": ARRAY(REAL), "owner": sa.Text(), "limit": sa.BigInteger(), "query": sa.Text()}
    return sa.text(text).bindparams(*(sa.bindparam(name, type_=kind) for name, kind in types.items()))


def compared(error: DBAPIError) -> VectorsGone | None:
    """What the failure of a statement with vectors means, when that is row A6's."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return VectorsGone(state) if state.startswith(_GONE) and not error.connection_invalidated else None


async def exact_enough(connection: AsyncConnection) -> None:
    """For the current transaction: an index scan goes on until enough of the owner's own vectors are found.

    And the plan is made for this owner, who may have ten vectors or ten thousand.
    """
    await connection.execute(_SCAN)


_SCAN = sa.text(
    "SELECT set_config('hnsw.iterative_scan', 'strict_order', true), "
    "set_config('plan_cache_mode', 'force_custom_plan', true)"
)


async def line_up(connection: AsyncConnection, memory_id: str, owner_id: str, at: Any, models: Sequence[str]) -> None:
    """A new memory waits for its vectors."""
    if models:
        rows = [{"memory_id": memory_id, "model": model, "owner_id": owner_id, "created_at": at} for model in models]
        await connection.execute(insert(due).on_conflict_do_nothing(), rows)


async def keep(connection: AsyncConnection, owner_id: str, memory_id: str, vectors: Vectors) -> None:
    """Stores the vector of a memory that is made in the same transaction."""
    values = {"memory_id": memory_id, "owner_id": owner_id, "model": vectors.model, "embedding": vectors.values[0]}
    await connection.execute(insert(memory_vectors).values(values).on_conflict_do_nothing())


class PostgresEmbeddingWork:
    """What waits to be embedded. ``best``: the model by which memories are to be found when they have its vector."""

    def __init__(self, engine: AsyncEngine, best: str) -> None:
        self._engine = engine
        self._best = best

    async def claim(self, model: str, limit: int, lease: float) -> list[Due]:
        """Instances do not wait for each other: what one has in hand the others pass over."""
        async with writing(self._engine) as connection:
            found = await connection.execute(_CLAIM, {"model": model, "limit": limit, "lease": lease})
            rows = sorted(found, key=lambda row: (row.created_at, row.id))
        return [Due(row.id, row.text, row.attempts) for row in rows]

    async def keep(self, memory_ids: Sequence[str], vectors: Vectors) -> None:
        """All in one transaction; a memory that is deleted meanwhile is passed over, and its line with it."""
        rows = [
            {"id": memory_id, "model": vectors.model, "embedding": vector}
            for memory_id, vector in zip(memory_ids, vectors.values, strict=True)
        ]
        done = {"ids": list(memory_ids), "model": vectors.model}
        async with writing(self._engine) as connection:
            await connection.execute(_KEEP, rows)
            await connection.execute(_READY, {**done, "best": self._best})
            await connection.execute(_DONE, done)

    async def postpone(self, memory_ids: Sequence[str], model: str, seconds: float | None, *, counted: bool) -> None:
        """A wait of None is for ever."""
        values = {"ids": list(memory_ids), "model": model, "wait": seconds, "back": 0 if counted else 1}
        async with writing(self._engine) as connection:
            await connection.execute(_POSTPONE, values)

    async def any(self) -> bool:
        """Whether there are memories at all."""
        async with reading(self._engine) as connection:
            return bool((await connection.execute(_ANY)).scalar_one())

    async def add_missing(self, model: str, after: str, limit: int) -> str:
        """One page of all memories, by id."""
        values = {"model": model, "after": after or _FIRST, "limit": limit, "best": self._best}
        async with writing(self._engine) as connection:
            last = (await connection.execute(_ADD_MISSING, values)).scalar_one_or_none()
        return str(last) if last else ""


_ANY = sa.text("SELECT EXISTS (SELECT FROM memories)")
_FIRST = "00000000-0000-0000-0000-000000000000"


def _work(text: str) -> sa.TextClause:
    """A statement about the work; every parameter has a type, as the driver asks the server for it otherwise."""
    types: dict[str, Any] = {
        "ids": ARRAY(due.c.memory_id.type),
        "id": due.c.memory_id.type,
        "after": due.c.memory_id.type,
        "embedding": ARRAY(REAL),
        "limit": sa.BigInteger(),
        "lease": sa.Double(),
        "wait": sa.Double(),
        "back": sa.Integer(),
    }
    named = set(re.findall(r"(?<!:):([a-z]+)", text))
    return sa.text(text).bindparams(*(sa.bindparam(name, type_=types.get(name, sa.Text())) for name in named))


_CLAIM = _work("""
    WITH taken AS (
        SELECT memory_id FROM memory_embeddings_due WHERE model = :model AND due_at <= now()
        ORDER BY created_at, memory_id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE memory_embeddings_due d SET due_at = now() + make_interval(secs => :lease), attempts = d.attempts + 1
    FROM taken JOIN memories m ON m.id = taken.memory_id
    WHERE d.memory_id = taken.memory_id AND d.model = :model
    RETURNING CAST(m.id AS text) AS id, m.text, m.created_at, d.attempts
""")

_KEEP = _work("""
    INSERT INTO memory_vectors (memory_id, model, owner_id, embedding)
    SELECT m.id, :model, m.owner_id, :embedding FROM memories m WHERE m.id = :id FOR KEY SHARE
    ON CONFLICT (memory_id, model) DO UPDATE SET embedding = excluded.embedding
""")

_READY = _work("""
    UPDATE memories SET embedding = 'ready', embedding_model = :model WHERE id = ANY (:ids)
    AND (embedding = 'pending' OR (embedding_model <> :best AND :model = :best))
""")

_DONE = _work("DELETE FROM memory_embeddings_due WHERE model = :model AND memory_id = ANY (:ids)")

_POSTPONE = _work("""
    UPDATE memory_embeddings_due SET attempts = attempts - :back,
        due_at = COALESCE(now() + make_interval(secs => :wait), 'infinity')
    WHERE model = :model AND memory_id = ANY (:ids)
""")

_ADD_MISSING = _work("""
    WITH page AS (
        SELECT id, owner_id, created_at, embedding_model,
            EXISTS (SELECT FROM memory_vectors v WHERE v.memory_id = m.id AND v.model = :model) AS has
        FROM memories m WHERE id > :after ORDER BY id LIMIT :limit
    ), added AS (
        INSERT INTO memory_embeddings_due (memory_id, model, owner_id, created_at)
        SELECT id, :model, owner_id, created_at FROM page WHERE NOT has ON CONFLICT DO NOTHING
    ), named AS (
        UPDATE memories m SET embedding = 'ready', embedding_model = :model FROM page
        WHERE m.id = page.id AND page.has AND :model = :best AND page.embedding_model <> :best
    )
    SELECT CAST(max(CAST(id AS text)) AS uuid) FROM page HAVING count(*) = :limit
""")
"""The models of memories are named anew, too, when another one is the best now."""
