"""What instances send each other directly, many messages as one entry of an inbox, as MessagePack."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec
from msgspec import Raw, Struct


class Deliver(Struct, tag="d", array_like=True, frozen=True, gc=False):
    """An encoded message for a participant there."""

    room_id: str
    member_id: str
    message: bytes


class CloseMember(Struct, tag="c", array_like=True, frozen=True, gc=False):
    """Close a participant's socket."""

    room_id: str
    member_id: str
    code: int


class ToSfu(Struct, tag="s", array_like=True, frozen=True, gc=False):
    """What a participant tells the SFU there."""

    room_id: str
    member_id: str
    data: bytes


Direct = Deliver | CloseMember | ToSfu

encode = msgspec.msgpack.Encoder().encode
_several = msgspec.msgpack.Decoder(list[Direct], strict=True).decode
_raw = msgspec.msgpack.Decoder(list[Raw]).decode
_one = msgspec.msgpack.Decoder(Direct, strict=True).decode


def pack(encoded: Iterable[bytes]) -> bytes:
    """Several encoded messages as one payload."""
    return encode([Raw(one) for one in encoded])


def unpack(payload: bytes) -> list[Direct]:
    """The messages of a payload, without those that only a newer version knows."""
    try:
        return _several(payload)
    except msgspec.MsgspecError:
        return list(_known(payload))


def _known(payload: bytes) -> Iterator[Direct]:
    with suppress(msgspec.MsgspecError):
        for one in _raw(payload):
            with suppress(msgspec.MsgspecError):
                yield _one(one)
