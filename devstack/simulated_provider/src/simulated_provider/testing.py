"""For tests: the simulated provider as a process, plain requests to it, and its admin API."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Simulator:
    """A running process."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, limit: float = 5.0) -> Answer:
        """One request; raises what `http.client` raises."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=limit)
        try:
            connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body).encode())
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def order(self, target: str, fault: str, **members: Any) -> None:
        """Make something go wrong."""
        answer = self.ask("PUT", f"/admin/faults/{target}", {"fault": fault, **members})
        if answer.status != 200:
            raise ValueError(answer.body.decode())

    def calls(self, name: str) -> dict[str, int]:
        """How often something was called."""
        found: dict[str, int] = self.ask("GET", "/admin/calls").json.get(name, {})
        return found

    def reset(self) -> None:
        """Nothing is ordered, nothing was counted."""
        self.ask("DELETE", "/admin/faults")
        self.ask("DELETE", "/admin/calls")
        self.ask("PUT", "/admin/settings", {"token_delay": 0, "answer_tokens": 0})


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(*options: str) -> Iterator[Simulator]:
    """A process for the time of the body; it has to stop cleanly within its limit."""
    port = free_port()
    command = [sys.executable, "-m", "simulated_provider", "--port", str(port), *options]
    process = subprocess.Popen(command)  # noqa: S603 - our own program
    simulator = Simulator(port, process)
    try:
        _wait_until_up(simulator)
        yield simulator
    finally:
        process.terminate()
        if process.wait(timeout=6):
            raise RuntimeError(f"the simulated provider ended with {process.returncode}")


def _wait_until_up(simulator: Simulator) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit and simulator.process.poll() is None:
        try:
            if simulator.ask("GET", "/health").status == 200:
                return
        except (OSError, HTTPException):
            time.sleep(0.02)
    raise RuntimeError("the simulated provider did not come up")
