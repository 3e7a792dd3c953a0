"""Row D5, dashboard.event_stream: what happened while the broker was away is told when it is back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devstack.topology import KAFKA_EDGE
from service_kit.event_stream import DomainEvent, EventConsumer
from tests.harness.client import Account
from tests.harness.platform import Platform, eventually
from tests.harness.run import RECOVERY, report, under_load

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D5"), pytest.mark.stack]

DOWN = 3.0  # s


@asynccontextmanager
async def listening(platform: Platform) -> AsyncIterator[Counter[str]]:
    """How often each event was heard, by id, doubles of the stream itself left out."""
    heard: Counter[str] = Counter()

    async def hear(event: DomainEvent) -> None:
        heard[event.id] += 1

    consumer = EventConsumer(f"127.0.0.1:{platform.stack.plan.listen(KAFKA_EDGE)}", hear)
    task = asyncio.create_task(consumer.run())
    try:

        async def connected() -> bool:
            return consumer.stats().connected

        await eventually(connected, "the stream is heard")
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)


@pytest.mark.parametrize("fault", ["kill", "cut"])
async def test_every_applied_write_is_told_of(
    platform: Platform, accounts: list[Account], tmp_path: Path, fault: str
) -> None:
    async with listening(platform) as heard:
        async with under_load(platform, accounts, tmp_path) as run, run.outage(fault, "kafka"):
            await asyncio.sleep(DOWN)
        after = await run.after()
        applied = after.operations.keys() - run.before.operations.keys()
        assert len(applied) > DOWN * 5, "the load was too light to prove anything"

        async def all_heard() -> bool:
            return applied <= heard.keys()

        await eventually(all_heard, "every applied write is in the stream", RECOVERY)
    violations = await run.violations()
    assert not violations, report(violations)
    assert run.recoveries[0] < RECOVERY
