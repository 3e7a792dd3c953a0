"""What a participant sends: an RTCPeerConnection that it offers, each track of which is a feed for the others."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from aiortc import RTCRtpTransceiver, RTCSessionDescription
from aiortc.sdp import MediaDescription

from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.descriptions import BadDescription, parse, without_candidates
from webrtc.outbound.sfu.fanout import Counts, Feed, Kind
from webrtc.outbound.sfu.frames import AudioFrames, Frame, Packet, VideoFrames
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.peer import OnState, Peer
from webrtc.outbound.sfu.signals import Description


@dataclass(slots=True)
class _Incoming:
    """One m-line of a publisher."""

    transceiver: RTCRtpTransceiver
    feed: Feed | None = None
    tap: inside.Tap = field(init=False)


class Publication(Peer):
    """What a participant sends."""

    pc_name = "pub"

    def __init__(self, owner: str, epoch: int, addresses: Sequence[Address], on_state: OnState, counts: Counts) -> None:
        super().__init__(epoch, addresses, on_state)
        self._owner = owner
        self._counts = counts
        self._incoming: dict[str, _Incoming] = {}  # by mid
        self._ice_user: str | None = None
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def feeds(self) -> list[Feed]:
        """What is published now."""
        return [one.feed for one in self._incoming.values() if one.feed is not None]

    async def answer(self, sdp: str) -> Description:
        """Takes an offer, the first or a further one. Raises BadDescription (then nothing has changed); OSError when
        no address can be bound.
        """
        sdp = without_candidates(sdp)
        media = parse(sdp, "offer")
        ice_user = media[0].ice.usernameFragment if media[0].ice else None
        if self._ice_user not in (None, ice_user):
            raise BadDescription("ICE restart is not supported: offer a new RTCPeerConnection with a new epoch")
        self._prepare(media)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            await self._pc.setLocalDescription()
        except OSError:
            raise
        except Exception as error:  # aiortc has no class for what it does not understand
            raise BadDescription(f"offer not understood ({type(error).__name__})") from error
        self._ice_user = ice_user
        self._take_tracks()
        return Description("answer", self._pc.localDescription.sdp)

    def _prepare(self, media: Iterable[MediaDescription]) -> None:
        """Transceivers for new m-lines, made before aiortc would make them with all its codecs."""
        spare = [one.kind for one in self._pc.getTransceivers() if one.mid is None]
        for one in media:
            if one.rtp.muxId in self._incoming:
                continue
            if one.kind in spare:
                spare.remove(one.kind)
            else:
                self._transceiver(one.kind, "recvonly")

    def _take_tracks(self) -> None:
        for transceiver in self._pc.getTransceivers():
            mid = transceiver.mid
            if mid is None:
                continue
            one = self._incoming.get(mid)
            if one is None:
                one = self._incoming[mid] = self._tapped(transceiver)
            self._follow(one)

    def _follow(self, one: _Incoming) -> None:
        """A feed while the publisher sends on the m-line."""
        if one.transceiver.currentDirection != "recvonly":
            one.feed = None
        elif one.feed is None:
            ask = partial(self._ask_keyframe, one)
            one.feed = Feed(self._owner, cast(Kind, one.transceiver.kind), ask, time.monotonic, self._counts)

    def _tapped(self, transceiver: RTCRtpTransceiver) -> _Incoming:
        one = _Incoming(transceiver)

        def emit(frame: Frame) -> None:
            if one.feed is not None:
                one.feed.deliver(frame)

        def want() -> None:
            if one.feed is not None and one.feed.outlets:
                one.feed.want_keyframe()

        take: Callable[[Packet, int | None], None]
        if transceiver.kind == "audio":
            take = AudioFrames(emit).take
        else:
            video = VideoFrames(emit, want, time.monotonic)

            def take(packet: Packet, _level: int | None) -> None:
                video.take(packet)

        one.tap = inside.tap(transceiver.receiver, take)
        return one

    def _ask_keyframe(self, one: _Incoming) -> None:
        task = asyncio.ensure_future(inside.ask_keyframe(one.transceiver.receiver, one.tap))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def close(self) -> None:
        """Also ends its feeds."""
        for one in self._incoming.values():
            one.feed = None
        await super().close()
