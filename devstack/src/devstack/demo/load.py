"""A user at work: one account that does a few things steadily, every answer recorded as the caller saw it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from devstack.demo.habits import HABITS, READ_EVERY

CALL_LIMIT = 10.0  # s: far beyond the promise, so that a broken promise is seen as what it is

SETTLING = 30.0  # s
NOT_YET = (429, 503)


@dataclass(frozen=True)
class Call:
    """One request and its answer; ``status`` 0: none."""

    phase: str
    kind: str  # of HABITS
    status: int
    seconds: float
    degraded: bool = False
    fallback: str = ""
    queued: bool = False
    operation: str = ""
    name: str = ""  # what was written or read: a display name, or an agent's
    message: str = ""  # an error's text
    waits: bool = False  # it says when to come back
    error: str = ""


@dataclass
class User:
    """A registered user with a session, a room, an agent and a memory, and the history of all calls. ``url``: the
    service that is used; ``home``: the Dashboard, which knows the account."""

    session: aiohttp.ClientSession
    url: str
    home: str
    kinds: Sequence[str] = ("read", "write")
    id: str = ""
    token: str = ""
    room: str = ""
    agent: str = ""
    phase: str = "healthy"
    calls: list[Call] = field(default_factory=list)
    made: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    async def register(self) -> None:
        """A new account, logged in.

        Raises:
            aiohttp.ClientError: refused.
            TimeoutError: not possible for ``SETTLING`` seconds.
        """
        account = {"email": f"demo-{secrets.token_hex(6)}@example.com", "password": secrets.token_urlsafe(16)}
        made = await self._post("/users", {**account, "display_name": "name 0"})
        login = await self._post("/auth/login", account)
        self.id, self.token = made["id"], login["access_token"]
        self.room = (await self._post("/rooms", {"name": "Room"}))["id"]
        self.agent = (await self._post("/agents", {"name": "Agent"}))["id"]
        await self._post("/memories", {"text": "The spare key lies under the third flowerpot."})

    async def _post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        """Asks again, for the same thing, while the platform is still on its way: it is ready before its tables are."""
        url, headers = f"{self.home}/api/v1{path}", {**self._headers(), "Idempotency-Key": secrets.token_hex(8)}
        async with asyncio.timeout(SETTLING):
            while True:
                async with self.session.post(url, json=body, headers=headers) as response:
                    if response.status not in NOT_YET:
                        response.raise_for_status()
                        return dict(await response.json())
                await asyncio.sleep(READ_EVERY)

    async def settle_in(self) -> None:
        """Waits until everything that the user does is answered by the real thing: models are loaded, memories
        embedded. What was answered before is forgotten.

        Raises:
            TimeoutError: it is not after ``SETTLING`` seconds.
        """
        async with asyncio.timeout(SETTLING):
            for kind in self.kinds:
                await self.call(kind)
                while self.calls[-1].degraded or not 200 <= self.calls[-1].status < 300:
                    await asyncio.sleep(READ_EVERY)
                    await self.call(kind)
        self.calls.clear()

    async def work(self) -> None:
        """Each kind of request at its pace until ``leaving`` is set, then waits for the answers that are under way.
        Calls overlap when answers are slow, as with many users."""
        async with asyncio.TaskGroup() as group:
            for kind in self.kinds:
                group.create_task(self._steadily(kind))

    async def _steadily(self, kind: str) -> None:
        async with asyncio.TaskGroup() as group:
            while not self.leaving.is_set():
                group.create_task(self.call(kind))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.leaving.wait(), HABITS[kind].every)

    async def operation(self, operation_id: str) -> str:
        """The status of a queued write, or the HTTP status when there is none."""
        async with self.session.get(
            f"{self.url}/api/v1/operations/{operation_id}", headers=self._headers()
        ) as response:
            body = await response.json()
            return str(body.get("status", response.status)) if isinstance(body, dict) else str(response.status)

    async def health(self) -> dict[str, Any]:
        """The health page of the service that is used, from the instance that serves this user."""
        async with self.session.get(f"{self.url}/health/detailed", headers=self._headers()) as response:
            return dict(await response.json())

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def call(self, kind: str) -> None:
        """One request of a kind."""
        habit, self.made = HABITS[kind], self.made + 1
        path, body = habit.path.format(user=self.id, room=self.room, agent=self.agent), habit.body(self.made)
        name = _name(body or {})
        phase, begun = self.phase, time.monotonic()
        try:
            async with self.session.request(
                habit.method, f"{self.url}/api/v1{path}", json=body, headers=self._headers()
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
                operation=str(answer.get("operation_id") or ""),
                name=name or _name(answer),
                message=str(answer.get("message", "")),
                waits="Retry-After" in response.headers,
            )
        )


def _name(content: Mapping[str, Any]) -> str:
    return str(content.get("display_name") or content.get("name") or "")


def session() -> aiohttp.ClientSession:
    """A client whose every call is bounded. The token is its login: no cookie stands for another user's."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_LIMIT), cookie_jar=aiohttp.DummyCookieJar())
