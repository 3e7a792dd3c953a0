"""Rows D2 to D5: each real dependency is killed, frozen, slowed and cut off under load from another process.

Four things are asserted of each: the answer (the matrix's own words, and every answer of the load by the checker), the
signal (headers, health page, metrics, log), the time, and the recovery. D1 and D6 have files of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import pytest

from tests.harness.client import Account
from tests.harness.platform import Answer, Platform
from tests.harness.routes import ROUTES, ROWS, SHOWS_AFTER
from tests.harness.run import RECOVERY, Run, report, under_load
from tests.harness.signals import shown_open, signalled

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

RATE = 25.0  # requests per second
LEAD = 0.5  # s of load before and after the outage
HOLD = 1.0  # s with every circuit open
FAST = 0.5  # s within which 95 of 100 answers come while the circuit is open
FAULTS = ("kill", "freeze", "delay", "cut")


@dataclass(frozen=True)
class Expected:
    """What the matrix says of one row. ``lost``: kinds that fail, with the text; ``kept``: kinds that are served, with
    the status; ``unmarked``: kinds that do not notice; ``fallbacks``: at least one of these is counted."""

    lost: Mapping[str, str]
    kept: Mapping[str, int]
    unmarked: tuple[str, ...]
    fallbacks: tuple[str, ...] = ()
    mode: str = "degraded"


AI, VIDEO = "AI temporarily unavailable", "Video calling temporarily unavailable"
EXPECTED = {
    "D2": Expected({}, {"read": 200, "me": 200, "write": 200}, (), ("memory-sessions",)),
    "D3": Expected(
        {"chat": AI},
        {"translate": 200, "new_agent": 202, "new_memory": 201, "agent": 200, "agents": 200},
        ("read", "write", "room", "token"),
        ("original-text", "redis-queue"),
    ),
    "D4": Expected(
        {"new_room": VIDEO, "token": VIDEO},
        {"room": 200, "rooms": 200},
        ("read", "write", "agent"),
        ("rooms-database",),
    ),
    "D5": Expected({}, {}, ("read", "write", "room"), ("event-buffer",)),
}
CASES = [
    *(pytest.param("D2", fault, id=f"D2-{fault}", marks=pytest.mark.row("D2")) for fault in FAULTS),
    *(pytest.param("D3", fault, id=f"D3-{fault}", marks=pytest.mark.row("D3")) for fault in FAULTS),
    *(pytest.param("D4", fault, id=f"D4-{fault}", marks=pytest.mark.row("D4")) for fault in FAULTS),
    *(pytest.param("D5", fault, id=f"D5-{fault}", marks=pytest.mark.row("D5")) for fault in FAULTS),
]


@pytest.mark.parametrize(("label", "fault"), CASES)
async def test_row(platform: Platform, accounts: list[Account], tmp_path: Path, label: str, fault: str) -> None:
    expected, kinds = EXPECTED[label], await platform.kinds()
    asking = await platform.equip(await platform.register())  # whom the load does not use, so that its history is whole
    async with under_load(platform, accounts, tmp_path, rate=RATE) as run:
        await asyncio.sleep(LEAD)
        await platform.profile(asking)
        async with (
            signalled(platform, label, expected.fallbacks, errors=bool(expected.lost)),
            run.outage(fault, ROWS[label]),
        ):
            await shown_open(platform, label)
            await asyncio.sleep(SHOWS_AFTER.get(ROWS[label], 0.0))
            await answers(platform, asking, expected, kinds)
            await asyncio.sleep(HOLD)
        await asyncio.sleep(LEAD)
    violations = await run.violations()
    assert not violations, report(violations)
    assert run.recoveries[0] < RECOVERY
    in_no_time(run, expected)


async def answers(platform: Platform, account: Account, expected: Expected, kinds: list[str]) -> None:
    """One request of each kind while the circuit is open: in the matrix's own words."""
    for kind, text in expected.lost.items():
        lost = await ask(platform, kind, account)
        assert lost.status in (429, 503), lost
        assert text in lost.body["message"]
        assert int(lost.headers["retry-after"]) >= 1
    for kind in (kind for kind in expected.kept if kind in kinds):
        kept = await ask(platform, kind, account)
        assert kept.status == expected.kept[kind], kept
        assert kept.headers["x-degraded-mode"] == "true", kept
    for kind in expected.unmarked:
        well = await ask(platform, kind, account)
        assert well.status == 200, well
        assert "x-degraded-mode" not in well.headers, well


async def ask(platform: Platform, kind: str, account: Account) -> Answer:
    """One request of a kind at the first Dashboard."""
    route, name = ROUTES[kind], f"asked {kind}"
    path = "/api/v1" + route.path.format(user=account.id, room=account.room, agent=account.agent)
    return await platform.call(route.method, path, account, json=route.body(name))


def in_no_time(run: Run, expected: Expected) -> None:
    """With the circuit open nobody waits for what is gone."""
    (outage,) = run.outages
    concerned = {*expected.lost, *expected.kept, *expected.unmarked}
    seconds = [event.seconds for event in run.events() if event.kind in concerned and outage.covers(event)]
    assert len(seconds) > HOLD * 5, "the load was too light to prove anything"
    assert quantiles(seconds, n=20)[-1] < FAST
