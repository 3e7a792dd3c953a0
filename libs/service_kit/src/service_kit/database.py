"""The connection pool to PostgreSQL, and what its errors mean.

Options and the list of errors are measured ones: with them a frozen server costs a caller about a second, and
none of them leaks a connection. There is no pre-ping, which would double every read: a connection that died while idle
is noticed before anything is sent on it, and the call is tried once more by the row's policy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from asyncpg.exceptions import InternalClientError
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from .migrations import driver_url

POOL_SIZE = 8
DRIVER_LIMIT = 1.0
"""Seconds for connecting, for a statement, and for a place in the pool; the policy's own limit is the hard one."""

IDLE_IN_TRANSACTION = "3s"
"""After which the server ends the transaction of a frozen process, whose fence holds up whoever repeats the write."""

_OUTAGES = ("08", "25006", "28", "3D000", "42P01", "53", "57", "58", "XX")
"""SQLSTATE classes and codes (PostgreSQL documentation, appendix A) that say "not usable now": connection, read-only
standby, authorization, no such database or table (not migrated yet), resources, operator intervention, system and
internal errors."""


def create_engine(url: str) -> AsyncEngine:
    """A bounded pool; connects at first use."""
    return create_async_engine(
        driver_url(url),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=DRIVER_LIMIT,
        hide_parameters=True,
        connect_args={
            "timeout": DRIVER_LIMIT,
            "command_timeout": DRIVER_LIMIT,
            "server_settings": {"idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION},
        },
    )


@dataclass(frozen=True, slots=True)
class Access:
    """Connections of an engine, with outages raised as the service's own errors: ``unavailable``, and ``disconnected``
    (one of these too) for a connection that turned out to be closed before anything was sent on it."""

    unavailable: type[Exception]
    disconnected: type[Exception]

    @asynccontextmanager
    async def reading(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection without a transaction around each statement. Raises ``unavailable``."""
        async with self._outages(), engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def writing(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction, committed at the end. Raises ``unavailable``."""
        async with self._outages(), engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def _outages(self) -> AsyncIterator[None]:
        try:
            yield
        except InterfaceError as error:  # asyncpg's on a closed connection: raised before anything is sent
            kind = self.disconnected if error.connection_invalidated else self.unavailable
            raise kind(_kind(error)) from error
        except DBAPIError as error:
            if not is_outage(error):
                raise
            raise self.unavailable(_kind(error)) from error
        except (OSError, TimeoutError, PoolTimeoutError, InternalClientError) as error:
            raise self.unavailable(type(error).__name__) from error


def is_outage(error: DBAPIError) -> bool:
    """Whether it says that the database cannot be used now, not that the statement was wrong."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state.startswith(_OUTAGES)


def _kind(error: DBAPIError) -> str:
    """The driver's name of the error: never its text, which may hold hosts and values."""
    cause = error.orig.__cause__ if error.orig is not None else None
    return type(cause or error.orig or error).__name__
