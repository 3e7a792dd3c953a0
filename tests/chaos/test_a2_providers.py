"""Row A2, ai_core.providers: the next link answers and is named, then the kept answer, then an honest error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.harness.client import Account
from tests.harness.journey import fine
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.signals import metrics
from tests.harness.simulator import Simulator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A2"), pytest.mark.stack]

GPT4, GPT35, CLAUDE = LINKS = ("openai:gpt-4", "openai:gpt-3.5-turbo", "anthropic:claude-sonnet-5-5")
FAILURES = 3
DEADLINE = 2.4  # s
AT_ONCE = 0.8  # s; no provider is waited for
RECOVERY = 5.0  # s from the provider's return to its use


@dataclass(frozen=True)
class Talk:
    """Somebody with an agent, and the provider that both depend on."""

    platform: Platform
    account: Account
    agent: str
    simulator: Simulator

    async def say(self, text: str) -> Answer:
        """One chat through the Dashboard, each in a conversation of its own, answered in time."""
        path = f"/api/v1/agents/{self.agent}/chat"
        answer = await self.platform.call("POST", path, self.account, json={"message": text})
        assert answer.seconds < DEADLINE, answer
        return answer

    async def circuit(self, link: str) -> str:
        return await self.platform.circuit(link, "ai-core")

    async def until_open(self, *links: str) -> None:
        """Asks until the circuits are open."""
        number = 0

        async def all_open() -> bool:
            nonlocal number
            number += 1
            await self.say(f"until open {links} {number}")
            return all([await self.circuit(link) == "open" for link in links])

        await eventually(all_open, f"open: {links}", 20.0)

    async def well(self) -> None:
        """The first link answers again, unmarked, within the time of recovery."""
        number = 0

        async def answers() -> bool:
            nonlocal number
            number += 1
            answer = await self.say(f"well again {number}")
            return answer.status == 200 and f"{answer.body['provider']}:{answer.body['model']}" == GPT4

        await eventually(answers, "the first link answers again", RECOVERY)
        assert "x-degraded-mode" not in (await self.say("unmarked")).headers


@pytest_asyncio.fixture(loop_scope="session")
async def talk(platform: Platform, accounts: list[Account]) -> AsyncIterator[Talk]:
    simulator = Simulator(platform)
    await simulator.clear("calls")
    made = fine(await platform.call("POST", "/api/v1/agents", accounts[5], json={"name": "Chain"}), 201)
    yield Talk(platform, accounts[5], made["id"], simulator)
    await simulator.clear()


def served_by(answer: Answer, link: str) -> None:
    """The link answered instead of the first one, and header and body say so."""
    assert answer.status == 200, answer
    assert f"{answer.body['provider']}:{answer.body['model']}" == link
    assert (answer.body["fallback_from"], answer.body["cached"], answer.body["simulated"]) == (GPT4, False, True)
    assert answer.headers["x-degraded-mode"] == "true"
    assert link in answer.headers["x-fallback-used"]
    assert answer.headers["x-circuit-state"] in ("closed", "half-open", "open")


@pytest.mark.parametrize("fault", ["refuse", "hang", "error", "malformed", "html"])
async def test_the_next_link_answers_for_one_that_is_broken(talk: Talk, fault: str) -> None:
    before = (await metrics(talk.platform, "ai-core")).total("fallback_activations_total", fallback=GPT35)
    await talk.simulator.order(GPT4, fault)
    for number in range(FAILURES):
        served_by(await talk.say(f"{fault} {number}"), GPT35)
    assert await talk.simulator.calls(GPT4) == FAILURES
    assert await talk.circuit(GPT4) == "open"
    steady = await talk.say(f"{fault} steady")
    served_by(steady, GPT35)
    assert steady.seconds < AT_ONCE
    after = (await metrics(talk.platform, "ai-core")).total("fallback_activations_total", fallback=GPT35)
    assert after - before == FAILURES + 1
    assert await talk.platform.circuit("ai-core") == "closed", "to the Dashboard, AI Core is well"
    assert (await talk.platform.call("GET", "/health/detailed", at="ai-core")).body["mode"] == "degraded"
    await talk.simulator.clear()
    await talk.well()


async def test_two_links_broken_in_different_ways(talk: Talk) -> None:
    await talk.simulator.order(GPT4, "rate_limit", retry_after=4)
    await talk.simulator.order(GPT35, "refuse")
    for number in range(4):
        served_by(await talk.say(f"two {number}"), CLAUDE)
    assert (await talk.simulator.calls(GPT4), await talk.circuit(GPT4)) == (1, "closed")
    assert (await talk.simulator.calls(GPT35), await talk.circuit(GPT35)) == (FAILURES, "open")
    await talk.simulator.clear()
    await talk.well()


@pytest.mark.parametrize("fault", ["kill", "freeze", "delay", "cut"])
async def test_without_any_provider_it_says_so_and_heals(talk: Talk, fault: str) -> None:
    translation = {"text": f"Good morning, {fault}", "target_language": "de"}
    known = fine(await talk.platform.call("POST", "/api/v1/translate", talk.account, json=translation))
    assert known["translated"] is True
    await getattr(talk.platform.stack, fault)("providers")
    await talk.until_open(*LINKS)
    lost = await talk.say(f"lost {fault}")
    assert (lost.status, lost.body["message"]) == (503, "All AI providers unavailable")
    assert 1 <= int(lost.headers["retry-after"]) <= 30
    assert lost.headers["x-retry-after"] == lost.headers["retry-after"]
    assert lost.seconds < AT_ONCE
    kept = await talk.platform.call("POST", "/api/v1/translate", talk.account, json=translation)
    assert (kept.status, kept.body["text"], kept.body["translated"]) == (200, known["text"], True)
    assert "response-cache" in kept.headers["x-fallback-used"]
    other = {**translation, "text": f"Good night, {fault}"}
    original = await talk.platform.call("POST", "/api/v1/translate", talk.account, json=other)
    assert (original.status, original.body["text"], original.body["translated"]) == (200, other["text"], False)
    assert "original-text" in original.headers["x-fallback-used"]
    fine(await talk.platform.call("GET", f"/api/v1/agents/{talk.agent}", talk.account))
    await talk.platform.stack.heal("providers")
    await talk.well()


async def test_a_bad_request_is_refused_at_once_and_opens_nothing(talk: Talk) -> None:
    await talk.simulator.order(GPT4, "bad_request")
    for number in range(FAILURES + 1):
        assert (await talk.say(f"bad {number}")).status == 422
    assert await talk.simulator.calls(GPT35) == 0
    assert await talk.circuit(GPT4) == "closed"


async def test_identical_translations_at_once_are_one_call(talk: Talk) -> None:
    await talk.simulator.order(GPT4, "slow", seconds=0.3)
    asked = {"text": "the same for everybody", "target_language": "de"}
    answers = await asyncio.gather(
        *(talk.platform.call("POST", "/api/v1/translate", talk.account, json=asked) for _ in range(20))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["text"] for answer in answers}) == 1
    assert await talk.simulator.calls(GPT4) == 1
