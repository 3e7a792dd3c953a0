"""How the `auralink` command talks to the running supervisor: a small HTTP API on loopback.

Its address and token are in stack.json (0600). A browser is refused, since any web page could reach the port otherwise.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import aiohttp
from aiohttp import web

from devstack.errors import ChaosError, ProxyError
from devstack.ports import HOST
from devstack.stack import Stack, Unit

HEALTH_LIMIT = 1.5  # s for one service's health page
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """Serves the API of one stack; ``asked_to_stop`` is set by ``POST /down``."""

    def __init__(self, stack: Stack) -> None:
        self.asked_to_stop = asyncio.Event()
        self._stack = stack
        self._token = secrets.token_urlsafe(32)
        self._begun = time.monotonic()
        self._runner: web.AppRunner | None = None

    async def start(self) -> dict[str, str]:
        """Listens on a free port; returns ``url`` and ``token`` for stack.json."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/status", self._status),
                web.post("/chaos/{action}/{component}", self._chaos),
                web.post("/down", self._down),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        return {"url": f"http://{HOST}:{self._runner.addresses[0][1]}", "token": self._token}

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if "Origin" in request.headers or not hmac.compare_digest(given.encode(), self._token.encode()):
            return web.json_response({"error": "the token of stack.json is needed"}, status=401)
        try:
            return await handler(request)
        except (ChaosError, ProxyError, TimeoutError) as error:
            return web.json_response({"error": str(error)}, status=409)

    async def _down(self, _: web.Request) -> web.Response:
        self.asked_to_stop.set()
        return web.json_response({"stopping": True})

    async def _chaos(self, request: web.Request) -> web.Response:
        """``kill``, ``freeze``, ``delay`` (``?ms=``), ``cut`` or ``heal``."""
        action, name = request.match_info["action"], request.match_info["component"]
        stack = self._stack
        if action == "heal":
            healed = await stack.heal(name)
            return web.json_response({**asdict(healed), "problem": "" if healed.accepts else stack.explain(name)})
        if action == "delay":
            await stack.delay(name, milliseconds(request.query.get("ms", "5000")))
        elif action in ("kill", "freeze", "cut"):
            await {"kill": stack.kill, "freeze": stack.freeze, "cut": stack.cut}[action](name)
        else:
            raise ChaosError(f"no such fault: {action}")
        return web.json_response({"component": name, "state": stack.unit(name).state})

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self.status())

    async def status(self) -> dict[str, Any]:
        """The components' processes, every service's health page, and from these one list of rows."""
        stack = self._stack
        services = [name for name in stack.topology.services if name in stack.units]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HEALTH_LIMIT)) as session:
            pages = await asyncio.gather(*(health(session, stack.unit(name).component.url) for name in services))
        return {
            "state_dir": str(stack.state.path),
            "uptime_s": round(time.monotonic() - self._begun, 1),
            "components": {name: component(unit) for name, unit in stack.units.items()},
            "services": {name: {"http": stack.url(name), **page} for name, page in zip(services, pages, strict=True)},
            "rows": [row for name, page in zip(services, pages, strict=True) for row in rows(name, page["health"])],
        }


def milliseconds(text: str) -> int:
    """Raises:
    ChaosError: not a number from 0 to an hour.
    """
    if not text.isascii() or not text.isdigit() or int(text) > 3_600_000:
        raise ChaosError(f"not a number of milliseconds: {text!r}")
    return int(text)


def component(unit: Unit) -> dict[str, Any]:
    """One component's line of the status."""
    process = unit.process
    return {
        "state": unit.state,
        "faults": sorted(unit.faults - {"killed", "frozen"}),
        "pid": process.pid if process is not None and process.alive else None,
        "exit_code": process.exit_code if process is not None else None,
        "port": unit.component.port,
        "uptime_s": round(time.monotonic() - process.started, 1) if process is not None and process.alive else None,
        "problem": unit.problem,
    }


async def health(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """A service's detailed health page, asked directly, not through the fault proxy."""
    try:
        async with session.get(f"{url}/health/detailed") as response:
            return {"health": await response.json(), "error": None}
    except (aiohttp.ClientError, OSError, ValueError) as error:
        text = "does not answer" if isinstance(error, TimeoutError) else "not reachable"
        return {"health": None, "error": text}


def rows(service: str, page: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The matrix rows on a health page."""
    if not page:
        return []
    depth = sum(int(queue.get("depth", 0)) for queue in page.get("queues", {}).values() if isinstance(queue, dict))
    found = [
        {"service": service, "dependency": name, "mode": page.get("mode"), "queue_depth": depth, **dependency}
        for name, dependency in page.get("dependencies", {}).items()
    ]
    return sorted(found, key=lambda row: str(row.get("label", "")))
