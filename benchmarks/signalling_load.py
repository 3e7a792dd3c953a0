"""Puts load on a signalling server: pairs of peers, each in a room of their own, that send each other candidates and
now and then an SDP.

A process of its own, so that it does not take the server's time: orders (JSON, one a line) on stdin, results on stdout.
A message's latency is from before it is sent until the other side has it; order is kept by every server here, so the
n-th message that arrives is the n-th that was sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TypedDict

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

SDP_EVERY = 20  # 5 % of the messages
CANDIDATE_BYTES, SDP_BYTES = 200, 4_096
ACK_EVERY = 32
IN_FLIGHT = 8  # messages of a saturating pair
SETTLE = 5.0  # s for the last messages to arrive
WATCH = 0.02  # s
HEARTBEAT_EVERY = 5.0  # s, as PeerJS's own client; its server ends connections without

CANDIDATE = {
    "candidate": "candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 10.0.0.17 rport 46154 "
    "generation 0 ufrag EEtu network-id 3 network-cost 10",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
}
SDP = {"type": "offer", "sdp": "a=rtpmap:111 opus/48000/2\r\n" * (SDP_BYTES // 27)}


class Order(TypedDict):
    """``do``: connect (with kind and a URL per peer, two of them a room), saturate or rate (for seconds)."""

    do: str
    kind: str
    urls: Sequence[str]
    seconds: float
    rate: float


class Peer(WSListener):
    """One side of a room. ``other`` is the one its messages go to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.id = ""
        self.other: Peer
        self.transport: WSTransport
        self.ready = asyncio.Event()
        self.sent: deque[float] = deque()
        self.latencies: list[float] = []
        self.texts: tuple[bytes, bytes] = (b"", b"")
        self.echoing = False
        self.count = self.received = 0
        self.problem = ""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        if self.kind == "relay":
            self.ready.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            if frame.msg_type == WSMsgType.CLOSE:
                self.problem = self.problem or f"closed with {frame.get_close_code()}"
                transport.disconnect()
            elif frame.msg_type == WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())
            return
        text = frame.get_payload_as_bytes()
        if text.find(b'"candidate', 0, 120) < 0 and text.find(b'"description', 0, 120) < 0:
            self._other_message(text)
            return
        now = time.perf_counter()
        self.latencies.append(now - self.other.sent.popleft())
        self.received += 1
        if self.kind == "ours" and self.received % ACK_EVERY == 0:
            self._acknowledge(text)
        if self.echoing:
            self.send()

    def _acknowledge(self, text: bytes) -> None:
        seq = text[text.rindex(b":") + 1 : -1]
        self.transport.send(WSMsgType.TEXT, b'{"type":"ack","seq":%b}' % seq)

    def _other_message(self, text: bytes) -> None:
        message = json.loads(text)
        match message.get("type"):
            case "welcome":
                self.id = message["participant"]
                self.ready.set()
            case "OPEN":
                self.ready.set()
            case "joined" | "left" | "updated" | "ice" | "media" | "HEARTBEAT":
                pass
            case _:
                self.problem = text.decode()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        self.problem = self.problem or "disconnected"

    def prepare(self) -> None:
        """Its two messages, once it knows whom they are for."""
        self.texts = (
            _text(self.kind, self.other.id, CANDIDATE, "candidate"),
            _text(self.kind, self.other.id, SDP, "description"),
        )

    def send(self) -> None:
        self.count += 1
        text = self.texts[self.count % SDP_EVERY == 0]
        self.sent.append(time.perf_counter())
        self.transport.send(WSMsgType.TEXT, text)

    def reset(self) -> None:
        self.count = self.received = 0
        self.latencies = []
        self.sent.clear()


def _text(kind: str, to: str, what: dict[str, Any], name: str) -> bytes:
    payload = {name: what}
    match kind:
        case "ours":
            message: dict[str, Any] = {"type": "signal", "to": to, "data": payload}
        case "peerjs":
            message = {"type": "CANDIDATE" if name == "candidate" else "OFFER", "payload": payload, "dst": to}
        case _:
            message = payload
    return json.dumps(message, separators=(",", ":")).encode()


class Load:
    """All peers of one server."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._beating: asyncio.Task[None] | None = None

    async def run(self, order: Order) -> dict[str, Any]:
        match order["do"]:
            case "connect":
                return await self.connect(order["kind"], order["urls"])
            case "saturate":
                return await self._measured(self._saturate(order["seconds"]))
            case _:
                return await self._measured(self._steady(order["seconds"], order["rate"]))

    async def connect(self, kind: str, urls: Sequence[str]) -> dict[str, Any]:
        begun = time.perf_counter()
        for url in urls:
            peer = Peer(kind)
            await ws_connect(lambda peer=peer: peer, url)
            await asyncio.wait_for(peer.ready.wait(), 10)
            if kind == "peerjs":
                peer.id = url.split("id=")[1].split("&")[0]
            self.peers.append(peer)
        for one, other in zip(self.peers[::2], self.peers[1::2], strict=True):
            one.other, other.other = other, one
            one.prepare()
            other.prepare()
        if kind == "peerjs":
            self._beating = asyncio.create_task(self._beat())
        return {"seconds": time.perf_counter() - begun}

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_EVERY)
            for peer in self.peers:
                peer.transport.send(WSMsgType.TEXT, b'{"type":"HEARTBEAT"}')

    async def _measured(self, work: Any) -> dict[str, Any]:
        for peer in self.peers:
            peer.reset()
        begun, cpu = time.perf_counter(), time.process_time()
        await work
        seconds = time.perf_counter() - begun
        await self._settle()
        latencies = sorted(latency for peer in self.peers for latency in peer.latencies)
        return {
            "sent": sum(peer.count for peer in self.peers),
            "received": len(latencies),
            "seconds": seconds,
            "p50": _at(latencies, 0.5),
            "p99": _at(latencies, 0.99),
            "cpu": (time.process_time() - cpu) / seconds,
            "problems": sorted({peer.problem for peer in self.peers if peer.problem})[:3],
        }

    async def _saturate(self, seconds: float) -> None:
        for peer in self.peers:
            peer.echoing = True
        for peer in self.peers:
            for _ in range(IN_FLIGHT // 2):
                peer.send()
        await asyncio.sleep(seconds)
        for peer in self.peers:
            peer.echoing = False

    async def _steady(self, seconds: float, rate: float) -> None:
        begun, sent = time.perf_counter(), 0
        peers = self.peers
        while (passed := time.perf_counter() - begun) < seconds:
            while sent < passed * rate:
                peers[sent * 7 % len(peers)].send()
                sent += 1
            await asyncio.sleep(0.0005)

    async def _settle(self) -> None:
        end = time.perf_counter() + SETTLE
        while any(peer.sent for peer in self.peers) and time.perf_counter() < end:  # noqa: ASYNC110 - at most once a slice
            await asyncio.sleep(WATCH)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    load = Load()
    while line := await reader.readline():
        print(json.dumps(await load.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
