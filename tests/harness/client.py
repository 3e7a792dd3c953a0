"""One request to a Dashboard, as an event of the history."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from tests.harness.history import Event
from tests.harness.routes import ROUTES, Route

NO_ANSWER_AFTER = 10.0  # s; far beyond the service's own limit: whoever waits this long got no answer
_HEADERS = (
    "x-degraded-mode",
    "x-fallback-used",
    "x-circuit-state",
    "x-retry-after",
    "retry-after",
    "age",
    "content-type",
    "x-request-id",
    "preference-applied",
)
_BODY = (
    "display_name",
    "stale",
    "as_of",
    "pending",
    "error",
    "message",
    "row",
    "queued",
    "operation_id",
    "status_url",
    "status",
    "translated",
    "embedding",
    "source",
    "spoken",
    "ended",
    "degraded",
    "fallbacks",
)
_BROKEN = (aiohttp.ClientError, OSError, ValueError)
STREAM_LIMIT = 15.0  # s for a whole answer in pieces; a provider that has fallen silent is given up after 10


@dataclass(frozen=True, slots=True)
class Account:
    """A registered user with an open session, and what he owns."""

    id: str
    email: str
    password: str
    token: str
    room: str = ""
    agent: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request."""
        return {"authorization": f"Bearer {self.token}"}


class Recorder:
    """Sends requests to named instances (name -> base URL) and turns them into events."""

    def __init__(self, session: aiohttp.ClientSession, targets: Mapping[str, str]) -> None:
        self.targets = targets
        self._session = session

    async def read(self, account: Account, instance: str) -> Event:
        """The account's own profile."""
        return await self.use("read", account, instance)

    async def write(self, account: Account, instance: str, name: str, *, key: str = "", wait: bool = True) -> Event:
        """Changes the display name; ``wait=False`` prefers 202 to 503 when it is queued."""
        headers = {} if wait else {"prefer": "respond-async"}
        if key:
            headers["idempotency-key"] = key
        return await self.use("write", account, instance, name, headers=headers)

    async def operation(self, account: Account, instance: str, operation_id: str) -> Event:
        """What became of a queued write."""
        return await self.use("operation", account, instance, operation=operation_id)

    async def login(self, account: Account, instance: str) -> Event:
        """A new session."""
        return await self.use("login", account, instance)

    async def health(self, instance: str) -> Event:
        """Readiness, which no dependency may take away."""
        return await self.use("health", None, instance)

    async def use(
        self,
        kind: str,
        account: Account | None,
        instance: str,
        name: str = "",
        *,
        operation: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Event:
        """One request of a kind, on behalf of the account."""
        route = ROUTES[kind]
        who = account or Account("", "", "", "")
        path = route.path.format(user=who.id, room=who.room, agent=who.agent, operation=operation)
        login = {"email": who.email, "password": who.password}
        return await self._send(
            Event(kind, instance, 0.0, 0.0, None, who.id, name),
            path if kind == "health" else f"/api/v1{path}",
            login if kind == "login" else route.body(name),
            {**(headers or {}), **(who.headers if route.person and kind != "login" else {})},
        )

    async def _send(self, asked: Event, path: str, body: Any, headers: Mapping[str, str]) -> Event:
        route = ROUTES[asked.kind]
        url = self.targets[asked.instance] + path
        limit = aiohttp.ClientTimeout(total=STREAM_LIMIT if route.pieces else NO_ANSWER_AFTER)
        given = {**headers, "accept": "text/event-stream"} if route.pieces else headers
        asked = replace(asked, start=time.monotonic())
        try:
            async with self._session.request(route.method, url, json=body, headers=given, timeout=limit) as answer:
                begun = time.monotonic() if route.pieces else 0.0
                content = await _content(route, answer)
        except _BROKEN as error:
            return _event(asked, None, {}, {}, error=f"{type(error).__name__}: {error}")
        return _event(replace(asked, begun=begun), answer.status, answer.headers, content)


async def _content(route: Route, answer: aiohttp.ClientResponse) -> Mapping[str, Any]:
    """What is to be kept of a body."""
    if answer.status == 200 and route.stream:
        return {}
    if answer.status == 200 and route.pieces:
        return await _last_piece(answer)
    content = await answer.json(content_type=None)
    if not isinstance(content, dict):
        return {}
    return {**content, "spoken": content["audio"] is not None} if "audio" in content else content


async def _last_piece(answer: aiohttp.ClientResponse) -> Mapping[str, Any]:
    """What the last event says, and its kind as ``ended``: empty when the stream just stopped."""
    try:
        kind, data = (await answer.read()).rstrip(b"\n").rpartition(b"\n\n")[2].split(b"\n")
        return {**json.loads(data.removeprefix(b"data: ")), "ended": kind.removeprefix(b"event: ").decode()}
    except _BROKEN as error:
        return {"ended": "", "message": f"{type(error).__name__}: {error}"}


def _event(
    asked: Event, status: int | None, headers: Mapping[str, str], content: Mapping[str, Any], error: str = ""
) -> Event:
    body = {key: content[key] for key in _BODY if key in content}
    seen = {key: headers[key] for key in _HEADERS if key in headers}
    name = asked.name or str(body.get("display_name", ""))
    return replace(asked, end=time.monotonic(), status=status, name=name, headers=seen, body=body, error=error)
