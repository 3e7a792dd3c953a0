"""What stands behind rows D3 and D4: A1, A2, W1. The services live, and say what they cannot do.

What is lost answers with an error that says when to come back; what does not need it does not notice; and an answer of
a living service is no failure of it, so the circuits of D3 and D4 stay closed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio

from tests.harness.client import Account
from tests.harness.edges import cut
from tests.harness.journey import fine
from tests.harness.platform import Answer, Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

COPIES = ("redis-cache", "memory-cache")
DEADLINE = 2.4  # s
FOUND = 3.0  # s until a part that is back is in use: a probe about once a second, and a request
FAULTS = ["kill", "freeze"]
Use = Callable[[], Awaitable[Answer]]


class Things:
    """A user's room and agent, and what can be done with them."""

    def __init__(self, platform: Platform, account: Account, room: str, agent: str) -> None:
        self.platform, self.account, self._room, self._agent = platform, account, room, agent

    async def chat(self) -> Answer:
        path = f"/api/v1/agents/{self._agent}/chat"
        return await self.platform.call("POST", path, self.account, json={"message": "Hello"})

    async def agent(self) -> Answer:
        return await self.platform.call("GET", f"/api/v1/agents/{self._agent}", self.account)

    async def room(self) -> Answer:
        return await self.platform.call("GET", f"/api/v1/rooms/{self._room}", self.account)

    async def rooms(self) -> Answer:
        return await self.platform.call("GET", "/api/v1/rooms", self.account)

    async def ticket(self) -> Answer:
        return await self.platform.call("POST", f"/api/v1/rooms/{self._room}/token", self.account)

    async def new_room(self) -> Answer:
        return await self.platform.call("POST", "/api/v1/rooms", self.account, json={"name": "Another"})

    async def profile(self) -> Answer:
        return await self.platform.profile(self.account)


@pytest_asyncio.fixture(loop_scope="session")
async def things(platform: Platform, accounts: list[Account]) -> Things:
    account = accounts[2]
    room = fine(await platform.call("POST", "/api/v1/rooms", account, json={"name": "Room"}), 201)
    agent = fine(await platform.call("POST", "/api/v1/agents", account, json={"name": "Agent"}), 201)
    return Things(platform, account, room["id"], agent["id"])


async def lost(use: Use, text: str) -> int:
    """One use of what is gone; its status."""
    answer = await use()
    assert answer.status in (503, 429), answer
    assert answer.seconds < DEADLINE
    assert text in answer.body["message"], answer
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["x-retry-after"]) >= 1
    return answer.status


async def back(use: Use) -> None:
    """In use again soon."""
    begun = time.monotonic()

    async def served() -> bool:
        return (await use()).status in (200, 201)

    await eventually(served, "it is in use again", FOUND)
    assert time.monotonic() - begun < FOUND


@pytest.mark.row("A1")
async def test_without_its_database_ai_core_serves_copies_and_queues(platform: Platform, things: Things) -> None:
    fine(await things.chat())
    async with cut(platform, "ai-core-postgres"):
        seen = await things.agent()
        # What was made just now may not be in Redis yet.
        assert (seen.status, seen.body["stale"], seen.headers["x-fallback-used"] in COPIES) == (200, True, True), seen
        copy, queue = (await things.chat()).headers["x-fallback-used"].split(", ")
        assert (copy in COPIES, queue) == (True, "redis-queue")
        assert await platform.circuit("ai-core") == "closed", "an answer of a living service is no failure of it"
        fine(await things.room())
        fine(await things.profile())

    async def live() -> bool:
        return "x-degraded-mode" not in (await things.agent()).headers

    await eventually(live, "the database is in use again", FOUND)


@pytest.mark.row("A2")
@pytest.mark.parametrize("fault", FAULTS)
async def test_without_a_provider_agents_can_be_read(platform: Platform, things: Things, fault: str) -> None:
    await getattr(platform.stack, fault)("providers")
    await lost(things.chat, "All AI providers unavailable")
    fine(await things.agent())
    assert await platform.circuit("ai-core") == "closed"
    await platform.stack.heal("providers")
    await back(things.chat)


@pytest.mark.row("W1")
async def test_without_its_redis_webrtc_goes_on_in_memory_and_says_so(platform: Platform, things: Things) -> None:
    async with cut(platform, "webrtc-redis"):
        for use, status in ((things.room, 200), (things.ticket, 200), (things.new_room, 201)):
            answer = await use()
            assert (answer.status, answer.headers["x-fallback-used"]) == (status, "memory-rooms"), answer
            assert answer.seconds < DEADLINE
        made = answer.body["id"]
        listed = await things.rooms()
        assert listed.headers["x-fallback-used"] == "rooms-database", "WebRTC has not seen all of them"
        assert made in {room["id"] for room in listed.body["items"]}
        assert await platform.circuit("webrtc") == "closed"
        fine(await things.chat())

    async def live() -> bool:
        return "x-degraded-mode" not in (await things.rooms()).headers

    await eventually(live, "Redis is in use again", FOUND)
    assert made in {room["id"] for room in fine(await things.rooms())["items"]}
