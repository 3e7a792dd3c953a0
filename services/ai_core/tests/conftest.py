"""Real servers for AI Core's own tests: PostgreSQL with the schema, and Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.outbound.engine import create_engine
from ai_core.wiring.postgres import MIGRATIONS
from devstack.stack import Stack
from devstack.topology import Topology
from service_kit.migrations import upgrade
from service_kit.redis_client import create_client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """PostgreSQL and Valkey without services or proxies, migrated."""
    topology = Topology(only=frozenset({"postgres", "redis"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("ai-core-servers"), topology, port_base=None) as stack:
        await upgrade(stack.database_url("ai_core"), MIGRATIONS)
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def engine(servers: Stack) -> AsyncIterator[AsyncEngine]:
    """Connections to the database; tests use owners of their own."""
    engine = create_engine(servers.database_url("ai_core"))
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture(loop_scope="session")
async def redis_client(servers: Stack) -> AsyncIterator[Redis]:
    """An empty Valkey."""
    client = create_client(servers.url("redis"))
    await client.flushall()
    yield client
    await client.aclose()
