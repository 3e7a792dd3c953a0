"""A room that outgrows peer to peer, from its WebSockets to its media: the hub, the SFU and real peers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.webrtc.tests.sfu_peers import LOOPBACK, Camera, Peer, eventually
from services.webrtc.tests.signalling_world import ROOM, Client, World, world
from webrtc.outbound.sfu.backend import Sfu


class Page:
    """A participant's page: its socket, and the media that goes through the SFU."""

    def __init__(self, client: Client, *tracks: Any) -> None:
        self.client = client
        self.modes: list[tuple[str, str]] = []
        self.peer = Peer(self._send, ROOM, client.id, *tracks)
        self._reading = asyncio.create_task(self._read())

    async def _send(self, data: bytes) -> None:
        await self.client.say("signal", to="sfu", data=json.loads(data))

    async def _read(self) -> None:
        async for message in self.client.ws:
            heard = json.loads(message.data)
            if heard["type"] == "media":
                self.modes.append((heard["mode"], heard["reason"]))
            elif heard["type"] == "signal" and heard["from"] == "sfu":
                self.peer.hear(json.dumps(heard["data"]).encode())

    async def close(self) -> None:
        self._reading.cancel()
        await self.client.ws.close()
        await self.peer.close()


@asynccontextmanager
async def served() -> AsyncIterator[tuple[World, Sfu]]:
    made: list[World] = []
    sfu = Sfu(lambda *told: made[0].hub.tell(*told), (LOOPBACK,))
    async with world(media=sfu) as one:
        made.append(one)
        yield one, sfu
        await one.hub.media.close()
    await sfu.aclose()


async def test_the_third_participant_brings_the_sfu() -> None:
    async with served() as (hub, sfu):
        anna, ben = Page(await hub.join("anna"), Camera()), Page(await hub.join("ben"), Camera())
        assert sfu.counts.tracks == 0
        cleo = Page(await hub.join("cleo", publish=False), Camera())
        for viewer, source in ((anna, ben), (ben, anna), (cleo, anna), (cleo, ben)):
            await viewer.peer.flows(source.client.id)
            assert viewer.modes == [("sfu", "size")]
        assert not cleo.peer.told(publish=True)
        assert sfu.counts.tracks == 2
        late = Page(await hub.join("late"))
        assert late.client.welcome["media"]["mode"] == "sfu"
        await late.peer.flows(anna.client.id)
        await anna.client.say("leave")
        await eventually(lambda: list(late.peer.mids.values()) == [(ben.client.id, "video")])
        await late.peer.flows(ben.client.id)
        for page in (anna, ben, cleo, late):
            await page.close()
