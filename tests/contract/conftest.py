"""What a contract test has changed by hand is undone, and the platform is whole when it begins."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.harness.platform import Platform


@pytest_asyncio.fixture(scope="module", autouse=True, loop_scope="session")
async def released(platform: Platform) -> AsyncIterator[None]:
    """No circuit and no mode is held afterwards."""
    yield
    for service in platform.stack.topology.services:
        await platform.call("POST", "/admin/circuit-breaker/reset", at=service, headers=platform.admin)
        await platform.call("POST", "/admin/mode", at=service, headers=platform.admin, json={"mode": None})
    await platform.healthy()
