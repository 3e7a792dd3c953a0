"""The home page and what stands beside it as callers see it, on real servers (rows D1 and D2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fastapi import FastAPI
from redis.asyncio import Redis

import dashboard
from dashboard.degradation import DATABASE_PRICE, PARTIAL_ANSWER, SAFE_DEFAULTS
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.http.home import LEFT_OUT
from dashboard.inbound.http.reports import EARLIEST, LATEST
from dashboard.inbound.outcome import Outcome
from dashboard.model import Page, User
from dashboard.outbound import postgres
from dashboard.outbound.postgres import Database
from dashboard.settings import Settings
from dashboard.wiring.home import HomePart
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from devstack.stack import Stack
from resilience import Degradation, Operation, Served
from service_kit.errors import CircuitOpen
from service_kit.http import create_app
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer, TokenVerifier

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANN, BOB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
SECRET, ADMIN = "a-secret-of-the-tests-that-is-long-enough", "an-admin-token-of-the-tests"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - a database row has no event
            await asyncio.sleep(0.02)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def fallbacks(self) -> str | None:
        return self.headers.get("x-fallback-used")


class Open:
    """Sessions that are all open."""

    async def check(self, session_id: str, user_id: str) -> Served[None]:
        return Served(None)


class World:
    """The routes on real servers; accounts and lists are the test's own."""

    def __init__(self, servers: Stack) -> None:
        self.settings = Settings(
            database_url=servers.database_url("dashboard"),
            redis_url=servers.url("redis"),
            jwt_secret=SECRET,  # type: ignore[arg-type]
            admin_token=ADMIN,  # type: ignore[arg-type]
        )
        self.runtime = ServiceRuntime("dashboard", self.settings)
        self.redis = RedisPart(self.runtime, self.settings)
        migrations = Path(dashboard.__file__).parent / "migrations"
        self.postgres = PostgresPart(self.runtime, self.settings, self.redis, migrations)
        self.rooms: Any = Served(Page([{"id": "room"}], "more"))
        self.waiting: list[Operation] = []
        self.optional_parts = True
        self.home = HomePart(
            self.runtime,
            self.settings,
            self.redis,
            self.postgres,
            account=self._account,
            lists={"rooms": (self._rooms, dict)},
            waiting=self._waiting,
            optional_parts=lambda: self.optional_parts,
        )
        self.app = self._app()

    def _app(self) -> FastAPI:
        sessions: Any = Open()
        policies, policy = self.runtime.policies, self.postgres.policy
        outcome = Outcome(TokenVerifier(SECRET), sessions, policies, policy, postgres.is_outage)
        doorman = Doorman(outcome, ADMIN)
        return create_app(self.runtime, routers=self.home.routers(outcome, doorman), title="Test")

    async def _account(self, user_id: str) -> Served[User]:
        return Served(User(user_id, "ann@example.org", "Ann", "user", 0.0, 0.0, 1))

    async def _rooms(self, _: str) -> Any:
        if isinstance(self.rooms, Exception):
            raise self.rooms
        return self.rooms

    async def _waiting(self, _: str) -> list[Operation]:
        return self.waiting

    async def call(self, method: str, path: str, user: str = ANN, body: Any = None, **headers: str) -> Answer:
        """``user``: whose token is sent; none when empty."""
        if user:
            headers["authorization"] = f"Bearer {TokenIssuer(SECRET).issue(user, 'session')}"
        return await asgi(self.app, method, f"/api/v1{path}", headers, body)


async def asgi(app: FastAPI, method: str, path: str, headers: dict[str, str], body: Any) -> Answer:
    """One request, without a socket."""
    data = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        headers = {**headers, "content-type": "application/json", "content-length": str(len(data))}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], found, json.loads(text) if text else None)


@pytest_asyncio.fixture(loop_scope="session")
async def world(servers: Stack, database: Database, redis_client: Redis) -> AsyncIterator[World]:
    world = World(servers)
    await world.postgres.open()
    await world.runtime.start()
    yield world
    await world.runtime.close()


def healthy(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer.body
    assert not any(name.startswith("x-") and name not in _ALWAYS for name in answer.headers), answer.headers
    return answer.body


_ALWAYS = ("x-request-id", "x-content-type-options", "x-frame-options")


async def test_the_home_page(world: World) -> None:
    body = healthy(await world.call("GET", "/dashboard"))
    assert body["status"] == "ok"
    assert body["user"]["id"] == ANN
    assert body["rooms"] == {"items": [{"id": "room"}], "next_cursor": "more"}
    assert body["analytics"]["calls_total"] == 0
    assert body["operations"] == {"waiting": 0, "items": []}
    assert not any(name.endswith("_error") for name in body)
    assert (await world.call("GET", "/dashboard", user="")).status == 401


async def test_own_writes_that_wait_are_named(world: World) -> None:
    world.waiting = [
        Operation("1", "user.update", f"user:{ANN}", ANN, {}),
        Operation("2", "agent.create", f"agents:{ANN}", ANN, {}),
        Operation("3", "user.update", f"user:{ANN}", "somebody else", {}),
    ]
    operations = healthy(await world.call("GET", "/dashboard"))["operations"]
    assert operations["waiting"] == 2
    assert [item["id"] for item in operations["items"]] == ["1", "2"]


async def test_a_part_that_failed_is_named_and_the_answer_marked(world: World) -> None:
    world.rooms = CircuitOpen("Video calling temporarily unavailable", retry_after=11.2, row="dashboard.webrtc")
    answer = await world.call("GET", "/dashboard")
    assert (answer.status, answer.body["status"]) == (200, "partial")
    assert answer.body["rooms"] is None
    assert answer.body["rooms_error"] == "Video calling temporarily unavailable"
    assert answer.body["rooms_retry_after"] == 12
    assert answer.body["user"]["id"] == ANN
    assert (answer.headers["x-degraded-mode"], answer.fallbacks) == ("true", PARTIAL_ANSWER)
    assert (answer.headers["x-circuit-state"], answer.headers["x-retry-after"]) == ("open", "12")


async def test_a_part_with_a_defect_says_nothing_of_it(world: World) -> None:
    world.rooms = KeyError("a secret")
    answer = await world.call("GET", "/dashboard")
    assert (answer.status, answer.body["status"], answer.body["rooms"]) == (200, "partial", None)
    assert "secret" not in json.dumps(answer.body)


async def test_a_part_that_a_fallback_served_says_so_itself_and_in_the_headers(world: World) -> None:
    mark = Degradation("dashboard.webrtc", "redis-cache", "half-open", 3.0)
    world.rooms = Served(Page([]), (mark,), as_of=1_700_000_000.0, pending=True)
    answer = await world.call("GET", "/dashboard")
    assert answer.body["status"] == "ok"
    assert answer.body["rooms"]["stale"] is answer.body["rooms"]["pending"] is True
    assert answer.body["rooms"]["as_of"] == "2023-11-14T22:13:20.000Z"
    assert (answer.fallbacks, answer.headers["x-circuit-state"]) == ("redis-cache", "half-open")


async def test_the_expensive_part_is_left_out_while_the_service_is_degraded(world: World) -> None:
    world.optional_parts = False
    answer = await world.call("GET", "/dashboard")
    assert (answer.body["status"], answer.body["analytics"]) == ("partial", None)
    assert answer.body["analytics_error"] == LEFT_OUT
    assert answer.fallbacks == PARTIAL_ANSWER


async def test_the_home_page_without_any_server(world: World) -> None:
    for policy in (world.postgres.policy, world.redis.policy):
        policy.breaker.force_open()
    answer = await world.call("GET", "/dashboard")
    assert (answer.status, answer.body["status"]) == (200, "ok")
    assert answer.body["analytics"]["calls_total"] is None
    assert answer.body["analytics"]["note"]
    assert answer.fallbacks == SAFE_DEFAULTS


async def test_numbers_are_for_oneself_and_administrators(world: World) -> None:
    assert healthy(await world.call("GET", f"/analytics/users/{ANN}"))["user_id"] == ANN
    assert (await world.call("GET", f"/analytics/users/{ANN}", user=BOB)).status == 403
    assert (await world.call("GET", f"/analytics/users/{ANN}", user="")).status == 401
    assert (await world.call("GET", "/analytics/users/nobody")).status == 422
    operator = await world.call("GET", f"/analytics/users/{ANN}", user="", authorization=f"Bearer {ADMIN}")
    assert healthy(operator)["rooms_total"] == 0


async def test_a_report_over_http(world: World) -> None:
    made = healthy(await world.call("POST", "/reports/generate", body={"kind": "calls", "from": "2026-01-01"}))
    assert (made["status"], made["progress"], made["from"]) == ("done", 1.0, "2026-01-01")
    assert healthy(await world.call("GET", f"/reports/{made['id']}"))["result"] == {"days": [], "totals": {}}
    assert (await world.call("GET", f"/reports/{made['id']}", user=BOB)).status == 404
    assert (await world.call("GET", "/reports/unknown")).status == 404


async def test_a_report_that_has_to_wait_is_accepted(world: World) -> None:
    places = world.home.reports._places
    while places.try_acquire():
        pass
    answer = await world.call("POST", "/reports/generate", body={"kind": "activity"})
    assert (answer.status, answer.body["status"], answer.body["result"]) == (202, "queued", None)
    assert answer.headers["location"] == answer.body["check_url"] == f"/api/v1/reports/{answer.body['id']}"
    assert answer.headers["retry-after"] == "1"
    places.release()
    path = answer.body["check_url"].removeprefix("/api/v1")

    async def done() -> bool:
        return bool((await world.call("GET", path)).body["status"] == "done")

    await until(done)


async def test_no_report_is_accepted_while_the_database_is_away(world: World) -> None:
    world.postgres.policy.breaker.open_for(30)
    answer = await world.call("POST", "/reports/generate", body={"kind": "activity"})
    assert (answer.status, answer.body["queued"]) == (503, False)
    assert 1 <= int(answer.headers["retry-after"]) <= 30


async def test_a_wrong_request_for_a_report(world: World) -> None:
    wrong: list[Any] = [
        [],
        {},
        {"kind": "other"},
        {"kind": "calls", "more": 1},
        {"kind": "calls", "from": 5},
        {"kind": "calls", "from": "2026-02-30"},
        {"kind": "calls", "from": "20260101"},
        {"kind": "calls", "from": "2026-01-01T00:00:00"},
        {"kind": "calls", "from": "2026-02-01", "to": "2026-01-01"},
        {"kind": "calls", "from": "2024-01-01", "to": "2026-01-01"},
        {"kind": "calls", "to": "0001-01-01"},
        {"kind": "calls", "from": "0001-01-01"},
        {"kind": "calls", "from": "9999-12-31"},
        {"kind": "calls", "from": "2024-01-01", "to": "9999-12-31"},
    ]
    for body in wrong:
        answer = await world.call("POST", "/reports/generate", body=body)
        assert (answer.status, answer.body["error"]) == (422, "VALIDATION_ERROR"), body


async def test_the_first_and_the_last_day_there_are(world: World) -> None:
    for day in (EARLIEST, LATEST):
        body = {"kind": "calls", "from": str(day), "to": str(day)}
        assert healthy(await world.call("POST", "/reports/generate", body=body))["status"] == "done"
    body = {"kind": "calls", "from": str(LATEST)}
    made = healthy(await world.call("POST", "/reports/generate", body=body))
    assert (made["from"], made["to"]) == (str(LATEST), str(LATEST))


async def test_a_price_over_http(world: World, database: Database) -> None:
    world.home.demand.joined("eu", ANN, "room")
    await world.home.demand.flush()
    body = healthy(await world.call("GET", "/pricing/eu"))
    assert (body["source"], body["active_participants"], body["price"]) == ("redis", 1, 12.5)

    async def noted() -> bool:
        return bool(await database.fetch("SELECT 1 FROM pricing_zones"))

    await until(noted)
    world.redis.policy.breaker.force_open()
    answer = await world.call("GET", "/pricing/eu")
    assert (answer.body["source"], answer.fallbacks) == ("database", DATABASE_PRICE)
    assert answer.body["stale"] is True
    assert answer.body["as_of"] == answer.body["timestamp"]
    assert int(answer.headers["age"]) >= 0
    assert (await world.call("GET", "/pricing/eu", user="")).status == 401
    assert (await world.call("GET", "/pricing/a b")).status == 422


async def test_slow_queries_for_administrators(world: World) -> None:
    path = "/diagnostics/queries/slow"
    assert (await world.call("GET", path, user="")).status == 401
    assert (await world.call("GET", path)).status == 403
    world.postgres.database.times.threshold = 0.01
    await world.postgres.database.fetch("SELECT pg_sleep($1)", 0.02)
    world.postgres.policy.breaker.force_open()
    body = healthy(await world.call("GET", path, user="", authorization=f"Bearer {ADMIN}"))
    assert body["threshold_ms"] == 10
    (item,) = [one for one in body["items"] if "pg_sleep" in one["statement"]]
    assert (item["database"], item["count"], item["slow"]) == ("primary", 1, 1)
    assert item["max_ms"] == item["mean_ms"] == item["latest"][0]["ms"] >= 20
