"""Row W1, webrtc.redis: two instances lose Redis under load; calls go on, each alone, and are merged afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.harness.client import Account
from tests.harness.journey import fine
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.second import second
from tests.harness.signals import Log, health, metrics, shown_open
from webrtc.outbound.tokens import JwtSigner

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("W1"), pytest.mark.stack]

AT = "webrtc"
PACE = 0.02
"""Seconds between two messages of one sender."""
SOON = 0.5
"""Seconds for an answer or a join once the circuit is open."""
KNOWN = 6.0
"""Seconds until both instances know that Redis is away: a frozen one is known by its silence."""
RECOVERY = 5.0
"""Seconds until everything is as before, once Redis answers."""
AWAY = "Redis is away: rooms and participants of this instance alone, in memory, where they may be lost"


class Peer:
    """A participant on one of the instances: everything it was told, and what it sends."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.told: list[dict[str, Any]] = []
        self.sent = 0

    async def listen(self) -> None:
        async for message in self.socket:
            self.told.append(json.loads(message.data))

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def signal(self, to: Peer) -> None:
        self.sent += 1
        await self.say("signal", to=to.id, data={"from": self.id, "n": self.sent})

    async def keep_signalling(self, to: Peer) -> None:
        while True:
            await self.signal(to)
            await asyncio.sleep(PACE)

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """What it was told of a kind."""
        return [one for one in self.told if one["type"] == kind and fields.items() <= one.items()]

    async def hears(self, kind: str, **fields: Any) -> dict[str, Any]:
        found: list[dict[str, Any]] = await until(lambda: self.of(kind, **fields), f"told {kind} {fields}")
        return found[-1]

    def heard(self, sender: Peer) -> list[int]:
        return [one["data"]["n"] for one in self.of("signal", **{"from": sender.id})]

    async def has_all_of(self, sender: Peer) -> None:
        await until(lambda: len(self.heard(sender)) == sender.sent, "the last message")

    @property
    def id(self) -> str:
        return str(self.told[0]["participant"])


async def until(check: Callable[[], Any], what: str, limit: float = RECOVERY) -> Any:
    async def now() -> Any:
        return check()

    return await eventually(now, what, limit)


class Twins:
    """Two WebRTC instances, a room, and who joins it where."""

    def __init__(self, platform: Platform, owner: Account, urls: tuple[str, str], peers: AsyncExitStack) -> None:
        self.platform, self.owner, self.urls = platform, owner, urls
        self._peers = peers
        self._signer = JwtSigner(platform.stack.state.secret("jwt"))

    async def new_room(self) -> Answer:
        return await self.platform.call("POST", "/api/v1/rooms", self.owner, json={"name": "Call"})

    async def socket(self, room: str, user: str, where: int) -> Peer:
        loop = asyncio.get_running_loop()
        token = self._signer.sign(room, user, time.time(), 600, name=user)
        peer = Peer(await self.platform.session.ws_connect(f"{self.urls[where]}/ws", params={"token": token}))
        self._peers.push_async_callback(peer.socket.close)
        self._peers.callback(loop.create_task(peer.listen()).cancel)
        await until(lambda: peer.told, f"{user} is told something")
        return peer

    async def join(self, room: str, user: str, where: int) -> Peer:
        peer = await self.socket(room, user, where)
        assert peer.told[0]["type"] == "welcome", peer.told
        return peer

    async def wait_for(self, where: int, what: str, value: object, limit: float) -> None:
        """Until the instance says so of its cluster on its health page."""

        async def so() -> bool:
            async with self.platform.session.get(f"{self.urls[where]}/health/detailed") as answer:
                return bool((await answer.json())["queues"]["cluster"][what] == value)

        await eventually(so, f"{what} of instance {where} is {value}", limit)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def urls(platform: Platform) -> AsyncIterator[tuple[str, str]]:
    async with second(platform, AT) as (url, _):
        yield platform.stack.url(AT), url


@pytest_asyncio.fixture(loop_scope="session")
async def twins(platform: Platform, accounts: list[Account], urls: tuple[str, str]) -> AsyncIterator[Twins]:
    async with AsyncExitStack() as peers:
        yield Twins(platform, accounts[3], urls, peers)


@asynccontextmanager
async def signalling(*pairs: tuple[Peer, Peer]) -> AsyncIterator[None]:
    """The first of each pair keeps signalling to the second."""
    tasks = [asyncio.create_task(sender.keep_signalling(receiver)) for sender, receiver in pairs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_calls_go_on_and_are_merged(platform: Platform, twins: Twins, fault: str) -> None:
    await twins.wait_for(0, "held_elsewhere", 0, RECOVERY)
    room, far_room = fine(await twins.new_room(), 201)["id"], fine(await twins.new_room(), 201)["id"]
    ann, amy = await twins.join(room, "ann", 0), await twins.join(room, "amy", 0)
    bob, bea = await twins.join(room, "bob", 1), await twins.join(room, "bea", 1)
    await twins.join(far_room, "far", 1)
    await until(lambda: len(ann.of("joined")) == 3, "all have joined")
    log, before = Log(platform, AT), await metrics(platform, AT)
    async with signalling((ann, amy), (bob, bea), (amy, bob)):
        await until(lambda: len(bob.heard(amy)) > 10, "messages between instances")
        await twins.wait_for(0, "held_elsewhere", 2, RECOVERY)
        await getattr(platform.stack, fault)("redis")
        for where in (0, 1):
            await twins.wait_for(where, "alone", True, KNOWN)
        for peer in (ann, bob):
            assert (await peer.hears("degraded", single_instance=True))["rows"][0]["row"] == "W1"
        assert (await amy.hears("error", error="PEER_UNREACHABLE"))["retry_after"] > 0
        await shown_open(platform, "W1", AT)
        assert (await health(platform, "W1", AT))["fallback"] == "memory-rooms"
        made = await made_in_memory(twins)
        await joined_soon(twins, room)
        refused = await twins.socket(far_room, "late", 0)
        assert (refused.told[0]["error"], refused.told[0]["retry_after"] >= 1) == ("ROOM_ELSEWHERE", True)
        await until(lambda: refused.socket.close_code == 4503, "the socket is closed")
        await platform.stack.heal("redis")
        for where in (0, 1):
            await twins.wait_for(where, "alone", False, RECOVERY)
        for peer in (ann, bob):
            await peer.hears("degraded", single_instance=False)
        heard = len(bob.heard(amy))
        await until(lambda: len(bob.heard(amy)) > heard + 10, "messages between instances again")
    for sender, receiver in ((ann, amy), (bob, bea)):
        await receiver.has_all_of(sender)
        assert receiver.heard(sender) == list(range(1, sender.sent + 1)), "none lost, none twice, in order"
    across = bob.heard(amy)
    assert across == sorted(set(across))
    for peer in (ann, amy, bob, bea):
        assert not peer.socket.closed
        assert not peer.of("left", reason="lost")
    answer = await platform.call("GET", f"/api/v1/rooms/{made}", twins.owner)
    assert (answer.status, answer.headers.get("x-fallback-used")) == (200, None), answer
    await twins.join(made, "eve", 1)
    assert len(log.lines(AWAY, level="warning")) == 1
    after = await metrics(platform, AT)
    assert after.total("fallback_activations_total", fallback="memory-rooms") > before.total(
        "fallback_activations_total", fallback="memory-rooms"
    )


async def made_in_memory(twins: Twins) -> str:
    """A room made through the Dashboard, whose answer says so; joined on this instance at once."""
    made = await twins.new_room()
    assert made.status == 201, made
    assert "memory-rooms" in made.headers["x-fallback-used"], made
    assert made.headers["x-degraded-mode"] == "true"
    await twins.join(made.body["id"], "owner", 0)
    return str(made.body["id"])


async def joined_soon(twins: Twins, room: str) -> None:
    """The best of three counts: the machine is shared."""
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(3):
        begun = loop.time()
        late = await twins.join(room, "late", 0)
        took.append(loop.time() - begun)
        assert late.told[0]["single_instance"] is True
        await late.say("leave")
    assert min(took) < SOON
