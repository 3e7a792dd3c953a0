"""After every chaos test the platform is whole again; one that cannot be mended fails the test that broke it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from devstack.stack import Stack
from devstack.topology import Topology
from tests.conftest import ENV
from tests.harness.platform import Platform


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standby_platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two Dashboards, which may read from a streaming standby; see standby.py."""
    topology = Topology(dashboards=2, standby=True, env=ENV)
    async with (
        Stack(tmp_path_factory.mktemp("standby"), topology, port_base=None) as stack,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        platform = Platform(stack, session)
        await platform.healthy(30)
        yield platform


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def mended(platform: Platform) -> AsyncIterator[None]:
    """All is well before the test and after it."""
    await platform.healthy()
    yield
    await platform.mend()
