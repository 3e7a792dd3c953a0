"""Bad input gets a clear answer: 4xx, problem+json, never 500, and nothing about the inside."""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
from typing import Any

import jwt
import pytest

from tests.harness.client import Account
from tests.harness.platform import Answer, Platform

pytestmark = pytest.mark.asyncio(loop_scope="session")
JSON = {"content-type": "application/json"}
ROOMS = "/api/v1/rooms"
SQL = "'; DROP TABLE users; --"


def assert_problem(answer: Answer, *statuses: int) -> dict[str, Any]:
    """A problem as the contract has it, with one of the statuses."""
    assert answer.status in statuses, answer
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.body
    assert {"error", "message", "request_id", "timestamp"} <= body.keys()
    assert body["request_id"] == answer.headers["x-request-id"]
    told = json.dumps(body).lower()
    assert not any(word in told for word in ("traceback", "select ", "asyncpg", "postgresql://", "redis://", ".py"))
    return body


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"{", (400,)),
        (b"", (400, 422)),
        (b"null", (422,)),
        (b"[]", (422,)),
        (b'"text"', (422,)),
        (b'{"name": "a", "name2": 1}', (422,)),
        (b'{"name": 1}', (422,)),
        (b'{"name": ""}', (422,)),
        (b'{"name": "  "}', (422,)),
        (b'{"name": "a", "max_participants": "5"}', (422,)),
        (b'{"name": "a", "max_participants": 1e400}', (400, 422)),
        (b'{"name": "a", "max_participants": NaN}', (400, 422)),
        (b'{"name": "\xff\xfe"}', (400,)),
        (b'{"name": "a\\u0000b"}', (422,)),
        (b'{"name": "\\ud800"}', (400, 422)),
        (b'{"name": "' + b"x" * 101 + b'"}', (422,)),
        (b"[" * 100_000, (400, 422)),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else "",
)
async def test_bodies(platform: Platform, accounts: list[Account], content: bytes, statuses: tuple[int, ...]) -> None:
    answer = await platform.call("POST", ROOMS, accounts[0], data=content, headers=JSON)
    assert assert_problem(answer, *statuses)["error"] == "VALIDATION_ERROR"


async def test_field_problems_are_named(platform: Platform) -> None:
    body = {"email": "no address", "password": "short", "display_name": 5, "is_admin": True}
    problem = assert_problem(await platform.call("POST", "/api/v1/users", json=body), 422)
    assert problem["details"].keys() == {"email", "password", "display_name", "is_admin"}
    assert "short" not in json.dumps(problem["details"]["password"])


async def test_ten_megabytes(platform: Platform, accounts: list[Account]) -> None:
    content = io.BytesIO(b'{"name": "' + b"x" * 10_000_000 + b'"}')
    answer = await platform.call("POST", ROOMS, accounts[0], data=content, headers=JSON)
    assert_problem(answer, 413)


@pytest.mark.parametrize("user_id", ["0", "-1", SQL, "%00", "%ff", "../../etc/passwd", "a" * 5000, "9" * 40, "null"])
async def test_absurd_ids(platform: Platform, accounts: list[Account], user_id: str) -> None:
    answer = await platform.call("GET", f"/api/v1/users/{user_id}", accounts[0])
    assert_problem(answer, 400, 404, 414, 422)


@pytest.mark.parametrize("path", ["/api/v1/rooms/", "/api/v1/agents/", "/api/v1/operations/"])
@pytest.mark.parametrize("item", [SQL, "%00", "a" * 200, "..%2f..%2f", "ünï"])
async def test_absurd_ids_elsewhere(platform: Platform, accounts: list[Account], path: str, item: str) -> None:
    assert_problem(await platform.call("GET", path + item, accounts[0]), 400, 404, 405, 422)


async def test_sql_is_just_text(platform: Platform, accounts: list[Account]) -> None:
    account = accounts[-1]
    assert (await platform.rename(account, SQL)).status == 200
    assert (await platform.profile(account)).body["display_name"] == SQL
    login = {"email": f"{SQL}@example.org", "password": SQL}
    assert_problem(await platform.call("POST", "/api/v1/auth/login", json=login), 401)


async def test_unknown_addresses_and_methods(platform: Platform) -> None:
    assert_problem(await platform.call("GET", "/nowhere"), 404)
    assert_problem(await platform.call("PUT", ROOMS, data=b"{}", headers=JSON), 405)


def forged(secret: str, **claims: Any) -> str:
    """A token that is right but for what the caller changes."""
    now = int(time.time())
    right = {"sub": str(uuid.uuid4()), "sid": "x", "role": "admin", "iat": now, "exp": now + 600}
    return jwt.encode({**right, "iss": "auralink", "aud": "auralink", **claims}, secret, algorithm="HS256")


def unsigned() -> str:
    """A token that claims to need no signature."""
    parts = ({"alg": "none", "typ": "JWT"}, {"sub": "x", "role": "admin", "exp": int(time.time()) + 600})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, ""])


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", "ü", "A" * 10_000, unsigned(), forged("a" * 40), forged("a" * 40, exp=1)],
    ids=["empty", "short", "dots", "umlaut", "long", "alg none", "wrong secret", "expired"],
)
async def test_tokens_that_are_none(platform: Platform, accounts: list[Account], token: str) -> None:
    for path in (f"/api/v1/users/{accounts[0].id}", ROOMS, "/api/v1/auth/me", "/api/v1/users"):
        answer = await platform.call("GET", path, headers={"authorization": f"Bearer {token}"})
        assert assert_problem(answer, 401)["error"] == "UNAUTHORIZED"


async def test_right_secret_wrong_token(platform: Platform, accounts: list[Account]) -> None:
    """Even with the secret: an expired token, another audience, and a session that never was are refused."""
    secret = platform.stack.state.secret("jwt")
    user = {"sub": accounts[0].id, "role": "user"}
    for token in (forged(secret, **user, exp=1), forged(secret, **user, aud="webrtc"), forged(secret, **user)):
        answer = await platform.call("GET", "/api/v1/auth/me", headers={"authorization": f"Bearer {token}"})
        assert_problem(answer, 401)


async def test_another_users_data(platform: Platform, accounts: list[Account]) -> None:
    mine, other = accounts[0], accounts[1]
    path = f"/api/v1/users/{other.id}"
    assert_problem(await platform.call("GET", path, mine), 403, 404)
    assert_problem(await platform.call("PATCH", path, mine, json={"display_name": "Taken"}), 403, 404)
    assert_problem(await platform.call("DELETE", path, mine), 403, 404)
    room = await platform.call("POST", ROOMS, other, json={"name": "Theirs"})
    assert_problem(await platform.call("DELETE", f"{ROOMS}/{room.body['id']}", mine), 403, 404)
    agent = await platform.call("POST", "/api/v1/agents", other, json={"name": "Theirs", "system_prompt": ""})
    assert_problem(await platform.call("GET", f"/api/v1/agents/{agent.body['id']}", mine), 404)
    assert_problem(
        await platform.call("POST", f"/api/v1/agents/{agent.body['id']}/chat", mine, json={"message": "?"}), 404
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/circuit-breaker/reset"),
        ("POST", "/admin/circuit-breaker/open"),
        ("POST", "/admin/circuit-breaker/close"),
        ("GET", "/admin/queue"),
        ("GET", "/admin/queue/dead-letters"),
        ("POST", "/admin/queue/dead-letters/x/replay"),
        ("DELETE", "/admin/queue/dead-letters/x"),
        ("POST", "/admin/mode"),
        ("GET", "/api/v1/users"),
    ],
)
async def test_the_admin_surface(platform: Platform, accounts: list[Account], method: str, path: str) -> None:
    for service in ("dashboard", "ai-core", "webrtc"):
        if path.startswith("/api") and service != "dashboard":
            continue
        assert_problem(await platform.call(method, path, at=service), 401)
        assert_problem(await platform.call(method, path, accounts[0], at=service), 403)


async def test_a_reused_idempotency_key(platform: Platform, accounts: list[Account]) -> None:
    account, key = accounts[-2], uuid.uuid4().hex
    first = await platform.rename(account, "Once", **{"idempotency-key": key})
    again = await platform.rename(account, "Once", **{"idempotency-key": key})
    assert (first.status, again.status) == (200, 200)
    assert_problem(await platform.rename(account, "Other", **{"idempotency-key": key}), 409)


async def test_login_failures_are_limited(platform: Platform) -> None:
    account = await platform.register()
    wrong = {"email": account.email, "password": "wrong password"}
    statuses = [(await platform.call("POST", "/api/v1/auth/login", json=wrong)).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    limited = await platform.call(
        "POST", "/api/v1/auth/login", json={"email": account.email, "password": account.password}
    )
    assert assert_problem(limited, 429)["error"] == "RATE_LIMITED"
    assert 0 < int(limited.headers["retry-after"]) <= 900
