"""The messages of the WebSocket, JSON texts told apart by their ``type``: their shapes, reading and writing.

What peers say to each other (``data``) is carried as the bytes that came (``msgspec.Raw``), not read and written again.
A server's message is encoded without its ``seq``, which differs by recipient and is put in last (``Outbox.add``).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from webrtc.model import IceServer, Member, Report

MESSAGE_LIMIT = 65_536
"""Bytes of a client's message."""
DATA_LIMIT = 16_384
"""Bytes of the ``data`` of a ``data`` message."""
SFU = "sfu"
"""The peer id of the service's own media server."""

Kind = Literal["audio", "video"]


class Client(Struct, tag_field="type", frozen=True, gc=False):
    """What clients say."""


class Signal(Client, tag="signal", frozen=True):
    """For one peer or the SFU; ``data`` is theirs alone."""

    to: str
    data: Raw


class Data(Client, tag="data", frozen=True):
    """For one, or for everybody else."""

    data: Raw
    to: str | None = None


class Media(Client, tag="media", frozen=True):
    """What I send now."""

    audio: bool
    video: bool


class Mute(Client, tag="mute", frozen=True):
    """A moderator asks a participant to be quiet."""

    participant: str
    kind: Kind


class Kick(Client, tag="kick", frozen=True):
    """A moderator removes a participant."""

    participant: str


class Stats(Client, tag="stats", frozen=True):
    """What I measured since the last report."""

    report: Report


class Path(Client, tag="path", frozen=True):
    """How the media path to a peer does."""

    peer: str
    state: Literal["connected", "failed"]
    relayed: bool = False


class AskIce(Client, tag="ice", frozen=True):
    """Asks for fresh ICE servers."""


class Ack(Client, tag="ack", frozen=True):
    """I have everything up to ``seq``."""

    seq: int


class Ping(Client, tag="ping", frozen=True):
    """Are you there?"""


class Leave(Client, tag="leave", frozen=True):
    """Good-bye."""


Message = Signal | Data | Media | Mute | Kick | Stats | Path | AskIce | Ack | Ping | Leave

decode = msgspec.json.Decoder(Message, strict=True).decode
"""One message of a client. Raises msgspec.ValidationError (wrong shape) and msgspec.DecodeError (no JSON)."""

_encoder = msgspec.json.Encoder()
_text = _encoder.encode


class _Kind(Struct):
    type: str


_kind = msgspec.json.Decoder(_Kind).decode
KINDS = {
    "signal": Signal,
    "data": Data,
    "media": Media,
    "mute": Mute,
    "kick": Kick,
    "stats": Stats,
    "path": Path,
    "ice": AskIce,
    "ack": Ack,
    "ping": Ping,
    "leave": Leave,
}


class Participant(Struct, frozen=True, gc=False):
    """A participant as clients see it; ``joined_at`` in unix seconds."""

    id: str
    user_id: str
    name: str
    joined_at: float
    audio: bool
    video: bool
    away: bool
    quality: str


def participant(member: Member) -> Participant:
    """A member as clients see it."""
    return Participant(
        member.id,
        member.user_id,
        member.name,
        member.joined_at,
        member.audio,
        member.video,
        member.away,
        member.quality,
    )


def away(member: Member) -> Member:
    """The member without its connection."""
    return replace(member, away=True)


def ice_servers(servers: Iterable[IceServer]) -> list[dict[str, object]]:
    """As RTCPeerConnection takes them: credentials only where there are any."""
    return [_ice_server(server) for server in servers]


def _ice_server(server: IceServer) -> dict[str, object]:
    urls: dict[str, object] = {"urls": server.urls}
    return {**urls, "username": server.username, "credential": server.credential} if server.username else urls


def server(kind: str, /, **fields: object) -> bytes:
    """Any of the server's messages that are not sent a thousand times a second; without ``seq``."""
    return _text({"type": kind, **fields})


def signal(sender: str, data: bytes | Raw) -> bytes:
    """``data`` as it came; ``sender`` is one of our own ids, which need no escaping."""
    return b'{"type":"signal","from":"%b","data":%b}' % (sender.encode(), data)


def data(sender: str, payload: bytes | Raw) -> bytes:
    """As `signal`."""
    return b'{"type":"data","from":"%b","data":%b}' % (sender.encode(), payload)


def unknown_type(text: bytes) -> bool:
    """Whether a text that is none of our messages is well-formed, of a type that we do not know."""
    try:
        return _kind(text).type not in KINDS
    except (msgspec.DecodeError, RecursionError):
        return False


PONG = b'{"type":"pong"}'
