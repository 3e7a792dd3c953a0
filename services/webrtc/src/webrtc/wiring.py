"""What is plugged in where: the one place that knows settings, use cases, both doors and every dependency."""

from dataclasses import dataclass

import grpc
from fastapi import FastAPI

from auralink.webrtc.v1 import webrtc_pb2_grpc
from resilience import RowPolicy
from service_kit.http import create_app
from service_kit.redis_client import MAX_CONNECTIONS, create_client
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenVerifier
from webrtc.degradation import REDIS, classify
from webrtc.inbound.grpc import RoomService
from webrtc.inbound.http import create_router
from webrtc.inbound.outcome import Outcome
from webrtc.outbound.redis import RedisRooms
from webrtc.outbound.tokens import JwtSigner
from webrtc.ports import StoreDisconnected
from webrtc.settings import Settings
from webrtc.usecases.ice import IceServers
from webrtc.usecases.rooms import Rooms


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server


async def build(settings: Settings) -> Service:
    """The WebRTC service with its real Redis, not touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("webrtc", settings)
    store, redis = _redis(runtime, settings.redis_url or "")
    secret = settings.jwt_secret.get_secret_value()
    ice = IceServers(
        settings.stun_urls,
        settings.turn_urls,
        settings.turn_secret.get_secret_value(),
        int(settings.turn_credential_ttl),
        runtime.clock,
    )
    rooms = Rooms(store, redis, JwtSigner(secret), ice, settings.ws_url, runtime.clock)
    outcome = Outcome(TokenVerifier(secret), redis)
    app = create_app(runtime, routers=[create_router(rooms, ice, outcome)], title="AuraLink WebRTC")
    service = RoomService(rooms, ice, outcome)
    server = create_server(runtime, lambda server: webrtc_pb2_grpc.add_RoomServiceServicer_to_server(service, server))
    return Service(runtime, app, server)


def _redis(runtime: ServiceRuntime, url: str) -> tuple[RedisRooms, RowPolicy]:
    """Row W1."""
    client = create_client(url)
    store = RedisRooms(client)
    policy = runtime.policy(
        REDIS,
        classify=classify,
        probe=store.ping,
        bulkhead_limit=MAX_CONNECTIONS,
        retries=1,
        retry_on=lambda error: isinstance(error, StoreDisconnected),
    )
    runtime.on_close(client.aclose, "redis")
    return store, policy
