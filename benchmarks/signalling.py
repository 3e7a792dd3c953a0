"""The signalling beside PeerJS's server and a bare relay: 200 rooms of two peers, SDPs (5 %, 4 kB) and candidates.

PeerJS's server (npm ``peer``) is installed into a directory that goes away with the run. Each server runs as one
process with its own 400 connections, which stay open for the whole run; the servers take turns. Compared is what one
second of the server's CPU relays, because the generator is as slow as the fastest of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil

from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target, turns
from devstack import Stack, Topology
from service_kit.tokens import TokenIssuer
from webrtc.model import Grants
from webrtc.outbound.tokens import JwtSigner

ROOMS = 200
IDLE_ROOMS = 500
ACTIVE_ROOMS = 100
OURS, PEERJS, RELAY = "AuraLink", "PeerJS", "bare relay"
TOGETHER, APART = "one instance", "two instances"
AMONG, WITHOUT = "among 1,000 idle peers", "without them"
PEERJS_VERSION = "1.0.2"
LOW_RATE = 1_000.0
ANSWER_LIMIT = 120.0
START_LIMIT = 30.0
# Limits are counted, and never reached; the history of calls and their events are others' work.
ENVIRONMENT = {"WS_MESSAGE_RATE": "1000000", "ACCESS_LOG": "errors", "DATABASE_URL": "", "KAFKA_BOOTSTRAP_SERVERS": ""}
POLL = 0.05
CPU_STEP = 0.01  # s, in which the kernel counts


@dataclass(frozen=True)
class Slice:
    """What was found in one go: messages per second and per second of the server's CPU, latencies in s."""

    rate: float
    per_cpu: float
    p50: float
    p99: float
    load: float
    """The share of its core that the generator needed."""


class Server:
    """A server with its generator, connected."""

    def __init__(self, name: str, pids: Sequence[int], load: asyncio.subprocess.Process) -> None:
        self.name = name
        self._pids = pids
        self._load = load

    async def ask(self, **order: Any) -> dict[str, Any]:
        """One order to the generator."""
        assert self._load.stdin
        assert self._load.stdout
        self._load.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_LIMIT):
            line = await self._load.stdout.readline()
        if not line:
            raise BenchmarkError(f"the load generator of {self.name} has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    async def slice(self, do: str, seconds: float, rate: float = 0.0) -> Slice:
        """Raises BenchmarkError: a message was lost, or the server said something else."""
        before = self._cpu()
        found = await self.ask(do=do, seconds=seconds, rate=rate)
        cpu = self._cpu() - before
        if found["problems"] or found["sent"] != found["received"]:
            raise BenchmarkError(f"{self.name} lost messages: {found}")
        count = found["received"]
        return Slice(count / found["seconds"], count / max(cpu, CPU_STEP), found["p50"], found["p99"], found["cpu"])

    def _cpu(self) -> float:
        return sum(cpu_of(pid) for pid in self._pids)


async def signalling(options: Options) -> Report:
    """Messages relayed per second of CPU, and their latency, beside PeerJS's server and a bare relay."""
    rounds, seconds = (2, 1.0) if options.quick else (6, 3.0)
    async with _servers(options) as servers:
        full = await _in_turn(servers, "saturate", rounds, seconds, 0.0, options)
        low = await _in_turn(servers, "rate", rounds, 2 * seconds, LOW_RATE, options)
    idle, line = await _idle(options, rounds, 2 * seconds)
    apart, apart_lines = await _apart(options, rounds, seconds)
    lines = [
        _details(f"{name}, {what}", [one[name] for one in found])
        for what, found in (("saturated", full), (f"{LOW_RATE:g}/s", low))
        for name in servers
    ]
    figures = [
        _ratio("messages per CPU second", full, "per_cpu", PEERJS, Target("at least", 1.0)),
        _ratio("messages per CPU second", full, "per_cpu", RELAY),
        _ratio(f"p99 at {LOW_RATE:g}/s", low, "p99", RELAY, Target("at most", 1.5)),
        _ratio(f"p99 at {LOW_RATE:g}/s", low, "p99", PEERJS),
        *idle,
        *apart,
    ]
    return Report(figures, [*lines, line, *apart_lines])


Rounds = list[dict[str, Slice]]


async def _in_turn(
    servers: dict[str, Server], do: str, rounds: int, seconds: float, rate: float, options: Options
) -> Rounds:
    for server in servers.values():
        await server.slice(do, 0.5, rate)  # warms up, and is forgotten
    found: Rounds = []
    for number in range(rounds):
        options.say(f"{do}, round {number + 1} of {rounds}")
        names = turns(list(servers), number)
        found.append({name: await servers[name].slice(do, seconds, rate) for name in names})
    return found


def _ratio(what: str, rounds: Rounds, field: str, other: str, target: Target | None = None) -> Figure:
    samples = [getattr(one[OURS], field) / getattr(one[other], field) for one in rounds]
    return Figure(f"{what}, {OURS} / {other}", samples, "×", target)


def _details(name: str, slices: Sequence[Slice]) -> str:
    rate, per_cpu, p50, p99, load = (
        median(getattr(one, key) for one in slices) for key in ("rate", "per_cpu", "p50", "p99", "load")
    )
    return (
        f"{name:<22} {rate:7.0f}/s   {per_cpu:7.0f} per CPU second   p50 {p50 * 1e3:6.2f} ms   "
        f"p99 {p99 * 1e3:6.2f} ms   generator at {load:.0%}"
    )


# -- many that are there and say nothing


async def _idle(options: Options, rounds: int, seconds: float) -> tuple[list[Figure], str]:
    """1,000 peers that say nothing beside 200 that do: what the idle ones cost."""
    options.say(f"{2 * IDLE_ROOMS} idle and {2 * ACTIVE_ROOMS} active peers")
    async with AsyncExitStack() as stack:
        among, without = [await stack.enter_async_context(_active()) for _ in range(2)]
        bare = psutil.Process(among.pid).memory_info().rss
        idle = await stack.enter_async_context(_load(OURS, among.pid))
        await idle.ask(do="connect", kind="ours", urls=await _our_urls(among.stack, IDLE_ROOMS))
        memory = (psutil.Process(among.pid).memory_info().rss - bare) / 2 / IDLE_ROOMS
        servers = {AMONG: among.server, WITHOUT: without.server}
        found = await _in_turn(servers, "rate", rounds, seconds, LOW_RATE, options)
    samples = [one[AMONG].p99 / one[WITHOUT].p99 for one in found]
    cpu = [one[WITHOUT].per_cpu / one[AMONG].per_cpu for one in found]
    figures = [
        Figure(f"p99 at {LOW_RATE:g}/s, {AMONG} / {WITHOUT}", samples),
        Figure(f"CPU at {LOW_RATE:g}/s, {AMONG} / {WITHOUT}", cpu),
    ]
    return figures, f"an idle peer takes {memory / 1e3:.0f} kB of the service"


@dataclass(frozen=True)
class Active:
    """A platform with its active peers."""

    stack: Stack
    pid: int
    server: Server


@asynccontextmanager
async def _active() -> AsyncIterator[Active]:
    async with _platform() as stack, _load(OURS, _pid(stack)) as server:
        await server.ask(do="connect", kind="ours", urls=await _our_urls(stack, ACTIVE_ROOMS))
        yield Active(stack, _pid(stack), server)


# -- two instances


async def _apart(options: Options, rounds: int, seconds: float) -> tuple[list[Figure], list[str]]:
    """The two peers of each room on different instances, so that every message goes through Redis; nothing is lost."""
    options.say("two instances")
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(_platform("webrtc-2"))
        first, second = _pid(platform), _pid(platform, "webrtc-2")
        servers = {}
        for name, bases in ((TOGETHER, ("webrtc", "webrtc")), (APART, ("webrtc", "webrtc-2"))):
            servers[name] = server = await stack.enter_async_context(_load(name, first, second))
            await server.ask(do="connect", kind="ours", urls=await _our_urls(platform, ACTIVE_ROOMS, bases))
        full = await _in_turn(servers, "saturate", rounds, seconds, 0.0, options)
        low = await _in_turn(servers, "rate", rounds, 2 * seconds, LOW_RATE, options)
    lines = [
        _details(f"{name}, {what}", [one[name] for one in found])
        for what, found in (("saturated", full), (f"{LOW_RATE:g}/s", low))
        for name in servers
    ]
    ratios = [one[APART].per_cpu / one[TOGETHER].per_cpu for one in full]
    figures = [
        Figure(f"messages per CPU second, {APART} / {TOGETHER}", ratios),
        Figure(f"p99 at {LOW_RATE:g}/s, {APART}", [one[APART].p99 for one in low], "s"),
    ]
    return figures, lines


# -- servers


@asynccontextmanager
async def _servers(options: Options) -> AsyncIterator[dict[str, Server]]:
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(_platform())
        peerjs_port, relay_port = _free_port(), _free_port()
        peerjs = await stack.enter_async_context(_peerjs(options, peerjs_port))
        relay = await stack.enter_async_context(
            _process([sys.executable, "-m", "benchmarks.signalling_relay", str(relay_port)], relay_port)
        )
        urls = {
            OURS: await _our_urls(platform, ROOMS),
            PEERJS: [_peerjs_url(peerjs_port, number) for number in range(2 * ROOMS)],
            RELAY: [f"ws://127.0.0.1:{relay_port}/{number // 2}" for number in range(2 * ROOMS)],
        }
        kinds, pids = {OURS: "ours", PEERJS: "peerjs", RELAY: "relay"}, {OURS: _pid(platform), PEERJS: peerjs}
        servers = {}
        for name, kind in kinds.items():
            server = await stack.enter_async_context(_load(name, pids.get(name, relay)))
            options.say(f"{name}: {2 * ROOMS} peers join")
            await server.ask(do="connect", kind=kind, urls=urls[name])
            servers[name] = server
        yield servers


@asynccontextmanager
async def _platform(*more: str) -> AsyncIterator[Stack]:
    only = frozenset({"redis", "webrtc", *more})
    topology = Topology(proxied=False, webrtcs=1 + len(more), only=only, env=ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
        async with Stack(folder, topology, port_base=None) as stack:
            yield stack


def _pid(stack: Stack, name: str = "webrtc") -> int:
    process = stack.unit(name).process
    assert process
    return process.pid


async def _our_urls(stack: Stack, rooms: int, instances: tuple[str, str] = ("webrtc", "webrtc")) -> list[str]:
    """A URL with a token for each of two peers a room, each on its instance."""
    secret = stack.state.secret("jwt")
    headers = {"Authorization": f"Bearer {TokenIssuer(secret).issue('benchmark', 'benchmark')}"}
    base, signer, now = stack.url("webrtc"), JwtSigner(secret), time.time()
    urls: list[str] = []
    async with aiohttp.ClientSession(raise_for_status=True, headers=headers) as session:
        for _ in range(rooms):
            async with session.post(f"{base}/api/v1/rooms", json={"name": "benchmark"}) as answer:
                room = str((await answer.json())["id"])
            for user, instance in zip(("ada", "bob"), instances, strict=True):
                token = signer.sign(room, user, now, 3_600, grants=Grants())
                urls.append(f"{stack.url(instance).replace('http', 'ws', 1)}/ws?token={token}")
    return urls


@asynccontextmanager
async def _peerjs(options: Options, port: int) -> AsyncIterator[int]:
    """Raises BenchmarkError: it cannot be installed, or does not start."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        raise BenchmarkError("PeerJS's server needs node and npm")
    with tempfile.TemporaryDirectory(prefix="auralink-peerjs-") as folder:
        options.say(f"installing PeerJS's server {PEERJS_VERSION}")
        install = await asyncio.create_subprocess_exec(
            *(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, f"peer@{PEERJS_VERSION}"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(ANSWER_LIMIT):
            if await install.wait():
                raise BenchmarkError("npm could not install PeerJS's server")
        script = Path(folder, "node_modules", "peer", "dist", "bin", "peerjs.js")
        arguments = ["--port", str(port), "--host", "127.0.0.1", "--path", "/"]
        async with _process([node, str(script), *arguments], port) as pid:
            yield pid


def _peerjs_url(port: int, number: int) -> str:
    return f"ws://127.0.0.1:{port}/peerjs?key=peerjs&id=p{number}&token=t{number}&version=1.5.5"


@asynccontextmanager
async def _process(command: Sequence[str], port: int) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, env={**os.environ, "NODE_ENV": "production"}
    )
    try:
        await _listening(port, process)
        yield process.pid
    finally:
        await _end(process)


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    end = time.monotonic() + START_LIMIT
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.returncode is not None or time.monotonic() > end:
                raise BenchmarkError(f"nothing listens on port {port}") from None
            await asyncio.sleep(POLL)
        else:
            writer.close()
            return


@asynccontextmanager
async def _load(name: str, *pids: int) -> AsyncIterator[Server]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.signalling_load", stdin=pipe, stdout=pipe
    )
    try:
        yield Server(name, pids, process)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used, all its threads together."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
