"""One more process of a service on the same servers: for what instances promise each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from devstack.components import Service
from devstack.ports import Ports
from devstack.process import Process
from tests.harness.platform import Platform, eventually

READY = 30.0  # s


@asynccontextmanager
async def second(
    platform: Platform, name: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, Process]]:
    """Where the other process of the service answers, and the process itself; it is gone afterwards, however it went.

    It shares all edges of the first one, so that both meet the same faults. ``settings`` are its own.
    """
    ports, state, label = Ports(), platform.stack.state, f"{name}-second"
    http, grpc = ports.free("http"), ports.free("grpc")
    env = {**platform.stack.plan.components[name].command().env, "HTTP_PORT": str(http), "GRPC_PORT": str(grpc)}
    env |= settings or {}
    service = Service(label, name.replace("-", "_"), port=http, env=env)
    process = Process.spawn(label, service.command(), log=state.log(label), record=state.record(label))
    try:
        await eventually(service.accepts, f"{label} answers", READY)
        yield service.url, process
    finally:
        await process.kill()
        state.record(label).unlink(missing_ok=True)
        ports.release()
