"""The part of the platform that the read benchmarks run: two Dashboards on real servers, and people logged in."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.measure import BenchmarkError
from benchmarks.slices import Subject, get
from devstack import Stack, Topology

PEOPLE = 8
LIMIT = 30.0  # s for the tables to be there, or a circuit to open or close
POLL = 0.02  # s
QUIET = "dashboard-2"
# Limits that are counted, and never reached.
UNLIMITED = {"RATE_LIMIT_USER": "1000000/s:2000", "RATE_LIMIT_ADDRESS": "1000000/s:2000"}


@dataclass(frozen=True)
class Person:
    """Somebody with an account, logged in."""

    id: str
    token: str

    @property
    def path(self) -> str:
        return f"/api/v1/users/{self.id}"


@asynccontextmanager
async def platform() -> AsyncIterator[Stack]:
    """PostgreSQL, Valkey, a Dashboard with its default settings and one (`QUIET`) that logs errors only.

    Without fault proxies: an edge through one would cost more than what is measured.
    """
    only = frozenset({"postgres", "redis", "dashboard", QUIET})
    topology = Topology(
        dashboards=2, proxied=False, only=only, env=UNLIMITED, service_env={QUIET: {"ACCESS_LOG": "errors"}}
    )
    with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
        async with Stack(folder, topology, port_base=None) as stack:
            for name in topology.dashboard_names:
                await _schema(stack, name)
            yield stack


def dashboard(stack: Stack, name: str, people: list[Person]) -> Subject:
    """A Dashboard whose connections each belong to one of the people, who read their own accounts."""
    process = stack.unit(name).process
    assert process
    return Subject(name, stack.url(name), process.pid, [get(person.path, person.token) for person in people])


async def people(stack: Stack) -> list[Person]:
    """Registers them and logs them in, over the API."""
    async with aiohttp.ClientSession(stack.url("dashboard"), raise_for_status=True) as session:
        return [await _person(session, number) for number in range(PEOPLE)]


async def _person(session: aiohttp.ClientSession, number: int) -> Person:
    login = {"email": f"reader{number}@example.org", "password": "correct horse battery"}
    await _post(session, "/api/v1/users", {**login, "display_name": f"Reader {number}"})
    answer = await _post(session, "/api/v1/auth/login", login)
    return Person(answer["user"]["id"], answer["access_token"])


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, str]) -> Any:
    async with session.post(path, json=body) as answer:
        return await answer.json()


async def circuit(stack: Stack, wanted: str, person: Person) -> None:
    """Waits until the first Dashboard's circuit to PostgreSQL is in a state, with reads of `person` meanwhile.

    Raises:
        BenchmarkError: it did not get there.
    """
    end = time.monotonic() + LIMIT
    async with aiohttp.ClientSession(stack.url("dashboard")) as session:
        while await _state(session) != wanted:
            if time.monotonic() > end:
                raise BenchmarkError(f"the circuit is not {wanted} after {LIMIT:g} s")
            await _get(session, person.path, person.token)
            await asyncio.sleep(POLL)


async def _schema(stack: Stack, name: str) -> None:
    """The services start before the database has its tables; this waits for them."""
    end = time.monotonic() + LIMIT
    async with aiohttp.ClientSession(stack.url(name)) as session:
        while await _get(session, "/api/v1/users", stack.admin_token) != 200:
            if time.monotonic() > end:
                raise BenchmarkError(f"{name} does not read its tables after {LIMIT:g} s")
            await asyncio.sleep(POLL)


async def _state(session: aiohttp.ClientSession) -> str:
    async with session.get("/health/detailed") as answer:
        page = await answer.json()
    return str(page["dependencies"]["postgres"]["circuit"])


async def _get(session: aiohttp.ClientSession, path: str, token: str) -> int:
    async with session.get(path, headers={"Authorization": f"Bearer {token}"}) as answer:
        await answer.read()
        return answer.status
