"""pgvector's part of the database: the extension, and one index per model (row A6, ai_core.vectors).

No migration depends on it. Whoever drops the extension, with ``CASCADE``, drops the indexes; the vectors stay, and this
makes the rest again. Indexes are built concurrently, so that nobody waits for one of a large table.

Source: pgvector's README, "HNSW"; PostgreSQL documentation, "Building Indexes Concurrently".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from ai_core.outbound.engine import reading
from ai_core.outbound.vectors import EXACT_ABOVE, Space, compared
from resilience import RowPolicy
from service_kit.migrations import CONNECT_LIMIT, driver_url

LOOK_AGAIN: Final = 300.0
RETRY: Final = 1.0
"""Seconds between looks, when all was well and when not."""
BUILD_LIMIT: Final = 1_800.0
"""Seconds that building one index may take."""
_LOCK: Final = 0x4136
"""Advisory lock of the one instance that builds ("A6" in ASCII)."""
_ALREADY: Final = ("23505", "42710")
"""SQLSTATE codes of what another instance has just created."""


class VectorSchema:
    """Looks after extension and indexes of the ``spaces``; ``engine`` for quick looks, ``url`` for building."""

    def __init__(self, engine: AsyncEngine, url: str, spaces: Sequence[Space]) -> None:
        self._engine = engine
        self._url = url
        self._spaces = [space for space in spaces if 0 < (space.dimensions or 0) <= EXACT_ABOVE]

    async def ping(self) -> None:
        """Raises VectorsGone unless vectors can be compared, if need be with the extension created just now."""
        async with reading(self._engine) as connection:
            try:
                there = (await connection.execute(_EXTENSION)).scalar_one_or_none()
                if there is None:
                    await _create(connection)
                await connection.execute(_COMPARE)
            except DBAPIError as error:
                if (gone := compared(error)) is None:
                    raise
                raise gone from error

    async def build(self) -> bool:
        """Makes the indexes that are missing; False when another instance is at it.

        Raises VectorsGone, and what the driver raises.
        """
        async with self._builder() as connection:
            if not (await connection.execute(_TRY_LOCK, {"key": _LOCK})).scalar_one():
                return False
            for space in self._spaces:
                await _index(connection, space)
        return True

    @asynccontextmanager
    async def _builder(self) -> AsyncIterator[AsyncConnection]:
        """A connection of its own with long limits; closing it gives the lock back."""
        limits = {"timeout": CONNECT_LIMIT, "command_timeout": BUILD_LIMIT}
        engine = create_async_engine(driver_url(self._url), poolclass=NullPool, connect_args=limits)
        try:
            async with engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")
        except DBAPIError as error:
            if (gone := compared(error)) is None:
                raise
            raise gone from error
        finally:
            await engine.dispose()


class VectorKeeper:
    """Keeps the schema in order: at the start, whenever row A6 recovers (``kick``), and now and then."""

    def __init__(self, schema: VectorSchema, policy: RowPolicy) -> None:
        self._schema = schema
        self._policy = policy
        self._wanted = asyncio.Event()

    def kick(self) -> None:
        """Look again now."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled. What is wrong is for the row and its probe to say."""
        while True:
            self._wanted.clear()
            done = await self._look()
            try:
                async with asyncio.timeout(LOOK_AGAIN if done else RETRY):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _look(self) -> bool:
        try:
            await self._policy.call(self._schema.ping)
            return await self._schema.build()
        except Exception:  # noqa: BLE001 - no extension, no database, no tables yet: it is tried again
            return False


async def _create(connection: AsyncConnection) -> None:
    try:
        await connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _ALREADY:
            raise


async def _index(connection: AsyncConnection, space: Space) -> None:
    """One index; a half-built one, left by a builder that died, is made again."""
    valid = (await connection.execute(_VALID, {"name": space.index})).scalar_one_or_none()
    if valid:
        return
    if valid is False:
        await connection.execute(sa.text(f"DROP INDEX CONCURRENTLY IF EXISTS {space.index}"))
    kind = space.kind
    operators = f"{kind.partition('(')[0]}_cosine_ops"
    await connection.execute(
        sa.text(
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {space.index} ON memory_vectors "
            f"USING hnsw ((embedding::{kind}) {operators}) WHERE model = {space.literal}"
        )
    )


_EXTENSION = sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
_COMPARE = sa.text(r"SELECT '[1]'\:\:vector <=> '[1]'\:\:vector")
_TRY_LOCK = sa.text("SELECT pg_try_advisory_lock(:key)")
_VALID = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
