"""What a dead or frozen dependency does to endpoints that do not need it: their p99 while it is away, against their
own healthy p99.

Rounds of two phases, healthy and broken, on one platform; in both, people go on asking for what needs the dependency,
so that a call that hangs would show wherever it takes somebody else's place. A broken phase begins with the fault: the
seconds until the circuit opens are in it. Requests come at a steady rate, however long earlier ones take.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target
from benchmarks.platform import LIMIT, POLL
from devstack import Stack, Topology

TARGET = Target("at most", 1.2)
RATE = 50.0  # requests per second to each endpoint that is measured: far below what the processors can do
OTHERS_RATE = 20.0  # and to each that needs what is broken
UNLIMITED = {"RATE_LIMIT_USER": "off", "RATE_LIMIT_ADDRESS": "off"}  # one user asks for everything
SETTLED = 1.0  # s of quiet after a recovery


@dataclass(frozen=True)
class Case:
    """One fault. ``measured``: endpoints that do not need the component; ``asking``: endpoints that do."""

    component: str
    fault: str
    measured: tuple[str, ...]
    asking: tuple[str, ...]


PATHS = {
    "users": "/users/{user}",
    "rooms": "/rooms/{room}",
    "agents": "/agents/{agent}",
    "chat": "/agents/{agent}/chat",
    "ticket": "/rooms/{room}/token",
    "me": "/auth/me",
}
BODIES: Mapping[str, Any] = {"chat": {"message": "Hello"}, "ticket": {}}
CASES = (
    Case("ai-core", "freeze", ("users", "rooms"), ("agents", "chat")),
    Case("ai-core", "kill", ("users", "rooms"), ("agents", "chat")),
    Case("webrtc", "freeze", ("users", "agents"), ("rooms", "ticket")),
    Case("webrtc", "kill", ("users", "agents"), ("rooms", "ticket")),
    Case("kafka", "freeze", ("users", "rooms"), ()),
    Case("postgres", "freeze", ("rooms",), ("users", "me")),
)


@dataclass(frozen=True)
class Caller:
    """Somebody with a room and an agent, and a session to ask with."""

    http: aiohttp.ClientSession
    names: Mapping[str, str]

    async def ask(self, what: str) -> int:
        """One request; its status, 0 for none."""
        method = "POST" if what in BODIES else "GET"
        path = "/api/v1" + PATHS[what].format(**self.names)
        try:
            async with self.http.request(method, path, json=BODIES.get(what)) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, OSError):
            return 0


async def isolation(options: Options) -> Report:
    """p99 of endpoints that do not need a dependency, while it is frozen or killed, against their healthy p99."""
    rounds, seconds = (3, 4.0) if options.quick else (6, 5.0)
    figures: list[Figure] = []
    details: list[str] = []
    async with _platform() as stack, _caller(stack) as caller:
        for case in CASES:
            options.say(
                f"{case.component} {case.fault}: {rounds} rounds of {seconds:g} s healthy, {seconds:g} s broken"
            )
            pairs = [await _round(stack, caller, case, seconds) for _ in range(rounds)]
            figures += [_figure(case, what, pairs) for what in case.measured]
            details += [_detail(case, what, pairs) for what in case.measured]
    return Report(figures, details)


Latencies = Mapping[str, Sequence[float]]


async def _round(stack: Stack, caller: Caller, case: Case, seconds: float) -> tuple[Latencies, Latencies]:
    await asyncio.sleep(SETTLED)
    healthy = await _phase(caller, case, seconds)
    await getattr(stack, case.fault)(case.component)
    try:
        broken = await _phase(caller, case, seconds)
    finally:
        await stack.heal(case.component)
    await _well(stack)
    return healthy, broken


async def _phase(caller: Caller, case: Case, seconds: float) -> Latencies:
    """Seconds of each answer of the measured endpoints, which must all be 200.

    Raises:
        BenchmarkError: one was not.
    """
    taken: dict[str, list[float]] = {what: [] for what in case.measured}
    statuses: dict[str, set[int]] = {what: set() for what in (*case.measured, *case.asking)}
    gc.collect()
    gc.disable()  # a full collection in this process would be the slowest answer of the phase
    try:
        async with asyncio.TaskGroup() as group:
            for what in case.measured:
                group.create_task(_steadily(caller, what, seconds, RATE, taken[what], statuses[what]))
            for what in case.asking:
                group.create_task(_steadily(caller, what, seconds, OTHERS_RATE, [], statuses[what]))
    finally:
        gc.enable()
    for what in case.measured:
        if statuses[what] != {200}:
            raise BenchmarkError(f"{what} did not answer every request with 200: {sorted(statuses[what])}")
    return taken


async def _steadily(
    caller: Caller, what: str, seconds: float, rate: float, taken: list[float], statuses: set[int]
) -> None:
    """Requests at a steady rate, each begun on time, whatever became of the ones before."""

    async def one() -> None:
        begun = time.perf_counter()
        statuses.add(await caller.ask(what))
        taken.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            group.create_task(one())


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def _figure(case: Case, what: str, pairs: Sequence[tuple[Latencies, Latencies]]) -> Figure:
    """The p99 of all rounds together, once without each: a single round has too few requests for one of its own."""
    ratios = [_ratio(what, [*pairs[:left_out], *pairs[left_out + 1 :]]) for left_out in range(len(pairs))]
    return Figure(f"p99 of {what}, {case.component} after {case.fault} / healthy", ratios, target=TARGET)


def _ratio(what: str, pairs: Sequence[tuple[Latencies, Latencies]]) -> float:
    healthy, broken = _pooled(what, pairs)
    return _p99(broken) / _p99(healthy)


def _pooled(what: str, pairs: Sequence[tuple[Latencies, Latencies]]) -> tuple[list[float], list[float]]:
    healthy, broken = zip(*pairs, strict=True)
    return [one for phase in healthy for one in phase[what]], [one for phase in broken for one in phase[what]]


def _detail(case: Case, what: str, pairs: Sequence[tuple[Latencies, Latencies]]) -> str:
    found = [_p99(phase) * 1e3 for phase in _pooled(what, pairs)]
    return f"{what:<7} p99 healthy {found[0]:5.1f} ms, {case.component} after {case.fault:<6} {found[1]:5.1f} ms"


@asynccontextmanager
async def _platform() -> AsyncIterator[Stack]:
    """Everything, without fault proxies: their own queueing would be measured."""
    with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
        async with Stack(folder, Topology(proxied=False, env=UNLIMITED), port_base=None) as stack:
            await _well(stack)
            yield stack


async def _well(stack: Stack) -> None:
    """Waits until every circuit of every service is closed, and the tables are there.

    Raises:
        BenchmarkError: some are not.
    """
    end = time.monotonic() + LIMIT
    async with aiohttp.ClientSession() as session:
        while not all([await _closed(session, stack.url(name)) for name in stack.topology.services]) or (
            not await _migrated(stack)
        ):
            if time.monotonic() > end:
                raise BenchmarkError(f"circuits are not closed after {LIMIT:g} s")
            await asyncio.sleep(POLL)


async def _migrated(stack: Stack) -> bool:
    """The services start before the database has its tables."""
    admin = {"authorization": f"Bearer {stack.admin_token}"}
    url = f"{stack.url('dashboard')}/api/v1/users?limit=1"
    async with aiohttp.ClientSession(headers=admin) as session, session.get(url) as answer:
        return answer.status == 200


async def _closed(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/detailed") as answer:
            page = await answer.json()
    except (aiohttp.ClientError, OSError):
        return False
    return all(one["circuit"] == "closed" for one in page["dependencies"].values())


@asynccontextmanager
async def _caller(stack: Stack) -> AsyncIterator[Caller]:
    login = {"email": "reader@example.org", "password": "correct horse battery"}
    connector, limit = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=10)
    url = stack.url("dashboard")
    async with aiohttp.ClientSession(url, raise_for_status=True) as session:
        user = await _post(session, "/users", {**login, "display_name": "Reader"})
        token = (await _post(session, "/auth/login", login))["access_token"]
        session.headers.update({"authorization": f"Bearer {token}"})
        room, agent = (
            await _post(session, "/rooms", {"name": "Room"}),
            await _post(session, "/agents", {"name": "Agent"}),
        )
    headers = {"authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, connector=connector, timeout=limit, headers=headers) as http:
        yield Caller(http, {"user": user["id"], "room": room["id"], "agent": agent["id"]})


async def _post(session: aiohttp.ClientSession, path: str, body: Mapping[str, str]) -> Any:
    async with session.post(f"/api/v1{path}", json=body) as answer:
        return await answer.json()
