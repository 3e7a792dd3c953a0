"""The compose file as a stack of its own, beside whatever else runs: own project name, free ports, own volumes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devstack import containers as driver

ROOT = Path(__file__).parents[2]
PROJECT = "auralink-compose-test"
ASKED_FOR = "AURALINK_COMPOSE_TESTS"
PORTS = {"dashboard": "DASHBOARD", "ai-core": "AI_CORE", "webrtc": "WEBRTC"}
IMAGES = tuple(f"{name}_IMAGE" for name in ("POSTGRES", "REDIS", "KAFKA", "BALANCER", "TURN"))
PASSED_ON = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", *IMAGES)
BUILD_LIMIT = 900.0  # s; a first build downloads everything
START_LIMIT = 120  # s
COMMAND_LIMIT = 60.0  # s
REQUEST_LIMIT = 10.0  # s; no answer for so long is no answer


def unavailable() -> str:
    """Why the platform cannot be run in containers here, or "" if it can."""
    if os.environ.get(ASKED_FOR) != "1":
        return f"runs with {ASKED_FOR}=1 only (make chaos-compose)"
    for command, missing in (
        (["docker", "compose", "version"], "there is no `docker compose`"),
        (["docker", "info"], "no Docker engine answers"),
    ):
        try:
            done = subprocess.run(command, capture_output=True, timeout=COMMAND_LIMIT, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return missing
        if done.returncode:
            return missing
    return ""


@dataclass(frozen=True)
class Answer:
    """What came back: headers by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: Any
    seconds: float


class Containers:
    """The running stack. A command that fails raises AssertionError with its output, or TimeoutExpired."""

    def __init__(self) -> None:
        names = [f"{prefix}_{kind}_PORT" for prefix in PORTS.values() for kind in ("HTTP", "GRPC")] + ["TURN_PORT"]
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        # Nothing of the developer's own settings: what is tested is what a newcomer gets.
        self._env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._env |= {name: str(port) for name, port in self._ports.items()}
        self._env |= {"COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_ENV_FILES": os.devnull}

    def compose(self, *arguments: str, limit: float = COMMAND_LIMIT, check: bool = True) -> str:
        """What ``docker compose`` printed."""
        return self._run(["docker", "compose", *arguments], limit, check)

    def chaos(self, verb: str, component: str) -> str:
        """What ``auralink chaos --compose`` printed."""
        command = [sys.executable, "-m", "devstack", "chaos", "--compose", verb, component]
        return self._run(command, COMMAND_LIMIT, check=True)

    async def containers(self) -> driver.Containers:
        """The driver behind that command, for this project."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            for name, value in self._env.items():
                patch.setenv(name, value)
            return await driver.Containers.find()

    def roll(self) -> str:
        """What the rolling restart of the Dashboards printed."""
        return self._run(["deploy/balancer/roll.sh"], START_LIMIT, check=True)

    def docker(self, *arguments: str) -> str:
        """What ``docker`` printed."""
        return self._run(["docker", *arguments], COMMAND_LIMIT, check=True)

    def _run(self, command: list[str], limit: float, check: bool) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self._env, text=True, timeout=limit, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def up(self) -> None:
        """Build, start, and wait until every container is healthy."""
        self.compose("build", limit=BUILD_LIMIT)
        try:
            self.compose("up", "--detach", "--wait", "--wait-timeout", str(START_LIMIT), limit=START_LIMIT + 30)
        except AssertionError as error:
            error.add_note(self.compose("logs", "--no-color", "--tail", "40", check=False))
            raise

    def down(self) -> None:
        """Remove containers, network, volumes and images. Containers that are paused are woken: they could not stop."""
        self.compose("unpause", check=False)
        self.compose("down", "--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "5")

    def container(self, service: str) -> str:
        """The container's id, also of a stopped one."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> Any:
        """What the engine knows about the service's container."""
        return json.loads(self.docker("inspect", self.container(service)))[0]

    def sql(self, database: str, statement: str) -> str:
        """A query's values, as psql prints them unaligned."""
        arguments = ("exec", "-T", "postgres", "psql", "-U", "auralink", "-d", database, "-tAc", statement)
        return self.compose(*arguments).strip()

    def address(self, service: str = "dashboard") -> tuple[str, int]:
        """Where a service's HTTP is published."""
        return "127.0.0.1", self._ports[f"{PORTS[service]}_HTTP_PORT"]

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        service: str = "dashboard",
    ) -> Answer:
        """One request to a service's published port, on a connection of its own."""
        sent = {"content-type": "application/json", **(headers or {})}
        if token:
            sent["authorization"] = f"Bearer {token}"
        started = time.monotonic()
        connection = http.client.HTTPConnection(*self.address(service), timeout=REQUEST_LIMIT)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, json.loads(text) if text else None, time.monotonic() - started)


def _free_ports(count: int) -> list[int]:
    with _listeners(count) as sockets:
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _listeners(count: int) -> Iterator[list[socket.socket]]:
    """Sockets that are all open at once, so that no port is given twice."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def until(condition: Callable[[], bool], limit: float, what: str) -> float:
    """Seconds until the condition holds. Fails after ``limit`` seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - started
