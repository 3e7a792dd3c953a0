"""Brings a database's schema up to date when a service starts, however many instances start at once.

Everything happens in one transaction on one connection: an advisory lock lets one instance in at a time, and the lock,
like the half-made schema, is gone when the instance dies. Waiting for the lock is bounded; whoever gives up tries
again. Alembic is synchronous; on SQLAlchemy's asynchronous connection its statements wait without blocking the event
loop, and can be cancelled. Its reading of a few small files does block, for milliseconds, once.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import hard_timeout
from resilience.errors import CircuitBreakerOpen
from resilience.row_policy import RowPolicy

from . import logs

CONNECT_LIMIT = 2.0  # seconds to reach the server
LOCK_LIMIT = 10.0  # seconds to wait for another instance's migration, or for a lock on a table
STATEMENT_LIMIT = 60.0  # seconds a single statement of a migration may take
ATTEMPT_LIMIT = 90.0  # seconds for one attempt in all
RETRY_INTERVAL = 0.25  # seconds between attempts

log = logs.get_logger("migrations")


def driver_url(url: str) -> str:
    """The address as SQLAlchemy's asyncpg dialect wants it, which calls libpq's ``sslmode`` by another name."""
    url = re.sub(r"([?&])sslmode=", r"\1ssl=", url)
    return url.replace("postgresql://", "postgresql+asyncpg://", 1).replace("postgres://", "postgresql+asyncpg://", 1)


async def upgrade(url: str, scripts: Path) -> None:
    """Upgrade the database at ``url`` to the newest revision in ``scripts``.

    Raises what the driver raises; the transaction is then rolled back.
    """
    engine = create_async_engine(
        driver_url(url),
        poolclass=NullPool,
        connect_args={"timeout": CONNECT_LIMIT, "command_timeout": STATEMENT_LIMIT},
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate, scripts)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, scripts: Path) -> None:
    limit = sa.text("SELECT set_config('lock_timeout', :limit, true)")
    connection.execute(limit, {"limit": f"{LOCK_LIMIT:g}s"})
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(scripts)})
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    if _is_newer(connection, config):
        log.info("the database is a newer version's; it is used as it is")
    else:
        command.upgrade(config, "head")


def _is_newer(connection: Connection, config: Config) -> bool:
    """Whether a newer version of the service has been here, as after a rollback: its migrations leave us room."""
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    return not known.issuperset(MigrationContext.configure(connection).get_current_heads())


def lock_key(scripts: Path) -> int:
    """The advisory lock's key (a signed 64-bit number), the same for every instance of the service."""
    digest = hashlib.sha256(f"auralink migrations {scripts.parent.name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


class Migrator:
    """Upgrades once, as soon as the database is there; ``scripts`` is the service's migrations folder.

    Each attempt begins with ``ping`` under the database's policy: its failures open the circuit, so that a service
    started without its database says so before the first request.
    """

    def __init__(
        self,
        url: str,
        scripts: Path,
        *,
        policy: RowPolicy,
        ping: Callable[[], Awaitable[object]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._url = url
        self._scripts = scripts
        self._policy = policy
        self._ping = ping
        self._clock = clock
        self.done = asyncio.Event()

    async def _reach(self) -> None:
        """An open circuit stops nothing: until the tables are there, each request that gets the trial fails it."""
        try:
            await self._policy.call(self._ping)
        except CircuitBreakerOpen:
            await hard_timeout(self._ping(), self._policy.timeout, name=self._policy.row.id)

    async def run(self) -> None:
        """Try until it has succeeded; cancelling stops the trying. One warning per run of failures."""
        failures = 0
        while not self.done.is_set():
            try:
                await self._reach()
                async with asyncio.timeout(ATTEMPT_LIMIT):
                    await upgrade(self._url, self._scripts)
            except Exception as error:  # noqa: BLE001 - the database may be down in many ways; it is tried again
                if not failures:
                    log.warning("database not migrated yet, retrying", error=type(error).__name__)
                failures += 1
                await self._clock.sleep(RETRY_INTERVAL)
            else:
                self.done.set()
                log.info("database migrated", attempts=failures + 1)
