"""The official SDK without a gateway: ``python -m benchmarks.gateway_sdk``, one JSON object per line in and out.

Callers in one process, as an application would have them; each has one request in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, TypedDict

import uvloop
from openai import AsyncOpenAI


class Work(TypedDict):
    """A slice to run. ``tokens``: stream answers and count their chunks."""

    url: str
    model: str
    messages: list[str]  # caller number i sends the i-th, modulo their number
    callers: int
    seconds: float
    stream: bool


async def run(client: AsyncOpenAI, work: Work) -> dict[str, Any]:
    """One slice; times in seconds."""
    latencies: list[float] = []
    chunks = 0
    begun = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal chunks
        message = {"role": "user", "content": work["messages"][number % len(work["messages"])]}
        while time.perf_counter() - begun < work["seconds"]:
            sent = time.perf_counter()
            asked: Any = {"model": work["model"], "messages": [message]}
            if work["stream"]:
                async for chunk in await client.chat.completions.create(**asked, stream=True):
                    chunks += bool(chunk.choices and chunk.choices[0].delta.content)
            else:
                await client.chat.completions.create(**asked)
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(caller(number) for number in range(work["callers"])))
    seconds = time.perf_counter() - begun
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "seconds": seconds,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
        "chunks": chunks,
    }


async def main() -> None:
    """Serves slices until its input ends."""
    loop = asyncio.get_running_loop()
    clients: dict[str, AsyncOpenAI] = {}
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        work: Work = json.loads(line)
        client = clients.setdefault(
            work["url"], AsyncOpenAI(api_key="benchmark", base_url=work["url"], max_retries=0, timeout=30)
        )
        print(json.dumps(await run(client, work)), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
