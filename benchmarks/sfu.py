"""What one more subscriber costs the SFU, against aiortc's MediaRelay (which decodes once and encodes for each) in the
same run: both serve one publisher of 320 × 240 at 30 frames a second, and 1, 2 and 4 subscribers, on loopback.

The servers run in processes of their own, so that their processor time is theirs alone. The publisher's pictures are
encoded once, beforehand; subscribers count complete frames and do not decode.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import psutil
from aiortc import MediaStreamTrack, RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target, turns
from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.frames import Packet
from webrtc.outbound.sfu.inside import Address

TARGET = Target("at most", 0.1)
SERVERS = ("ours", "relay")
SUBSCRIBERS = (1, 2, 4)
WIDTH, HEIGHT, FPS, BITRATE = 320, 240, 30, 400_000  # small, so that MediaRelay keeps up on a busy machine
LOOP_SECONDS = 2  # of pictures, sent again and again; each loop begins with a keyframe
LEAST_FPS = 10.0  # fewer: the machine is too busy to tell anything
START_TIMEOUT = 10.0
LOCAL = [Address.parse("127.0.0.1")]


async def sfu(options: Options) -> Report:
    """Processor time for each further subscriber of a track, against aiortc's MediaRelay."""
    rounds, seconds = (1, 3.0) if options.quick else (3, 6.0)
    pictures = encoded()
    found: dict[str, list[Usage]] = {name: [] for name in SERVERS}
    for number in range(rounds):
        for name in turns(SERVERS, number):
            options.say(f"round {number + 1} of {rounds}: {name}, {seconds:g} s each with 1, 2 and 4 subscribers")
            found[name].append(await measured(name, pictures, seconds))
    pairs = list(zip(found["ours"], found["relay"], strict=True))
    figures = [
        Figure(
            "CPU for each further subscriber: SFU / MediaRelay", [a.slope / b.slope for a, b in pairs], target=TARGET
        ),
        Figure("CPU with 4 subscribers: SFU / MediaRelay", [a.share[4] / b.share[4] for a, b in pairs]),
    ]
    return Report(figures, [f"{name}: {usage}" for name in SERVERS for usage in found[name]])


@dataclass
class Usage:
    """One server in one round: share of a core by number of subscribers, resident bytes, frames a second.

    A server that a busy machine lets send fewer frames uses less: shares are for frames at the full rate.
    """

    share: dict[int, float] = field(default_factory=dict)
    resident: int = 0
    fps: float = 0.0

    @property
    def slope(self) -> float:
        """Share of a core for each further subscriber."""
        first, last = SUBSCRIBERS[0], SUBSCRIBERS[-1]
        return (self.share[last] - self.share[first]) / (last - first)

    def __str__(self) -> str:
        shares = ", ".join(f"{count}: {100 * share:.2f} %" for count, share in self.share.items())
        return f"{shares} of a core; {self.resident / 1e6:.0f} MB; {self.fps:.0f} frames/s at the slowest subscriber"


def encoded() -> list[bytes]:
    """A moving pattern as VP8."""
    codec: Any = av.CodecContext.create("libvpx", "w")
    codec.width, codec.height, codec.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    codec.time_base, codec.bit_rate, codec.gop_size = Fraction(1, FPS), BITRATE, 10_000
    codec.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    frames: list[bytes] = []
    for number in range(FPS * LOOP_SECONDS):
        frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
        for plane in frame.planes:
            row = bytes((x + number * 2) % 256 for x in range(plane.line_size))
            plane.update(b"".join(row[y // 8 :] + row[: y // 8] for y in range(plane.buffer_size // plane.line_size)))
        frame.pts = number
        frames += [bytes(packet) for packet in codec.encode(frame)]
    return frames


class Camera(MediaStreamTrack):
    """Sends the pictures, over and over."""

    kind = "video"

    def __init__(self, pictures: list[bytes]) -> None:
        super().__init__()
        self._pictures = pictures
        self._count = 0
        self._begun = time.monotonic()

    async def recv(self) -> Any:
        await asyncio.sleep(max(0.0, self._begun + self._count / FPS - time.monotonic()))
        packet = av.Packet(self._pictures[self._count % len(self._pictures)])
        packet.pts, packet.time_base = self._count * 90_000 // FPS, Fraction(1, 90_000)
        self._count += 1
        return packet


class Member:
    """A participant: publishes the camera, or counts the frames that come (the last packet of each is marked)."""

    def __init__(self, name: str, server: Server, camera: Camera | None = None) -> None:
        self.name = name
        self.frames = 0
        self._server = server
        self._camera = camera
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))

    @property
    def connected(self) -> bool:
        return self._pc.connectionState == "connected"

    async def hear(self, message: dict[str, Any]) -> None:
        description = message.get("description")
        if message.get("publish"):
            inside.bind(self._pc.addTransceiver(self._camera or "video", direction="sendonly"), LOCAL)
            await self._say("pub", 1)
        elif description is not None:
            await self._pc.setRemoteDescription(RTCSessionDescription(description["sdp"], description["type"]))
            if description["type"] == "offer":
                await self._answer(message["epoch"])

    async def _answer(self, epoch: int) -> None:
        for transceiver in self._pc.getTransceivers():
            inside.bind(transceiver, LOCAL)
            inside.tap(transceiver.receiver, self._count)
        await self._say("sub", epoch)

    def _count(self, packet: Packet, _level: int | None) -> None:
        self.frames += packet.marker

    async def _say(self, pc: str, epoch: int) -> None:
        await self._pc.setLocalDescription()
        description = self._pc.localDescription
        data = {"pc": pc, "epoch": epoch, "description": {"type": description.type, "sdp": description.sdp}}
        self._server.write({"signal": self.name, "data": data})

    async def close(self) -> None:
        await self._pc.close()


class Server:
    """A server's process, and the participants that talk to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.usage = psutil.Process(process.pid)
        self.members: dict[str, Member] = {}

    def write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            await self.members[message["member"]].hear(message["data"])

    async def enter(self, name: str, camera: Camera | None = None) -> None:
        member = self.members[name] = Member(name, self, camera)
        self.write({"enter": name, "publishes": camera is not None})
        deadline = time.monotonic() + START_TIMEOUT
        while not (member.connected and (camera is not None or member.frames)):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{name} got no media")
            await asyncio.sleep(0.05)

    def seconds(self) -> float:
        """Processor time of all its threads, from schedstat (proc(5)): the usual clock goes in steps of 10 ms."""
        tasks = Path(f"/proc/{self.usage.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@asynccontextmanager
async def running(name: str) -> AsyncIterator[Server]:
    """The server, with nobody in yet."""
    command = (sys.executable, "-m", "benchmarks.sfu_server", name)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 20)
    server = Server(process)
    listening = asyncio.create_task(server.listen())
    try:
        yield server
    finally:
        for member in server.members.values():
            await member.close()
        listening.cancel()
        process.kill()
        await process.wait()


async def measured(name: str, pictures: list[bytes], seconds: float) -> Usage:
    """One server with ever more subscribers."""
    usage = Usage(fps=float("inf"))
    async with running(name) as server:
        await server.enter("publisher", Camera(pictures))
        for count in SUBSCRIBERS:
            while len(server.members) <= count:
                await server.enter(f"subscriber {len(server.members)}")
            await asyncio.sleep(1.0)  # the last one's beginning is not what is measured
            usage.fps = min(usage.fps, await _watch(server, usage, count, seconds))
        usage.resident = server.usage.memory_info().rss
    if usage.fps < LEAST_FPS:
        raise BenchmarkError(f"{name}: {usage.fps:.0f} frames/s arrived, the machine is too busy")
    return usage


async def _watch(server: Server, usage: Usage, count: int, seconds: float) -> float:
    """Frames a second at the subscriber that got fewest."""
    before = {member.name: member.frames for member in server.members.values()}
    cpu, begun = server.seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    used, passed = server.seconds() - cpu, time.monotonic() - begun
    got = [member.frames - before[name] for name, member in server.members.items() if name != "publisher"]
    usage.share[count] = used / max(1, sum(got) / len(got)) * FPS
    return min(got) / passed
