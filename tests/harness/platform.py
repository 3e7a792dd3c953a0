"""The running platform as a test sees it: requests with a limit, conditions to wait for, what the database holds."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import aiohttp
import asyncpg

from devstack.stack import Stack
from tests.harness.checker import Database, Row
from tests.harness.client import Account
from tests.harness.routes import LABELS, ROUTES, template

T = TypeVar("T")
PASSWORD = "correct horse battery"
LIMIT = 8.0  # s for one request
PAGE = 100
_CHANGES = """SELECT substr(entity, 6) AS user_id, count(*) FROM operations
    WHERE kind = 'user.update' AND error IS NULL GROUP BY entity"""


async def eventually(check: Callable[[], Awaitable[T]], what: str, limit: float = 10.0) -> T:
    """Asks ``check`` until it returns something true, and returns that.

    Raises:
        AssertionError: not within ``limit`` seconds.
    """
    end = time.monotonic() + limit
    while not (found := await check()):
        assert time.monotonic() < end, f"not within {limit:g} s: {what}"
        await asyncio.sleep(0.02)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read completely."""

    status: int
    headers: Mapping[str, str]
    body: Any
    seconds: float = field(compare=False, default=0.0)


class Platform:
    """A stack and a client of it."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.session = session
        self.equipped: dict[str, Account] = {}
        """Accounts that have a room and an agent, by id."""
        self.warmed = -math.inf
        """When every instance last had a copy of all that they own."""

    @property
    def dashboards(self) -> tuple[str, ...]:
        """Names of the instances."""
        return self.stack.topology.dashboard_names

    @property
    def targets(self) -> dict[str, str]:
        """Instances and their addresses."""
        return {name: self.stack.url(name) for name in self.dashboards}

    @property
    def admin(self) -> dict[str, str]:
        """Headers of an operator's request."""
        return {"authorization": f"Bearer {self.stack.admin_token}"}

    async def call(
        self,
        method: str,
        path: str,
        account: Account | None = None,
        *,
        at: str = "dashboard",
        headers: Mapping[str, str] | None = None,
        **content: Any,
    ) -> Answer:
        """One request to the service ``at``; JSON is decoded."""
        given = {**(account.headers if account else {}), **(headers or {})}
        timeout = aiohttp.ClientTimeout(total=LIMIT)
        begun = time.monotonic()
        async with self.session.request(
            method, self.stack.url(at) + path, headers=given, timeout=timeout, **content
        ) as answer:
            json = "json" in answer.content_type
            body = await answer.json(content_type=None) if json else await answer.text()
            return Answer(answer.status, answer.headers, body, time.monotonic() - begun)

    async def register(self, at: str = "dashboard") -> Account:
        """A new user, logged in."""
        email = f"{uuid.uuid4().hex}@example.org"
        new = {"email": email, "password": PASSWORD, "display_name": "New"}
        made = await self.call("POST", "/api/v1/users", at=at, json=new)
        assert made.status == 201, made
        login = await self.call("POST", "/api/v1/auth/login", at=at, json={"email": email, "password": PASSWORD})
        assert login.status == 200, login
        return Account(made.body["id"], email, PASSWORD, login.body["access_token"])

    async def profile(self, account: Account, at: str = "dashboard") -> Answer:
        """The account as it sees itself."""
        return await self.call("GET", f"/api/v1/users/{account.id}", account, at=at)

    async def rename(self, account: Account, name: str, at: str = "dashboard", **headers: str) -> Answer:
        """Changes the display name."""
        body = {"display_name": name}
        return await self.call("PATCH", f"/api/v1/users/{account.id}", account, at=at, json=body, headers=headers)

    async def kinds(self) -> list[str]:
        """Kinds of requests whose route the Dashboard has."""
        document = (await self.call("GET", "/openapi.json")).body
        known = {(method.upper(), _shape(path)) for path, methods in document["paths"].items() for method in methods}
        return [kind for kind, route in ROUTES.items() if (route.method, _shape(template(kind))) in known]

    async def equip(self, account: Account) -> Account:
        """The account with a room and an agent of its own."""
        room = await self.call("POST", "/api/v1/rooms", account, json={"name": "Room"})
        agent = await self.call("POST", "/api/v1/agents", account, json={"name": "Agent"})
        assert room.status == agent.status == 201, (room, agent)
        return replace(account, room=room.body["id"], agent=agent.body["id"])

    # --- conditions

    async def circuit(self, dependency: str, at: str = "dashboard") -> str:
        """State of a circuit."""
        health = (await self.call("GET", "/health/detailed", at=at)).body
        return str(health["dependencies"][dependency]["circuit"])

    async def circuits(self, component: str, at: Sequence[str] = ()) -> list[str]:
        """States of all circuits that guard a component, at every service or some. One that does not answer has none
        in a known state."""
        found = []
        for service in at or self.stack.topology.services:
            try:
                page = (await self.call("GET", "/health/detailed", at=service)).body
            except (aiohttp.ClientError, OSError):
                found.append("unknown")
                continue
            found += [one["circuit"] for one in page["dependencies"].values() if _guards(one["label"], component)]
        return found

    async def modes(self) -> dict[str, str]:
        """The mode of each Dashboard."""
        return {name: (await self.call("GET", "/health/detailed", at=name)).body["mode"] for name in self.dashboards}

    async def in_state(self, dependency: str, state: str, *, at: tuple[str, ...] = (), limit: float = 10.0) -> None:
        """Waits until the circuit is in the state, at all Dashboards unless told otherwise."""
        for name in at or self.dashboards:

            async def reached(name: str = name) -> bool:
                return await self.circuit(dependency, name) == state

            await eventually(reached, f"circuit of {dependency} at {name} {state}", limit)

    async def depth(self, at: str = "dashboard") -> int:
        """Writes that wait in the queue; -1 when nobody can say."""
        answer = await self.call("GET", "/admin/queue", at=at, headers=self.admin)
        return int(answer.body["depth"]) if answer.status == 200 else -1

    async def drained(self, limit: float = 10.0) -> None:
        """Waits until the queues are empty."""

        async def empty() -> bool:
            return await self.depth() == 0

        await eventually(empty, "queues empty", limit)

    async def healthy(self, limit: float = 20.0) -> None:
        """Waits until every circuit of every service is closed and nothing is queued."""
        for service in self.stack.topology.services:

            async def well(service: str = service) -> bool:
                try:
                    answer = await self.call("GET", "/health/detailed", at=service)
                except (aiohttp.ClientError, OSError):
                    return False
                found = answer.body["dependencies"].values()
                return answer.body["phase"] == "ready" and all(one["circuit"] == "closed" for one in found)

            await eventually(well, f"all circuits of {service} closed", limit)

        async def migrated() -> bool:
            return (await self.call("GET", "/api/v1/users?limit=1", headers=self.admin)).status == 200

        await eventually(migrated, "the Dashboard's tables are there", limit)
        await self.drained(limit)

    async def mend(self) -> None:
        """Undoes every fault that is left and waits until all is well."""
        for name, unit in self.stack.units.items():
            if unit.faults or not unit.running:
                await self.stack.heal(name)
        await self.healthy()

    async def database(self) -> Database:
        """What is in the Dashboard's database, asked past all services."""
        connection = await asyncpg.connect(self.stack.database_url("dashboard"), timeout=5)
        try:
            users = await connection.fetch("SELECT id::text, display_name, revision FROM users", timeout=10)
            settled = await connection.fetch("SELECT id, error FROM operations", timeout=10)
            changes = await connection.fetch(_CHANGES, timeout=10)
        finally:
            await connection.close(timeout=5)
        made = {"new_agent": await self._names("agents", "name"), "new_memory": await self._names("memories", "text")}
        return Database(
            {row["id"]: Row(row["display_name"], row["revision"]) for row in users},
            {row["id"]: row["error"] for row in settled},
            {row["user_id"]: row["count"] for row in changes},
            {kind: names for kind, names in made.items() if names is not None},
        )

    async def _names(self, table: str, column: str) -> Counter[str] | None:
        """How often each name occurs in a table of AI Core; None: it has no such table."""
        connection = await asyncpg.connect(self.stack.database_url("ai_core"), timeout=5)
        try:
            rows = await connection.fetch(f"SELECT {column} AS name FROM {table}", timeout=10)
        except asyncpg.UndefinedTableError:
            return None
        finally:
            await connection.close(timeout=5)
        return Counter(row["name"] for row in rows)

    async def rooms(self, accounts: Sequence[Account]) -> Counter[str]:
        """How often each name occurs among the accounts' rooms."""
        names: Counter[str] = Counter()
        for account in accounts:
            cursor: str | None = ""
            while cursor is not None:
                more = f"&cursor={cursor}" if cursor else ""
                page = await self.call("GET", f"/api/v1/rooms?limit={PAGE}{more}", account)
                assert page.status == 200, page
                names.update(room["name"] for room in page.body["items"])
                cursor = page.body["next_cursor"]
        return names


def _guards(label: str, component: str) -> bool:
    return label in LABELS[component]


def _shape(path: str) -> str:
    """A path without the names of its parameters."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))
