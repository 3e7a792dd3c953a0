"""The edge, over real connections: ids, errors, limits, headers of degraded answers, health, metrics, admin."""

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter, Response

from resilience.deadline import current_deadline
from resilience.errors import QueueUnavailable
from resilience.queue import QueueStats
from service_kit import context
from service_kit.http import edge
from service_kit.runtime import Phase, ServiceRuntime
from service_kit.tokens import TokenIssuer

DEGRADED = ("X-Degraded-Mode", "X-Fallback-Used", "X-Circuit-State", "X-Retry-After", "Retry-After")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def client(runtime: ServiceRuntime, serving: Any, sample: Any) -> AsyncIterator[Any]:
    async with serving(runtime, sample.make_router(runtime)) as client:
        yield client


def assert_problem(answer: tuple[int, Any, Any], expected: int, code: str) -> None:
    status, headers, body = answer
    assert (status, body["status"], body["error"]) == (expected, expected, code)
    assert headers["Content-Type"] == "application/problem+json"
    assert body["request_id"] == headers["X-Request-ID"]
    assert body["message"] and body["timestamp"].endswith("Z")  # noqa: PT018


async def test_a_healthy_answer_has_no_degraded_headers(client: Any) -> None:
    status, headers, body = await client("GET", "/api/v1/hello")
    assert (status, body) == (200, {"hello": "world"})
    assert not set(DEGRADED) & set(headers)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])


@pytest.mark.parametrize(("given", "kept"), [("abc-1/2", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)])
async def test_request_id(client: Any, given: str, kept: bool) -> None:
    for path in ("/api/v1/hello", "/nowhere", "/api/v1/crash"):
        _, headers, _ = await client("GET", path, headers={"X-Request-ID": given})
        assert (headers["X-Request-ID"] == given) is kept


async def test_a_stale_answer(client: Any) -> None:
    status, headers, body = await client("GET", "/api/v1/stale")
    assert status == 200
    assert (headers["X-Degraded-Mode"], headers["X-Fallback-Used"]) == ("true", "memory-cache")
    assert (headers["X-Circuit-State"], headers["Age"]) == ("closed", "5")
    assert (body["stale"], body["value"]) == (True, "copy")


async def test_a_dependency_fails_then_its_circuit_opens(client: Any, runtime: ServiceRuntime) -> None:
    for _ in range(2):
        answer = await client("GET", "/api/v1/call/fail")
        assert_problem(answer, 503, "DEPENDENCY_UNAVAILABLE")
        assert int(answer[1]["Retry-After"]) == int(answer[1]["X-Retry-After"]) >= 1
    status, headers, body = await client("GET", "/api/v1/call/fail")
    assert_problem((status, headers, body), 429, "CIRCUIT_OPEN")
    assert headers["X-Circuit-State"] == "open"
    assert 25 <= int(headers["Retry-After"]) == body["retry_after"] <= 30
    assert "10.0.0.1" not in json.dumps(body)
    runtime.policies["sample.store"].breaker.reset()
    assert (await client("GET", "/api/v1/call/fine"))[0] == 200
    _, _, text = await client("GET", "/metrics")
    for line in (
        rb'circuit_breaker_state{dependency="store",service="sample",state="closed"} 1.0',
        rb'circuit_breaker_transitions_total{dependency="store",from="closed",service="sample",to="open"} 1.0',
        rb'app_errors_total{endpoint="/api/v1/call/{outcome}",error_type="CIRCUIT_OPEN"} 1.0',
        rb'app_error_recovery_seconds_count{error_type="DEPENDENCY_UNAVAILABLE"} 1.0',
        rb'service_mode{mode="normal",service="sample"} 1.0',
        rb"# TYPE degraded_mode_duration_seconds counter",
        rb'dependency_call_duration_seconds_count{dependency="store",outcome="failure",service="sample"} 2.0',
        rb'http_route="/api/v1/call/{outcome}"',
    ):
        assert line in text, line


async def test_a_slow_request_is_logged(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _ = await client("GET", "/api/v1/slow?seconds=5")
    assert status == 504
    assert "slow request" in capsys.readouterr().out


async def test_a_queued_write(client: Any) -> None:
    status, headers, body = await client("GET", "/api/v1/queued")
    assert_problem((status, headers, body), 503, "DEPENDENCY_UNAVAILABLE")
    assert headers["X-Fallback-Used"] == "redis-queue"
    assert headers["Retry-After"] == headers["X-Retry-After"] == "13"
    assert (body["queued"], body["operation_id"], body["status_url"]) == (True, "op1", "/api/v1/operations/op1")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/api/v1/hello/", 404, "NOT_FOUND"),
        ("PUT", "/api/v1/hello", 405, "VALIDATION_ERROR"),
        ("GET", "/api/v1/things/x", 422, "VALIDATION_ERROR"),
        ("GET", "/api/v1/things/99999999999999999999999999?q=%00", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/things/%ff", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/things/1?q=%c3%28", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/crash", 500, "INTERNAL_ERROR"),
    ],
)
async def test_errors_are_problems(client: Any, method: str, path: str, status: int, code: str) -> None:
    from yarl import URL

    base, client.base = client.base, ""
    url = URL(base + path, encoded=True)
    async with client.session.request(method, url) as response:
        body = await response.json(content_type=None)
        assert_problem((response.status, response.headers, body), status, code)
    assert "hunter2" not in json.dumps(body)


BAD_BODIES = [
    (b"{", 400),
    (b'{"name": NaN}', 400),
    (b'{"name": "\xff"}', 400),
    (b'{"name": "\\ud800"}', 400),
    (b"[" * 5000, 400),
    (b'{"name": "a\\u0000b"}', 422),
    (b'{"name": ""}', 422),
    (b'{"name": "a", "size": "many"}', 422),
    (b"[]", 422),
    (b"null", 422),
    (b"", 422),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES)
async def test_bad_bodies(client: Any, body: bytes, status: int) -> None:
    answer = await client("POST", "/api/v1/things", data=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, status, "VALIDATION_ERROR")


async def test_details_name_the_fields_and_no_values(client: Any) -> None:
    _, _, body = await client("POST", "/api/v1/things", json={"name": "x" * 21, "size": "hunter2"})
    assert set(body["details"]) == {"name", "size"}
    assert "hunter2" not in json.dumps(body)


async def test_a_literal_backslash_u0000_is_no_nul(client: Any) -> None:
    status, _, body = await client("POST", "/api/v1/things", json={"name": "\\u0000"})
    assert (status, body["name"]) == (201, "\\u0000")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large(client: Any, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    data: Any = pieces() if chunked else io.BytesIO(b"x" * 10_000_000)
    answer = await client("POST", "/api/v1/things", data=data, headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "VALIDATION_ERROR")


@pytest.mark.parametrize("path", ["/api/v1/slow?seconds=30", "/api/v1/stubborn"])
async def test_the_time_limit_holds(client: Any, path: str) -> None:
    begun = time.monotonic()
    answer = await client("GET", path)
    assert 0.25 < time.monotonic() - begun < 0.9
    assert_problem(answer, 504, "REQUEST_TIMEOUT")
    assert (await client("GET", "/api/v1/hello"))[0] == 200


async def test_a_body_that_never_comes_ends_at_the_time_limit(client: Any) -> None:
    host, port = client.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/v1/things HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    assert b" 504 " in await asyncio.wait_for(reader.readline(), 2)
    writer.close()
    await writer.wait_closed()


async def test_long_routes_and_event_streams_are_exempt(client: Any) -> None:
    assert (await client("GET", "/api/v1/patient"))[0] == 200
    async with client.session.get(client.base + "/api/v1/events") as response:
        seen = 0
        async for _ in response.content:
            seen += 1
            if seen == 24:  # 12 events of 50 ms: past the limit of 300 ms
                break


async def test_ready_follows_the_phase(client: Any, runtime: ServiceRuntime) -> None:
    assert (await client("GET", "/health/ready"))[0] == 200
    for phase in (Phase.STARTING, Phase.DRAINING):
        runtime.phase = phase
        assert_problem(await client("GET", "/health/ready"), 503, "DEPENDENCY_UNAVAILABLE")
        assert (await client("GET", "/health/live"))[0] == 200
    runtime.phase = Phase.READY
    runtime.policies["sample.store"].breaker.force_open()
    assert (await client("GET", "/health/ready"))[0] == 200


async def test_detailed(client: Any, runtime: ServiceRuntime) -> None:
    await client("GET", "/api/v1/call/fine")
    _, _, body = await client("GET", "/health/detailed")
    store = body["dependencies"]["store"]
    assert (body["service"], body["status"], body["mode"], body["queues"]) == ("sample", "healthy", "normal", {})
    assert (store["status"], store["circuit"], store["failures"], store["label"]) == ("healthy", "closed", 0, "S1")
    assert store["latency_ms"] >= 0
    runtime.policies["sample.store"].breaker.force_open()
    _, _, body = await client("GET", "/health/detailed")
    assert (body["status"], body["dependencies"]["store"]["circuit"]) == ("degraded", "open")


def admin(runtime: ServiceRuntime) -> dict[str, str]:
    return {"Authorization": f"Bearer {runtime.settings.admin_token.get_secret_value()}"}


ADMIN_PATHS = [
    ("POST", "/admin/circuit-breaker/reset"),
    ("POST", "/admin/circuit-breaker/open"),
    ("POST", "/admin/mode"),
    ("GET", "/admin/queue"),
    ("GET", "/admin/queue/dead-letters"),
    ("POST", "/admin/queue/dead-letters/x/replay"),
    ("DELETE", "/admin/queue/dead-letters/x"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_PATHS)
async def test_admin_is_for_the_operator(client: Any, runtime: ServiceRuntime, method: str, path: str) -> None:
    answer = await client(method, path)
    assert_problem(answer, 401, "UNAUTHORIZED")
    assert answer[1]["WWW-Authenticate"] == "Bearer"
    assert_problem(await client(method, path, headers={"Authorization": "Bearer no"}), 401, "UNAUTHORIZED")
    token = TokenIssuer(runtime.settings.jwt_secret.get_secret_value()).issue("u1", "s1", "admin")
    assert_problem(await client(method, path, headers={"Authorization": f"Bearer {token}"}), 403, "FORBIDDEN")


async def test_circuits_by_hand(client: Any, runtime: ServiceRuntime) -> None:
    headers = admin(runtime)
    _, _, body = await client("POST", "/admin/circuit-breaker/open?dependency=store", headers=headers)
    assert body == {"dependencies": {"store": "open"}}
    answer = await client("GET", "/api/v1/call/fine")
    assert_problem(answer, 429, "CIRCUIT_OPEN")
    assert answer[1]["Retry-After"] == "1"  # held: no time is known
    assert (await client("POST", "/admin/circuit-breaker/reset", headers=headers))[2] == {
        "dependencies": {"store": "closed"}
    }
    assert (await client("GET", "/api/v1/call/fine"))[0] == 200
    answer = await client("POST", "/admin/circuit-breaker/reset?dependency=nothing", headers=headers)
    assert_problem(answer, 404, "NOT_FOUND")


async def test_mode_by_hand(client: Any, runtime: ServiceRuntime) -> None:
    headers = admin(runtime)
    for mode, shown in (("emergency", "emergency"), (None, "normal")):
        _, _, body = await client("POST", "/admin/mode", json={"mode": mode}, headers=headers)
        assert (body["mode"], body["held"]) == (shown, mode is not None)
    answer = await client("POST", "/admin/mode", json={"mode": "party"}, headers=headers)
    assert_problem(answer, 422, "VALIDATION_ERROR")


class FakeQueue:
    """A queue whose store can be down."""

    name = "fallback:queue:sample"
    down = False

    async def _up(self, value: Any) -> Any:
        if self.down:
            raise QueueUnavailable("down")
        return value

    async def stats(self) -> QueueStats:
        await self._up(None)
        return QueueStats(2, 1.5, 1)

    async def list(self, limit: int, after: str = "") -> Any:
        return await self._up([{"id": "a"}][:limit])

    async def dead(self, limit: int, after: str = "") -> Any:
        return await self._up([{"id": "b", "error": "no"}])

    async def replay(self, operation_id: str) -> bool:
        return bool(await self._up(operation_id == "b"))

    async def discard(self, operation_id: str) -> bool:
        return bool(await self._up(operation_id == "b"))

    async def clear(self) -> int:
        return int(await self._up(1))


async def test_the_queue_by_hand(client: Any, runtime: ServiceRuntime, until: Any) -> None:
    headers = admin(runtime)
    assert (await client("GET", "/admin/queue", headers=headers))[0] == 404
    queue = FakeQueue()
    runtime.queue = queue
    _, _, body = await client("GET", "/admin/queue", headers=headers)
    assert body == {"depth": 2, "oldest_age_seconds": 1.5, "dead": 1, "items": [{"id": "a"}]}
    _, _, body = await client("GET", "/admin/queue/dead-letters", headers=headers)
    assert body["items"][0]["id"] == "b"
    assert (await client("POST", "/admin/queue/dead-letters/b/replay", headers=headers))[0] == 200
    assert (await client("DELETE", "/admin/queue/dead-letters/b", headers=headers))[0] == 200
    assert (await client("DELETE", "/admin/queue/dead-letters", headers=headers))[2] == {"discarded": 1}
    assert (await client("DELETE", "/admin/queue/dead-letters/x", headers=headers))[0] == 404
    assert (await client("GET", "/admin/queue?after=nonsense", headers=headers))[0] == 422
    queue.down = True
    for path in ("/admin/queue", "/admin/queue/dead-letters"):
        assert_problem(await client("GET", path, headers=headers), 503, "DEPENDENCY_UNAVAILABLE")


async def test_queue_metrics_come_from_the_background(client: Any, runtime: ServiceRuntime, until: Any) -> None:
    queue = FakeQueue()
    runtime.queue = queue
    await runtime.start()
    await until(lambda: runtime.queue_view.stats.depth == 2)
    queue.down = True
    await until(lambda: bool(runtime.queue_view.error))
    _, _, body = await client("GET", "/health/detailed")
    assert body["queues"] == {
        queue.name: {"depth": 2, "oldest_age_seconds": 1.5, "dead": 1, "error": "QueueUnavailable"}
    }
    _, _, text = await client("GET", "/metrics")
    assert b'fallback_queue_depth{service="sample"} 2.0' in text
    assert b'fallback_queue_dead_total{service="sample"} 1.0' in text


async def test_openapi_describes_problems(client: Any) -> None:
    _, _, document = await client("GET", "/openapi.json")
    schemas = document["components"]["schemas"]
    assert "Problem" in schemas
    assert "HTTPValidationError" not in schemas
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    reset = document["paths"]["/admin/circuit-breaker/reset"]["post"]
    assert {"401", "403", "404", "422", "503", "504"} <= set(reset["responses"])
    assert reset["security"] == [{"adminToken": []}]


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("early", [True, False])
async def test_attended_work_ends_when_its_client_leaves(
    runtime: ServiceRuntime, serving: Any, until: Any, attended: bool, early: bool
) -> None:
    routes, events = APIRouter(), []

    @routes.post("/work")
    async def work() -> Response:
        context.allow(5.0)
        if attended:
            context.attend()
        events.append("begun")
        try:
            await asyncio.sleep(2 * edge.NOTICE_SECONDS)
            events.append("done")
            await asyncio.sleep(0 if not attended else 5)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return Response("done")

    async with serving(runtime, routes) as client:
        asking = asyncio.ensure_future(client("POST", "/work", json={}))
        await until(lambda: events)
        if not early:
            await until(lambda: "done" in events)
        asking.cancel()
        await until(lambda: len(events) > 1 and not runtime.in_flight)
        expected = {(True, True): ["cancelled"], (True, False): ["done", "cancelled"]}
        assert events[1:] == expected.get((attended, early), ["done"])
        assert (await client("GET", "/health/live"))[0] == 200
        _, _, told = await client("GET", "/metrics")
        assert (b'http_response_status_code="499"' in told) is attended


async def test_attended_work_is_answered_as_any_other(runtime: ServiceRuntime, serving: Any) -> None:
    routes = APIRouter()

    @routes.post("/work")
    async def work(seconds: float) -> Response:
        context.allow(5.0)
        context.attend()
        await asyncio.sleep(seconds)
        return Response("done")

    async with serving(runtime, routes) as client:
        for seconds in (0, 2 * edge.NOTICE_SECONDS):
            assert (await client("POST", f"/work?seconds={seconds}", json={}))[::2] == (200, b"done")


async def test_a_long_limit_is_nearly_all_for_the_work(runtime: ServiceRuntime, serving: Any) -> None:
    routes = APIRouter()

    @routes.get("/left")
    async def left() -> float:
        context.allow(30.0)
        deadline = current_deadline()
        return deadline.remaining() if deadline else 0.0

    async with serving(runtime, routes) as client:
        assert 29.5 < (await client("GET", "/left"))[2] < 30.0
