"""Row D4: the WebRTC service, what is known of its rooms without it, and the history of its calls."""

from __future__ import annotations

from fastapi import APIRouter

from dashboard.degradation import WEBRTC
from dashboard.inbound.http import calls, rooms
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound.calls import CopiesOfCalls, PostgresCalls
from dashboard.outbound.room_projection import RoomProjection
from dashboard.outbound.rooms import PostgresRooms
from dashboard.outbound.webrtc import GrpcRooms
from dashboard.ports import StoredCalls
from dashboard.settings import Settings
from dashboard.usecases.calls import CallProjection, Calls
from dashboard.usecases.reads import Reads
from dashboard.usecases.rooms import RoomDirectory
from dashboard.wiring.peers import peer_policy
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from service_kit.rpc_client import channel
from service_kit.runtime import ServiceRuntime


class WebrtcPart:
    """Everything that is plugged into the WebRTC service.

    ``rooms.announce`` and ``rooms.joined`` are told of rooms made and deleted and of tickets, when somebody listens;
    ``call_events`` is given the events of calls.
    """

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart, postgres: PostgresPart) -> None:
        self.channel = channel(settings.webrtc_grpc)
        self.policy = peer_policy(runtime, WEBRTC, self.channel)
        self.projection = RoomProjection(
            postgres.reads(PostgresRooms),
            PostgresRooms(postgres.database),
            postgres.policy,
            redis.copies,
            runtime.clock,
        )
        self.rooms = RoomDirectory(GrpcRooms(self.channel, self.policy, runtime.events), self.projection, runtime.clock)
        history: Reads[StoredCalls] = postgres.reads(PostgresCalls)
        self.calls = Calls(history, CopiesOfCalls(redis.copies))
        self.call_events = CallProjection(PostgresCalls(postgres.database), postgres.policy)
        runtime.background("rooms", self.projection.run)
        runtime.on_close(self.channel.close, "webrtc")

    def routers(self, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        return [rooms.create_router(self.rooms, outcome, doorman), calls.create_router(self.calls, outcome, doorman)]
