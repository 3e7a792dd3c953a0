"""What is plugged in where: the one place that knows settings, use cases, doors and every dependency."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import orjson
from fastapi import FastAPI
from redis.asyncio import Redis

from auralink.dashboard.v1 import dashboard_pb2_grpc
from dashboard.degradation import AI_CORE, POSTGRES, REDIS, REDIS_QUEUE, ROWS, WEBRTC
from dashboard.inbound.grpc import UserService
from dashboard.inbound.http import agents as agents_http
from dashboard.inbound.http import console, logins, rooms, users
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.model import Session, User
from dashboard.outbound import peers, postgres
from dashboard.outbound.copies import UserCopies
from dashboard.outbound.login_limit import RedisLoginLimit
from dashboard.outbound.passwords import Argon2Hasher
from dashboard.outbound.queue_target import SettledOperations, UserQueueTarget
from dashboard.outbound.sessions import RedisSessions
from dashboard.outbound.users import PostgresUsers
from dashboard.settings import Settings
from dashboard.usecases.accounts import Accounts
from dashboard.usecases.logins import Logins
from dashboard.usecases.operations import Operations
from resilience import (
    CircuitState,
    Drainer,
    DrainSettings,
    DurableWriter,
    MemoryCache,
    Result,
    RowPolicy,
    Transition,
)
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit import redis_client
from service_kit.http import create_app
from service_kit.migrations import Migrator
from service_kit.rpc_client import channel, is_dependency_failure
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer, TokenVerifier

MIGRATIONS = Path(__file__).parent / "migrations"
PRUNE_SECONDS = 60.0
CATCH_UP_SECONDS = 1.0
PEER_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server


class _Redis:
    """Row D2 and what lives in Redis: sessions, login limit, copies, and the store of the write queue."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self.client: Redis = redis_client.create_client(settings.redis_url or "")
        self.policy: RowPolicy = runtime.policy(
            REDIS,
            classify=redis_client.classify,
            probe=self._ping,
            bulkhead_limit=redis_client.MAX_CONNECTIONS,
            on_closed=self._back,
        )
        self._is_back = asyncio.Event()
        memory = MemoryCache(settings.memory_cache_size, settings.memory_cache_ttl, runtime.clock)
        self.copies = UserCopies(
            self.client,
            self.policy.call,
            memory,
            runtime.clock,
            shared=settings.enable_cache_fallback,
            local=settings.enable_memory_cache,
        )
        self.sessions = RedisSessions(self.client, self.policy, runtime.clock, lifetime=settings.session_lifetime)
        self.login_limit = RedisLoginLimit(self.client, self.policy)
        self.queue = RedisQueueStore(
            self.client,
            runtime.name,
            limit=settings.fallback_queue_max_size,
            call=self.policy.call,
            timeout=REDIS.call_timeout,
            loads=orjson.loads,
        )
        runtime.queue, runtime.queue_row = self.queue, POSTGRES.id
        runtime.background("copies", self.copies.flush_forever)
        runtime.background("sessions", self._catch_up_forever)
        runtime.on_close(self.client.aclose, "redis")

    async def _ping(self) -> None:
        await self.client.execute_command("PING")  # type: ignore[no-untyped-call]

    def _back(self) -> None:
        self._is_back.set()

    async def _catch_up_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    await self._is_back.wait()
            if self._is_back.is_set():
                self._is_back.clear()
                self.copies.rewrite_all()
                self.sessions.behind = True
            if self.sessions.behind:
                await self.sessions.catch_up()


class _Postgres:
    """Row D1: the database, its circuit, and the way of a write when it is away."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: _Redis) -> None:
        url = settings.database_url or ""
        self.database = postgres.Database(url)
        self.users = PostgresUsers(self.database)
        self._copies = redis.copies
        self.policy: RowPolicy = runtime.policy(
            POSTGRES,
            classify=postgres.classify,
            probe=self.database.probe,
            bulkhead_limit=postgres.POOL_SIZE,
            retries=1,
            retry_on=postgres.is_disconnect,
            on_closed=lambda: self.drainer.kick(),
        )
        self.policy.breaker.subscribe(self._on_transition)
        self.drainer = Drainer(
            redis.queue,
            UserQueueTarget(self.database),
            call=self.policy.call,
            settings=DrainSettings(ttl=settings.fallback_queue_ttl, interval=settings.fallback_queue_interval),
            clock=runtime.clock,
            on_applied=self._refresh_copies,
        )
        self.writer = DurableWriter(self.policy, redis.queue, self.drainer, fallback=REDIS_QUEUE, clock=runtime.clock)
        self._cutting: set[asyncio.Task[None]] = set()
        self._clock = runtime.clock
        migrator = Migrator(url, MIGRATIONS, policy=self.policy, ping=self.database.ping, clock=runtime.clock)
        runtime.background("migrations", migrator.run)
        runtime.background("drain", self.drainer.run)
        runtime.background("queue watch", self.writer.watch)
        runtime.background("prune", self._prune_forever)
        runtime.on_close(self.database.close, "postgres")

    def _on_transition(self, transition: Transition) -> None:
        if transition.new is CircuitState.OPEN:
            task = asyncio.get_running_loop().create_task(self.database.replace_connections())
            self._cutting.add(task)
            task.add_done_callback(self._cutting.discard)

    async def _refresh_copies(self, results: Sequence[Result]) -> None:
        """Before the writes leave the queue: an instance that still serves copies would show neither otherwise."""
        for result in results:
            if isinstance(result.value, User):
                self._copies.keep(result.value)
            elif result.operation.kind == "user.delete":
                await self._copies.forget(result.operation.entity.removeprefix("user:"))
        await self._copies.flush_all()

    async def _prune_forever(self) -> None:
        settled = SettledOperations(self.database)
        while True:
            await self._clock.sleep(PRUNE_SECONDS)
            if self.policy.breaker.state is CircuitState.CLOSED:
                await self.policy.call(settled.prune)


async def build(settings: Settings) -> Service:
    """The Dashboard with its real dependencies, none of which is touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("dashboard", settings)
    redis = _Redis(runtime, settings)
    database = _Postgres(runtime, settings, redis)
    await database.database.open()
    secret = settings.jwt_secret.get_secret_value()
    hasher = Argon2Hasher()
    runtime.on_close(hasher.close, "password threads")
    accounts = Accounts(
        database.users, redis.copies, database.policy, database.writer, hasher, key_secret=secret.encode()
    )
    sessions = redis.sessions
    outcome = Outcome(TokenVerifier(secret), sessions, runtime.policies, database.policy, postgres.is_outage)
    login = _logins(database, redis, hasher, secret, settings)
    operations = Operations(redis.queue, database.users, database.policy)
    app = create_app(
        runtime,
        routers=_routers(runtime, settings, outcome, accounts, login, operations),
        title="AuraLink Dashboard",
    )
    service = UserService(accounts, outcome)
    server = create_server(
        runtime, lambda server: dashboard_pb2_grpc.add_UserServiceServicer_to_server(service, server)
    )
    return Service(runtime, app, server)


def _logins(database: _Postgres, redis: _Redis, hasher: Argon2Hasher, secret: str, settings: Settings) -> Logins:
    issuer = TokenIssuer(secret)

    def issue(session: Session, seconds: int) -> str:
        role: Any = session.role
        return issuer.issue(session.user_id, session.id, role, lifetime=seconds)

    return Logins(
        database.users,
        redis.copies,
        database.policy,
        redis.sessions,
        redis.login_limit,
        hasher,
        issue=issue,
        session_seconds=int(settings.session_lifetime),
    )


def _routers(
    runtime: ServiceRuntime,
    settings: Settings,
    outcome: Outcome,
    accounts: Accounts,
    login: Logins,
    operations: Operations,
) -> list[Any]:
    webrtc, ai_core = channel(settings.webrtc_grpc), channel(settings.ai_core_grpc)
    runtime.on_close(webrtc.close, "webrtc")
    runtime.on_close(ai_core.close, "ai-core")
    room_policy = _peer_policy(runtime, WEBRTC, webrtc)
    agent_policy = _peer_policy(runtime, AI_CORE, ai_core, settings.chat_limit)
    doorman = Doorman(outcome, settings.admin_token.get_secret_value())
    secure = settings.environment == "production"
    return [  # matched in this order: the busiest first
        users.create_router(accounts, operations, outcome, doorman),
        logins.create_router(login, accounts, outcome, doorman, secure_cookie=secure),
        rooms.create_router(peers.GrpcRooms(webrtc, room_policy), outcome, doorman),
        agents_http.create_router(
            peers.GrpcAgents(ai_core, agent_policy), outcome, doorman, chat_limit=settings.chat_limit
        ),
        console.create_router(
            runtime, ROWS, {"ai-core": lambda: peers.status(ai_core), "webrtc": lambda: peers.status(webrtc)}
        ),
    ]


def _peer_policy(runtime: ServiceRuntime, row: Any, peer: grpc.aio.Channel, timeout: float | None = None) -> RowPolicy:
    return runtime.policy(
        row,
        classify=is_dependency_failure,
        probe=lambda: peers.check(peer),
        bulkhead_limit=PEER_CONCURRENCY,
        timeout=timeout,
    )
