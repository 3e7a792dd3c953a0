"""All that is used of aiortc and aioice beyond their public interface, and nothing else: one place to look at when
their version changes. Both are pinned, and ``tests/test_webrtc_sfu_inside.py`` fails when a name here is gone.

aiortc decodes what it receives and encodes what it sends. Both are bypassed: the receiver's jitter buffer is replaced
by a tap that passes complete encoded frames on, and the sender's source of encoded frames by an outlet.
"""

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.rtcrtpsender import RTCEncodedFrame

from webrtc.outbound.sfu.fanout import Outlet
from webrtc.outbound.sfu.frames import Packet

AIORTC = "1.16.0"
AIOICE = "0.13.0"
LOOPBACK = "127.0.0.1"
MAX_DATAGRAMS = 2_048  # of one connection, received and not handled yet

# aioice tells of every connectivity check.
logging.getLogger("aioice").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Address:
    """Where media is received: bound to ``local``, told to participants as ``announced``."""

    local: str
    announced: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From "LOCAL" or "LOCAL/ANNOUNCED" (behind a 1:1 NAT, or a container's published ports)."""
        local, _, announced = text.partition("/")
        return cls(local, announced or local)


class Tap:
    """In the place of a receiver's jitter buffer: gets packets, keeps none of them back."""

    def __init__(self, take: Callable[[Packet, int | None], None]) -> None:
        self._take = take
        self.ssrc = 0

    def add(self, packet: Any) -> tuple[bool, None]:
        """A packet in the order of arrival. Answers (send a PLI?, frame to decode): never."""
        self.ssrc = packet.ssrc
        level = packet.extensions.audio_level
        self._take(packet, level[1] if level else None)
        return False, None


def tap(receiver: RTCRtpReceiver, take: Callable[[Packet, int | None], None]) -> Tap:
    """Passes what the receiver gets to ``take`` (with the sound level in -dBov, if told). Before its first packet."""
    buffer = Tap(take)
    receiver._RTCRtpReceiver__jitter_buffer = buffer  # type: ignore[attr-defined]
    receiver._RTCRtpReceiver__decoder_queue.put(None)  # type: ignore[attr-defined]  # the decoder's thread ends at once
    return buffer


async def ask_keyframe(receiver: RTCRtpReceiver, buffer: Tap) -> None:
    """Sends a PLI to the publisher, if it has sent anything yet."""
    if buffer.ssrc:
        await receiver._send_rtcp_pli(buffer.ssrc)


def drive(sender: RTCRtpSender, outlet: Outlet) -> None:
    """Makes the sender send the outlet's frames, and tell the outlet of PLI and FIR. Before it starts."""

    async def next_frame(_codec: object) -> RTCEncodedFrame:
        frame, time = await outlet.next()
        level = None if frame.level is None else -frame.level
        return RTCEncodedFrame(frame.payloads, time, level)  # type: ignore[arg-type]

    sender._next_encoded_frame = next_frame  # type: ignore[assignment]
    sender._send_keyframe = outlet.lost  # type: ignore[method-assign]


def name_stream(sender: RTCRtpSender, stream: str) -> None:
    """Sets the id of the MediaStream that the browser groups the track under (RFC 8830)."""
    sender._stream_id = stream


def bind(transceiver: Any, addresses: Sequence[Address]) -> None:
    """Makes a transceiver's ICE transport gather these addresses only. Before it gathers; none: aioice's choice.

    aioice binds every address of the machine but loopback, which is taken where there is no other.
    """
    connection = transceiver.receiver.transport.transport.iceGatherer._connection
    if isinstance(connection._queue, Datagrams):
        return  # bundled with one that is bound already
    gather: Callable[..., Awaitable[list[Any]]] = connection.get_component_candidates
    told = {address.local: address.announced for address in addresses}

    async def gather_these(component: int, addresses: list[str], timeout: int = 5) -> list[Any]:
        found = await gather(component, list(told) or addresses or [LOOPBACK], timeout)
        if not found:
            raise OSError(f"none of the addresses can be bound: {', '.join(told)}")
        return [_announced(candidate, told.get(candidate.host, candidate.host)) for candidate in found]

    connection.get_component_candidates = gather_these
    connection.connect = partial(_connect, connection, connection.connect)
    connection._queue = Datagrams()


class Datagrams(asyncio.Queue[Any]):
    """What has arrived and is not handled yet: without a bound in aioice, though anybody may send to the port."""

    def put_nowait(self, item: Any) -> None:
        """Drops what there is no room for; None is the end, which always gets in."""
        if item is None or self.qsize() < MAX_DATAGRAMS:
            super().put_nowait(item)


async def _connect(connection: Any, connect: Callable[[], Awaitable[None]]) -> None:
    """aioice's, which goes on asking for consent for ever when it is closed in the moment in which it succeeds."""
    await connect()
    if connection._closing:
        await connection.close()
        raise ConnectionError("closed meanwhile")


def _announced(candidate: Any, host: str) -> Any:
    """The candidate as it is told to others; the socket's own keeps the address that it is bound to."""
    told = copy.copy(candidate)
    told.host = host
    return told
