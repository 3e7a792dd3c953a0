"""Row D1, dashboard.postgres: the write queue when somebody else dies as well."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.harness.burst import burst
from tests.harness.checker import Database, Outage, answered, applied_once, check, in_order, in_time, no_dead_letters
from tests.harness.client import Account, Recorder
from tests.harness.edges import on_edge
from tests.harness.history import Event, Outcome
from tests.harness.platform import Platform, eventually
from tests.harness.run import RECOVERY, report

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]


async def hold(platform: Platform, action: str, at: str) -> None:
    """Holds the database's circuit of an instance by hand, or releases it."""
    path = f"/admin/circuit-breaker/{action}?dependency=postgres"
    assert (await platform.call("POST", path, at=at, headers=platform.admin)).status == 200


async def warm(platform: Platform, accounts: Sequence[Account]) -> None:
    """Every instance has a copy and has seen the session just now."""
    for account in accounts:
        for name in platform.dashboards:
            assert (await platform.profile(account, name)).status == 200


async def verify(platform: Platform, events: Sequence[Event], before: Database) -> None:
    """Accepted once and in order, refused not at all."""
    after = await platform.database()
    violations = [
        *answered(events),
        *in_time(events),
        *applied_once(events, before, after),
        *in_order(events, before, after),
        *no_dead_letters(after),
    ]
    assert not violations, report(violations)


async def test_an_instance_killed_while_draining_leaves_nothing_stuck(
    platform: Platform, accounts: list[Account]
) -> None:
    before = await platform.database()
    await platform.stack.kill("postgres")
    events = await burst(platform, accounts, 125, "drain")
    queued = sum(event.body.get("queued") is True for event in events)
    assert queued == len(events) == await platform.depth() == 3000
    for name in platform.dashboards:
        await hold(platform, "open", name)
    assert (await platform.stack.heal("postgres")).accepts
    # Slowly, and by this instance alone: so that there is a middle of the drain to die in.
    async with on_edge(platform, "dashboard-postgres", "latency", latency=80):
        await hold(platform, "reset", "dashboard")

        async def begun() -> bool:
            return 0 < await platform.depth("dashboard-2") < queued

        await eventually(begun, "the drain is under way")
        await platform.stack.kill("dashboard")
    left = await platform.depth("dashboard-2")
    assert 0 < left < queued
    taken_over = time.monotonic()
    await hold(platform, "reset", "dashboard-2")

    async def empty() -> bool:
        return await platform.depth("dashboard-2") == 0

    await eventually(empty, "the other instance has drained the rest")
    assert time.monotonic() - taken_over < RECOVERY
    await verify(platform, events, before)


async def test_redis_killed_with_writes_queued_loses_none_of_them(platform: Platform, accounts: list[Account]) -> None:
    some = accounts[:8]
    await warm(platform, some)
    before = await platform.database()
    await platform.stack.kill("postgres")
    events = await burst(platform, some, 25, "kept")
    assert await platform.depth() == 200
    await platform.stack.kill("redis")
    events += await refused(platform, some)
    await memory_serves(platform, some)
    await platform.stack.heal("redis")
    await platform.in_state("redis", "closed")
    assert await platform.depth() == 200
    await platform.stack.heal("postgres")
    await platform.in_state("postgres", "closed")
    await platform.drained(RECOVERY)
    await verify(platform, events, before)


async def refused(platform: Platform, accounts: Sequence[Account]) -> list[Event]:
    """With the database and the queue down, a write is refused, and says so."""
    recorder = Recorder(platform.session, platform.targets)
    events = [
        await recorder.write(account, name, f"refused {name}", wait=wait)
        for account in accounts
        for name, wait in zip(platform.dashboards, (True, False), strict=True)
    ]
    for event in events:
        assert event.outcome() is Outcome.FAIL, event
        assert event.body["queued"] is False
        assert "not saved" in event.body["message"]
        assert int(event.headers["retry-after"]) >= 1
    return events


async def memory_serves(platform: Platform, accounts: Sequence[Account]) -> None:
    """With the database and Redis down, an instance still shows what it has seen."""
    for account in accounts:
        for name in platform.dashboards:
            answer = await platform.profile(account, name)
            assert answer.status == 200, answer
            assert answer.body["stale"] is True
            assert "memory-cache" in answer.headers["x-fallback-used"]


async def test_a_full_journal_of_one_outage_keeps_every_promise(platform: Platform, accounts: list[Account]) -> None:
    """Reads and writes of one user in turn, over both instances: the strictest order there is."""
    recorder = Recorder(platform.session, platform.targets)
    account, before, events = accounts[0], await platform.database(), list[Event]()

    async def use(label: str) -> None:
        for number in range(20):
            instance = platform.dashboards[number % 2]
            events.append(await recorder.write(account, instance, f"{label} {number}", wait=number % 3 > 0))
            events.append(await recorder.read(account, instance))

    await use("before")
    start = time.monotonic()
    await platform.stack.kill("postgres")
    await use("down")
    noticed = time.monotonic()
    await platform.stack.heal("postgres")
    await use("healing")
    await platform.in_state("postgres", "closed")
    await platform.drained()
    over = time.monotonic()
    await use("after")
    outage = Outage(start, noticed, noticed, over)
    violations = check(events, before, await platform.database(), [outage])
    assert not violations, report(violations)


async def test_with_the_database_back_before_the_queue_accepted_writes_are_still_shown(
    platform: Platform, accounts: list[Account]
) -> None:
    """They wait where nobody can ask: every instance shows them as it last saw them, and denies none of them."""
    account, name = accounts[0], "accepted, and not forgotten"
    await warm(platform, [account])
    await platform.stack.kill("postgres")
    await platform.in_state("postgres", "open")
    queued = await platform.rename(account, name)
    assert queued.body["queued"] is True

    async def seen_elsewhere() -> bool:
        return (await platform.profile(account, "dashboard-2")).body.get("pending") is True

    await eventually(seen_elsewhere, "the other instance has looked at the queue")
    await platform.stack.kill("redis")
    await platform.stack.heal("postgres")
    await platform.in_state("postgres", "closed")
    for instance in platform.dashboards:
        answer = await platform.profile(account, instance)
        assert (answer.status, answer.body["display_name"], answer.body["pending"]) == (200, name, True), answer
        told = await platform.call("GET", queued.body["status_url"], account, at=instance)
        assert told.status == 503, told
        assert int(told.headers["retry-after"]) >= 1
    await platform.stack.heal("redis")
    await platform.drained()
    answer = await platform.profile(account)
    assert (answer.body["display_name"], answer.body.get("pending")) == (name, None)
