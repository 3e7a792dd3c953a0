"""A user at work: one account that is read and changed steadily, every answer recorded as the caller saw it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

READ_EVERY = 0.05  # s
WRITE_EVERY = 0.2  # s
CALL_LIMIT = 10.0  # s: far beyond the promise, so that a broken promise is seen as what it is


@dataclass(frozen=True)
class Call:
    """One request and its answer; ``status`` 0: none."""

    phase: str
    kind: str  # "read" or "write"
    status: int
    seconds: float
    degraded: bool = False
    fallback: str = ""
    queued: bool = False
    operation: str = ""
    name: str = ""  # the display name that was written or read
    error: str = ""


@dataclass
class User:
    """A registered user with a session, and the history of all calls."""

    session: aiohttp.ClientSession
    url: str
    id: str = ""
    token: str = ""
    phase: str = "healthy"
    calls: list[Call] = field(default_factory=list)
    written: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    async def register(self) -> None:
        """A new account, logged in.

        Raises:
            aiohttp.ClientError: refused.
        """
        account = {"email": f"demo-{secrets.token_hex(6)}@example.com", "password": secrets.token_urlsafe(16)}
        made = await self._post("/users", {**account, "display_name": "name 0"})
        login = await self._post("/auth/login", account)
        self.id, self.token = made["id"], login["access_token"]

    async def _post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/api/v1{path}", json=body, raise_for_status=True) as response:
            return dict(await response.json())

    async def work(self) -> None:
        """Reads and writes at their pace until ``leaving`` is set, then waits for the answers that are under way. Calls
        overlap when answers are slow, as with many users."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._steadily(READ_EVERY, self.read))
            group.create_task(self._steadily(WRITE_EVERY, self.write))

    async def _steadily(self, every: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as group:
            while not self.leaving.is_set():
                group.create_task(action())
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.leaving.wait(), every)

    async def read(self) -> None:
        await self._call("read", "GET", f"/users/{self.id}")

    async def write(self) -> None:
        self.written += 1
        await self._call("write", "PATCH", f"/users/{self.id}", f"name {self.written}")

    async def operation(self, operation_id: str) -> str:
        """The status of a queued write, or the HTTP status when there is none."""
        async with self.session.get(
            f"{self.url}/api/v1/operations/{operation_id}", headers=self._headers()
        ) as response:
            body = await response.json()
            return str(body.get("status", response.status)) if isinstance(body, dict) else str(response.status)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def _call(self, kind: str, method: str, path: str, name: str = "") -> None:
        body = {"display_name": name} if name else None
        phase, begun = self.phase, time.monotonic()
        try:
            async with self.session.request(
                method, f"{self.url}/api/v1{path}", json=body, headers=self._headers()
            ) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            lost = time.monotonic() - begun
            self.calls.append(Call(phase, kind, 0, lost, name=name, error=type(error).__name__))
            return
        seconds = time.monotonic() - begun
        answer = answer if isinstance(answer, dict) else {}
        self.calls.append(
            Call(
                phase,
                kind,
                response.status,
                seconds,
                degraded=response.headers.get("X-Degraded-Mode") == "true",
                fallback=response.headers.get("X-Fallback-Used", ""),
                queued=bool(answer.get("queued")),
                operation=str(answer.get("operation_id", "")),
                name=name or str(answer.get("display_name", "")),
            )
        )


def session() -> aiohttp.ClientSession:
    """A client whose every call is bounded."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_LIMIT))
