"""Row A3, ai_core.redis: nobody notices while the database is there; with both away, memory serves."""

from __future__ import annotations

import asyncio
from statistics import quantiles

import pytest

from tests.chaos.agents import AGENTS, AT, RECOVERY, Talker, chatting, settled, talker
from tests.harness.edges import cut
from tests.harness.platform import Platform, eventually
from tests.harness.signals import Log, shown_open

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A3"), pytest.mark.stack]

HOLD = 2.0
SOON = 0.5
"""Seconds for an answer once the circuit of Redis is open."""


@pytest.mark.parametrize("fault", ["kill", "freeze", "delay", "cut"])
async def test_under_load_nothing_breaks_and_one_line_says_so(platform: Platform, fault: str) -> None:
    talkers = [await talker(platform) for _ in range(3)]
    log = Log(platform, AT)
    async with chatting(talkers) as answers:
        await getattr(platform.stack, fault)("redis")
        await platform.in_state("redis", "open", at=(AT,))
        opened = len(answers)
        await asyncio.sleep(HOLD)  # the load goes on
        await shown_open(platform, "A3", AT)
        during = answers[opened + len(talkers) :]
    assert len(during) >= 30, "the load was too light to prove anything"
    for answer in answers:
        assert answer.status == 200, answer
        assert "stale" not in answer.body
    for answer in during:
        assert "x-degraded-mode" not in answer.headers, answer
    assert quantiles([answer.seconds for answer in during], n=20)[-1] < SOON, "of 100 answers 95 come at once"
    for one in talkers:
        assert await one.history() == one.said[-10:], "what was said is in the database, and in order"
    await platform.stack.heal("redis")
    await platform.in_state("redis", "closed", at=(AT,), limit=RECOVERY)
    assert len([line for line in log.lines(away()) if line["level"] == "warning"]) == 1
    assert len(log.lines(back())) == 1


def away() -> str:
    return "Redis is away: copies and kept answers in memory, no queue"


def back() -> str:
    return "Redis is back: copies and kept answers shared, writes can be queued"


async def test_with_redis_gone_first_memory_serves_and_a_write_is_refused(platform: Platform) -> None:
    one = await talker(platform)
    await platform.stack.kill("redis")
    await platform.in_state("redis", "open", at=(AT,))
    assert (await one.rename("Bea")).status == 200
    assert (await one.chat("without redis")).status == 200
    async with cut(platform, "ai-core-postgres"):
        await platform.in_state("postgres", "open", at=(AT,))
        read = await one.call("GET", one.path)
        assert (read.status, read.body["name"], read.headers["x-fallback-used"]) == (200, "Bea", "memory-cache"), read
        refused = await one.rename("Cleo")
        assert (refused.status, refused.body["queued"]) == (503, False), refused
        assert "was not saved" in refused.body["message"]
        assert int(refused.headers["retry-after"]) >= 1
        spoken = await one.chat("remembered by nobody")
        assert spoken.headers["x-fallback-used"] == "memory-cache, unsaved-history", spoken
        one.said.pop()
    await platform.in_state("postgres", "closed", at=(AT,), limit=RECOVERY)
    await platform.stack.heal("redis")
    await platform.in_state("redis", "closed", at=(AT,), limit=RECOVERY)
    assert (await one.call("GET", one.path)).body["name"] == "Bea"
    assert (await one.chat("again")).status == 200
    assert await one.history() == one.said


async def test_what_was_queued_before_redis_went_is_applied_when_it_is_back_and_undoes_nothing(
    platform: Platform,
) -> None:
    one = await talker(platform)
    async with cut(platform, "ai-core-postgres"):
        await platform.in_state("postgres", "open", at=(AT,))
        assert (await one.rename("queued")).body["queued"] is True
        assert (await one.chat("queued")).status == 200
        await seen(one)
        await platform.stack.kill("redis")
        await platform.in_state("redis", "open", at=(AT,))
    await platform.in_state("postgres", "closed", at=(AT,), limit=RECOVERY)
    shown = await one.call("GET", one.path)
    assert (shown.body["name"], shown.body["pending"]) == ("queued", True), "accepted, and not forgotten"
    assert (await one.rename("newer")).status == 200
    assert (await one.chat("newer")).status == 200
    await platform.stack.heal("redis")
    await settled(platform)
    live = await one.call("GET", one.path)
    assert (live.body["name"], "pending" in live.body) == ("newer", False), live
    assert await one.history() == ["the beginning", "queued", "newer"]
    assert (await one.call("GET", AGENTS)).body["items"][0]["name"] == "newer"


async def seen(one: Talker) -> None:
    """The instance has looked at what waits in its queue."""

    async def pending() -> bool:
        return (await one.call("GET", one.path)).body.get("pending") is True

    await eventually(pending, "the waiting change is shown")
