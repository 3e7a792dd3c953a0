"""What is plugged in where: the one place that knows settings, use cases, doors and every dependency.

One module per dependency, and this one, which puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from fastapi import APIRouter, Depends, FastAPI

import dashboard
from auralink.dashboard.v1 import dashboard_pb2_grpc
from dashboard.degradation import EFFECTS, POSTGRES, ROWS
from dashboard.inbound.grpc import UserService
from dashboard.inbound.http import console, logins, users
from dashboard.inbound.http.agents import agent_body
from dashboard.inbound.http.calls import call_body
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.http.gate import Gate
from dashboard.inbound.http.rooms import room_body
from dashboard.inbound.outcome import Outcome
from dashboard.model import Session
from dashboard.outbound import peer
from dashboard.outbound.passwords import Argon2Hasher
from dashboard.outbound.postgres import is_outage
from dashboard.outbound.users import PostgresUsers
from dashboard.ports import Users
from dashboard.settings import Settings
from dashboard.usecases.accounts import Accounts, announce_write, user_entity
from dashboard.usecases.failures import is_answer
from dashboard.usecases.logins import Logins
from dashboard.usecases.operations import Operations
from dashboard.usecases.reads import Reads
from dashboard.wiring.ai_core import AiCorePart
from dashboard.wiring.home import HomePart
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart, end_sessions_of_deleted
from dashboard.wiring.stream import StreamPart
from dashboard.wiring.webrtc import WebrtcPart
from resilience import Operation, Priority
from service_kit.http import create_app
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer, TokenVerifier

HOME_ITEMS = 10
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
    stream = StreamPart(runtime, settings)
    redis = RedisPart(runtime, settings)
    database = PostgresPart(runtime, settings, redis, MIGRATIONS)
    await database.open()
    sessions = redis.open_sessions(database.database, database.policy)
    secret = settings.jwt_secret.get_secret_value()
    hasher = Argon2Hasher()
    runtime.on_close(hasher.close, "password threads")
    reads: Reads[Users] = database.reads(PostgresUsers)
    accounts = Accounts(
        database.users,
        reads,
        redis.users,
        database.policy,
        database.writer,
        hasher,
        key_secret=secret.encode(),
        announce=stream.announce,
    )
    database.on_applied.append(lambda result: announce_write(stream.announce, result.operation))
    database.on_applied.append(lambda result: end_sessions_of_deleted(sessions, result))
    outcome = Outcome(TokenVerifier(secret), sessions, runtime.policies, database.policy, is_outage)
    doorman = Doorman(outcome, settings.admin_token.get_secret_value(), redis.request_limits())
    login = Logins(
        reads,
        redis.users,
        sessions,
        redis.login_limit,
        hasher,
        issue=_issue(secret),
        session_seconds=int(settings.session_lifetime),
    )
    ai_core = AiCorePart(runtime, settings, redis, stream.announce)
    webrtc = WebrtcPart(runtime, settings, redis, database)

    async def waiting(user_id: str) -> Sequence[Operation]:
        return [*await database.writer.pending(user_entity(user_id)), *await ai_core.waiting(user_id)]

    home = HomePart(
        runtime,
        settings,
        redis,
        database,
        account=lambda user_id: accounts.read(user_id, user_id),
        lists={
            "rooms": (lambda user_id: webrtc.rooms.page(user_id, HOME_ITEMS, None), room_body),
            "calls": (lambda user_id: webrtc.calls.page(user_id, HOME_ITEMS, None), call_body),
            "agents": (lambda user_id: ai_core.agents.page(user_id, HOME_ITEMS, None), agent_body),
        },
        waiting=waiting,
        optional_parts=lambda: EFFECTS[runtime.mode].optional_parts,
    )
    webrtc.rooms.announce, webrtc.rooms.joined = stream.announce, home.demand.joined
    stream.consume(
        "calls",
        webrtc.call_events.handle,
        group="dashboard-calls",
        waits_for=lambda error: not is_answer(database.policy, error),
    )
    operations = Operations((redis.queue, ai_core.queue), database.users, database.policy, ai_core.operation)
    routers = [  # matched in this order: the busiest first
        users.create_router(accounts, operations, sessions, outcome, doorman),
        logins.create_router(login, accounts, outcome, doorman, secure_cookie=settings.environment == "production"),
        _gated(
            runtime,
            *webrtc.routers(outcome, doorman),
            *ai_core.routers(outcome, doorman),
            *home.routers(outcome, doorman),
            *stream.routers(sessions, outcome, doorman),
        ),
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


def _gated(runtime: ServiceRuntime, *routers: APIRouter) -> APIRouter:
    """Routes that are not essential: in emergency mode they only read."""
    gate = Gate(lambda: EFFECTS[runtime.mode], lambda: _until_something_changes(runtime))
    outer = APIRouter(dependencies=[Depends(gate)])
    for router in routers:
        outer.include_router(router)
    return outer


def _until_something_changes(runtime: ServiceRuntime) -> float:
    """Seconds to the first trial of a critical dependency that is down; else to the next look at the mode."""
    waits = [row.retry_after for row in runtime.rows() if row.down and row.priority is Priority.P0 and row.retry_after]
    return min(waits, default=POSTGRES.probe_interval)


def _console(runtime: ServiceRuntime, ai_core: AiCorePart, webrtc: WebrtcPart) -> APIRouter:
    peers = {"ai-core": lambda: peer.status(ai_core.channel), "webrtc": lambda: peer.status(webrtc.channel)}
    return console.create_router(runtime, ROWS, peers)
