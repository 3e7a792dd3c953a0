"""The names that others depend on: headers, health, metrics, stack.json, the operator's surface, ids on their way."""

from __future__ import annotations

import json
import re
import stat
from typing import Any

import pytest

from devstack.components import turn
from tests.harness.client import Account
from tests.harness.journey import fine
from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

SERVICES = ["dashboard", "ai-core", "webrtc"]
ROWS = {
    "dashboard": {"postgres": "D1", "redis": "D2", "ai-core": "D3", "webrtc": "D4", "kafka": "D5"},
    "ai-core": {
        "postgres": "A1",
        "openai:gpt-4": "A2",
        "openai:gpt-3.5-turbo": "A2",
        "anthropic:claude-sonnet-5-5": "A2",
        "redis": "A3",
        "embeddings": "A4",
        "elevenlabs": "A5",
        "openai-speech": "A5",
        "vectors": "A6",
    },
    "webrtc": {"redis": "W1", "postgres": "W3"} | ({"turn": "W2"} if turn.installed() else {}),
}
METRICS = {
    "circuit_breaker_state": {"service", "dependency", "state"},
    "dependency_call_duration_seconds_bucket": {"service", "dependency", "outcome", "le"},
    "degraded_mode_duration_seconds": {"service"},
    "service_mode": {"service", "mode"},
}
ON_THE_DASHBOARD = {
    "circuit_breaker_transitions_total": {"service", "dependency", "from", "to"},
    "fallback_activations_total": {"service", "fallback"},
    "fallback_queue_depth": {"service"},
    "fallback_queue_oldest_age_seconds": {"service"},
    "fallback_queue_dead_total": {"service"},
    "app_errors_total": {"error_type", "endpoint"},
}


@pytest.mark.parametrize("service", SERVICES)
async def test_health(platform: Platform, service: str) -> None:
    for path in ("/health/live", "/health/ready"):
        assert (await platform.call("GET", path, at=service)).status == 200

    async def normal() -> dict[str, Any]:
        """A mode is left a moment after the last circuit has closed."""
        page: dict[str, Any] = fine(await platform.call("GET", "/health/detailed", at=service))
        return page if page["mode"] == "normal" else {}

    health = await eventually(normal, f"{service} in normal mode")
    assert (health["service"], health["status"]) == (service, "healthy")
    assert health["since"]
    assert {name: one["label"] for name, one in health["dependencies"].items()} == ROWS[service]
    for one in health["dependencies"].values():
        assert {"status", "circuit", "failures", "latency_ms", "last_error", "fallback", "retry_after_s"} <= one.keys()
        assert one["circuit"] == "closed"
    if service == "dashboard":
        assert {"depth", "oldest_age_seconds", "dead"} <= health["queues"]["dashboard"].keys()


def samples(text: str) -> dict[str, set[str]]:
    """Metric names and their labels."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+(?: \d+)?", line).groups()  # type: ignore[union-attr]
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


@pytest.mark.parametrize("service", SERVICES)
async def test_metrics(platform: Platform, accounts: list[Account], service: str) -> None:
    for path in ("/api/v1/agents", "/api/v1/rooms"):
        fine(await platform.call("GET", path, accounts[4]))
    found = samples((await platform.call("GET", "/metrics", at=service)).body)
    for name, labels in METRICS.items():
        name = f"{name}_total" if f"{name}_total" in found else name  # a counter's suffix in the text format
        assert found.get(name) == labels, name
    assert any(name.startswith("http_server_request_duration_seconds") for name in found)


async def test_metrics_of_a_degraded_dashboard(platform: Platform, accounts: list[Account]) -> None:
    await circuit(platform, "open", "postgres")
    try:
        assert (await platform.profile(accounts[4])).body["stale"] is True
        assert (await platform.call("GET", "/api/v1/users", accounts[4])).status == 403
    finally:
        await circuit(platform, "reset", "postgres")
    text = (await platform.call("GET", "/metrics")).body
    found = samples(text)
    for name, labels in ON_THE_DASHBOARD.items():
        assert labels <= found.get(name, set()), name
    assert 'endpoint="/api/v1/users"' in text
    assert accounts[4].id not in text, "a raw path would make a metric per user"


async def circuit(platform: Platform, action: str, dependency: str = "") -> None:
    """An operator's hand on a circuit."""
    path = f"/admin/circuit-breaker/{action}" + (f"?dependency={dependency}" if dependency else "")
    fine(await platform.call("POST", path, headers=platform.admin))


async def test_circuits_by_hand(platform: Platform, accounts: list[Account]) -> None:
    account = accounts[4]
    fine(await platform.profile(account))
    await circuit(platform, "open", "postgres")
    try:
        assert await platform.circuit("postgres") == "open"
        answer = await platform.profile(account)
        assert answer.status == 200
        assert answer.body["stale"] is True
        assert answer.headers["x-degraded-mode"] == "true"
        assert answer.headers["x-fallback-used"] == "redis-cache"
        assert answer.headers["x-circuit-state"] == "open"
        assert int(answer.headers["age"]) >= 0
    finally:
        await circuit(platform, "reset", "postgres")
    assert await platform.circuit("postgres") == "closed"
    fine(await platform.profile(account))
    await circuit(platform, "close", "webrtc")
    health = (await platform.call("GET", "/health/detailed")).body
    assert health["dependencies"]["webrtc"]["held"] is True
    await circuit(platform, "reset")
    health = (await platform.call("GET", "/health/detailed")).body
    assert not any(one["held"] for one in health["dependencies"].values())
    unknown = "/admin/circuit-breaker/open?dependency=nothing"
    assert (await platform.call("POST", unknown, headers=platform.admin)).status == 404


async def test_a_held_mode_shows_everywhere(platform: Platform) -> None:
    async def hold(mode: str | None) -> None:
        fine(await platform.call("POST", "/admin/mode", headers=platform.admin, json={"mode": mode}))

    await hold("degraded")
    try:
        health = (await platform.call("GET", "/health/detailed")).body
        assert (health["mode"], health["status"]) == ("degraded", "degraded")
        assert 'service_mode{mode="degraded",service="dashboard"} 1.0' in (await platform.call("GET", "/metrics")).body
    finally:
        await hold(None)
    assert (await platform.call("GET", "/health/detailed")).body["mode"] == "normal"


async def test_the_queue_can_be_looked_at(platform: Platform) -> None:
    queue = fine(await platform.call("GET", "/admin/queue", headers=platform.admin))
    assert {"depth", "oldest_age_seconds", "dead", "items"} <= queue.keys()
    assert fine(await platform.call("GET", "/admin/queue/dead-letters", headers=platform.admin)) == {"items": []}
    replay = "/admin/queue/dead-letters/unknown/replay"
    assert (await platform.call("POST", replay, headers=platform.admin)).status == 404


async def test_stack_json(platform: Platform) -> None:
    state = platform.stack.state
    assert stat.S_IMODE(state.stack_file.stat().st_mode) == 0o600, "it holds the admin token"
    stack = json.loads(state.stack_file.read_text(encoding="utf-8"))
    assert set(SERVICES) <= stack["services"].keys()
    for service in stack["services"].values():
        assert service["http"].startswith("http://")
        assert re.fullmatch(r"[\w.]+:\d+", service["grpc"])
        assert service["pid"] > 0
    for component in ("postgres", "redis", "providers"):
        assert stack["components"][component]["pid"] > 0
        assert stack["components"][component]["url"]
    assert stack["admin_token"] == platform.stack.admin_token


async def test_request_ids(platform: Platform) -> None:
    sane = "test-1234.abc"
    answer = await platform.call("GET", "/health/live", headers={"x-request-id": sane})
    assert answer.headers["x-request-id"] == sane
    for odd in ("x" * 500, "a b", "ünï", ""):
        answer = await platform.call("GET", "/health/live", headers={"x-request-id": odd})
        assert re.fullmatch(r"[A-Za-z0-9._-]{8,}", answer.headers["x-request-id"])
        assert answer.headers["x-request-id"] != odd


async def test_ids_and_traces_reach_the_other_services(platform: Platform, accounts: list[Account]) -> None:
    request_id, trace = "carried-across-7", "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": request_id, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    fine(await platform.call("GET", "/api/v1/agents", accounts[4], headers=headers))
    fine(await platform.call("GET", "/api/v1/rooms", accounts[4], headers=headers))
    for service in SERVICES:

        async def logged(service: str = service) -> bool:
            lines = platform.stack.log_tail(service, 200).splitlines()
            return any(request_id in line and trace in line for line in lines)

        await eventually(logged, f"request and trace id in the log of {service}", 5)
