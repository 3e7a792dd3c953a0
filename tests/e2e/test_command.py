"""The story of the first page, with the command a newcomer types: `auralink up`, break it, use it, heal it, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from devstack.process import runs
from devstack.progress import READY_MARK
from devstack.stack import Stack
from devstack.topology import Topology
from tests.harness.platform import PASSWORD, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]

UP_LIMIT = 60.0  # s
STOP_LIMIT = 30.0  # s
Call = Any


class Up:
    """`auralink up` as a child process, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, state: Path) -> None:
        self.process = process
        self.state = state
        self.printed = ""

    async def until(self, text: str, limit: float) -> None:
        """Reads what it prints until ``text`` comes."""
        assert self.process.stdout is not None
        async with asyncio.timeout(limit):
            while text not in self.printed:
                line = await self.process.stdout.readline()
                assert line, f"it ended without saying {text!r}:\n{self.printed}"
                self.printed += line.decode()

    @property
    def stack(self) -> dict[str, Any]:
        """The content of stack.json."""
        return dict(json.loads((self.state / "stack.json").read_text(encoding="utf-8")))

    async def interrupt(self) -> int:
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_LIMIT):
            output, _ = await self.process.communicate()
        self.printed += output.decode()
        return int(self.process.returncode or 0)


@asynccontextmanager
async def up(state: Path) -> AsyncIterator[Up]:
    """Runs for the time of the body; killed if the body does not stop it."""
    process = await command("up", state, "--port-base", "auto")
    try:
        yield Up(process, state)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def command(verb: str, state: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Starts `auralink VERB`."""
    line = [sys.executable, "-m", "devstack", *verb.split(), *arguments, "--state-dir", str(state)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*line, stdout=pipe, stderr=asyncio.subprocess.STDOUT)


async def chaos(what: str, state: Path) -> str:
    """One `auralink chaos` command; what it printed."""
    process = await command(f"chaos {what}", state)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def call(client: aiohttp.ClientSession, method: str, path: str, **content: Any) -> tuple[int, Any, Any]:
    """Status, headers and JSON."""
    async with client.request(method, path, timeout=aiohttp.ClientTimeout(total=8), **content) as answer:
        return answer.status, answer.headers, await answer.json(content_type=None)


async def logged_in(client: aiohttp.ClientSession) -> tuple[str, dict[str, str]]:
    """A new user's address and headers."""
    new = {"email": "ada@example.org", "password": PASSWORD, "display_name": "Ada"}

    async def made() -> bool:  # the tables may still be on their way
        return (await call(client, "POST", "/api/v1/users", json=new))[0] in (201, 409)

    await eventually(made, "registered", 20)
    login = {"email": new["email"], "password": PASSWORD}
    _, _, body = await call(client, "POST", "/api/v1/auth/login", json=login)
    return f"/api/v1/users/{body['user']['id']}", {"authorization": f"Bearer {body['access_token']}"}


async def test_the_story_of_a_killed_database(tmp_path: Path) -> None:
    async with up(tmp_path) as platform:
        await platform.until(READY_MARK, UP_LIMIT)
        async with aiohttp.ClientSession(platform.stack["services"]["dashboard"]["http"]) as client:
            path, headers = await logged_in(client)
            assert (await call(client, "GET", path, headers=headers))[0] == 200
            await chaos("kill postgres", tmp_path)

            status, seen, body = await call(client, "GET", path, headers=headers)
            assert (status, body["display_name"], body["stale"]) == (200, "Ada", True)
            assert seen["x-degraded-mode"] == "true"
            change = {"display_name": "Countess"}
            status, _, body = await call(client, "PATCH", path, headers=headers, json=change)
            assert (status, body["queued"]) == (503, True)
            status, _, later = await call(
                client, "PATCH", path, headers={**headers, "prefer": "respond-async"}, json=change
            )
            assert status == 202
            _, _, body = await call(client, "GET", path, headers=headers)
            assert (body["display_name"], body["pending"]) == ("Countess", True)

            assert "accepts" in await chaos("heal postgres", tmp_path)

            async def applied() -> bool:
                _, _, operation = await call(client, "GET", later["status_url"], headers=headers)
                return bool(operation["status"] == "applied")

            await eventually(applied, "the change is applied", 5)
            _, seen, body = await call(client, "GET", path, headers=headers)
            assert (body["display_name"], "stale" in body, "pending" in body) == ("Countess", False, False)
            assert "x-degraded-mode" not in seen
        assert await platform.interrupt() == 0


async def broken_cluster(state: Path) -> None:
    """A cluster that was made properly, and whose control file is then damaged."""
    async with Stack(state, Topology(only=frozenset({"postgres"})), port_base=None) as stack:
        control = stack.plan.postgres.home.data / "global" / "pg_control"
    control.write_bytes(b"not a control file")


async def test_a_database_that_cannot_start_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    await broken_cluster(tmp_path)
    async with up(tmp_path) as platform:
        await platform.until("without postgres", UP_LIMIT)
        assert "postgres: ended with exit status" in platform.printed
        assert "pg_control" in platform.printed
        stack = platform.stack
        pids = [part["pid"] for group in ("services", "components") for part in stack[group].values() if part["pid"]]
        assert len(pids) >= 5
        for service in stack["services"].values():
            async with aiohttp.ClientSession(service["http"]) as client:
                assert (await call(client, "GET", "/health/ready"))[0] == 200
        async with aiohttp.ClientSession(stack["services"]["dashboard"]["http"]) as client:
            await says_what_is_wrong(client)
        begun = [psutil.Process(pid) for pid in pids]
        assert await platform.interrupt() == 0
        assert "stopped" in platform.printed
        assert not any(runs(process) for process in begun)
        assert not (tmp_path / "stack.json").exists()


async def says_what_is_wrong(client: aiohttp.ClientSession) -> None:
    """The Dashboard tells callers and operators, each in their own way."""
    missing = {"email": "nobody@example.org", "password": PASSWORD}
    status, headers, body = await call(client, "POST", "/api/v1/auth/login", json=missing)
    assert status in (503, 429)
    assert int(headers["retry-after"]) >= 1
    assert body["error"] in ("DATABASE_ERROR", "CIRCUIT_OPEN")

    async def shown() -> bool:
        _, _, health = await call(client, "GET", "/health/detailed")
        return bool(health["dependencies"]["postgres"]["last_error"])

    await eventually(shown, "the reason is shown", 10)
