"""Start and stop of a real process: drain, exit codes, taken ports."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from service_kit.telemetry import EXPORT_TIMEOUT, TRACER_SHUTDOWN


async def ready(session: aiohttp.ClientSession, base: str, limit: float = 15.0) -> None:
    async with asyncio.timeout(limit):
        while True:
            try:
                async with session.get(f"{base}/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url) as response:
        return response.status, await response.read()


async def test_sigterm_drains(start: Callable[..., Any]) -> None:
    process = start(REQUEST_TIMEOUT="5s", DRAIN_TIMEOUT="5s")
    base = f"http://127.0.0.1:{process.http}"
    async with aiohttp.ClientSession() as session:
        await ready(session, base)
        slow = asyncio.create_task(get(session, f"{base}/api/v1/slow?seconds=3"))
        stream = asyncio.create_task(get(session, f"{base}/api/v1/events"))
        await get(session, f"{base}/api/v1/hello")
        process.terminate()
        async with asyncio.timeout(2.5):
            while (await get(session, f"{base}/health/ready"))[0] != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        assert (await get(session, f"{base}/health/live"))[0] == 200
        assert await slow == (200, b"done")
        status, events = await stream  # ended by the service, cleanly
        assert status == 200
        assert events.startswith(b"data: 0")
    code, out, err = await process.ended()
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    events_logged = [line["event"] for line in lines if line["event"] != "request"]
    assert events_logged == ["ready", "stopping", "slow request", "ending what is left", "stopped"]
    assert all(line["service"] == "sample" for line in lines)
    assert {"/api/v1/slow", "/api/v1/hello"} <= {line.get("route") for line in lines}


async def test_a_request_that_comes_while_draining_is_answered_as_well(start: Callable[..., Any]) -> None:
    process = start(REQUEST_TIMEOUT="8s", DRAIN_TIMEOUT="12s")
    base = f"http://127.0.0.1:{process.http}"
    async with aiohttp.ClientSession() as session:
        await ready(session, base)
        first = asyncio.create_task(get(session, f"{base}/api/v1/slow?seconds=2.5"))
        await get(session, f"{base}/api/v1/hello")
        process.terminate()
        async with asyncio.timeout(2.5):
            while (await get(session, f"{base}/health/ready"))[0] != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        second = asyncio.create_task(get(session, f"{base}/api/v1/slow?seconds=4"))
        assert await first == await second == (200, b"done")
    assert (await process.ended())[0] == 0


async def test_the_drain_is_bounded(start: Callable[..., Any]) -> None:
    process = start(REQUEST_TIMEOUT="30s", DRAIN_TIMEOUT="300ms")
    base = f"http://127.0.0.1:{process.http}"
    async with aiohttp.ClientSession() as session:
        await ready(session, base)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{base}/ws")
        assert refused.value.status == 404  # a service without a WebSocket answers as for any other path
        slow = asyncio.create_task(get(session, f"{base}/api/v1/slow?seconds=30"))
        await get(session, f"{base}/api/v1/hello")
        process.terminate()
        status, body = await asyncio.wait_for(slow, 5)
        assert (status, json.loads(body)["error"]) == (503, "DEPENDENCY_UNAVAILABLE")
    code, _, _ = await process.ended()
    assert code == 0


@pytest.mark.parametrize("kind", ["HTTP", "GRPC"])
async def test_a_taken_port_is_named(start: Callable[..., Any], kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        process = start(**{f"{kind}_PORT": str(port)})
        code, _, err = await process.ended()
    assert code == 1
    assert f"error: {kind} port {port} on 127.0.0.1 cannot be opened" in err
    assert "Traceback" not in err


async def test_settings_errors_exit_2(start: Callable[..., Any]) -> None:
    code, _, err = await start(REQUEST_TIMEOUT="soon").ended()
    assert code == 2
    assert "REQUEST_TIMEOUT" in err


async def test_no_collector_hurts_neither_start_nor_stop(start: Callable[..., Any]) -> None:
    process = start(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    base = f"http://127.0.0.1:{process.http}"
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with aiohttp.ClientSession(headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}) as session:
        await ready(session, base)
        assert (await get(session, f"{base}/api/v1/hello"))[0] == 200
    process.terminate()
    code, out, _ = await process.ended()
    assert code == 0
    requests = [json.loads(line) for line in out.splitlines() if '"request"' in line]
    assert {line["trace_id"] for line in requests} == {trace}


async def test_a_frozen_collector_slows_neither_answers_nor_the_stop(start: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # the kernel accepts, and nobody ever answers
        endpoint = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        # Small batches: the last spans are many of them, and each one would wait for the exporter's whole limit.
        small = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        process = start(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **small)
        base, slowest = f"http://127.0.0.1:{process.http}", 0.0
        async with aiohttp.ClientSession() as session:
            await ready(session, base)
            for _ in range(48):
                begun = time.monotonic()
                assert (await get(session, f"{base}/api/v1/hello"))[0] == 200
                slowest = max(slowest, time.monotonic() - begun)
        assert slowest < EXPORT_TIMEOUT / 2
        begun = time.monotonic()
        process.terminate()
        code, _, _ = await process.ended()
    assert code == 0
    assert time.monotonic() - begun < TRACER_SHUTDOWN + 3
