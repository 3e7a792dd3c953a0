"""The floors of a read: the least FastAPI code that answers ``GET /api/v1/users/{id}`` from the same table.

No login, no deadline, no circuit, no metrics, no log; the answer has the fields of the Dashboard's, and is written
in the fastest way that FastAPI offers (a Response of orjson's bytes). Started by uvicorn, one factory per process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Response
from sqlalchemy.ext.asyncio import create_async_engine

from dashboard.outbound.tables import users

PATH = "/api/v1/users/{user_id}"
POOL_SIZE = 8  # the Dashboard's
_FIELDS = ("id", "email", "display_name", "role", "created_at", "updated_at")
_QUERY = "SELECT id::text, email, display_name, role, created_at, updated_at FROM users WHERE id = $1"


def _answer(row: Any) -> Response:
    if row is None:
        raise HTTPException(404)
    return Response(orjson.dumps(dict(zip(_FIELDS, row, strict=True))), media_type="application/json")


def with_asyncpg() -> FastAPI:
    """On asyncpg's pool as it comes."""
    pool: asyncpg.Pool[asyncpg.Record]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal pool
        async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get(PATH)
    async def read(user_id: UUID) -> Response:
        return _answer(await pool.fetchrow(_QUERY, user_id))

    return app


def with_sqlalchemy() -> FastAPI:
    """On SQLAlchemy Core in its faster form: no transaction around the read, no connections beyond the pool's."""
    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0, isolation_level="AUTOCOMMIT")
    c = users.c
    query = sa.select(sa.cast(c.id, sa.Text), c.email, c.display_name, c.role, c.created_at, c.updated_at)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get(PATH)
    async def read(user_id: UUID) -> Response:
        async with engine.connect() as connection:
            found = await connection.execute(query.where(c.id == user_id))
            return _answer(found.first())

    return app
