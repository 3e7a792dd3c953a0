"""Row D1, dashboard.postgres: killed again and again; nothing wears out, nothing adds up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.client import Account
from tests.harness.platform import Platform
from tests.harness.run import RECOVERY, report, under_load

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]

TIMES = 10
DOWN = 0.3  # s with every circuit open


@pytest.mark.timeout(240)
async def test_ten_kills_in_a_row(platform: Platform, accounts: list[Account], tmp_path: Path) -> None:
    async with under_load(platform, accounts, tmp_path) as run:
        for _ in range(TIMES):
            async with run.outage("kill"):
                await asyncio.sleep(DOWN)
    violations = await run.violations()
    assert not violations, report(violations)
    assert len(run.recoveries) == TIMES
    assert max(run.recoveries) < RECOVERY
