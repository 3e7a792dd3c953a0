"""After every chaos test the platform is whole again; one that cannot be mended fails the test that broke it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.harness.platform import Platform


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def mended(platform: Platform) -> AsyncIterator[None]:
    """All is well before the test and after it."""
    await platform.healthy()
    yield
    await platform.mend()
