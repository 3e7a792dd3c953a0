"""Slices of load on one process after the other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.load import Order
from benchmarks.measure import BenchmarkError

CONNECTIONS = 32
ANSWER_LIMIT = 60.0  # s


@dataclass(frozen=True)
class Subject:
    """A process under load: its address, its pid, and what each connection sends."""

    name: str
    url: str
    pid: int
    requests: Sequence[str]


@dataclass(frozen=True)
class Slice:
    """A subject's result: requests per second, latencies in ms, CPU of its process per request in µs."""

    rate: float
    p50: float
    p99: float
    cpu: float
    requests: int
    degraded: int


class Load:
    """The load generator's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def slice(self, subject: Subject, seconds: float, connections: int = CONNECTIONS) -> Slice:
        """Put load on a subject, with one request in flight on each connection.

        Raises:
            BenchmarkError: an answer other than 200, a lost connection, or no answers at all.
        """
        at = urlsplit(subject.url)
        assert at.hostname
        assert at.port
        order = Order(
            host=at.hostname, port=at.port, connections=connections, seconds=seconds, requests=list(subject.requests)
        )
        before = _cpu(subject.pid)
        found = await self._run(order)
        cpu = _cpu(subject.pid) - before
        count = found.get("requests", 0)
        if not count or set(found["statuses"]) != {"200"}:
            raise BenchmarkError(f"{subject.name} did not answer every request with 200: {found}")
        rate = count / found["seconds"]
        return Slice(rate, found["p50"] * 1e3, found["p99"] * 1e3, cpu / count * 1e6, count, found["degraded"])

    async def _run(self, order: Order) -> dict[str, Any]:
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_LIMIT):
            line = await process.stdout.readline()
        if not line:
            raise BenchmarkError("the load generator has ended")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def load_generator() -> AsyncIterator[Load]:
    """Ends with the block; also ends by itself when this process does, because its input does."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.load", stdin=pipe, stdout=pipe)
    try:
        yield Load(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, all its threads together."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def get(path: str, token: str = "") -> str:
    """The head of a GET."""
    credentials = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{credentials}Accept: application/json\r\n\r\n"


def post(path: str, body: bytes, token: str = "") -> str:
    """The whole of a POST of JSON."""
    credentials = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{credentials}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body.decode()}"


def details(name: str, slices: Iterable[Slice]) -> str:
    """One line of absolute numbers: medians over the slices. They hold for this machine at this hour only."""
    found = list(slices)
    rate, p50, p99, cpu = (median(getattr(one, key) for one in found) for key in ("rate", "p50", "p99", "cpu"))
    return f"{name:<28} {rate:7.0f}/s   p50 {p50:5.1f} ms   p99 {p99:5.1f} ms   CPU {cpu:4.0f} µs a request"
