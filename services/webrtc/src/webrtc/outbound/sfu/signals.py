"""What participants and the SFU say to each other: the ``data`` of signals to and from "sfu".

Whoever offers numbers its RTCPeerConnection with an ``epoch``; the other side's messages echo it, and what belongs to
another epoch is ignored: neither side can mistake an answer to an old connection for one to the new.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

Pc = Literal["pub", "sub"]
MAX_SIGNAL = 64 * 1024  # bytes


class Malformed(Exception):
    """Not a signal for the SFU. The text says why, without quoting it."""


class Description(Struct):
    """An RTCSessionDescription."""

    type: Literal["offer", "answer"]
    sdp: str


class Candidate(Struct, rename="camel"):
    """An RTCIceCandidate's init."""

    candidate: str = ""
    sdp_mid: str | None = None
    sdp_m_line_index: int | None = None


class Signal(Struct):
    """One message of a participant: exactly one of description, candidate and restart."""

    pc: Pc
    epoch: int = 0
    description: Description | None = None
    candidate: Candidate | UnsetType | None = UNSET
    restart: bool = False


class Track(Struct):
    """Which m-line carries what."""

    mid: str
    participant: str
    kind: str


class Reply(Struct, omit_defaults=True):
    """One message of the SFU."""

    pc: Pc
    epoch: int = 0
    publish: bool = False
    """Publish now, on a new RTCPeerConnection."""
    description: Description | None = None
    tracks: list[Track] | None = None
    """All that the offer has; m-lines not named carry nothing."""
    closed: str = ""
    """failed, timeout, restart or ended: this RTCPeerConnection is over."""
    error: str = ""
    """malformed, description, not_allowed, limit or unavailable: nothing has changed by it."""
    message: str = ""


_decoder = msgspec.json.Decoder(Signal)
_encoder = msgspec.json.Encoder()


def decode(data: bytes) -> Signal:
    """Raises Malformed."""
    if len(data) > MAX_SIGNAL:
        raise Malformed(f"more than {MAX_SIGNAL} bytes")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("not a signal for the SFU") from error


def encode(reply: Reply) -> bytes:
    """As JSON; fields that say nothing are left out."""
    return _encoder.encode(reply)
