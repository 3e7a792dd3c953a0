"""Row D4: the WebRTC service."""

from __future__ import annotations

from fastapi import APIRouter

from dashboard.degradation import WEBRTC
from dashboard.inbound.http import rooms
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound.webrtc import GrpcRooms
from dashboard.settings import Settings
from dashboard.wiring.peers import peer_policy
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from service_kit.rpc_client import channel
from service_kit.runtime import ServiceRuntime


class WebrtcPart:
    """Everything that is plugged into the WebRTC service."""

    def __init__(
        self,
        runtime: ServiceRuntime,
        settings: Settings,
        redis: RedisPart,  # noqa: ARG002
        postgres: PostgresPart,  # noqa: ARG002
    ) -> None:
        self.channel = channel(settings.webrtc_grpc)
        self.policy = peer_policy(runtime, WEBRTC, self.channel)
        self.rooms = GrpcRooms(self.channel, self.policy)
        runtime.on_close(self.channel.close, "webrtc")

    def routers(self, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        return [rooms.create_router(self.rooms, outcome, doorman)]
