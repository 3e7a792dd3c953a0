"""What a newcomer does, on a healthy platform, with every answer from the real thing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.journey import journey
from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]


async def test_the_whole_journey_and_its_end(platform: Platform) -> None:
    account = await journey(platform)
    assert (await platform.profile(account, "dashboard-2")).status == 200
    assert (await platform.call("POST", "/api/v1/auth/logout", account)).status == 204
    assert (await platform.profile(account)).status == 401

    async def ended() -> bool:
        return (await platform.profile(account, "dashboard-2")).status == 401

    await eventually(ended, "the other instance knows of the logout", 3)
    for path in ("/api/v1/rooms", "/api/v1/agents", "/api/v1/auth/me"):
        assert (await platform.call("GET", path, account)).status == 401


async def test_the_session_cookie_is_as_good_as_the_token(platform: Platform) -> None:
    account = await platform.register()
    body = {"email": account.email, "password": account.password}
    login = await platform.call("POST", "/api/v1/auth/login", json=body)
    cookie = login.headers["set-cookie"]
    assert all(word in cookie.lower() for word in ("httponly", "samesite=strict"))
    given = {"cookie": cookie.partition(";")[0]}
    assert (await platform.call("GET", "/api/v1/auth/me", headers=given)).body["id"] == account.id


async def test_accounts_are_each_for_themselves(platform: Platform) -> None:
    mine, theirs = await platform.register(), await platform.register("dashboard-2")
    room = (await platform.call("POST", "/api/v1/rooms", theirs, json={"name": "Theirs"})).body["id"]
    agent = (await platform.call("POST", "/api/v1/agents", theirs, json={"name": "Theirs"})).body["id"]
    change = {"display_name": "Mine"}
    attempts: list[tuple[str, str, dict[str, Any], set[int]]] = [
        ("GET", f"/api/v1/users/{theirs.id}", {}, {403, 404}),
        ("PATCH", f"/api/v1/users/{theirs.id}", {"json": change}, {403, 404}),
        ("DELETE", f"/api/v1/users/{theirs.id}", {}, {403, 404}),
        ("DELETE", f"/api/v1/rooms/{room}", {}, {403, 404}),
        ("GET", f"/api/v1/agents/{agent}", {}, {404}),
        ("PATCH", f"/api/v1/agents/{agent}", {"json": {"name": "Mine"}}, {404}),
        ("DELETE", f"/api/v1/agents/{agent}", {}, {404}),
        ("POST", f"/api/v1/agents/{agent}/chat", {"json": {"message": "Hello"}}, {404}),
        ("GET", "/api/v1/users", {}, {403}),
    ]
    for method, path, content, statuses in attempts:
        answer = await platform.call(method, path, mine, **content)
        assert answer.status in statuses, (method, path, answer)
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await platform.profile(theirs)).body["display_name"] == "New"


async def test_the_console_and_its_matrix(platform: Platform) -> None:
    page = await platform.call("GET", "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "AuraLink" in page.body
    for name in ("console.js", "console.css"):
        assert f"/static/{name}" in page.body
        assert (await platform.call("GET", f"/static/{name}")).status == 200
    services = (await platform.call("GET", "/api/v1/matrix")).body["services"]
    rows = {(service["service"], row["label"]) for service in services for row in service["rows"]}
    assert {service["service"] for service in services if service["reachable"]} == {"dashboard", "ai-core", "webrtc"}
    assert {label for _, label in rows} >= {"D1", "D2", "D3", "D4", "A1", "A2", "W1"}
