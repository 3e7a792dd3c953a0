"""Faults on single edges of the platform, for the rows whose dependency others need as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from devstack.toxiproxy import ToxiproxyClient
from tests.harness.platform import Platform


@asynccontextmanager
async def on_edge(platform: Platform, edge: str, kind: str, **attributes: int) -> AsyncIterator[None]:
    """A toxic on one edge (names: ``SERVICE-DEPENDENCY``) for the time of the body."""
    async with ToxiproxyClient(platform.stack.plan.proxy.url) as proxy:
        await proxy.add(edge, kind, attributes)
        try:
            yield
        finally:
            await proxy.clear(edge)


@asynccontextmanager
async def cut(platform: Platform, edge: str) -> AsyncIterator[None]:
    """Connections on one edge are reset for the time of the body."""
    async with on_edge(platform, edge, "reset_peer", timeout=0):
        yield
