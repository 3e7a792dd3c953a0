"""A service of the kit on free ports: in the test's own event loop, or in a process of its own."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import APIRouter

from service_kit.http import create_app
from service_kit.runtime import Phase, ServiceRuntime
from service_kit.settings import ServiceSettings

SECRET = "kJ8#vQ2!mZ5^xR7&tB4*wN9(pL3)cH6%"
ADMIN = "q7Hf-93kd-Pz12-vvXe-admn"
SAMPLE = Path(__file__).with_name("kit_sample.py")


@pytest.fixture
def make_settings() -> Callable[..., ServiceSettings]:
    def make(**values: Any) -> ServiceSettings:
        known: dict[str, Any] = {"jwt_secret": SECRET, "admin_token": ADMIN, "_env_file": None}
        return ServiceSettings(**{**known, **values})

    return make


@pytest.fixture
async def runtime(make_settings: Callable[..., ServiceSettings]) -> AsyncIterator[ServiceRuntime]:
    runtime = ServiceRuntime(
        "sample",
        make_settings(
            request_timeout="300ms", max_body="10KB", access_log="off", mode_leave_after="0s", slow_request="100ms"
        ),
    )
    runtime.phase = Phase.READY
    yield runtime
    await runtime.close()


def _load_sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kit_sample", SAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["kit_sample"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sample() -> Any:
    """The module kit_sample, which the tests also run as a process."""
    return _load_sample()


class Client:
    """HTTP against a running application."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def __call__(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        async with self.session.request(method, self.base + path, **options) as response:
            raw = await response.read()
            decoded = await response.json(content_type=None) if "json" in response.content_type else raw
            return response.status, response.headers, decoded


@asynccontextmanager
async def serving(runtime: ServiceRuntime, *routers: APIRouter, **options: Any) -> AsyncIterator[Client]:
    """The application on a free port until the block ends."""
    app = create_app(runtime, routers=routers, title="Sample", **options)
    config = uvicorn.Config(app, loop="none", http="httptools", lifespan="off", log_config=None, access_log=False)
    config.load()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    async with aiohttp.ClientSession() as session:
        yield Client(session, f"http://127.0.0.1:{listener.getsockname()[1]}")
    # Closed by hand: uvicorn's own shutdown sleeps for a third of a second, which many tests would add up.
    for one in server.servers:
        one.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    for task in list(server.server_state.tasks):
        task.cancel()
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)


class Process:
    """The sample service in a process of its own."""

    def __init__(self, **environment: str) -> None:
        self.http, self.grpc = free_port(), free_port()
        ports = {"HTTP_PORT": str(self.http), "GRPC_PORT": str(self.grpc)}
        secrets = {"JWT_SECRET": SECRET, "ADMIN_TOKEN": ADMIN}
        base = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTEST"))}
        self.popen = subprocess.Popen(
            [sys.executable, str(SAMPLE)],
            env={**base, **ports, **secrets, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    async def ended(self, limit: float = 15.0) -> tuple[int, str, str]:
        out, err = await asyncio.to_thread(self.popen.communicate, timeout=limit)
        return self.popen.returncode, out, err

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def run(**environment: str) -> Process:
        started.append(Process(**environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(name="serving")
def _serving() -> Callable[..., Any]:
    return serving


async def until(condition: Callable[[], bool], limit: float = 5.0) -> None:
    """Wait for a condition, not for a time."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.01)


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    return until
