"""Each toxic against a real echo server, through the proxy's real HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from devstack.ports import Ports

LIMIT = 10.0


class Echo:
    """A server that sends back what it gets, and counts it."""

    def __init__(self) -> None:
        self.received = 0
        self.news = asyncio.Event()
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def has_received(self, count: int) -> None:
        async with asyncio.timeout(LIMIT):
            while self.received < count:
                self.news.clear()
                await self.news.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        try:
            while data := await reader.read(65536):
                self.received += len(data)
                self.news.set()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


class Admin:
    """The proxy's API."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, json=body) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def toxic(self, kind: str, stream: str = "downstream", toxicity: float = 1.0, **attributes: int) -> None:
        body = {"type": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes}
        status, answer = await self.call("POST", "/proxies/echo/toxics", body)
        assert status == 200, answer

    async def heal(self, name: str) -> None:
        assert (await self.call("DELETE", f"/proxies/echo/toxics/{name}"))[0] == 204


class Client:
    """A connection through the proxy; every wait is bounded."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), LIMIT)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, count: int, limit: float = LIMIT) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), limit)

    async def echo(self, data: bytes = b"hello") -> float:
        """Seconds for one round trip."""
        begun = time.monotonic()
        self.send(data)
        assert await self.receive(len(data)) == data
        return time.monotonic() - begun

    async def until_lost(self) -> bool:
        """Waits for the end of the connection; True when it was reset."""
        try:
            while await asyncio.wait_for(self.reader.read(65536), LIMIT):
                pass
        except ConnectionResetError:
            return True
        return False


async def is_reset(port: int) -> bool:
    """Whether a new connection is reset, while it is made or afterwards."""
    try:
        async with Client(port) as client:
            client.send(b"x")
            return await client.until_lost()
    except ConnectionError:
        return True


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    server = Echo()
    port = await server.start()
    yield server, port
    await server.stop()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The fault proxy as a process, without proxies."""
    ports = Ports()
    port = ports.free("admin")
    log = tmp_path_factory.mktemp("proxy") / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "devstack.faultproxy", "-host", "127.0.0.1", "-port", str(port)], stderr=out
        )
    yield port
    child.send_signal(signal.SIGTERM)
    assert child.wait(5) == 0
    ports.release()
    assert log.read_text() == ""


@pytest_asyncio.fixture
async def admin(process: int) -> AsyncIterator[Admin]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        found = Admin(session, f"http://127.0.0.1:{process}")
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    await found.call("GET", "/version")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield found


@pytest_asyncio.fixture
async def proxied(admin: Admin, echo: tuple[Echo, int]) -> AsyncIterator[int]:
    """The port of a proxy called ``echo`` in front of the echo server."""
    status, made = await admin.call("POST", "/proxies", {"name": "echo", "upstream": f"127.0.0.1:{echo[1]}"})
    assert status == 201
    yield int(made["listen"].rpartition(":")[2])
    await admin.call("DELETE", "/proxies/echo")


async def test_passes_data_both_ways_and_a_half_close(proxied: int) -> None:
    payload = os.urandom(3_000_000)
    async with Client(proxied) as client:
        client.send(payload)
        client.writer.write_eof()
        assert await client.receive(len(payload)) == payload
        assert await client.reader.read() == b""


async def test_latency_delays_also_a_connection_that_was_there_before(proxied: int, admin: Admin) -> None:
    async with Client(proxied) as client:
        assert await client.echo() < 0.25
        await admin.toxic("latency", latency=300)
        assert 0.29 < await client.echo() < 1.0
        await admin.heal("latency_downstream")
        assert await client.echo() < 0.25


async def test_latency_keeps_the_order_and_delays_chunks_side_by_side(proxied: int, admin: Admin) -> None:
    await admin.toxic("latency", latency=300, jitter=200)
    async with Client(proxied) as client:
        begun = time.monotonic()
        numbers = b"".join(number.to_bytes(4, "big") for number in range(5000))
        for start in range(0, len(numbers), 400):
            client.send(numbers[start : start + 400])
            await asyncio.sleep(0)
        assert await client.receive(len(numbers)) == numbers
        assert time.monotonic() - begun < 2.0  # not 300 ms for each chunk


async def test_removing_latency_lets_waiting_chunks_go_at_once_in_order(
    proxied: int, admin: Admin, echo: tuple[Echo, int]
) -> None:
    await admin.toxic("latency", latency=60_000)
    async with Client(proxied) as client:
        client.send(b"first ")
        await echo[0].has_received(6)
        client.send(b"second")
        await admin.heal("latency_downstream")
        assert await client.receive(12) == b"first second"


async def test_latency_under_load_holds_a_bounded_amount(proxied: int, admin: Admin, echo: tuple[Echo, int]) -> None:
    """Far more is sent than the proxy may hold: the sender is slowed down instead."""
    await admin.toxic("latency", stream="upstream", latency=5000)
    async with Client(proxied) as client:
        client.writer.transport.set_write_buffer_limits(high=65536)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                client.send(b"x" * 65536)
                sent += 65536
                await client.writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 1.0)
        assert sent < 24 * 2**20  # the proxy's queue and what the kernel buffers on the way
        assert echo[0].received == 0
        client.writer.transport.abort()


async def test_timeout_swallows_data_for_ever_and_closes_when_removed(
    proxied: int, admin: Admin, echo: tuple[Echo, int]
) -> None:
    async with Client(proxied) as before:
        await before.echo()
        await admin.toxic("timeout", timeout=0)
        async with Client(proxied) as after:
            for client in (before, after):
                client.send(b"lost")
                with pytest.raises(TimeoutError):
                    await client.receive(1, 0.2)
            await admin.heal("timeout_downstream")
            assert not await before.until_lost()
            assert not await after.until_lost()


async def test_timeout_keeps_no_connection_that_both_sides_have_left(
    proxied: int, admin: Admin, echo: tuple[Echo, int]
) -> None:
    await admin.toxic("timeout", timeout=0)
    async with Client(proxied) as client:
        client.send(b"lost")
        await echo[0].has_received(4)
        client.writer.write_eof()
        await client.until_lost()


async def test_timeout_closes_after_its_time(proxied: int, admin: Admin) -> None:
    await admin.toxic("timeout", timeout=200)
    async with Client(proxied) as client:
        begun = time.monotonic()
        client.send(b"lost")
        await client.until_lost()
        assert 0.15 < time.monotonic() - begun < 2


async def test_reset_peer_resets_present_and_new_connections(
    proxied: int, admin: Admin, echo: tuple[Echo, int]
) -> None:
    async with Client(proxied) as before:
        await before.echo()
        await admin.toxic("reset_peer", timeout=0)
        assert await before.until_lost()
    reached = echo[0].connections
    assert await is_reset(proxied)
    await admin.heal("reset_peer_downstream")
    async with Client(proxied) as healed:
        await healed.echo()
    assert echo[0].connections == reached + 1  # the reset one never reached the server


async def test_disabled_refuses_and_closes(proxied: int, admin: Admin) -> None:
    async with Client(proxied) as before:
        await before.echo()
        assert (await admin.call("POST", "/proxies/echo", {"enabled": False}))[1]["enabled"] is False
        await before.until_lost()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxied)
    assert (await admin.call("PATCH", "/proxies/echo", {"enabled": True}))[1]["listen"] == f"127.0.0.1:{proxied}"
    async with Client(proxied) as after:
        await after.echo()


async def test_bandwidth_slows_down(proxied: int, admin: Admin) -> None:
    await admin.toxic("bandwidth", rate=200)
    async with Client(proxied) as client:
        assert 0.4 < await client.echo(b"x" * 102_400) < 3  # 100 KB at 200 KB/s


async def test_slow_close_holds_back_the_end_only(proxied: int, admin: Admin) -> None:
    await admin.toxic("slow_close", delay=300)
    async with Client(proxied) as client:
        assert await client.echo() < 0.25
        begun = time.monotonic()
        client.writer.write_eof()
        await client.until_lost()
        assert 0.25 < time.monotonic() - begun < 2


async def test_limit_data_closes_after_so_many_bytes(proxied: int, admin: Admin) -> None:
    await admin.toxic("limit_data", bytes=10)
    async with Client(proxied) as client:
        client.send(b"0123456789abcdef")
        assert await asyncio.wait_for(client.reader.read(), LIMIT) == b"0123456789"


async def test_toxicity_zero_touches_no_connection(proxied: int, admin: Admin) -> None:
    await admin.toxic("timeout", toxicity=0.0, timeout=0)
    async with Client(proxied) as client:
        await client.echo()


async def test_a_dead_upstream_resets_the_client(proxied: int, echo: tuple[Echo, int]) -> None:
    await echo[0].stop()
    assert await is_reset(proxied)


async def test_the_api_speaks_toxiproxy(proxied: int, admin: Admin) -> None:
    assert "version" in (await admin.call("GET", "/version"))[1]
    await admin.toxic("latency", latency=5)
    status, shown = await admin.call("GET", "/proxies")
    assert (status, shown["echo"]["toxics"][0]["attributes"]) == (200, {"latency": 5, "jitter": 0})
    assert (await admin.call("POST", "/proxies", {"name": "echo", "upstream": "127.0.0.1:1"}))[0] == 409
    change = {"attributes": {"latency": 7}, "toxicity": 0.5}
    status, toxic = await admin.call("PATCH", "/proxies/echo/toxics/latency_downstream", change)
    assert (status, toxic["attributes"]["latency"], toxic["toxicity"]) == (200, 7, 0.5)
    assert (await admin.call("POST", "/reset"))[0] == 204
    assert (await admin.call("GET", "/proxies/echo/toxics"))[1] == []
    both = [{"name": name, "listen": "127.0.0.1:0", "upstream": "127.0.0.1:1"} for name in ("a", "b")]
    assert (await admin.call("POST", "/populate", both))[0] == 201
    for name in ("a", "b"):
        assert (await admin.call("DELETE", f"/proxies/{name}"))[0] == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/proxies/none", None, 404),
        ("GET", "/proxies/echo/toxics/none", None, 404),
        ("POST", "/proxies", {"name": "x"}, 400),
        ("POST", "/proxies", {"name": "x", "upstream": "nowhere"}, 400),
        ("POST", "/proxies", [], 400),
        ("POST", "/proxies/echo/toxics", {"type": "poison"}, 400),
        ("POST", "/proxies/echo/toxics", {"type": "latency", "stream": "sideways"}, 400),
        ("POST", "/proxies/echo/toxics", {"type": "latency", "attributes": {"latency": -1}}, 400),
        ("POST", "/proxies/echo/toxics", {"type": "latency", "attributes": {"latency": "5"}}, 400),
    ],
)
async def test_the_api_refuses_nonsense(
    proxied: int, admin: Admin, method: str, path: str, body: object, status: int
) -> None:
    got, answer = await admin.call(method, path, body)
    assert got == status
    assert answer["status"] == status


async def test_the_api_refuses_a_browser(process: int, admin: Admin) -> None:
    async with admin.session.get(f"{admin.url}/proxies", headers={"User-Agent": "Mozilla/5.0"}) as response:
        assert response.status == 403
    async with admin.session.post(f"{admin.url}/reset", headers={"Origin": "http://example.com"}) as response:
        assert response.status == 403


def test_a_busy_port_is_an_error_that_names_it(tmp_path: Path, process: int) -> None:
    config = tmp_path / "proxies.json"
    config.write_text(json.dumps([{"name": "a", "listen": f"127.0.0.1:{process}", "upstream": "127.0.0.1:1"}]))
    done = subprocess.run(
        [sys.executable, "-m", "devstack.faultproxy", "-port", "0", "-config", config],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert str(process) in done.stderr
