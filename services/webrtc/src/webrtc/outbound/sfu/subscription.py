"""What a participant gets: an RTCPeerConnection that the SFU offers, and offers again as tracks come and go."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiortc import MediaStreamTrack, RTCRtpTransceiver, RTCSessionDescription

from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.descriptions import BadDescription, parse, without_candidates
from webrtc.outbound.sfu.fanout import Counts, Feed, Kind, Outlet
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.peer import OnState, Peer
from webrtc.outbound.sfu.signals import Description, Track


class _Silence(MediaStreamTrack):
    """aiortc wants a track to send; what is sent comes from the outlet."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    async def recv(self) -> None:  # type: ignore[override]
        raise NotImplementedError


@dataclass(slots=True)
class _Slot:
    """One m-line of a subscriber; may carry another track later."""

    transceiver: RTCRtpTransceiver
    outlet: Outlet
    feed: Feed | None = None


class Subscription(Peer):
    """What a participant gets: an m-line for each track, reused when the track is gone."""

    pc_name = "sub"

    def __init__(self, epoch: int, addresses: Sequence[Address], on_state: OnState, counts: Counts) -> None:
        super().__init__(epoch, addresses, on_state)
        self._counts = counts
        self._slots: list[_Slot] = []
        self._offered = False
        self._answered = False

    @property
    def ready(self) -> bool:
        """Whether a change can be offered now: no offer is outstanding, and the first one has led to a connection."""
        closing = self.over or self._pc.signalingState == "closed"
        return not closing and not self._offered and (self.connected or not self._answered)

    def came_up(self) -> None:
        """It is connected; a further offer may be waiting for its answer already."""
        if not self._offered:
            self.settled()

    def assign(self, feeds: Sequence[Feed]) -> bool:
        """Gives each feed an m-line and ends those of others. Whether anything changed, so that it must be offered."""
        free = [slot for slot in self._slots if slot.feed is None]
        ended = [slot for slot in self._slots if slot.feed is not None and slot.feed not in feeds]
        for slot in ended:
            slot.outlet.disconnect()
            slot.feed = None
            slot.transceiver.direction = "inactive"
        carried = [slot.feed for slot in self._slots]
        new = [feed for feed in feeds if feed not in carried]
        for feed in new:
            self._carry(feed, free)
        return bool(ended or new)

    def _carry(self, feed: Feed, free: list[_Slot]) -> None:
        slot = next((slot for slot in free if slot.transceiver.kind == feed.kind), None)
        if slot is None:
            slot = self._new_slot(feed.kind)
        else:
            free.remove(slot)
        slot.feed = feed
        slot.transceiver.direction = "sendonly"
        inside.name_stream(slot.transceiver.sender, feed.owner)

    def _new_slot(self, kind: Kind) -> _Slot:
        slot = _Slot(self._transceiver(_Silence(kind), "sendonly"), Outlet(kind, time.monotonic, self._counts))
        inside.drive(slot.transceiver.sender, slot.outlet)
        self._slots.append(slot)
        return slot

    async def offer(self) -> tuple[Description, list[Track]]:
        """The offer as things are, and what its m-lines carry. Raises OSError when no address can be bound."""
        await self._pc.setLocalDescription()
        self._offered = True
        self.expect()
        tracks = [
            Track(slot.transceiver.mid or "", slot.feed.owner, slot.feed.kind) for slot in self._slots if slot.feed
        ]
        return Description("offer", self._pc.localDescription.sdp), tracks

    async def accept(self, sdp: str) -> None:
        """Takes the answer; from now on frames flow. Raises BadDescription; then the offer still waits for one."""
        if not self._offered:
            raise BadDescription("an answer to no offer")
        sdp = without_candidates(sdp)
        parse(sdp, "answer")
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        except Exception as error:  # aiortc has no class for what it does not understand
            raise BadDescription(f"answer not understood ({type(error).__name__})") from error
        self._offered, self._answered = False, True
        if self.connected:
            self.settled()
        for slot in self._slots:
            if slot.feed is not None and slot.feed is not slot.outlet.feed:
                slot.outlet.connect(slot.feed)

    async def close(self) -> None:
        """Also leaves all feeds."""
        for slot in self._slots:
            slot.outlet.close()
        await super().close()
