"""Participants for the SFU's tests: real aiortc peers on loopback, with small pictures and real codecs."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from fractions import Fraction
from functools import partial
from typing import Any

import av
from aiortc import MediaStreamTrack, RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcdtlstransport import SRTP_PROFILES, RTCCertificate

from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.backend import Sfu
from webrtc.outbound.sfu.inside import Address

LOOPBACK = "127.0.0.1"
# pyOpenSSL imports modules in the first handshake. Two loops that do so at once wait for each other's import lock, and
# that counts as blocking, which tests forbid.
RTCCertificate.generateCertificate()._create_ssl_context(SRTP_PROFILES)
WIDTH, HEIGHT = 64, 48


async def eventually(condition: Callable[[], bool], within: float = 8.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def connection() -> RTCPeerConnection:
    return RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))


class Camera(MediaStreamTrack):
    """A grey picture, another shade each time."""

    kind = "video"

    def __init__(self, fps: float = 15) -> None:
        super().__init__()
        self._fps = fps
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(1 / self._fps)
        frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([self._count * 7 % 256]) * plane.buffer_size)
        frame.pts, frame.time_base = int(self._count * 90_000 / self._fps), Fraction(1, 90_000)
        self._count += 1
        return frame


class Microphone(MediaStreamTrack):
    """Silence, 20 ms at a time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0.02)
        frame = av.AudioFrame("s16", "mono", 960)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._count * 960, Fraction(1, 48_000)
        self._count += 1
        return frame


class Peer:
    """One participant as a browser page would be one: publishes when asked, answers offers, counts decoded frames."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], room: str, member: str, *tracks: Any) -> None:
        self._send = send
        self.room = room
        self.member = member
        self.tracks = list(tracks)
        self.heard: list[dict[str, Any]] = []
        self.pub: RTCPeerConnection | None = None
        self.sub: RTCPeerConnection | None = None
        self.pub_epoch = 0
        self.sub_epoch = 0
        self.mids: dict[str, tuple[str, str]] = {}
        self.frames: dict[tuple[str, str], int] = {}
        self.first_frame: dict[tuple[str, str], float] = {}
        self.entered = time.monotonic()
        self.answering = True
        self.change: Callable[[str], str] = str  # what it does to its answers' SDP
        self._counted: set[Any] = set()
        self._jobs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._work())]

    def hear(self, data: bytes) -> None:
        message = json.loads(data)
        self.heard.append(message)
        self._jobs.put_nowait(message)

    async def say(self, **message: Any) -> None:
        await self._send(json.dumps(message).encode())

    async def _work(self) -> None:
        while True:
            message = await self._jobs.get()
            description = message.get("description")
            if message.get("publish"):
                await self.publish()
            elif description is not None and message["pc"] == "pub" and message["epoch"] == self.pub_epoch:
                assert self.pub is not None
                await self.pub.setRemoteDescription(RTCSessionDescription(description["sdp"], description["type"]))
            elif description is not None and message["pc"] == "sub" and self.answering:
                await self._subscribe(message)

    async def publish(self) -> None:
        if self.pub is not None:
            await self.pub.close()
        self.pub_epoch += 1
        self.pub = connection()
        for track in self.tracks:
            inside.bind(self.pub.addTransceiver(track, direction="sendonly"), [Address.parse(LOOPBACK)])
        await self.offer()

    async def offer(self) -> None:
        assert self.pub is not None
        await self.pub.setLocalDescription()
        sdp = self.pub.localDescription.sdp
        await self.say(pc="pub", epoch=self.pub_epoch, description={"type": "offer", "sdp": sdp})

    async def _subscribe(self, message: dict[str, Any]) -> None:
        if self.sub is None or message["epoch"] != self.sub_epoch:
            if self.sub is not None:
                await self.sub.close()
            self.sub_epoch = message["epoch"]
            self.sub = connection()
        await self.sub.setRemoteDescription(RTCSessionDescription(message["description"]["sdp"], "offer"))
        self.mids = {track["mid"]: (track["participant"], track["kind"]) for track in message["tracks"]}
        for transceiver in self.sub.getTransceivers():
            inside.bind(transceiver, [Address.parse(LOOPBACK)])
            if transceiver not in self._counted:
                self._counted.add(transceiver)
                self._tasks.append(asyncio.create_task(self._count(transceiver.mid or "", transceiver.receiver.track)))
        await self.sub.setLocalDescription()
        sdp = self.change(self.sub.localDescription.sdp)
        await self.say(pc="sub", epoch=self.sub_epoch, description={"type": "answer", "sdp": sdp})

    async def _count(self, mid: str, track: MediaStreamTrack) -> None:
        try:
            while True:
                await track.recv()
                source = self.mids.get(mid)
                if source is not None:
                    self.frames[source] = self.frames.get(source, 0) + 1
                    self.first_frame.setdefault(source, time.monotonic() - self.entered)
        except MediaStreamError:
            return

    def seen(self, member: str, kind: str = "video") -> int:
        return self.frames.get((member, kind), 0)

    async def flows(self, member: str, kind: str = "video", frames: int = 3) -> None:
        """At least so many further frames arrive and are decoded."""
        before = self.seen(member, kind)
        await eventually(lambda: self.seen(member, kind) >= before + frames)

    def told(self, **fields: Any) -> list[dict[str, Any]]:
        return [one for one in self.heard if all(one.get(name) == value for name, value in fields.items())]

    async def hears(self, **fields: Any) -> dict[str, Any]:
        """A message with these fields, now or soon."""
        await eventually(lambda: bool(self.told(**fields)))
        return self.told(**fields)[-1]

    async def vanish(self) -> None:
        """As if its machine was switched off: its sockets are gone, nothing is said."""
        for task in self._tasks:
            task.cancel()
        for pc in (self.pub, self.sub):
            for transceiver in pc.getTransceivers() if pc is not None else ():
                for protocol in transceiver.receiver.transport.transport.iceGatherer._connection._protocols:
                    protocol.transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for pc in (self.pub, self.sub):
            if pc is not None:
                await pc.close()


class Town:
    """An SFU and those who use it. One thread for all tests of a module; each has a room of its own."""

    def __init__(self, **options: Any) -> None:
        self.people: dict[tuple[str, str], Peer] = {}
        self.sfu = Sfu(self._tell, **{"addresses": (LOOPBACK,), **options})
        self.room = "r0"

    def _tell(self, room_id: str, member_id: str, data: bytes) -> None:
        self.people[room_id, member_id].hear(data)

    async def enter(self, member: str, *tracks: MediaStreamTrack) -> Peer:
        peer = self.person(member, *tracks)
        await self.sfu.enter(self.room, member, publishes=bool(tracks))
        return peer

    def person(self, member: str, *tracks: MediaStreamTrack) -> Peer:
        """Somebody who has not entered yet."""
        peer = Peer(partial(self.sfu.signal, self.room, member), self.room, member, *tracks)
        self.people[self.room, member] = peer
        return peer

    async def leave(self, peer: Peer) -> None:
        await self.sfu.leave(peer.room, peer.member)
        await peer.close()

    async def next_room(self) -> None:
        """Everybody goes; the next ones meet elsewhere."""
        await self.sfu.close(self.room)
        for peer in self.people.values():
            await peer.close()
        self.people.clear()
        self.room = f"r{int(self.room[1:]) + 1}"

    async def aclose(self) -> None:
        await self.next_room()
        await self.sfu.aclose()
