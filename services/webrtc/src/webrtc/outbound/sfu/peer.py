"""The SFU's end of one RTCPeerConnection, with what publications and subscriptions share."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCRtpTransceiver,
)

from resilience.deadline import hard_timeout
from resilience.errors import BulkheadFull, CallTimeout
from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.descriptions import CODECS
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.signals import Pc

CONNECT_TIMEOUT = 15.0  # s from an offer until it is answered and the PeerConnection is connected
CLOSE_TIMEOUT = 1.5  # s; a service that ends waits 2 s for it

OnState = Callable[["Peer", str], None]
"""Told "connected", "failed", "timeout" or "ended"; on the loop, never waits."""


class Peer:
    """One RTCPeerConnection with a participant, from its first offer until it is closed."""

    pc_name: Pc

    def __init__(self, epoch: int, addresses: Sequence[Address], on_state: OnState) -> None:
        self.epoch = epoch
        self.over = False
        self._addresses = addresses
        self._on_state = on_state
        self._deadline: asyncio.TimerHandle | None = None
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._pc.on("connectionstatechange", self._changed)

    @property
    def connected(self) -> bool:
        """Whether media can flow."""
        return self._pc.connectionState == "connected"

    def _changed(self) -> None:
        state = {"connected": "connected", "failed": "failed", "closed": "ended"}.get(self._pc.connectionState)
        if state is not None and not self.over:
            self._on_state(self, state)

    def expect(self) -> None:
        """Reports "timeout" unless ``settled`` is called in time."""
        self.settled()
        self._deadline = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT, self._on_state, self, "timeout")

    def came_up(self) -> None:
        """It is connected."""
        self.settled()

    def settled(self) -> None:
        """What was expected has happened."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _transceiver(self, kind_or_track: str | MediaStreamTrack, direction: str) -> RTCRtpTransceiver:
        transceiver = self._pc.addTransceiver(kind_or_track, direction=direction)
        wanted = CODECS[transceiver.kind], "rtx"
        capabilities = RTCRtpSender.getCapabilities(transceiver.kind).codecs
        transceiver.setCodecPreferences([codec for codec in capabilities if codec.name.lower() in wanted])
        inside.bind(transceiver, self._addresses)
        return transceiver

    async def close(self) -> None:
        """Ends it; within CLOSE_TIMEOUT, whatever the other side does."""
        self.over = True
        self.settled()
        with suppress(CallTimeout, BulkheadFull, ConnectionError):
            await hard_timeout(self._pc.close(), CLOSE_TIMEOUT, name="sfu-close")
