"""Row W3, webrtc.postgres: calls do not notice, and each of them is in the history once afterwards."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import grpc
import pytest
import pytest_asyncio

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from tests.harness.client import Account
from tests.harness.platform import Platform, eventually
from tests.harness.signals import health, metrics

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("W3"), pytest.mark.stack]

BACK = 15.0  # s from PostgreSQL's return until everything is in the history: its own recovery after SIGKILL included
STATS = {"rtt_ms": 30, "loss": 0.0, "jitter_ms": 2, "bitrate_kbps": 500, "relayed": False}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(platform: Platform) -> tuple[Account, Account]:
    return await platform.equip(await platform.register()), await platform.register()


class Talker:
    """A participant: its messages are read, and answered where the test wants it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def until(self, kind: str) -> dict[str, object]:
        async with asyncio.timeout(5):
            async for message in self._socket:
                found: dict[str, object] = json.loads(message.data)
                if found["type"] == kind:
                    return found
        raise AssertionError(f"closed: {self._socket.close_code}")

    async def leave(self) -> None:
        """Returns when the service has closed the connection."""
        await self.say(type="leave")
        async with asyncio.timeout(5):
            async for _ in self._socket:
                pass

    async def say(self, **message: object) -> None:
        await self._socket.send_json(message)


async def token(platform: Platform, account: Account, room: str) -> str:
    answer = await platform.call("POST", f"/api/v1/rooms/{room}/token", account, at="webrtc")
    assert answer.status == 200, answer
    return str(answer.body["token"])


@asynccontextmanager
async def talking(platform: Platform, tickets: list[str], calls: set[str]) -> AsyncIterator[list[Talker]]:
    """A call of everybody with a ticket, noted in ``calls``; it ends with the block."""
    url = f"{platform.stack.url('webrtc')}/ws"
    async with AsyncExitStack() as sockets:
        talkers = []
        for ticket in tickets:
            socket = await sockets.enter_async_context(platform.session.ws_connect(url, params={"token": ticket}))
            talkers.append(Talker(socket))
            welcome = await talkers[-1].until("welcome")
        calls.add(str(welcome["call_id"]))
        yield talkers
        for talker in talkers:
            await talker.leave()


async def calls_of(platform: Platform, account: Account, at: str) -> list[dict[str, object]]:
    answer = await platform.call("GET", "/api/v1/calls", account, at=at)
    return list(answer.body["items"]) if answer.status == 200 else []


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_every_call_is_in_the_history_once(platform: Platform, pair: tuple[Account, Account], fault: str) -> None:
    owner, guest = pair
    tickets = [await token(platform, account, owner.room) for account in pair]
    known = {call["id"] for call in await calls_of(platform, owner, "webrtc")}
    calls: set[str] = set()
    async with talking(platform, tickets, calls) as talkers:  # begun before, ended during the outage
        await talkers[0].say(type="stats", report=STATS)
        await talkers[0].until("updated")
        await getattr(platform.stack, fault)("postgres")
        await talkers[0].say(type="data", data="still there")
        assert (await talkers[1].until("data"))["data"] == "still there"
    for _ in range(2):  # begun and ended during the outage
        async with talking(platform, tickets, calls) as talkers:
            await talkers[1].say(type="data", data="hello")
            await talkers[0].until("data")

    async def shown() -> bool:
        page = await health(platform, "W3", "webrtc")
        return bool(page["circuit"] == "open" and page["fallback"] == "redis-queue")

    await eventually(shown, "W3 in its fallback")

    async def counted() -> bool:
        return (await metrics(platform, "webrtc")).total("fallback_queue_depth") > 0

    await eventually(counted, "the queue is counted")
    refused = await platform.call("GET", "/api/v1/calls", owner, at="webrtc")
    assert refused.status in (429, 503)
    assert refused.headers["retry-after"]
    async with talking(platform, tickets, calls) as talkers:  # begun during the outage, ended after it
        await platform.stack.heal("postgres")

        async def closed() -> bool:
            return await platform.circuit("postgres", "webrtc") == "closed"

        await eventually(closed, "PostgreSQL in use again", BACK)
    for at in ("webrtc", "dashboard"):

        async def complete(at: str = at) -> bool:
            found = [call for call in await calls_of(platform, guest, at) if call["id"] not in known]
            return len(found) >= len(calls) and all(call["ended_at"] for call in found)

        await eventually(complete, f"all calls in the history of {at}", BACK)
        found = [call for call in await calls_of(platform, owner, at) if call["id"] not in known]
        assert Counter(call["id"] for call in found) == dict.fromkeys(calls, 1)
        for call in found:
            people = {one["user_id"]: one for one in call["participants"]}  # type: ignore[attr-defined]
            assert people.keys() == {owner.id, guest.id}
            assert all(one["left_at"] for one in people.values())
        first = min(found, key=lambda call: str(call["started_at"]))
        [measured] = [one["quality"] for one in first["participants"] if one["user_id"] == owner.id]  # type: ignore[attr-defined]
        assert measured["label"] == "excellent"
    await platform.healthy()


async def test_a_call_is_read_by_those_who_took_part(platform: Platform, pair: tuple[Account, Account]) -> None:
    owner, guest = pair
    made: set[str] = set()
    async with talking(platform, [await token(platform, one, owner.room) for one in pair], made):
        pass
    [call_id] = made

    async def ended() -> bool:
        answer = await platform.call("GET", f"/api/v1/calls/{call_id}", guest, at="webrtc")
        return answer.status == 200 and answer.body["ended_at"] is not None

    await eventually(ended, "the call is in the history")
    stranger = await platform.register()
    answer = await platform.call("GET", f"/api/v1/calls/{call_id}", stranger, at="webrtc")
    assert (answer.status, answer.body["error"]) == (404, "NOT_FOUND")
    async with grpc.aio.insecure_channel(platform.stack.grpc("webrtc")) as channel:
        calls = webrtc_pb2_grpc.CallServiceStub(channel)
        metadata = (("authorization", f"Bearer {guest.token}"),)
        page = await calls.ListCalls(webrtc_pb2.ListCallsRequest(page_size=1), metadata=metadata, timeout=5)
        assert [call.id for call in page.items] == [call_id]
        found = await calls.GetCall(webrtc_pb2.GetCallRequest(id=call_id), metadata=metadata, timeout=5)
        assert {one.user_id for one in found.call.participants} == {owner.id, guest.id}
        assert found.call.ended_at.ToMicroseconds() >= found.call.started_at.ToMicroseconds() > 0
