"""The load generator, a process of its own: ``python -m benchmarks.load``, one JSON object per line in and out.

A bare HTTP/1.1 keep-alive client on asyncio's protocols, because a generator on the same machine takes from what
it measures: about 15 µs of CPU per request, a tenth of what the cheapest endpoint here needs. Each connection has one
request in flight. It understands exactly the answers of the servers measured: a Content-Length, no chunks.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from functools import partial
from typing import Any, TypedDict, cast

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
DEGRADED = b"x-degraded-mode: true"
GIVE_UP = 15.0  # seconds beyond the slice's end for the last answers


class Order(TypedDict):
    """A slice to run: `requests` are whole request heads; connection number i sends the i-th, modulo their number."""

    host: str
    port: int
    connections: int
    seconds: float
    requests: list[str]


class Connection(asyncio.Protocol):
    """Sends its request again as soon as the answer is complete, until the slice is over."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self) -> None:
        """Send the request."""
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, head) if head > 0 else None
        if length is None or len(data) < head + 4 + int(length[1]):
            self._buffer = data
            return
        self._buffer = b""
        tally = self._tally
        tally.latencies.append(time.perf_counter() - self._sent)
        tally.statuses[data[9:12]] += 1
        if data.find(DEGRADED, 0, head) > 0:
            tally.degraded += 1
        if tally.over:
            self._transport.close()
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the protocol's name)
        if not self._tally.over:
            self._tally.statuses[b"lost"] += 1
        if not self.ended.done():
            self.ended.set_result(None)


class Tally:
    """What happened during a slice."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.statuses: Counter[bytes] = Counter()
        self.degraded = 0
        self.over = False

    def end(self) -> None:
        """No further requests."""
        self.over = True

    def summary(self, seconds: float) -> dict[str, Any]:
        """Times in seconds."""
        ordered = sorted(self.latencies) or [0.0]
        return {
            "requests": len(self.latencies),
            "seconds": seconds,
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[int(len(ordered) * 0.99)],
            "statuses": {status.decode(): count for status, count in self.statuses.items()},
            "degraded": self.degraded,
        }


def _itself(connection: Connection) -> Connection:
    return connection


async def run(order: Order) -> dict[str, Any]:
    """One slice. Connections are open before its time begins."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    connections = [
        Connection(order["requests"][number % len(order["requests"])].encode(), tally)
        for number in range(order["connections"])
    ]
    for connection in connections:
        await loop.create_connection(partial(_itself, connection), order["host"], order["port"])
    begun = time.perf_counter()
    loop.call_later(order["seconds"], tally.end)
    for connection in connections:
        connection.send()
    await asyncio.wait([connection.ended for connection in connections], timeout=order["seconds"] + GIVE_UP)
    return tally.summary(time.perf_counter() - begun)


async def main() -> None:
    """Obey orders until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await run(json.loads(line))
        except OSError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
