"""Every order of starting ends healthy.

Each permutation here is followed by its reverse, so every ordered pair of components occurs; one more mixes servers and
services. A part is started only when the one before it accepts work, so the order is real.
"""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from devstack.stack import Stack
from devstack.topology import Topology
from tests.harness.journey import journey
from tests.harness.platform import Platform

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]

NATURAL = ("postgres", "redis", "kafka", "providers", "ai-core", "webrtc", "dashboard")
MIXED = ("dashboard", "redis", "ai-core", "postgres", "webrtc", "kafka", "providers")


@pytest.mark.timeout(180)
async def test_every_order_ends_healthy(tmp_path: Path) -> None:
    stack = Stack(tmp_path, Topology(), port_base=None, autostart=False)
    async with stack, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        platform = Platform(stack, session)
        for order in (NATURAL[::-1], MIXED):
            for name in order:
                await stack.start(name)
                await stack.wait_ready(30, name)
            await platform.healthy(30)
            await journey(platform)
            await stack.stop(*reversed(order))
