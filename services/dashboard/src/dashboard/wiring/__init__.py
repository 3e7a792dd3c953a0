"""What is plugged in where: the one place that knows settings, use cases, doors and every dependency.

One module per dependency, and this one, which puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from fastapi import APIRouter, FastAPI

import dashboard
from auralink.dashboard.v1 import dashboard_pb2_grpc
from dashboard.degradation import ROWS
from dashboard.inbound.grpc import UserService
from dashboard.inbound.http import console, logins, users
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.model import Session
from dashboard.outbound import peer, postgres
from dashboard.outbound.passwords import Argon2Hasher
from dashboard.outbound.users import PostgresUsers
from dashboard.ports import Users
from dashboard.settings import Settings
from dashboard.usecases.accounts import Accounts
from dashboard.usecases.logins import Logins
from dashboard.usecases.operations import Operations
from dashboard.usecases.reads import Reads
from dashboard.wiring.ai_core import AiCorePart
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from dashboard.wiring.webrtc import WebrtcPart
from service_kit.http import create_app
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer, TokenVerifier

MIGRATIONS = Path(dashboard.__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server


async def build(settings: Settings) -> Service:
    """The Dashboard with its real dependencies, none of which is touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("dashboard", settings)
    redis = RedisPart(runtime, settings)
    database = PostgresPart(runtime, settings, redis, MIGRATIONS)
    await database.open()
    secret = settings.jwt_secret.get_secret_value()
    hasher = Argon2Hasher()
    runtime.on_close(hasher.close, "password threads")
    reads: Reads[Users] = database.reads(PostgresUsers)
    accounts = Accounts(
        database.users, reads, redis.users, database.policy, database.writer, hasher, key_secret=secret.encode()
    )
    outcome = Outcome(TokenVerifier(secret), redis.sessions, runtime.policies, database.policy, postgres.is_outage)
    doorman = Doorman(outcome, settings.admin_token.get_secret_value())
    operations = Operations(redis.queue, database.users, database.policy)
    login = Logins(
        reads,
        redis.users,
        redis.sessions,
        redis.login_limit,
        hasher,
        issue=_issue(secret),
        session_seconds=int(settings.session_lifetime),
    )
    ai_core = AiCorePart(runtime, settings, redis)
    webrtc = WebrtcPart(runtime, settings, redis, database)
    routers = [  # matched in this order: the busiest first
        users.create_router(accounts, operations, outcome, doorman),
        logins.create_router(login, accounts, outcome, doorman, secure_cookie=settings.environment == "production"),
        *webrtc.routers(outcome, doorman),
        *ai_core.routers(outcome, doorman),
        _console(runtime, ai_core, webrtc),
    ]
    app = create_app(runtime, routers=routers, title="AuraLink Dashboard")
    service = UserService(accounts, outcome)
    server = create_server(
        runtime, lambda server: dashboard_pb2_grpc.add_UserServiceServicer_to_server(service, server)
    )
    return Service(runtime, app, server)


def _issue(secret: str) -> Any:
    issuer = TokenIssuer(secret)

    def issue(session: Session, seconds: int) -> str:
        role: Any = session.role
        return issuer.issue(session.user_id, session.id, role, lifetime=seconds)

    return issue


def _console(runtime: ServiceRuntime, ai_core: AiCorePart, webrtc: WebrtcPart) -> APIRouter:
    peers = {"ai-core": lambda: peer.status(ai_core.channel), "webrtc": lambda: peer.status(webrtc.channel)}
    return console.create_router(runtime, ROWS, peers)
