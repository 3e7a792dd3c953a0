"""The platform in its containers: ``docker compose up``, a journey, containers killed, paused and disconnected while
the matrix keeps its promises, a rolling restart under load.

Needs an engine and time, so it runs when it is asked for: ``make chaos-compose``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from devstack.demo.scenarios import SCENARIOS, Scenario
from devstack.demo.tour import run
from tests.compose.engine import Answer, Containers, unavailable, until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

DASHBOARDS = ("dashboard-1", "dashboard-2")
SERVICES = (*DASHBOARDS, "ai-core", "webrtc")
SERVERS = ("postgres", "standby", "redis", "kafka", "turn", "providers")
PUBLISHED = {"balancer", "ai-core", "webrtc", "turn"}
ROWS = ("D1", "D2", "D3", "D4", "D5", "D6", "A2", "W1", "W2")
CLIENTS = 8
PACE = 0.25  # s between a client's rounds: all of them together stay below the rate limit and the quota of rooms
ANSWERED = 3.0  # s: REQUEST_TIMEOUT and what a busy machine adds
RECOVERED = 5.0  # s from the server accepting connections to a closed circuit and an empty queue
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def stack() -> Iterator[Containers]:
    """Built, started and healthy; removed with its data afterwards."""
    if reason := unavailable():
        pytest.skip(reason)
    stack = Containers()
    stack.down()  # what a killed run left
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@dataclass(frozen=True)
class User:
    """A registered user with an open session."""

    path: str
    token: str


@pytest.fixture
def user(stack: Containers) -> User:
    until(lambda: _is_whole(stack), 20, "both Dashboards use all that they have again")
    email = f"{uuid.uuid4().hex}@example.org"
    registered = stack.request("POST", "/api/v1/users", {"email": email, "password": PASSWORD, "display_name": "Ada"})
    assert registered.status == 201, registered
    login = stack.request("POST", "/api/v1/auth/login", {"email": email, "password": PASSWORD})
    assert login.status == 200, login
    return User(f"/api/v1/users/{registered.body['id']}", login.body["access_token"])


def test_every_container_is_healthy_confined_and_reachable_from_this_machine_only(stack: Containers) -> None:
    for service in (*SERVICES, *SERVERS, "balancer"):
        container = stack.inspect(service)
        assert container["State"]["Health"]["Status"] == "healthy", service
        published = [one for bound in container["NetworkSettings"]["Ports"].values() for one in bound or ()]
        assert {one["HostIp"] for one in published} <= {"127.0.0.1"}
        assert bool(published) == (service in PUBLISHED)
        assert container["HostConfig"]["Memory"], f"{service} has no limit"
    for service in SERVICES:
        confined = stack.inspect(service)
        assert confined["Config"]["User"] == "10001:10001"
        assert confined["HostConfig"]["ReadonlyRootfs"]


def test_a_newcomers_journey(stack: Containers, user: User) -> None:
    profile = stack.request("GET", user.path, token=user.token)
    assert (profile.status, profile.body["display_name"]) == (200, "Ada")
    assert "x-degraded-mode" not in profile.headers
    changed = stack.request("PATCH", user.path, {"display_name": "Ada L."}, token=user.token)
    assert (changed.status, changed.body["display_name"]) == (200, "Ada L.")

    room = stack.request("POST", "/api/v1/rooms", {"name": "Tea"}, token=user.token)
    assert room.status == 201, room
    ticket = stack.request("POST", f"/api/v1/rooms/{room.body['id']}/token", {}, token=user.token)
    assert ticket.status == 200, ticket
    assert ticket.body["ws_url"].startswith("ws://127.0.0.1:")
    assert ticket.body["ice_servers"]

    agent = {"name": "Guide", "system_prompt": "Be brief."}
    made = stack.request("POST", "/api/v1/agents", agent, token=user.token)
    assert made.status == 201, made
    chat = stack.request("POST", f"/api/v1/agents/{made.body['id']}/chat", {"message": "Hello?"}, token=user.token)
    assert (chat.status, chat.body["simulated"]) == (200, True)
    assert "simulated" in chat.body["reply"].lower()
    assert b"event: delta" in _streamed(stack, user, made.body["id"])
    assert _upgraded(stack, ticket.body["token"]) == b"HTTP/1.1 101"


def _streamed(stack: Containers, user: User, agent: str) -> bytes:
    """The first events of an answer through the balancer."""
    connection = http.client.HTTPConnection(*stack.address(), timeout=10)
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream",
        "authorization": f"Bearer {user.token}",
    }
    connection.request("POST", f"/api/v1/agents/{agent}/chat", json.dumps({"message": "Hello?"}), headers)
    try:
        return connection.getresponse().read(4096)
    finally:
        connection.close()


def _upgraded(stack: Containers, token: str) -> bytes:
    """The status line's beginning, of a WebSocket through the balancer."""
    asks = f"GET /ws?token={token} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    asks += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with socket.create_connection(stack.address(), timeout=10) as client:
        client.sendall(asks.encode())
        return client.recv(4096)[:12]


@pytest.mark.row("dashboard.postgres")
@pytest.mark.parametrize("harm", ["kill", "freeze", "cut"])
def test_without_its_postgres_the_dashboard_serves_and_keeps_changes(
    stack: Containers, user: User, harm: str, record_property: Callable[[str, object], None]
) -> None:
    assert stack.request("GET", user.path, token=user.token).status == 200
    stack.chaos(harm, "postgres")
    operation = _change_is_accepted(stack, user)
    _profile_is_shown_with_it(stack, user)
    until(lambda: _circuit(stack, token=user.token) == "open", 10, "the prober opens the circuit without requests")
    _profile_is_shown_with_it(stack, user)
    assert stack.request("GET", "/health/ready").status == 200

    assert "it accepts" in stack.chaos("heal", "postgres")
    seconds = until(lambda: _recovered(stack, user, operation), RECOVERED, "circuit closed, change applied")
    record_property("seconds from accepting connections to recovered", round(seconds, 2))

    fresh = stack.request("GET", user.path, token=user.token)
    assert (fresh.status, fresh.body["display_name"]) == (200, "Grace")
    assert "x-degraded-mode" not in fresh.headers
    user_id = user.path.rpartition("/")[2]
    assert stack.sql("dashboard", f"select display_name, revision from users where id = '{user_id}'") == "Grace|2"
    assert stack.sql("dashboard", f"select count(*) from operations where id = '{operation}'") == "1"


def _change_is_accepted(stack: Containers, user: User) -> str:
    """The operation's id."""
    wanted = {"prefer": "respond-async"}
    change = stack.request("PATCH", user.path, {"display_name": "Grace"}, token=user.token, headers=wanted)
    assert change.status == 202, change
    assert change.seconds < ANSWERED
    assert change.headers["preference-applied"] == "respond-async"
    assert change.body["queued"] is True
    operation: str = change.body["operation_id"]
    return operation


def _profile_is_shown_with_it(stack: Containers, user: User) -> None:
    read = stack.request("GET", user.path, token=user.token)
    assert read.status == 200, read
    assert read.seconds < ANSWERED
    assert read.headers["x-degraded-mode"] == "true"
    assert (read.body["stale"], read.body["pending"], read.body["display_name"]) == (True, True, "Grace")


def _circuit(stack: Containers, dependency: str = "postgres", service: str = "dashboard", token: str = "") -> str:
    """As the instance knows it that serves the token."""
    detailed = stack.request("GET", "/health/detailed", service=service, token=token)
    circuit: str = detailed.body["dependencies"][dependency]["circuit"]
    return circuit


def _accepts(stack: Containers) -> bool:
    """A query over TCP, as the services send theirs."""
    query = ("psql", "-h", "127.0.0.1", "-U", "auralink", "-d", "dashboard", "-tAc", "select 1")
    password = ("-e", "PGPASSWORD=change-me-public")
    return stack.compose("exec", "-T", *password, "postgres", *query, check=False).strip() == "1"


def _recovered(stack: Containers, user: User, operation: str) -> bool:
    if _circuit(stack, token=user.token) != "closed":
        return False
    status = stack.request("GET", f"/api/v1/operations/{operation}", token=user.token)
    return bool(status.status == 200 and status.body["status"] == "applied")


@pytest.mark.parametrize(
    "scenario", [pytest.param(one, id=f"{one.row}-{one.fault}") for one in SCENARIOS if one.row in ROWS]
)
def test_a_row_keeps_its_promise_in_containers(
    stack: Containers, scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    until(lambda: _is_whole(stack), 20, "both Dashboards use all that they have again")

    async def break_it() -> tuple[tuple[str, ...], float | None]:
        result = await run(await stack.containers(), scenario, print)
        return result.broken, result.observed.recovery

    broken, recovery = asyncio.run(break_it())
    record_property("recovery", recovery)
    assert not broken


def test_one_dashboard_of_two_may_die_or_hang(stack: Containers, user: User) -> None:
    for harm in ("kill", "freeze"):
        for instance in DASHBOARDS:
            stack.chaos(harm, instance)
            read = lambda: stack.request("GET", user.path, token=user.token).status == 200  # noqa: E731
            until(lambda read=read: _answers(read), 10, f"the other serves while {instance} is broken ({harm})")  # type: ignore[misc]
            stack.chaos("heal", instance)


def _answers(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except OSError:
        return False


def test_a_rolling_restart_loses_no_request(
    stack: Containers, user: User, record_property: Callable[[str, object], None]
) -> None:
    stopping, seen, failed = threading.Event(), Counter[tuple[str, int]](), list[Answer]()

    def client(number: int) -> None:
        made = 0
        while not stopping.wait(PACE):
            made += 1
            read = stack.request("GET", user.path, token=user.token)
            wrote = stack.request("POST", "/api/v1/rooms", {"name": f"{number}-{made}"}, token=user.token)
            page = stack.request("GET", "/health/live")
            seen.update([("read", read.status), ("write", wrote.status), ("page", page.status)])
            failed.extend(answer for answer in (read, wrote, page) if answer.status >= 300)

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            until(lambda: sum(seen.values()) > 200, 30, "load")
            stack.roll()
        finally:
            stopping.set()
        for one in clients:
            one.result()  # no connection was refused or reset
    record_property("requests", str(seen))
    assert not failed, (seen, failed)


def test_services_start_before_their_servers_and_stop_cleanly(stack: Containers) -> None:
    stack.compose("stop", *SERVICES)
    assert {service: stack.inspect(service)["State"]["ExitCode"] for service in SERVICES} == dict.fromkeys(SERVICES, 0)
    stack.compose("stop", *SERVERS)

    for service in SERVICES:  # by the engine itself: compose would start what they depend on
        stack.docker("start", stack.container(service))
    for service in ("dashboard", "ai-core", "webrtc"):
        until(lambda service=service: _is_ready(stack, service), 20, f"{service} is ready")  # type: ignore[misc]
    until(lambda: _circuit(stack) == "open", 15, "the Dashboard says that its database is away")

    for server in SERVERS:
        stack.docker("start", stack.container(server))
    until(lambda: _accepts(stack), 30, "PostgreSQL accepts connections")
    for service, dependencies in {"dashboard": ("postgres", "redis"), "ai-core": ("postgres",)}.items():
        for one in dependencies:
            closed = lambda one=one, service=service: _everywhere_closed(stack, one, service)  # noqa: E731
            until(closed, RECOVERED, f"{service}'s circuit of {one} is closed")


def _everywhere_closed(stack: Containers, dependency: str, service: str) -> bool:
    """Asked more than once: which of two instances answers is the balancer's choice."""
    return {_circuit(stack, dependency, service) for _ in range(6)} == {"closed"}


def _is_whole(stack: Containers) -> bool:
    pages = [stack.request("GET", "/health/detailed").body["dependencies"] for _ in range(6)]
    return {one["circuit"] for page in pages for one in page.values()} == {"closed"}


def _is_ready(stack: Containers, service: str) -> bool:
    try:
        return stack.request("GET", "/health/ready", service=service).status == 200
    except OSError:
        return False


def test_data_survives_down_and_up(stack: Containers, user: User) -> None:
    stack.compose("down", limit=120)
    stack.compose("up", "--detach", "--wait", limit=120)
    profile = stack.request("GET", user.path, token=user.token)
    assert (profile.status, profile.body["display_name"]) == (200, "Ada")


@pytest.mark.parametrize("service", SERVICES)
def test_production_refuses_the_public_secrets(stack: Containers, service: str) -> None:
    said = stack.compose("run", "--rm", "--no-deps", "-e", "ENVIRONMENT=production", service, check=False)
    assert "Configuration errors" in said
    expected = {"JWT_SECRET", "ADMIN_TOKEN", "REDIS_URL"} | ({"DATABASE_URL"} if service != "webrtc" else set())
    assert all(f"{name}: " in said for name in expected), said
    assert "change-me" not in said
