"""A hub behind a real uvicorn on a free port, its time in the test's hand, and clients on real WebSockets."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvicorn
from fastapi import FastAPI

from resilience import FakeClock
from webrtc.inbound.websocket import Gate
from webrtc.model import Grants, IceGrant, IceServer, Room, RoomUnknown
from webrtc.outbound.tokens import JwtSigner
from webrtc.usecases.cluster.alone import Alone
from webrtc.usecases.signalling.defaults import NoCalls, NoMeter
from webrtc.usecases.signalling.dispatch import Dispatcher
from webrtc.usecases.signalling.hub import Hub, Parts
from webrtc.usecases.signalling.limits import Limits

SECRET = "a-test-secret-of-at-least-32-bytes!"
ROOM = "00000000-0000-4000-8000-000000000001"
SMALL = "00000000-0000-4000-8000-000000000002"
LIMIT = 5.0  # s, for anything that a test waits for


class Ice:
    """TURN and STUN, for ten minutes."""

    stun_only = False

    def grant(self, user_id: str) -> IceGrant:
        if self.stun_only:
            return IceGrant((IceServer(("stun:stun.test",)),), 0, True)
        return IceGrant((IceServer(("turn:turn.test",), f"1:{user_id}", "c"),), 600)


class World:
    """The hub and what it works with."""

    def __init__(self, **parts: Any) -> None:
        self.clock = FakeClock()
        self.tokens = JwtSigner(SECRET)
        self.ice = Ice()
        self.notes: list[tuple[str, dict[str, object]]] = []
        self.rooms = {one.id: one for one in (Room(ROOM, "Daily", 10, "owner", 0), Room(SMALL, "Two", 2, "owner", 0))}
        self.degraded: list[Any] = []
        made: dict[str, Any] = {
            "cluster": Alone(self._find),
            "tokens": self.tokens,
            "ice": self.ice,
            "meter": NoMeter,
            "calls": NoCalls(),
            "degraded": lambda: self.degraded,
            "note": lambda event, /, **fields: self.notes.append((event, fields)),
            "clock": self.clock,
        }
        self.hub = Hub(Parts(**(made | parts)))
        self.dispatcher = Dispatcher(self.hub)
        self.gate = Gate(self.hub, self.dispatcher)
        self.port = 0
        self.session: aiohttp.ClientSession

    async def _find(self, room_id: str) -> Room:
        if room_id not in self.rooms:
            raise RoomUnknown
        return self.rooms[room_id]

    def token(self, user: str, room: str = ROOM, *, seconds: int = 600, **grants: bool) -> str:
        now = time.time()  # tokens are checked by the real clock
        return self.tokens.sign(room, user, now, seconds, name=user.title(), grants=Grants(**grants))

    async def socket(self, token: str, resume: str = "", seq: int = 0, **options: Any) -> "Client":
        query = {"token": token} | ({"resume": resume, "seq": str(seq)} if resume else {})
        made = await self.session.ws_connect(f"http://127.0.0.1:{self.port}/ws", params=query, **options)
        return Client(made)

    async def join(self, user: str, room: str = ROOM, **grants: bool) -> "Client":
        client = await self.socket(self.token(user, room, **grants))
        await client.joined()
        return client

    @property
    def pinged(self) -> bool:
        """Whether somebody was pinged just now."""
        now = self.clock.monotonic()
        return any(one.pinged_at == now for one in self.hub.everybody())

    def heard(self, member_id: str) -> bool:
        """Whether a participant was heard of just now."""
        now = self.clock.monotonic()
        return any(one.heard_at == now for one in self.hub.everybody() if one.member.id == member_id)

    async def pass_time(self, seconds: float, *, step: float = 1.0) -> None:
        """As ``tick_forever`` would see it."""
        while seconds > 0:
            await self.clock.advance(min(step, seconds))
            seconds -= step
            self.hub.tick()


class Client:
    """A participant: what it was told, by the order of arrival."""

    def __init__(self, made: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = made
        self.seen: list[dict[str, Any]] = []
        self.welcome: dict[str, Any] = {}

    @property
    def id(self) -> str:
        return str(self.welcome["participant"])

    @property
    def seq(self) -> int:
        return max((message.get("seq", 0) for message in self.seen), default=0)

    async def joined(self) -> dict[str, Any]:
        self.welcome = await self.until("welcome")
        return self.welcome

    async def next(self) -> dict[str, Any]:
        """The next message; a close is an error."""
        got = await self.ws.receive(timeout=LIMIT)
        assert got.type is aiohttp.WSMsgType.TEXT, (got.type, self.ws.close_code)
        message: dict[str, Any] = json.loads(got.data)
        self.seen.append(message)
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        """Reads up to a message of a kind."""
        while (message := await self.next())["type"] != kind:
            pass
        return message

    async def settled(self) -> list[dict[str, Any]]:
        """All that had been sent to it by now, of which nobody waits for an end otherwise."""
        before = len(self.seen)
        await self.say("ping")
        await self.until("pong")
        return self.seen[before:-1]

    async def say(self, kind: str, /, **fields: Any) -> None:
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def closed(self) -> int:
        """Reads up to the close; its code."""
        while (got := await self.ws.receive(timeout=LIMIT)).type is aiohttp.WSMsgType.TEXT:
            self.seen.append(json.loads(got.data))
        return int(self.ws.close_code or 0)

    def vanish(self) -> None:
        """The network is gone: no close frame."""
        connection = self.ws._response.connection  # aiohttp has no public way to be rude
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()


async def frames(client: Client, parts: list[bytes], *, kind: int = 1, finish: bool = True) -> None:
    """One message in several frames (RFC 6455, section 5.4), masked with zeros; ``kind``: the first one's opcode."""
    connection = client.ws._response.connection
    assert connection is not None
    assert connection.transport is not None
    for number, part in enumerate(parts):
        last = finish and number == len(parts) - 1
        first = (0x80 if last else 0) | (kind if number == 0 else 0)
        size = bytes([0x80 | len(part)]) if len(part) < 126 else b"\xfe" + len(part).to_bytes(2, "big")
        connection.transport.write(bytes([first]) + size + bytes(4) + part)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 - of whatever it is made
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(**parts: Any) -> AsyncIterator[World]:
    """Served until the block ends."""
    made = World(**parts)
    config = uvicorn.Config(
        FastAPI(),
        loop="none",
        http="httptools",
        ws=made.gate,  # type: ignore[arg-type] # only ever called
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    config.load()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    made.port = listener.getsockname()[1]
    async with aiohttp.ClientSession() as made.session:
        yield made
    await eventually(lambda: made.hub.connections == 0)
    for one in server.servers:
        one.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await made.hub.media.close()


__all__ = ["LIMIT", "ROOM", "SECRET", "SMALL", "Client", "Limits", "World", "eventually", "frames", "world"]
