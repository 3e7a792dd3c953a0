"""What is plugged in where: the one place that knows settings, use cases, every door and every dependency.

A module per dependency; this one puts the parts together.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from fastapi import FastAPI

from auralink.webrtc.v1 import webrtc_pb2_grpc
from service_kit.http import create_app
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenVerifier
from webrtc.inbound.grpc import RoomService
from webrtc.inbound.http import create_router
from webrtc.inbound.outcome import Outcome
from webrtc.outbound.tokens import JwtSigner
from webrtc.settings import Settings
from webrtc.usecases.participants import Participants
from webrtc.usecases.rooms import Rooms
from webrtc.wiring.cluster import ClusterPart
from webrtc.wiring.media import MediaPart
from webrtc.wiring.postgres import HistoryPart
from webrtc.wiring.quality import meters
from webrtc.wiring.redis import RedisPart
from webrtc.wiring.signalling import SignallingPart
from webrtc.wiring.stream import StreamPart
from webrtc.wiring.turn import TurnPart


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server
    websocket: Callable[..., asyncio.BaseProtocol]


async def build(settings: Settings) -> Service:
    """The WebRTC service with its real dependencies, not touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("webrtc", settings)
    redis = RedisPart(runtime, settings.redis_url or "")
    secret = settings.jwt_secret.get_secret_value()
    turn, signer = TurnPart(runtime, settings), JwtSigner(secret)
    cluster = ClusterPart(runtime, redis, settings.redis_url or "").cluster
    history = HistoryPart(runtime, settings, redis, StreamPart(runtime, settings).announce)
    media = MediaPart(runtime, settings)
    signalling = SignallingPart(
        runtime,
        settings,
        signer,
        turn.ice,
        cluster,
        media=media.backend,
        calls=history.journal,
        meter=meters(runtime),
    )
    media.tell(signalling.hub.tell)
    turn.tell(signalling.hub.ice_changed)
    history.sweep(signalling.hub.members, lambda: not cluster.alone)
    rooms = Rooms(redis.shared, signer, turn.ice, settings.ws_url, runtime.clock, deleted=signalling.hub.delete)
    participants = Participants(rooms, signalling.hub)
    outcome = Outcome(TokenVerifier(secret), redis.policy, history.policy)
    routers = [create_router(rooms, participants, turn.ice, outcome), *history.routers(outcome)]
    app = create_app(runtime, routers=routers, title="AuraLink WebRTC")

    def add(server: grpc.aio.Server) -> None:
        service = RoomService(rooms, participants, turn.ice, outcome)
        webrtc_pb2_grpc.add_RoomServiceServicer_to_server(service, server)
        history.serve(server, outcome)

    return Service(runtime, app, create_server(runtime, add), signalling.gate)
