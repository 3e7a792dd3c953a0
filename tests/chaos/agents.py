"""A user of AI Core's own HTTP API, and of the Dashboard's, for the chaos tests of rows A1 and A3."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.harness.client import Account
from tests.harness.platform import Answer, Platform, eventually

AT = "ai-core"
AGENTS = "/api/v1/agents"
DEADLINE = 2.4
"""Seconds for any answer, also the first ones of an outage."""
RECOVERY = 5.0
"""Seconds from the return of a part to its use."""


@dataclass
class Talker:
    """One user with an agent and a conversation; ``at``: the service that is used."""

    platform: Platform
    account: Account
    at: str = AT
    agent: str = ""
    conversation: str = ""
    said: list[str] = field(default_factory=list)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request, which has to be answered in time whatever is away."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.platform.call(method, path, self.account, at=self.at, json=body, headers=given)
        assert answer.seconds < DEADLINE, answer
        return answer

    async def begin(self) -> Talker:
        """Makes the agent, and says the first thing to it."""
        made = await self.call("POST", AGENTS, {"name": "Ada", "system_prompt": "Be brief."})
        assert made.status == 201, made
        self.agent = made.body["id"]
        assert (await self.chat("the beginning")).status == 200
        assert (await self.call("GET", AGENTS)).status == 200
        return self

    @property
    def path(self) -> str:
        return f"{AGENTS}/{self.agent}"

    async def chat(self, text: str) -> Answer:
        """Says something, which is to be remembered once it is answered."""
        body = {"message": text, **({"conversation_id": self.conversation} if self.conversation else {})}
        answer = await self.call("POST", f"{self.path}/chat", body)
        if answer.status == 200:
            self.conversation = answer.body["conversation_id"]
            self.said.append(text)
        return answer

    async def rename(self, name: str, **headers: str) -> Answer:
        return await self.call("PATCH", self.path, {"name": name}, **headers)

    async def history(self) -> list[str]:
        """What the user said, as AI Core's own API shows it."""
        path = f"{self.path}/conversations/{self.conversation}"
        answer = await self.platform.call("GET", path, self.account, at=AT)
        assert answer.status == 200, answer
        assert answer.seconds < DEADLINE
        return [turn["content"] for turn in answer.body["turns"] if turn["role"] == "user"]


async def talker(platform: Platform, at: str = AT) -> Talker:
    """Somebody new, who has talked to an agent."""
    return await Talker(platform, await platform.register(), at).begin()


@asynccontextmanager
async def chatting(talkers: list[Talker]) -> AsyncIterator[list[Answer]]:
    """A little load for the time of the body: each talks, reads and changes in turn. Yields the answers."""
    answers: list[Answer] = []
    going = True

    async def go_on(one: Talker) -> None:
        number = 0
        while going:
            number += 1
            for use in _uses(one, number):
                answers.append(await use())
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(go_on(one)) for one in talkers]
    try:
        yield answers
    finally:
        going = False
        await asyncio.gather(*tasks)


def _uses(one: Talker, number: int) -> list[Callable[[], Awaitable[Answer]]]:
    return [
        lambda: one.chat(f"number {number}"),
        lambda: one.call("GET", one.path),
        lambda: one.call("GET", AGENTS),
        lambda: one.rename(f"name {number}", Prefer="respond-async"),
    ]


async def settled(platform: Platform, limit: float = 10.0) -> None:
    """Waits until AI Core's queue is empty."""

    async def empty() -> bool:
        return await platform.depth(AT) == 0

    await eventually(empty, "AI Core's queue is empty", limit)


async def dead_letters(platform: Platform) -> list[Any]:
    answer = await platform.call("GET", "/admin/queue/dead-letters", at=AT, headers=platform.admin)
    return list(answer.body["items"])


def fresh_key() -> str:
    """An idempotency key that nobody else uses."""
    return uuid.uuid4().hex
