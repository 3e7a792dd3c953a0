"""Rooms and calls as a browser sees them, while WebRTC lives and while it is away (row D4, dashboard.webrtc)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis

from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound import postgres
from dashboard.outbound.postgres import Database
from dashboard.settings import Settings
from dashboard.wiring import MIGRATIONS
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from dashboard.wiring.webrtc import WebrtcPart
from devstack.stack import Stack
from resilience import Served
from service_kit.http import create_app
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer, TokenVerifier
from services.dashboard.tests.room_server import RoomServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECRET = "a-secret-of-more-than-thirty-two-bytes"
DEGRADED = ("x-degraded-mode", "x-fallback-used", "x-circuit-state", "x-retry-after", "age", "retry-after")


class OpenSessions:
    """Every session is open."""

    async def check(self, *_: object) -> Served[None]:
        return Served(None)


class Answer(SimpleNamespace):
    status: int
    headers: dict[str, str]
    body: Any


class Browser:
    """Sends requests straight to the application."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, user: str, method: str, path: str, json: Any = None) -> Answer:
        path, _, query = path.partition("?")
        token = TokenIssuer(SECRET).issue(user, "session", "user", lifetime=60)
        headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": orjson.dumps(json) if json is not None else b""}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        text = b"".join(message.get("body", b"") for message in sent[1:])
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(status=sent[0]["status"], headers=found, body=orjson.loads(text) if text else None)


class World(SimpleNamespace):
    webrtc: RoomServer
    browse: Browser
    part: WebrtcPart
    settle: Any


@pytest_asyncio.fixture(loop_scope="session")
async def world(servers: Stack, database: Database, redis_client: Redis) -> AsyncIterator[World]:
    server = RoomServer()
    await server.start()
    verifier = TokenVerifier(SECRET)
    server.user_of = lambda token: verifier.verify(token).user_id
    settings = Settings(
        database_url=servers.database_url("dashboard"),
        redis_url=servers.url("redis"),
        webrtc_grpc=f"127.0.0.1:{server.port}",
        jwt_secret=SecretStr(SECRET),
        admin_token=SecretStr("an-admin-token-that-is-long-enough"),
    )
    runtime = ServiceRuntime("dashboard", settings)
    redis = RedisPart(runtime, settings)
    main = PostgresPart(runtime, settings, redis, MIGRATIONS)
    await main.open()
    part = WebrtcPart(runtime, settings, redis, main)
    sessions: Any = OpenSessions()
    outcome = Outcome(verifier, sessions, runtime.policies, main.policy, postgres.is_outage)
    app = create_app(runtime, routers=part.routers(outcome, Doorman(outcome, "admin")), title="Test")

    async def settle() -> None:
        await part.projection.flush()
        await redis.copies.flush_all()

    yield World(webrtc=server, browse=Browser(app), part=part, settle=settle)
    await server.kill()
    await part.channel.close()
    await main.database.close()
    await redis.client.aclose()


async def make(world: World, user: str, name: str) -> str:
    answer = await world.browse(user, "POST", "/api/v1/rooms", {"name": name})
    assert answer.status == 201
    return str(answer.body["id"])


async def test_while_webrtc_lives_nothing_is_marked(world: World) -> None:
    room = await make(world, "ann", "Kitchen")
    for path in ("/api/v1/rooms", f"/api/v1/rooms/{room}", "/api/v1/calls"):
        answer = await world.browse("ann", "GET", path)
        assert answer.status == 200
        assert not set(DEGRADED) & answer.headers.keys()
        assert "stale" not in answer.body
    ticket = await world.browse("ann", "POST", f"/api/v1/rooms/{room}/token")
    assert (ticket.status, ticket.body["token"], "degraded" in ticket.body) == (200, "token", False)


async def test_reads_say_that_they_are_old_and_the_rest_fails_at_once(world: World) -> None:
    room = await make(world, "ann", "Kitchen")
    await world.settle()
    await world.webrtc.kill()
    for path in ("/api/v1/rooms", f"/api/v1/rooms/{room}"):
        answer = await world.browse("ann", "GET", path)
        assert answer.status == 200
        assert (answer.headers["x-degraded-mode"], answer.headers["x-fallback-used"]) == ("true", "rooms-database")
        assert answer.body["stale"] is True
        assert answer.body["as_of"].endswith("Z")
        assert int(answer.headers["age"]) <= 5
    statuses = []
    for method, path, body in (
        ("POST", "/api/v1/rooms", {"name": "Another"}),
        ("POST", f"/api/v1/rooms/{room}/token", None),
        ("DELETE", f"/api/v1/rooms/{room}", None),
    ):
        answer = await world.browse("ann", method, path, body)
        assert answer.body["message"] == "Video calling temporarily unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.body["error"] == ("CIRCUIT_OPEN" if answer.status == 429 else "DEPENDENCY_UNAVAILABLE")
        statuses.append(answer.status)
    assert statuses == [503, 429, 429]
    assert (await world.browse("ann", "GET", "/api/v1/calls")).status == 200


async def test_own_rooms_are_private_without_webrtc(world: World) -> None:
    await make(world, "ann", "Secret")
    await world.settle()
    await world.webrtc.kill()
    assert [room["name"] for room in (await world.browse("ann", "GET", "/api/v1/rooms")).body["items"]] == ["Secret"]
    assert (await world.browse("bob", "GET", "/api/v1/rooms")).body["items"] == []


async def test_a_deleted_room_is_gone_and_a_fallback_that_says_so_is_named(world: World) -> None:
    room = await make(world, "ann", "Kitchen")
    assert (await world.browse("ann", "DELETE", f"/api/v1/rooms/{room}")).status == 204
    answer = await world.browse("ann", "GET", f"/api/v1/rooms/{room}")
    assert (answer.status, "x-degraded-mode" in answer.headers) == (404, False)
    await world.webrtc.kill()
    answer = await world.browse("ann", "GET", f"/api/v1/rooms/{room}")
    assert (answer.status, answer.headers["x-fallback-used"]) == (404, "rooms-database")
    assert answer.body["message"] == "There is no such room."


async def test_a_ticket_of_a_degraded_webrtc_says_so(world: World) -> None:
    room = await make(world, "ann", "Kitchen")
    world.webrtc.degraded = True
    answer = await world.browse("ann", "POST", f"/api/v1/rooms/{room}/token?zone=eu-west")
    assert answer.body["degraded"] is True
    assert answer.headers["x-fallback-used"] == "stun-only"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/rooms?cursor=nonsense", 422),
        ("/api/v1/rooms?limit=0", 422),
        ("/api/v1/calls?cursor=nonsense", 422),
        ("/api/v1/calls/unknown", 404),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(world: World, path: str, status: int) -> None:
    await world.webrtc.kill()
    assert (await world.browse("ann", "GET", path)).status == status
