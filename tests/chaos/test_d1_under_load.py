"""Row D1, dashboard.postgres: PostgreSQL is broken under load from another process, in every way it can break."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.client import Account
from tests.harness.history import writes_of
from tests.harness.platform import Platform
from tests.harness.run import RECOVERY, Run, report, under_load

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]

LEAD = 1.0  # s of load before and after the outage
FAULTS = {"kill": 15.0, "freeze": 7.0, "delay": 7.0, "cut": 7.0}  # s of outage


async def outage(run: Run, fault: str, seconds: float) -> None:
    """Breaks PostgreSQL for so long, under a load that goes on."""
    await asyncio.sleep(LEAD)
    async with run.outage(fault):
        await asyncio.sleep(seconds)
    await asyncio.sleep(LEAD)


@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_lost_doubled_or_late(
    platform: Platform, accounts: list[Account], tmp_path: Path, fault: str
) -> None:
    async with under_load(platform, accounts, tmp_path) as run:
        await outage(run, fault, FAULTS[fault])
    violations = await run.violations()
    assert not violations, report(violations)
    assert run.recoveries[0] < RECOVERY
    queued = [write for write in writes_of(run.events()) if write.queued]
    assert len(queued) > FAULTS[fault] * 5, "the load was too light to prove anything"
