"""Two AI Core processes on one Redis: an identical query reaches a provider once, and nobody depends on the other."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from service_kit.tokens import TokenIssuer
from tests.harness.platform import Platform, eventually
from tests.harness.second import second
from tests.harness.simulator import Simulator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

GPT4 = "openai:gpt-4"
CALLERS = 32  # of both processes together
SLOW = 0.4  # s that the one call takes, so that all callers come while it runs
DEADLINE = 2.4  # s
AI_CORE = "ai-core"


class Twins:
    """The platform's AI Core and a second one, asked by one user of a tenant."""

    def __init__(self, platform: Platform, urls: tuple[str, ...]) -> None:
        self._platform = platform
        self._urls = urls
        token = TokenIssuer(platform.stack.state.secret("jwt")).issue(f"twins-{uuid.uuid4()}", "session")
        self._headers = {"authorization": f"Bearer {token}"}
        self.simulator = Simulator(platform)

    async def ask(self, which: int, question: str) -> tuple[int, Any, float]:
        """Status, body and seconds of one answer."""
        url, begun = f"{self._urls[which]}/v1/chat/completions", time.monotonic()
        body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
        async with self._platform.session.post(url, json=body, headers=self._headers) as answer:
            return answer.status, await answer.json(), time.monotonic() - begun

    async def asking(self) -> None:
        """Waits until a provider has been called."""

        async def called() -> bool:
            return await self.simulator.calls(GPT4) >= 1

        await eventually(called, "the provider is called", 3.0)

    async def warmed(self) -> None:
        """Both have answered from the first link, so that no connection is made while it matters."""

        async def answered() -> bool:
            answers = [await self.ask(which, uuid.uuid4().hex) for which in range(len(self._urls))]
            return all(status == 200 and body["auralink"]["fallback_from"] is None for status, body, _ in answers)

        await eventually(answered, "the first link answers at both", 15.0)


@pytest_asyncio.fixture(loop_scope="session")
async def simulator(platform: Platform) -> AsyncIterator[Simulator]:
    await platform.healthy()
    simulator = Simulator(platform)
    yield simulator
    await simulator.clear()
    await platform.healthy()


async def test_two_processes_make_one_call_and_one_that_dies_while_asking_costs_the_other_nothing(
    platform: Platform, simulator: Simulator
) -> None:
    async with second(platform, AI_CORE) as (url, process):
        twins = Twins(platform, (platform.stack.url(AI_CORE), url))
        await twins.warmed()
        await simulator.order(GPT4, "slow", seconds=SLOW)
        await simulator.clear("calls")
        question = uuid.uuid4().hex
        answers = await asyncio.gather(*(twins.ask(number % 2, question) for number in range(CALLERS)))
        assert {status for status, _, _ in answers} == {200}, answers
        assert len({body["choices"][0]["message"]["content"] for _, body, _ in answers}) == 1
        assert {body["auralink"]["model"] for _, body, _ in answers} == {"gpt-4"}
        assert max(seconds for _, _, seconds in answers) < DEADLINE
        assert await simulator.calls(GPT4) == 1

        # The second one asks, and its call hangs; the first one's callers wait for its answer when it is killed.
        await simulator.clear("calls")
        await simulator.order(GPT4, "hang", times=1)
        question = uuid.uuid4().hex
        lost = asyncio.create_task(twins.ask(1, question))
        await twins.asking()
        waiting = [asyncio.create_task(twins.ask(0, question)) for _ in range(CALLERS // 2)]
        await asyncio.sleep(0)  # they are on their way
        await process.kill()
        with pytest.raises(aiohttp.ClientError):
            await lost
        for status, body, seconds in await asyncio.gather(*waiting):
            assert (status, body["auralink"]["model"]) == (200, "gpt-4"), body
            assert seconds < DEADLINE
        assert await simulator.calls(GPT4) == 2, "the call that died, and one for all who waited"
