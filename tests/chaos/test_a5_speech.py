"""Row A5, ai_core.speech: the second provider speaks, then the text alone comes back; always 200, always in time."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from ai_core.degradation import SPEECH
from tests.harness.client import Account
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.signals import metrics
from tests.harness.simulator import Simulator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A5"), pytest.mark.stack]

ELEVENLABS, OPENAI = "elevenlabs", "openai-speech"
VOICE = "elevenlabs:eleven_flash_v2_5"
FAILURES = SPEECH.max_failures
DEADLINE = 2.4  # s
AT_ONCE = 0.8  # s; no provider is waited for
RECOVERY = 5.0  # s
PROBED_WITHIN = 2.5  # s; a pause, and the limit of a probe


@pytest_asyncio.fixture(loop_scope="session")
async def simulator(platform: Platform) -> AsyncIterator[Simulator]:
    """Nothing was ordered or counted before; nothing is ordered after."""
    simulator = Simulator(platform)
    await simulator.clear("calls")
    yield simulator
    await simulator.clear()


async def speak(platform: Platform, account: Account) -> Answer:
    """A request to the Dashboard, which has to be answered in time whatever is away."""
    answer = await platform.call("POST", "/api/v1/speech", account, json={"text": "Hello there"})
    assert (answer.status, answer.body["text"]) == (200, "Hello there"), answer
    assert answer.seconds < DEADLINE, answer
    return answer


def spoken_by(answer: Answer, provider: str) -> bool:
    """Whether a provider spoke, and the answer is complete."""
    body = answer.body
    if body["provider"] != provider:
        return False
    assert base64.b64decode(body["audio"])[:4] == b"RIFF"
    assert (body["content_type"], body["simulated"]) == ("audio/wav", True)
    assert body["model"]
    return True


def text_only(answer: Answer) -> bool:
    """Whether the answer is the text alone, and says so."""
    body: dict[str, Any] = answer.body
    marked: bool = "text-only" in answer.headers.get("x-fallback-used", "")
    assert marked == (body["audio"] is None), answer
    return marked


async def well(platform: Platform, account: Account) -> None:
    """Waits until ElevenLabs speaks, unmarked, and its circuit and the other's are closed."""

    async def spoken() -> bool:
        answer = await speak(platform, account)
        return spoken_by(answer, ELEVENLABS) and "x-degraded-mode" not in answer.headers

    await eventually(spoken, "ElevenLabs speaks again", RECOVERY)
    await platform.in_state(ELEVENLABS, "closed", at=("ai-core",))


async def opened(platform: Platform, account: Account, *dependencies: str) -> None:
    """Waits until circuits are open, asking all the while."""

    async def all_open() -> bool:
        await speak(platform, account)
        return all([await platform.circuit(one, "ai-core") == "open" for one in dependencies])

    await eventually(all_open, f"open: {dependencies}")


async def lasting(platform: Platform, *dependencies: str) -> None:
    """Waits until circuits have been open for long enough that a probe has failed meanwhile: one that opens again and
    again, while its provider's list is well, is tried less and less often."""

    async def looked_at() -> bool:
        known = (await platform.call("GET", "/health/detailed", at="ai-core")).body["dependencies"]
        return all(known[one]["retry_after_s"] < SPEECH.open_seconds - PROBED_WITHIN for one in dependencies)

    await eventually(looked_at, f"open for a while: {dependencies}")


async def activations(platform: Platform, fallback: str) -> float:
    found = await metrics(platform, "ai-core")
    return found.total("fallback_activations_total", fallback=fallback)


@pytest.mark.parametrize("fault", ["hang", "refuse", "error"])
async def test_the_second_provider_speaks_for_the_first(
    platform: Platform, accounts: list[Account], simulator: Simulator, fault: str
) -> None:
    account = accounts[2]
    await well(platform, account)
    before = await simulator.calls(VOICE, "speech")
    counted = await activations(platform, OPENAI)
    await simulator.order(ELEVENLABS, fault)
    for _ in range(FAILURES):
        answer = await speak(platform, account)
        assert spoken_by(answer, "openai"), answer
        assert answer.headers["x-fallback-used"] == OPENAI
        assert answer.headers["x-degraded-mode"] == "true"
    await opened(platform, account, ELEVENLABS)
    assert await platform.circuit(OPENAI, "ai-core") == "closed"
    for _ in range(5):
        answer = await speak(platform, account)
        assert spoken_by(answer, "openai"), answer
        assert answer.seconds < AT_ONCE
        assert answer.headers["x-circuit-state"] == "open"
    assert await simulator.calls(VOICE, "speech") == before + FAILURES, "an open circuit asks nobody"
    assert await activations(platform, OPENAI) >= counted + FAILURES + 5
    await lasting(platform, ELEVENLABS)
    await simulator.clear()
    await well(platform, account)


@pytest.mark.parametrize("fault", ["hang", "refuse", "error"])
async def test_the_text_comes_back_when_nobody_speaks(
    platform: Platform, accounts: list[Account], simulator: Simulator, fault: str
) -> None:
    account = accounts[3]
    await well(platform, account)
    for target in (ELEVENLABS, "openai"):
        await simulator.order(target, fault)
    for _ in range(FAILURES):
        assert text_only(await speak(platform, account))
    await opened(platform, account, ELEVENLABS, OPENAI)
    assert (await platform.call("GET", "/health/ready", at="ai-core")).status == 200
    await lasting(platform, ELEVENLABS, OPENAI)
    await simulator.clear()
    await well(platform, account)


@pytest.mark.parametrize("fault", ["kill", "freeze", "delay", "cut"])
async def test_without_any_provider_process(platform: Platform, accounts: list[Account], fault: str) -> None:
    account = accounts[4]
    await well(platform, account)
    counted = await activations(platform, "text-only")
    await getattr(platform.stack, fault)("providers")
    for _ in range(FAILURES):
        assert text_only(await speak(platform, account))
    await opened(platform, account, ELEVENLABS, OPENAI)
    for _ in range(5):
        answer = await speak(platform, account)
        assert text_only(answer)
        assert answer.seconds < AT_ONCE
        assert answer.headers["x-circuit-state"] == "open"
    assert await activations(platform, "text-only") >= counted + 5
    await lasting(platform, ELEVENLABS, OPENAI)
    await platform.stack.heal("providers")
    await well(platform, account)


async def test_nobody_waits_for_one_that_lists_its_voices_and_does_not_speak(
    platform: Platform, accounts: list[Account], simulator: Simulator
) -> None:
    account = accounts[2]
    await well(platform, account)
    before = await simulator.calls(VOICE, "speech")
    await simulator.order(f"{ELEVENLABS}:speech", "hang")
    await opened(platform, account, ELEVENLABS)

    async def tried() -> bool:
        answer = await speak(platform, account)
        assert spoken_by(answer, "openai"), answer
        assert answer.seconds < AT_ONCE
        return await simulator.calls(VOICE, "speech") > before + FAILURES

    await eventually(tried, "a trial in the background", 20.0)
    assert await platform.circuit(ELEVENLABS, "ai-core") in ("open", "half_open")
    await simulator.clear()
    # The next trial may be a while: after each that failed it comes half as often. An operator need not wait for it.
    path = f"/admin/circuit-breaker/reset?dependency={ELEVENLABS}"
    assert (await platform.call("POST", path, at="ai-core", headers=platform.admin)).status == 200
    await well(platform, account)
