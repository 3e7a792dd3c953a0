"""RTP packets into encoded frames, without decoding them.

aiortc's own jitter buffer gives a frame away when the next one begins, holds back four packets of audio, and waits for
a lost packet until 512 others have come (12 s of a small picture). Here a frame goes on as soon as it is complete, and
a packet that does not come within HOLE_LIMIT costs the frames up to the next keyframe, which is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

HOLE_LIMIT = 0.25  # s to wait for a missing packet: a retransmission takes one round trip
MAX_WAITING = 512  # packets behind a hole
MAX_PARTS = 1_024  # packets of one frame: over 1 MB
MAX_LATE = 100  # packets; one that is further behind begins a new sequence
SEQUENCE = 0xFFFF


class Packet(Protocol):
    """What is used of an RTP packet (RFC 3550 section 5.1)."""

    sequence_number: int
    timestamp: int
    marker: int
    ssrc: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded picture or 20 ms of sound: the payloads of its packets, as they came."""

    payloads: tuple[bytes, ...]
    timestamp: int
    """RTP time of the source: 90 kHz for video, 48 kHz for audio."""
    key: bool
    """Decodable without any frame before it."""
    size: int
    """Bytes."""
    level: int | None = None
    """Sound level in -dBov, 0 (loud) to 127 (RFC 6464)."""


Emit = Callable[[Frame], None]


def vp8_begins(payload: bytes) -> bool:
    """Whether a VP8 payload begins a frame: S bit set, partition 0 (RFC 7741 section 4.2)."""
    return len(payload) > 1 and payload[0] & 0x17 == 0x10


def vp8_key(payload: bytes) -> bool:
    """Whether a payload that begins a frame begins a keyframe: P bit clear behind the descriptor (RFC 7741 4.3)."""
    at = 1
    if payload[0] & 0x80:
        extra = payload[1]
        at = 2
        if extra & 0x80 and len(payload) > at:
            at += 2 if payload[at] & 0x80 else 1
        at += bool(extra & 0x40) + bool(extra & 0x30)
    return len(payload) > at and payload[at] & 1 == 0


class AudioFrames:
    """Each packet of Opus is a frame (RFC 7587); order and gaps are left to the listener's jitter buffer."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def take(self, packet: Packet, level: int | None = None) -> None:
        """A packet that arrived."""
        if packet.payload:
            size = len(packet.payload)
            self._emit(Frame((packet.payload,), packet.timestamp, key=True, size=size, level=level))


class VideoFrames:
    """VP8 in the order of sending; nothing after a gap before the next keyframe, as it would be decoded to rubbish."""

    def __init__(self, emit: Emit, ask_keyframe: Callable[[], None], clock: Callable[[], float]) -> None:
        self._emit = emit
        self._ask_keyframe = ask_keyframe
        self._clock = clock
        self._ssrc = -1
        self._next = 0  # sequence number
        self._waiting: dict[int, Packet] = {}
        self._hole_since = 0.0
        self._parts: list[Packet] = []
        self._need_key = True

    def take(self, packet: Packet) -> None:
        """A packet that arrived, perhaps out of order or retransmitted."""
        ahead = (packet.sequence_number - self._next) & SEQUENCE
        if packet.ssrc != self._ssrc or MAX_WAITING <= ahead <= SEQUENCE - MAX_LATE:
            self._restart(packet)
        elif ahead > SEQUENCE // 2:
            return  # too late, or a second time
        self._waiting[packet.sequence_number] = packet
        self._advance()
        if self._waiting and self._hole_is_old():
            self._skip_hole()

    def _restart(self, packet: Packet) -> None:
        self._ssrc = packet.ssrc
        self._next = packet.sequence_number
        self._waiting.clear()
        self._lose()

    def _lose(self) -> None:
        self._parts.clear()
        self._hole_since = 0.0
        self._need_key = True

    def _advance(self) -> None:
        while (packet := self._waiting.pop(self._next, None)) is not None:
            self._next = (self._next + 1) & SEQUENCE
            self._hole_since = 0.0
            self._append(packet)

    def _append(self, packet: Packet) -> None:
        if not packet.payload:
            return  # padding, which probes for bandwidth
        if self._parts and packet.timestamp != self._parts[0].timestamp:
            self._complete()  # whoever sent it does not mark last packets
        self._parts.append(packet)
        if packet.marker:
            self._complete()
        elif len(self._parts) >= MAX_PARTS:
            self._lose()

    def _complete(self) -> None:
        payloads = tuple(part.payload for part in self._parts)
        timestamp = self._parts[0].timestamp
        self._parts.clear()
        whole = vp8_begins(payloads[0])
        key = whole and vp8_key(payloads[0])
        if key or (whole and not self._need_key):
            self._need_key = False
            self._emit(Frame(payloads, timestamp, key, sum(map(len, payloads))))
        else:
            self._need_key = True
            self._ask_keyframe()

    def _hole_is_old(self) -> bool:
        now = self._clock()
        if not self._hole_since:
            self._hole_since = now
        return now - self._hole_since > HOLE_LIMIT or len(self._waiting) >= MAX_WAITING

    def _skip_hole(self) -> None:
        self._next = min(self._waiting, key=lambda number: (number - self._next) & SEQUENCE)
        self._lose()
        self._ask_keyframe()
        self._advance()
