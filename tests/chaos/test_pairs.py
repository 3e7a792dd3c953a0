"""Every pair of rows D1 to D6 at once, and all of them: each request is answered, truthfully, and all heals by itself.

One platform and one load go through all of it, because what an outage leaves behind shows in the next one. The tests
look at the one history: each at its own part, and the last at the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest
import pytest_asyncio

from tests.chaos.standby import accounts, platform  # noqa: F401  (fixtures)
from tests.harness import checker
from tests.harness.checker import Database, Outage
from tests.harness.client import Account
from tests.harness.history import Event
from tests.harness.platform import Platform
from tests.harness.routes import KAFKA, ROWS
from tests.harness.run import RECOVERY, Run, report, under_load

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack, pytest.mark.timeout(240)]

RATE = 16.0  # requests per second
HOLD = 0.5  # s with every circuit open
PAIRS = (*combinations(ROWS, 2), tuple(ROWS))
EMERGENCIES = {("D1", "D4"), tuple(ROWS)}  # two rows of priority P0


def faults_of(rows: Sequence[str], number: int) -> dict[str, str]:
    """Everything is killed but one, in turn, which is frozen. Kafka never: it takes five refused batches to know, which
    a frozen broker makes ten seconds (see row D5)."""
    faults = {ROWS[row]: "kill" for row in rows}
    frozen = ROWS[rows[number % len(rows)]]
    return faults if frozen == KAFKA else {**faults, frozen: "freeze"}


@dataclass
class Situation:
    """A pair as it went."""

    rows: tuple[str, ...]
    faults: dict[str, str]
    begun: float = 0.0
    ended: float = 0.0
    recovery: float = 0.0
    modes: set[str] = field(default_factory=set)
    problem: str = ""


@dataclass
class Whole:
    """All pairs, and the history of it all."""

    situations: dict[tuple[str, ...], Situation]
    events: list[Event]
    outages: list[Outage]
    before: Database
    after: Database


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(
    platform: Platform,  # noqa: F811
    accounts: list[Account],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    """Runs everything once. What goes wrong here is told by the test of its pair."""
    situations = {rows: Situation(rows, faults_of(rows, number)) for number, rows in enumerate(PAIRS)}
    async with under_load(platform, accounts, tmp_path_factory.mktemp("pairs"), rate=RATE) as run:
        for situation in situations.values():
            await go_through(run, situation)
    return Whole(situations, run.events(), run.outages, run.before, await run.after())


async def go_through(run: Run, situation: Situation) -> None:
    """One pair: broken, noticed, held, mended."""
    situation.begun = time.monotonic()
    try:
        async with run.outages_of(situation.faults):
            await asyncio.sleep(HOLD)
            situation.modes = set((await run.platform.modes()).values())
        situation.recovery = run.recoveries[-1]
    except AssertionError as error:
        situation.problem = str(error).partition("\n")[0]
        await run.platform.mend()
    situation.ended = time.monotonic()


@pytest.mark.row("D1")
@pytest.mark.row("D2")
@pytest.mark.row("D3")
@pytest.mark.row("D4")
@pytest.mark.row("D5")
@pytest.mark.row("D6")
@pytest.mark.parametrize("rows", PAIRS, ids="+".join)
async def test_together(whole: Whole, rows: tuple[str, ...]) -> None:
    situation = whole.situations[rows]
    assert not situation.problem
    assert situation.recovery < RECOVERY
    events = [event for event in whole.events if situation.begun <= event.start <= situation.ended]
    assert len(events) > 30, "the load was too light to prove anything"
    violations = [
        *checker.answered(events),
        *checker.served(events, whole.outages),
        *checker.in_time(events),
        *checker.labelled(events, whole.outages),
    ]
    assert not violations, report(violations)
    assert situation.modes <= ({"emergency"} if rows in EMERGENCIES else {"degraded", "emergency"})


async def test_no_accepted_write_was_lost_or_doubled(whole: Whole) -> None:
    violations = [
        *checker.applied_once(whole.events, whole.before, whole.after),
        *checker.in_order(whole.events, whole.before, whole.after),
        *checker.made_once(whole.events, whole.after, whole.outages),
        *checker.no_dead_letters(whole.after),
        *checker.read_your_writes(whole.events, whole.outages),
    ]
    assert not violations, report(violations)
