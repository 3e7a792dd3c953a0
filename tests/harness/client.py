"""One request to a Dashboard, as an event of the history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.harness.history import Event

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
_BODY = ("display_name", "stale", "as_of", "pending", "error", "message", "queued", "operation_id", "status_url")


@dataclass(frozen=True, slots=True)
class Account:
    """A registered user with an open session."""

    id: str
    email: str
    password: str
    token: str

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
        return await self._send("read", "GET", instance, f"/api/v1/users/{account.id}", account)

    async def write(self, account: Account, instance: str, name: str, *, key: str = "", wait: bool = True) -> Event:
        """Changes the display name; ``wait=False`` prefers 202 to 503 when it is queued."""
        headers = {} if wait else {"prefer": "respond-async"}
        if key:
            headers["idempotency-key"] = key
        path, body = f"/api/v1/users/{account.id}", {"display_name": name}
        return await self._send("write", "PATCH", instance, path, account, name=name, json=body, headers=headers)

    async def operation(self, account: Account, instance: str, operation_id: str) -> Event:
        """What became of a queued write."""
        return await self._send("operation", "GET", instance, f"/api/v1/operations/{operation_id}", account)

    async def login(self, account: Account, instance: str) -> Event:
        """A new session."""
        body = {"email": account.email, "password": account.password}
        return await self._send("login", "POST", instance, "/api/v1/auth/login", account, json=body)

    async def health(self, instance: str) -> Event:
        """Readiness, which no dependency may take away."""
        return await self._send("health", "GET", instance, "/health/ready")

    async def _send(
        self,
        kind: str,
        method: str,
        instance: str,
        path: str,
        account: Account | None = None,
        *,
        name: str = "",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Event:
        given = {**(headers or {}), **(account.headers if account and kind != "login" else {})}
        user = account.id if account else ""
        start = time.monotonic()
        try:
            timeout = aiohttp.ClientTimeout(total=NO_ANSWER_AFTER)
            url = self.targets[instance] + path
            async with self._session.request(method, url, json=json, headers=given, timeout=timeout) as answer:
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Event(
                kind, instance, start, time.monotonic(), None, user, name, error=f"{type(error).__name__}: {error}"
            )
        end = time.monotonic()
        body = {key: content[key] for key in _BODY if key in content}
        seen = {key: answer.headers[key] for key in _HEADERS if key in answer.headers}
        return Event(kind, instance, start, end, answer.status, user, name or body.get("display_name", ""), seen, body)
