"""The platform that most tests share, and its users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from devstack.components import turn
from devstack.stack import Stack
from devstack.topology import Topology
from tests.harness.browser import Callers, chromium
from tests.harness.client import Account
from tests.harness.platform import Platform

USERS = 24
ENV = {"MODE_LEAVE_AFTER": "0.5s"}  # the tests wait for the end of each mode


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """The whole platform with two Dashboards behind fault proxies, and TURN where coturn is installed; started once."""
    topology = Topology(dashboards=2, turn=turn.installed(), env=ENV)
    async with (
        Stack(tmp_path_factory.mktemp("platform"), topology, port_base=None) as stack,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True) as session,
    ):
        platform = Platform(stack, session)
        await platform.healthy(30)
        yield platform


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def accounts(platform: Platform) -> list[Account]:
    """Users whose profile every instance has shown once."""
    # Few at a time: hashing a password is slow on purpose, and must not outlast the requests' own deadline.
    gate = asyncio.Semaphore(2)

    async def register(number: int) -> Account:
        async with gate:
            return await platform.register(platform.dashboards[number % len(platform.dashboards)])

    accounts = await asyncio.gather(*(register(number) for number in range(USERS)))
    for account in accounts:
        for name in platform.dashboards:
            assert (await platform.profile(account, name)).status == 200
    return accounts


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def callers(platform: Platform) -> AsyncIterator[Callers]:
    """People with browsers, for tests that need Chromium."""
    async with chromium() as browser:
        yield Callers(platform, browser)
