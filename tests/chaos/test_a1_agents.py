"""Row A1, ai_core.postgres: agents are read from copies; writes and what was said wait, and are applied in order."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.agents import AGENTS, AT, RECOVERY, chatting, dead_letters, fresh_key, settled, talker
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.signals import metrics, shown_open

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A1"), pytest.mark.stack]

HOLD = 2.0
"""Seconds for which the load goes on in an outage."""
MANY = 12
"""Things said in a test, so few that all of them fit into a history."""


@pytest.mark.parametrize("fault", ["kill", "freeze", "delay", "cut"])
async def test_under_load_reads_are_stale_writes_queued_and_chats_remembered(platform: Platform, fault: str) -> None:
    talkers = [await talker(platform) for _ in range(3)]
    for one in talkers:
        one.said.clear()
    before = await metrics(platform, AT)
    async with chatting(talkers) as answers:
        await getattr(platform.stack, fault)("postgres")
        await platform.in_state("postgres", "open", at=(AT,))
        opened = len(answers)
        await asyncio.sleep(HOLD)  # the load goes on
        await shown_open(platform, "A1", AT)
        during = answers[opened:]
    assert len(during) >= 30, "the load was too light to prove anything"
    for answer in during:
        told_the_truth(answer)
    assert await platform.depth(AT) > 0
    after = await metrics(platform, AT)
    for fallback in ("redis-cache", "redis-queue"):
        grown = after.total("fallback_activations_total", fallback=fallback)
        assert grown > before.total("fallback_activations_total", fallback=fallback)
    shown = [await one.history() for one in talkers]
    assert (await platform.stack.heal("postgres")).accepts
    await platform.in_state("postgres", "closed", at=(AT,), limit=RECOVERY)
    await settled(platform)
    assert await dead_letters(platform) == []
    for one, seen in zip(talkers, shown, strict=True):
        kept = await one.history()
        assert kept == seen == ["the beginning", *one.said][-10:]
        live = await one.call("GET", one.path)
        assert "x-degraded-mode" not in live.headers
        assert live.body["name"] == f"name {sum(text.startswith('number') for text in one.said)}"


def told_the_truth(answer: Answer) -> None:
    """An answer of the outage: useful, and labelled as what it is."""
    used = answer.headers["x-fallback-used"].split(", ")
    if "reply" in answer.body:
        assert (answer.status, used) == (200, ["redis-cache", "redis-queue"]), answer
    elif answer.body.get("queued"):
        assert (answer.status, used) == (202, ["redis-queue"]), answer
        assert answer.headers["preference-applied"] == "respond-async"
    else:
        assert (answer.status, answer.body["stale"], used) == (200, True, ["redis-cache"]), answer
        assert int(answer.headers["age"]) >= 0
        assert answer.body["as_of"]
    assert answer.headers["x-circuit-state"] in ("open", "half-open")
    assert int(answer.headers["x-retry-after"]) >= 1


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_queued_write_says_so_and_is_found_by_its_owner_only(platform: Platform, fault: str) -> None:
    one, other = await talker(platform), await talker(platform)
    await getattr(platform.stack, fault)("postgres")
    key = fresh_key()
    queued = await one.call("POST", AGENTS, {"name": "Later"}, Idempotency_Key=key)
    assert (queued.status, queued.body["queued"]) == (503, True), queued
    assert "Your change is saved and will be applied." in queued.body["message"]
    assert int(queued.headers["retry-after"]) >= 1
    again = await one.call("POST", AGENTS, {"name": "Later"}, Idempotency_Key=key, Prefer="respond-async")
    assert (again.status, again.body["operation_id"]) == (202, queued.body["operation_id"]), again
    listed = await one.call("GET", AGENTS)
    assert (listed.body["pending"], [agent["name"] for agent in listed.body["items"]]) == (True, ["Later", "Ada"])
    status = queued.body["status_url"]
    assert (await one.call("GET", status)).body["status"] in ("queued", "applying")
    assert (await other.call("GET", status)).status in (404, 429, 503)
    await platform.stack.heal("postgres")

    async def applied() -> bool:
        return bool((await one.call("GET", status)).body.get("status") == "applied")

    await eventually(applied, "the queued creation is applied", RECOVERY + 5)
    # The drain may be done before the circuit has closed, or even opened: what waited for the frozen server fails late.
    await platform.in_state("postgres", "closed", at=(AT,), limit=RECOVERY)
    assert (await other.call("GET", status)).status == 404
    live = await one.call("GET", AGENTS)
    assert ("stale" in live.body, "pending" in live.body) == (False, False), live
    assert [agent["name"] for agent in live.body["items"]] == ["Later", "Ada"], live
    made = await one.call("POST", AGENTS, {"name": "Later"}, Idempotency_Key=key)
    assert (made.status, made.body.get("id")) == (201, live.body["items"][0]["id"]), made


async def test_a_conversation_keeps_its_order_over_two_outages(platform: Platform) -> None:
    one = await talker(platform)
    for number in range(MANY // 4):
        await one.chat(f"before {number}")
    for outage in range(2):
        await platform.stack.kill("postgres")
        for number in range(MANY // 4):
            assert (await one.chat(f"outage {outage}, {number}")).status == 200
        await platform.stack.heal("postgres")
        assert (await one.chat(f"healing {outage}")).status == 200
    await platform.in_state("postgres", "closed", at=(AT,))
    await settled(platform)
    assert await one.history() == one.said[-10:]
    assert await dead_letters(platform) == []


async def test_through_the_dashboard_the_promise_is_the_same(platform: Platform) -> None:
    """Both services lose their databases at once: what AI Core has queued is found through the Dashboard."""
    one = await talker(platform, "dashboard")
    await platform.stack.kill("postgres")
    await platform.in_state("postgres", "open", at=(AT,))
    read = await one.call("GET", one.path)
    assert (read.status, read.body["stale"], read.body["name"]) == (200, True, "Ada"), read
    assert "redis-cache" in read.headers["x-fallback-used"]
    queued = await one.rename("Bea")
    assert (queued.status, queued.body["queued"], queued.body["row"]) == (503, True, "ai_core.postgres"), queued
    preferred = await one.rename("Cleo", Prefer="respond-async")
    assert (preferred.status, preferred.headers["preference-applied"]) == (202, "respond-async"), preferred
    made = await one.call("POST", AGENTS, {"name": "Later"})
    assert (made.status, made.body["queued"], made.body["pending"]) == (202, True, True), made
    spoken = await one.chat("in the outage")
    assert (spoken.status, spoken.headers["x-fallback-used"].split(", ")[-2:]) == (200, ["redis-cache", "redis-queue"])
    listed = await one.call("GET", AGENTS)
    assert (listed.body["pending"], [agent["name"] for agent in listed.body["items"]]) == (True, ["Later", "Cleo"])
    for answer in (queued, preferred, made):
        told = await one.call("GET", answer.body["status_url"])
        assert (told.status, told.body["status"]) in ((200, "queued"), (200, "applying")), told
    assert await platform.circuit("ai-core") == "closed", "an answer of a living service is no failure of it"
    await platform.stack.heal("postgres")
    for at in ((AT,), platform.dashboards):  # each has a circuit of its own
        await platform.in_state("postgres", "closed", at=at, limit=RECOVERY + 2)
    await settled(platform)
    await platform.drained()
    for answer in (queued, preferred, made):
        told = await one.call("GET", answer.body["status_url"])
        assert (told.status, told.body["status"]) == (200, "applied"), told
    live = await one.call("GET", AGENTS)
    assert [agent["name"] for agent in live.body["items"]] == ["Later", "Cleo"]
    assert made.body["id"] == live.body["items"][0]["id"]
    assert await one.history() == one.said
