"""Redis behind Sentinel: the address, and real servers of which the master is frozen."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticCustomError
from redis.asyncio import Redis

from devstack import wheels
from service_kit import sentinel_url
from service_kit.redis_client import AWAY, create_client
from service_kit.settings import redis_url

PASSWORD = "p7f3kd92"
SENTINEL = """\
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor rooms 127.0.0.1 {master} 1
sentinel auth-pass rooms {password}
sentinel down-after-milliseconds rooms 300
sentinel failover-timeout rooms 2000
"""


def test_the_address_is_taken_apart() -> None:
    found = sentinel_url.parse("rediss+sentinel://me:p%40ss@one,[::1]:7/rooms/3?sentinel_password=s&ssl_cert_reqs=none")
    assert found.sentinels == (("one", 26_379), ("::1", 7))
    assert (found.service, found.username, found.password) == ("rooms", None, "s")
    assert found.server == "rediss://me:p%40ss@one:26379/3?ssl_cert_reqs=none"
    assert sentinel_url.parse("redis+sentinel://[::1]:7/rooms").server == "redis://[::1]:7/0"


@pytest.mark.parametrize(
    "rest", ["", "/", "host", "host:port/rooms", "host:99999/rooms", ",host/rooms", "host/two words", "host/rooms/x"]
)
def test_a_wrong_address_is_refused_without_being_quoted(rest: str) -> None:
    with pytest.raises(ValueError, match=r"redis\+sentinel://") as refused:
        redis_url(f"redis+sentinel://:hunter2@{rest}")
    assert "hunter2" not in str(refused.value)


def test_addresses_that_a_service_takes() -> None:
    for url in ("redis://h", "rediss://h:1/0", "unix:///s", "redis+sentinel://:p@h:1,i:2/rooms"):
        assert redis_url(url) == url
    with pytest.raises(PydanticCustomError, match="Cluster"):
        redis_url("redis+cluster://h:1")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Waits for a coroutine function to return something true; an outage is none."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(*AWAY):
                if await condition():  # type: ignore[misc]
                    return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def valkey(*arguments: str, cwd: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(str(wheels.valkey_server()), *arguments, cwd=cwd, stdout=DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def frozen_sentinel() -> AsyncIterator[int]:
    """Accepts, and never answers."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Watched:
    """A master, its replica, and a sentinel beside one that is frozen."""

    def __init__(self, stack: contextlib.AsyncExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self.master_port, self.replica_port, self.port = free_port(), free_port(), free_port()

    async def start(self) -> None:
        self.master = await self._server(self.master_port)
        await self._server(self.replica_port, "--replicaof", "127.0.0.1", str(self.master_port))
        replica = self.direct(self.replica_port)
        await until(lambda: self._follows(replica))
        config = self._directory / "sentinel.conf"
        config.write_text(
            SENTINEL.format(port=self.port, directory=self._directory, master=self.master_port, password=PASSWORD)
        )
        await self._stack.enter_async_context(valkey(str(config), "--sentinel", cwd=self._directory))
        frozen = await self._stack.enter_async_context(frozen_sentinel())
        sentinel = self.closing(create_client(f"redis://127.0.0.1:{self.port}"))
        await until(lambda: self._known(sentinel))
        self.url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{frozen},127.0.0.1:{self.port}/rooms"

    async def _server(self, port: int, *more: str) -> Process:
        common = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0")
        auth = ("--requirepass", PASSWORD, "--primaryauth", PASSWORD)
        return await self._stack.enter_async_context(valkey(*common, *auth, *more, cwd=self._directory))

    def direct(self, port: int) -> Redis:
        return self.closing(create_client(f"redis://:{PASSWORD}@127.0.0.1:{port}/0"))

    def closing(self, client: Redis) -> Redis:
        self._stack.push_async_callback(client.aclose)
        return client

    async def _follows(self, replica: Redis) -> bool:
        state = await replica.info("replication")
        return bool(state["master_link_status"] == "up")

    async def _known(self, sentinel: Redis) -> bool:
        """Whether there is a replica that may be promoted: the sentinel has heard of it, and from it."""
        found: Any = await sentinel.execute_command("SENTINEL", "REPLICAS", "rooms")  # type: ignore[no-untyped-call]
        return any(
            b"ok" in (one.values() if isinstance(one, dict) else one) and b"slave" in str(one).encode() for one in found
        )


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with contextlib.AsyncExitStack() as stack:
        servers = Watched(stack, tmp_path)
        await servers.start()
        yield servers


async def test_a_frozen_master_is_left_and_not_returned_to(watched: Watched) -> None:
    client = watched.closing(create_client(watched.url))
    await client.set("room", "one")
    await client.wait(1, 1000)
    watched.master.send_signal(signal.SIGSTOP)
    await until(lambda: client.set("second", "two"), seconds=8)
    new = watched.direct(watched.replica_port)
    assert [await new.get(key) for key in ("room", "second")] == [b"one", b"two"]

    # Back, the old master takes writes until the sentinel has told it; ours do not go there.
    watched.master.send_signal(signal.SIGCONT)
    await asyncio.gather(*(client.set(f"later {number}", "x") for number in range(20)))
    assert len(await new.keys("later *")) == 20


async def test_a_server_that_is_no_master_is_not_written_to(watched: Watched) -> None:
    client = watched.closing(create_client(watched.url))
    await client.set("room", "one")
    master = watched.direct(watched.master_port)
    await master.replicaof("127.0.0.1", str(watched.replica_port))
    with pytest.raises(AWAY, match="master"):  # the sentinel still names it, but it says itself that it is none
        await client.set("room", "two")
    await master.replicaof("NO", "ONE")
    await until(lambda: client.set("room", "three"))


async def test_no_sentinel_that_knows_the_master_is_an_outage(watched: Watched) -> None:
    for url in (watched.url.replace("/rooms", "/others"), f"redis+sentinel://127.0.0.1:{watched.replica_port}/rooms"):
        client = watched.closing(create_client(url))
        async with asyncio.timeout(2):
            with pytest.raises(AWAY):
                await client.get("room")
