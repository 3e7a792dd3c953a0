"""A platform with a standby, beside the one that most tests share: row D6, and every pair of rows.

Import the two fixtures into a module to have its tests run there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from devstack.stack import Stack
from devstack.topology import Topology
from tests.conftest import ENV
from tests.harness.client import Account
from tests.harness.people import people
from tests.harness.platform import Platform

PEOPLE = 12


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two Dashboards, which may read from a streaming standby."""
    topology = Topology(dashboards=2, standby=True, env=ENV)
    async with (
        Stack(tmp_path_factory.mktemp("standby"), topology, port_base=None) as stack,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        platform = Platform(stack, session)
        await platform.healthy(30)
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def accounts(platform: Platform) -> list[Account]:
    """Users whom every instance knows."""
    return await people(platform, PEOPLE)
