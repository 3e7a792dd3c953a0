"""AI Core as a gateway to providers, beside the official SDK without one and LiteLLM's proxy with the same chain.

All ask the same simulated provider, which answers at once: what is measured is what stands between. LiteLLM lives in an
environment of its own, made on first use; its proxy runs with one worker, no database and no log lines, and a router
with settings that suit it: no retries, a cooldown of 30 s after two failures (three would be ignored).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import orjson
import psutil

from benchmarks.gateway_sdk import Work
from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target, turns
from benchmarks.resilience.environment import base_python, environment
from benchmarks.slices import CONNECTIONS, Load, Slice, Subject, details, load_generator, post
from devstack import Stack, Topology
from devstack.components.base import http_ok
from devstack.process import Command, Process
from service_kit.tokens import TokenIssuer

PEERS = Path(__file__).with_name("gateway_peers.txt")
ROOT = Path(__file__).parent.parent
OURS, THEIRS, BARE = "AI Core", "LiteLLM proxy", "SDK, direct"
MODELS = ("gpt-4", "gpt-3.5-turbo", "claude-sonnet-5-5")
FIRST = f"openai:{MODELS[0]}"
START_LIMIT = 60.0  # s
LITELLM_KEY = "sk-benchmark"


@dataclass(frozen=True)
class Gateways:
    """What is compared, ready to be asked."""

    stack: Stack
    ours: Subject
    theirs: Subject
    provider: str
    token: str
    sdk: Sdk


async def gateway(options: Options) -> Report:
    """One chat completion through AI Core, LiteLLM's proxy and the SDK alone: healthy, first provider dead, hanging."""
    rounds, seconds = (2, 1.0) if options.quick else (6, 2.0)
    turn = 0.5 if options.quick else seconds  # short turns: neighbours on the machine disturb both sides alike
    figures: list[Figure] = []
    lines: list[str] = []
    async with _gateways(options) as those, load_generator() as load:
        found = {
            callers: await _in_turn(those, load, max(rounds, 6), turn, callers, options) for callers in (1, CONNECTIONS)
        }
        figures += _healthy(found)
        lines += [
            details(f"{name}, {callers} callers", (one[name] for one in slices))
            for callers, slices in found.items()
            for name in (OURS, THEIRS, BARE)
        ]
        lines.append(_memory(those))
        figures += [_memory_figure(those)]
        for fault in ("refuse", "hang"):
            more, said = await _broken(those, load, fault, rounds, seconds, options)
            figures += more
            lines += said
        streamed, said = await _streams(those, rounds, seconds, options)
        figures += streamed
        lines += said
    return Report(figures, lines)


Rounds = list[dict[str, Slice]]


async def _in_turn(those: Gateways, load: Load, rounds: int, seconds: float, callers: int, options: Options) -> Rounds:
    async def one(name: str, long: float) -> Slice:
        if name == BARE:
            return await those.sdk.slice(callers, long)
        return await load.slice(those.ours if name == OURS else those.theirs, long, callers)

    names = (OURS, THEIRS, BARE)
    for name in names:
        await one(name, 0.5)  # warms up, and is forgotten
    found: Rounds = []
    for number in range(rounds):
        options.say(f"{callers} callers, round {number + 1} of {rounds}")
        found.append({name: await one(name, seconds) for name in turns(names, number)})
    return found


def _healthy(found: dict[int, Rounds]) -> list[Figure]:
    alone, many = found[1], found[CONNECTIONS]
    return [
        _ratio(f"requests/s at {CONNECTIONS} callers", many, "rate", OURS, THEIRS, Target("at least", 15)),
        _ratio("p50 of one caller", alone, "p50", OURS, THEIRS, Target("at most", 0.12)),
        _ratio(f"p99 at {CONNECTIONS} callers", many, "p99", OURS, THEIRS),
        _ratio(f"requests/s at {CONNECTIONS} callers", many, "rate", OURS, BARE),
        _ratio("p50 of one caller", alone, "p50", OURS, BARE),
    ]


def _ratio(what: str, rounds: Rounds, field: str, one: str, other: str, target: Target | None = None) -> Figure:
    return Figure(
        f"{what}, {one} / {other}", [getattr(r[one], field) / getattr(r[other], field) for r in rounds], "×", target
    )


def _memory(those: Gateways) -> str:
    sizes = [
        f"{name} {_rss(subject.pid) / 1e6:.0f} MB" for name, subject in ((OURS, those.ours), (THEIRS, those.theirs))
    ]
    return f"resident memory after that: {', '.join(sizes)}"


def _memory_figure(those: Gateways) -> Figure:
    return Figure(
        f"resident memory, {OURS} / {THEIRS}",
        [_rss(those.ours.pid) / _rss(those.theirs.pid)],
        "×",
        Target("at most", 0.5),
    )


def _rss(pid: int) -> int:
    """Bytes of a process and those it has started."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


async def _broken(
    those: Gateways, load: Load, fault: str, rounds: int, seconds: float, options: Options
) -> tuple[list[Figure], list[str]]:
    """The first model of the chain is broken for the time of two slices; the circuit has opened before they begin."""
    found: Rounds = []
    calls: list[int] = []
    for number in range(rounds):
        options.say(f"first provider: {fault}, round {number + 1} of {rounds}")
        normal = await load.slice(those.ours, seconds, 1)
        async with _fault(those.provider, FIRST, fault):
            await _reset_calls(those.provider)
            await load.slice(those.ours, 3.0, 1)  # the circuit opens
            calls.append(await _calls(those.provider, FIRST))
            ours = await load.slice(those.ours, seconds, 1)
            await load.slice(those.theirs, 3.0, 1)
            theirs = await load.slice(those.theirs, seconds, 1)
        found.append({"normal": normal, OURS: ours, THEIRS: theirs})
        await _recovered(those)
    name = f"first provider {fault}"
    return [
        _ratio(
            f"{name}: p50 of one caller once the circuit is open", found, "p50", OURS, "normal", Target("at most", 1.15)
        ),
        _ratio(f"{name}: p50 of one caller", found, "p50", OURS, THEIRS),
        Figure(
            f"{name}: calls that reached it, one trial included",
            [float(count) for count in calls],
            "×",
            Target("at most", 4),
        ),
    ], [details(f"{name}, {who}", (one[who] for one in found)) for who in (OURS, THEIRS)]


async def _streams(those: Gateways, rounds: int, seconds: float, options: Options) -> tuple[list[Figure], list[str]]:
    """Tokens per second of streamed answers: through AI Core read by a bare client, and read by the SDK alone."""
    found: list[dict[str, float]] = []
    for number in range(rounds):
        options.say(f"streams, round {number + 1} of {rounds}")
        ours = await _streamed(those.ours.url + "/v1/chat/completions", those.token, seconds)
        theirs = await _streamed(those.theirs.url + "/v1/chat/completions", LITELLM_KEY, seconds)
        found.append({OURS: ours, THEIRS: theirs, BARE: await those.sdk.tokens(CONNECTIONS, seconds)})
    ratios = {other: [one[OURS] / one[other] for one in found] for other in (BARE, THEIRS)}
    return [
        Figure(f"streamed tokens/s, {OURS} / {BARE}", ratios[BARE], "×", Target("at least", 3)),
        Figure(f"streamed tokens/s, {OURS} / {THEIRS}", ratios[THEIRS], "×"),
    ], ["streamed tokens/s: " + ", ".join(f"{name} {median(one[name] for one in found):.0f}" for name in found[0])]


async def _streamed(url: str, key: str, seconds: float) -> float:
    """Content chunks per second over ``CONNECTIONS`` streams at a time."""
    body = orjson.dumps({**orjson.loads(_body(0, tokens=STREAM_TOKENS)), "stream": True})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    chunks = 0
    begun = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def one() -> None:
            nonlocal chunks
            while time.perf_counter() - begun < seconds:
                async with session.post(url, data=body) as answer:
                    if answer.status != 200:
                        raise BenchmarkError(f"a stream was answered with {answer.status}")
                    async for piece in answer.content.iter_any():
                        chunks += piece.count(b'"content":')

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return chunks / (time.perf_counter() - begun)


# -- what is compared


STREAM_TOKENS = 200
MESSAGES = [f"What is the {number}. prime number? Answer in one sentence." for number in range(CONNECTIONS)]


def _body(number: int, tokens: int = 0) -> bytes:
    text = " ".join(["token"] * tokens) if tokens else MESSAGES[number]
    return orjson.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": text}]})


class Sdk:
    """The process of the bare SDK."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self._url = url

    async def slice(self, callers: int, seconds: float) -> Slice:
        """Plain answers."""
        pid = self._process.pid
        before = _cpu(pid)
        found = await self._run(callers, seconds, MESSAGES, stream=False)
        cpu = (_cpu(pid) - before) / found["requests"] * 1e6
        rate = found["requests"] / found["seconds"]
        return Slice(rate, found["p50"] * 1e3, found["p99"] * 1e3, cpu, found["requests"], 0)

    async def tokens(self, callers: int, seconds: float) -> float:
        """Streamed tokens per second."""
        found = await self._run(callers, seconds, [" ".join(["token"] * STREAM_TOKENS)], stream=True)
        return float(found["chunks"] / found["seconds"])

    async def _run(self, callers: int, seconds: float, messages: Sequence[str], *, stream: bool) -> Any:
        work: Work = {
            "url": self._url,
            "model": MODELS[0],
            "messages": list(messages),
            "callers": callers,
            "seconds": seconds,
            "stream": stream,
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        async with asyncio.timeout(seconds + START_LIMIT):
            line = await self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the SDK's process has ended")
        return json.loads(line)


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@asynccontextmanager
async def _sdk(url: str) -> AsyncIterator[Sdk]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.gateway_sdk", stdin=pipe, stdout=pipe
    )
    try:
        yield Sdk(process, url)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def _gateways(options: Options) -> AsyncIterator[Gateways]:
    secret = secrets.token_hex(32)
    only = frozenset({"postgres", "redis", "providers", "ai-core"})
    topology = Topology(proxied=False, only=only, env={"JWT_SECRET": secret})
    with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
        async with Stack(folder, topology, port_base=None) as stack:
            provider = stack.url("providers")
            token = TokenIssuer(secret, lifetime=3600).issue("benchmark", "benchmark")
            process = stack.unit("ai-core").process
            assert process
            requests = [post("/v1/chat/completions", _body(number), token) for number in range(CONNECTIONS)]
            ours = Subject(OURS, stack.url("ai-core"), process.pid, requests)
            theirs = await _litellm(stack, provider, options)
            async with _sdk(f"{provider}/v1") as sdk:
                yield Gateways(stack, ours, theirs, provider, token, sdk)


async def _litellm(stack: Stack, provider: str, options: Options) -> Subject:
    """The proxy in a process that ends with the stack.

    Raises:
        BenchmarkError: it cannot be installed, or does not start.
    """
    there = environment(base_python(), options.say, PEERS, "gateway")
    config = stack.state.path / "litellm.yaml"
    config.write_text(json.dumps(_config(provider)))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": LITELLM_KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": "",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(ROOT / ".bench" / "bytecode"),
        "PATH": f"{there.python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = Command([str(there.python.parent / "litellm"), *arguments], env=env, cwd=stack.state.path)
    process = Process.spawn(THEIRS, command, log=stack.state.log("litellm"), record=stack.state.record("litellm"))
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + START_LIMIT
    while not await http_ok(f"{url}/health/liveliness"):
        if not process.alive or time.monotonic() > end:
            raise BenchmarkError(f"LiteLLM's proxy does not start:\n{stack.log_tail('litellm')}")
        await asyncio.sleep(0.2)
    requests = [post("/v1/chat/completions", _body(number), LITELLM_KEY) for number in range(CONNECTIONS)]
    return Subject(THEIRS, url, process.pid, requests)


def _config(provider: str) -> dict[str, Any]:
    """The same chain in LiteLLM's terms."""

    def model(name: str) -> dict[str, Any]:
        kind, base = ("anthropic", "/anthropic") if name.startswith("claude") else ("openai", "/v1")
        return {
            "model_name": name,
            "litellm_params": {"model": f"{kind}/{name}", "api_base": provider + base, "api_key": "simulated"},
        }

    return {
        "model_list": [model(name) for name in MODELS],
        "router_settings": {
            "fallbacks": [{MODELS[0]: list(MODELS[1:])}],
            "num_retries": 0,
            "allowed_fails": 2,
            "cooldown_time": 30,
            "timeout": 1.5,
        },
        "litellm_settings": {"telemetry": False, "set_verbose": False, "num_retries": 0},
        "general_settings": {"master_key": LITELLM_KEY},
    }


# -- the provider's faults


@asynccontextmanager
async def _fault(provider: str, target: str, fault: str) -> AsyncIterator[None]:
    url = f"{provider}/admin/faults/{target}"
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        await session.put(url, json={"fault": fault})
        try:
            yield
        finally:
            await session.delete(url)


async def _reset_calls(provider: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        await session.delete(f"{provider}/admin/calls")


async def _calls(provider: str, target: str) -> int:
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.get(f"{provider}/admin/calls") as answer,
    ):
        counts = (await answer.json()).get(target, {})
    return int(counts.get("calls", 0))


async def _recovered(those: Gateways) -> None:
    """Waits until AI Core asks the first provider again."""
    end = time.monotonic() + START_LIMIT
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{those.ours.url}/health/detailed") as answer:
                page = await answer.json()
            if all(one["circuit"] == "closed" for one in page["dependencies"].values()):
                return
            if time.monotonic() > end:
                raise BenchmarkError("the first provider is not used again")
            await asyncio.sleep(0.1)
