"""Row D6, dashboard.standby: reads go to the standby before they fall to the copies; alone, its loss shows nowhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.standby import accounts, platform  # noqa: F401  (fixtures)
from tests.harness.client import Account
from tests.harness.platform import Platform, eventually
from tests.harness.run import RECOVERY, report, under_load
from tests.harness.signals import shown_open, signalled

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D6"), pytest.mark.stack]

RATE = 25.0
HOLD = 1.5  # s
FAULTS = ("kill", "freeze", "delay", "cut")


async def reads_from(platform: Platform, account: Account, fallback: str) -> None:  # noqa: F811
    """Waits until both instances serve the profile from there."""
    for name in platform.dashboards:

        async def there(name: str = name) -> bool:
            answer = await platform.profile(account, name)
            assert answer.status == 200, answer
            return fallback in answer.headers.get("x-fallback-used", "")

        await eventually(there, f"{name} reads from {fallback}", 8)


@pytest.mark.parametrize("fault", FAULTS)
async def test_alone_its_loss_shows_nowhere(
    platform: Platform,  # noqa: F811
    accounts: list[Account],  # noqa: F811
    tmp_path: Path,
    fault: str,
) -> None:
    async with under_load(platform, accounts, tmp_path, rate=RATE) as run, run.outage(fault, "standby"):
        await asyncio.sleep(HOLD)
    violations = await run.violations()
    assert not violations, report(violations)
    assert run.recoveries[0] < RECOVERY
    assert not [event for event in run.events() if event.degraded and event.kind != "home"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_it_serves_what_the_primary_held_last(
    platform: Platform,  # noqa: F811
    accounts: list[Account],  # noqa: F811
    fault: str,
) -> None:
    account = accounts[0]
    await platform.rename(account, f"last before {fault}")
    await asyncio.sleep(0.2)  # for the stream of changes, which no commit waits for
    await getattr(platform.stack, fault)("postgres")
    await reads_from(platform, account, "postgres-standby")
    answer = await platform.profile(account)
    assert answer.body["display_name"] == f"last before {fault}"
    assert answer.body["stale"] is True
    assert answer.body["as_of"]
    assert int(answer.headers["age"]) < 30
    await platform.stack.heal("postgres")
    await platform.healthy()


@pytest.mark.parametrize("fault", FAULTS)
async def test_without_either_reads_fall_to_the_copies(
    platform: Platform,  # noqa: F811
    accounts: list[Account],  # noqa: F811
    tmp_path: Path,
    fault: str,
) -> None:
    asking = await platform.register()
    async with under_load(platform, accounts, tmp_path, rate=RATE) as run:
        for name in platform.dashboards:
            await platform.profile(asking, name)
        async with signalled(platform, "D6", ("redis-cache",)), run.outages_of({"postgres": "kill", "standby": fault}):
            await platform.in_state("standby", "open")
            await reads_from(platform, asking, "redis-cache")
            await shown_open(platform, "D6")
            await asyncio.sleep(HOLD)
    violations = await run.violations()
    assert not violations, report(violations)
    assert run.recoveries[0] < RECOVERY


async def test_back_it_serves_again_though_the_primary_is_still_away(
    platform: Platform,  # noqa: F811
    accounts: list[Account],  # noqa: F811
) -> None:
    account = accounts[1]
    await asyncio.gather(platform.stack.kill("postgres"), platform.stack.kill("standby"))
    await reads_from(platform, account, "redis-cache")
    assert (await platform.stack.heal("standby")).accepts
    await reads_from(platform, account, "postgres-standby")
    await platform.stack.heal("postgres")
    await platform.healthy()
