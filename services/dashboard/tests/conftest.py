"""Real servers for the Dashboard's own tests: PostgreSQL with the schema, and Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

import dashboard
from dashboard.outbound.postgres import Database
from devstack.stack import Stack
from devstack.topology import Topology
from service_kit.migrations import upgrade
from service_kit.redis_client import create_client

MIGRATIONS = Path(dashboard.__file__).parent / "migrations"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """PostgreSQL and Valkey without services or proxies, migrated."""
    topology = Topology(only=frozenset({"postgres", "redis"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("dashboard"), topology, port_base=None) as stack:
        await upgrade(stack.database_url("dashboard"), MIGRATIONS)
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def database(servers: Stack) -> AsyncIterator[Database]:
    """An empty database."""
    database = Database(servers.database_url("dashboard"))
    await database.open()
    await database.fetch(
        "TRUNCATE users, operations, ended_sessions, rooms, calls, call_members, reports, pricing_zones"
    )
    yield database
    await database.close()


@pytest_asyncio.fixture(loop_scope="session")
async def redis_client(servers: Stack) -> AsyncIterator[Redis]:
    """An empty Valkey."""
    client = create_client(servers.url("redis"))
    await client.flushall()
    yield client
    await client.aclose()
