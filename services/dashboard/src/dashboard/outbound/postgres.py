"""The connection pool to PostgreSQL, bounded in every wait, and the table of which errors mean that it is gone.

asyncpg is used directly because a read through SQLAlchemy costs two to four times as much; SQLAlchemy describes the
tables and migrates them (docs/adr/0004-asyncpg-for-queries.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from dashboard.outbound.query_times import MeasuredConnection, QueryTimes, now
from resilience import Verdict

POOL_SIZE = 8
_CONNECT_SECONDS = 1.0
_COMMAND_SECONDS = 1.0
_CLOSE_SECONDS = 2.0

# A lost connection: the server may be there again, one more attempt on a fresh connection is worth it.
DISCONNECTED = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
# The server cannot do its work, whatever it was asked.
_OUTAGES = (
    *DISCONNECTED,
    TimeoutError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.UndefinedTableError,  # the schema is not there yet
    asyncpg.UndefinedColumnError,
)


def is_outage(error: BaseException) -> bool:
    """True when the database failed, False when it answered."""
    return isinstance(error, _OUTAGES) and not isinstance(error, asyncpg.DataError)


def is_disconnect(error: BaseException) -> bool:
    """True when the connection was lost, which a pooled one may have been long before this call."""
    return isinstance(error, DISCONNECTED) and not isinstance(error, (TimeoutError, asyncpg.DataError))


def classify(error: BaseException) -> Verdict:
    """How the circuit counts an error."""
    if not isinstance(error, Exception):
        return Verdict.NEUTRAL
    return Verdict.FAILURE if is_outage(error) else Verdict.SUCCESS


async def _reset(connection: Any) -> None:
    """No session state is ever set: a released connection needs a round trip only when a transaction was cut short."""
    if connection.is_in_transaction():
        await connection.reset()


class Database:
    """A pool that needs no server to start. ``url`` is never logged.

    Waiting for a place in it has no limit of its own, which would cost every call a timer: all calls are made under the
    row's policy or by its prober, whose hard limits cancel the wait.
    """

    def __init__(self, url: str) -> None:
        self._url = _driver_url(url)
        self._pool = self._new_pool()
        self.times = QueryTimes()

    def _new_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        return asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=POOL_SIZE,
            timeout=_CONNECT_SECONDS,
            command_timeout=_COMMAND_SECONDS,
            reset=_reset,
            server_settings={"application_name": "auralink-dashboard", "jit": "off"},
        )

    async def open(self) -> None:
        """Prepares the pool; connects to nothing."""
        await self._pool

    async def close(self) -> None:
        """Closes the connections; bounded, also when the server is frozen."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def replace_connections(self) -> None:
        """Cuts every connection and starts with none: after an outage each may be dead without knowing it."""
        old, self._pool = self._pool, await self._new_pool()
        old.terminate()

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """The first row of a query, or None."""
        async with self._pool.acquire() as connection:
            begun = now()
            try:
                return await connection.fetchrow(query, *args)
            finally:
                self.times.note(query, begun)

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """All rows of a query."""
        async with self._pool.acquire() as connection:
            begun = now()
            try:
                return await connection.fetch(query, *args)
            finally:
                self.times.note(query, begun)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection inside a transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield MeasuredConnection(connection, self.times.note)

    async def ping(self) -> None:
        """Raises unless the server answers."""
        await self.fetchrow("SELECT 1")

    async def probe(self) -> None:
        """Cheap proof that the database can serve: connects and touches the schema."""
        await self.fetchrow("SELECT 1 FROM users LIMIT 1")


def _driver_url(url: str) -> str:
    """SQLAlchemy's driver suffix is not asyncpg's to read."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)
