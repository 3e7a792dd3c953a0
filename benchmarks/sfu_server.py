"""The two servers of ``benchmarks.sfu``, each in a process of its own: ``python -m benchmarks.sfu_server ours|relay``.

Both take lines of JSON on stdin, {"enter": member, "publishes": bool} or {"signal": member, "data": ...}, and write
{"member": ..., "data": ...} to stdout, with the same signals (``webrtc.outbound.sfu.signals``). They end with stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.contrib.media import MediaRelay

from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.backend import Sfu
from webrtc.outbound.sfu.inside import Address

LOOPBACK = "127.0.0.1"


def tell(room_id: str, member_id: str, data: bytes) -> None:  # noqa: ARG001 - there is one room
    sys.stdout.write(json.dumps({"member": member_id, "data": json.loads(data)}) + "\n")
    sys.stdout.flush()


class Relay:
    """aiortc as its documentation has it: MediaRelay, which decodes once and encodes for each subscriber. VP8 only."""

    def __init__(self) -> None:
        self._relay = MediaRelay()
        self._tracks: list[Any] = []
        self._subscribers: dict[str, RTCPeerConnection] = {}
        self._publisher = self._connection()
        self._publisher.on("track", self._tracks.append)

    def _connection(self) -> RTCPeerConnection:
        return RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))

    async def enter(self, _room: str, member: str, publishes: bool) -> None:
        if publishes:
            return tell("", member, b'{"pc":"pub","publish":true}')
        pc = self._subscribers[member] = self._connection()
        transceiver = pc.addTransceiver(self._relay.subscribe(self._tracks[0]), direction="sendonly")
        inside.bind(transceiver, [Address.parse(LOOPBACK)])
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.name in ("VP8", "rtx")])
        await pc.setLocalDescription()
        return self._say(member, "sub", pc)

    async def signal(self, _room: str, member: str, data: bytes) -> None:
        message = json.loads(data)
        description = RTCSessionDescription(message["description"]["sdp"], message["description"]["type"])
        if message["pc"] == "sub":
            return await self._subscribers[member].setRemoteDescription(description)
        await self._publisher.setRemoteDescription(description)
        inside.bind(self._publisher.getTransceivers()[0], [Address.parse(LOOPBACK)])
        await self._publisher.setLocalDescription()
        return self._say(member, "pub", self._publisher)

    def _say(self, member: str, pc: str, connection: RTCPeerConnection) -> None:
        description = connection.localDescription
        message = {"pc": pc, "epoch": 1, "description": {"type": description.type, "sdp": description.sdp}}
        tell("", member, json.dumps(message).encode())


async def serve(which: str) -> None:
    server = Sfu(tell, (LOOPBACK,)) if which == "ours" else Relay()
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        message = json.loads(line)
        if "enter" in message:
            await server.enter("room", message["enter"], message["publishes"])
        else:
            await server.signal("room", message["signal"], json.dumps(message["data"]).encode())


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
