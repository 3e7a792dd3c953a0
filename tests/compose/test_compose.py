"""The platform in its containers, from ``docker compose up`` to a PostgreSQL that is killed, frozen and mended.

Needs an engine and time, so it runs when it is asked for: ``make compose-test``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.compose.engine import Containers, unavailable, until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

SERVICES = ("dashboard", "ai-core", "webrtc")
SERVERS = ("postgres", "redis", "kafka", "providers")
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
    email = f"{uuid.uuid4().hex}@example.org"
    registered = stack.request("POST", "/api/v1/users", {"email": email, "password": PASSWORD, "display_name": "Ada"})
    assert registered.status == 201, registered
    login = stack.request("POST", "/api/v1/auth/login", {"email": email, "password": PASSWORD})
    assert login.status == 200, login
    return User(f"/api/v1/users/{registered.body['id']}", login.body["access_token"])


def test_every_container_is_healthy_confined_and_reachable_from_this_machine_only(stack: Containers) -> None:
    for service in (*SERVICES, *SERVERS):
        container = stack.inspect(service)
        assert container["State"]["Health"]["Status"] == "healthy", service
        published = [one for bound in container["NetworkSettings"]["Ports"].values() for one in bound or ()]
        assert {one["HostIp"] for one in published} <= {"127.0.0.1"}
        assert bool(published) == (service in SERVICES)
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


@pytest.mark.row("dashboard.postgres")
@pytest.mark.parametrize(("harm", "mend"), [("kill", "start"), ("pause", "unpause")])
def test_without_its_postgres_the_dashboard_serves_and_keeps_changes(
    stack: Containers, user: User, harm: str, mend: str, record_property: Callable[[str, object], None]
) -> None:
    assert stack.request("GET", user.path, token=user.token).status == 200
    stack.compose(harm, "postgres")
    operation = _change_is_accepted(stack, user)
    _profile_is_shown_with_it(stack, user)
    until(lambda: _circuit(stack) == "open", 10, "the prober opens the circuit without requests")
    _profile_is_shown_with_it(stack, user)
    assert stack.request("GET", "/health/ready").status == 200

    stack.compose(mend, "postgres")
    until(lambda: _accepts(stack), 30, "PostgreSQL accepts connections")
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


def _circuit(stack: Containers, dependency: str = "postgres", service: str = "dashboard") -> str:
    detailed = stack.request("GET", "/health/detailed", service=service)
    circuit: str = detailed.body["dependencies"][dependency]["circuit"]
    return circuit


def _accepts(stack: Containers) -> bool:
    """A query over TCP, as the services send theirs."""
    query = ("psql", "-h", "127.0.0.1", "-U", "auralink", "-d", "dashboard", "-tAc", "select 1")
    password = ("-e", "PGPASSWORD=change-me-public")
    return stack.compose("exec", "-T", *password, "postgres", *query, check=False).strip() == "1"


def _recovered(stack: Containers, user: User, operation: str) -> bool:
    if _circuit(stack) != "closed":
        return False
    status = stack.request("GET", f"/api/v1/operations/{operation}", token=user.token)
    return bool(status.status == 200 and status.body["status"] == "applied")


def test_services_start_before_their_servers_and_stop_cleanly(stack: Containers) -> None:
    stack.compose("stop", *SERVICES)
    assert {service: stack.inspect(service)["State"]["ExitCode"] for service in SERVICES} == dict.fromkeys(SERVICES, 0)
    stack.compose("stop", *SERVERS)

    for service in SERVICES:  # by the engine itself: compose would start what they depend on
        stack.docker("start", stack.container(service))
    for service in SERVICES:
        until(lambda service=service: _is_ready(stack, service), 20, f"{service} is ready")  # type: ignore[misc]
    until(lambda: _circuit(stack) == "open", 15, "the Dashboard says that its database is away")

    for server in SERVERS:
        stack.docker("start", stack.container(server))
    until(lambda: _accepts(stack), 30, "PostgreSQL accepts connections")
    for service, dependencies in {"dashboard": ("postgres", "redis"), "ai-core": ("postgres",)}.items():
        for one in dependencies:
            closed = lambda one=one, service=service: _circuit(stack, one, service) == "closed"  # noqa: E731
            until(closed, RECOVERED, f"{service}'s circuit of {one} is closed")


def _is_ready(stack: Containers, service: str) -> bool:
    try:
        return stack.request("GET", "/health/ready", service=service).status == 200
    except OSError:
        return False


def test_data_survives_new_containers(stack: Containers, user: User) -> None:
    stack.compose("up", "--detach", "--force-recreate", "--wait", limit=120)
    profile = stack.request("GET", user.path, token=user.token)
    assert (profile.status, profile.body["display_name"]) == (200, "Ada")


@pytest.mark.parametrize("service", SERVICES)
def test_production_refuses_the_public_secrets(stack: Containers, service: str) -> None:
    said = stack.compose("run", "--rm", "--no-deps", "-e", "ENVIRONMENT=production", service, check=False)
    assert "Configuration errors" in said
    expected = {"JWT_SECRET", "ADMIN_TOKEN", "REDIS_URL"} | ({"DATABASE_URL"} if service != "webrtc" else set())
    assert all(f"{name}: " in said for name in expected), said
    assert "change-me" not in said
