"""Real servers, really broken: kill, freeze, delay, cut, and mended on the same data and port."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from devstack import ChaosError, Stack, Topology
from devstack.errors import AlreadyRunningError, NotReadyError, PortBusyError
from devstack.ports import Ports
from devstack.process import runs
from devstack.topology import kind_of

SERVERS = Topology(only=frozenset({"postgres", "redis"}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("stack"), SERVERS, port_base=None) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


def through_edge(stack: Stack) -> str:
    """The database as the Dashboard finds it."""
    return stack.plan.postgres.url_at(stack.plan.listen("dashboard-postgres"))


async def query(url: str, sql: str = "SELECT 1", limit: float = 5.0) -> object:
    connection = await asyncpg.connect(url, timeout=limit)
    try:
        return await connection.fetchval(sql, timeout=limit)
    finally:
        connection.terminate()


async def test_every_service_has_its_database(stack: Stack) -> None:
    for database in ("dashboard", "ai_core", "webrtc"):
        assert await query(stack.database_url(database), "SELECT current_database()") == database


async def test_a_wrong_password_is_refused(stack: Stack) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(stack.database_url("dashboard"), password="wrong", timeout=5)
    with pytest.raises(redis.AuthenticationError):
        await redis.Redis(port=stack.plan.redis.port, retry=Retry(NoBackoff(), 0)).ping()


async def test_durable_settings(stack: Stack) -> None:
    settings = {name: await query(stack.database_url("dashboard"), f"SHOW {name}") for name in ("fsync", "port")}
    assert settings == {"fsync": "on", "port": str(stack.plan.postgres.port)}
    assert await query(stack.database_url("dashboard"), "SHOW synchronous_commit") == "on"
    async with redis.Redis.from_url(stack.url("redis")) as client:
        found = await client.config_get("append*", "maxmemory*")
    assert (found["appendonly"], found["appendfsync"]) == ("yes", "always")
    assert (found["maxmemory"], found["maxmemory-policy"]) == (str(256 * 2**20), "volatile-lru")


async def test_killed_postgres_comes_back_on_the_same_data_and_port(stack: Stack) -> None:
    url = stack.database_url("dashboard")
    await query(url, "CREATE TABLE kept AS SELECT 7 AS number")
    idle = await asyncpg.connect(url, timeout=5)
    for _ in range(3):
        processes = psutil.Process(stack.unit("postgres").process.pid).children()  # type: ignore[union-attr]
        await stack.kill("postgres")
        assert stack.unit("postgres").state == "killed"
        assert not any(runs(process) for process in processes)
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncpg.connect(url, timeout=5)
        healed = await stack.heal("postgres")
        assert healed.accepts
        assert healed.actions == ("started",)
        assert await query(url, "SELECT number FROM kept") == 7
    idle.terminate()


async def test_killed_redis_keeps_every_acknowledged_write(stack: Stack) -> None:
    async with redis.Redis.from_url(stack.url("redis")) as client:
        for number in range(50):
            await client.set(f"key:{number}", number)
    await stack.kill("redis")
    assert (await stack.heal("redis")).accepts
    async with redis.Redis.from_url(stack.url("redis")) as client:
        assert await client.get("key:49") == b"49"


@pytest.mark.parametrize("name", ["postgres", "redis"])
async def test_frozen_accepts_and_never_answers_until_healed(stack: Stack, name: str) -> None:
    await stack.freeze(name)
    assert stack.unit(name).state == "frozen"
    _, writer = await asyncio.open_connection("127.0.0.1", stack.unit(name).component.port)
    writer.close()
    assert not await stack.accepts(name)
    healed = await stack.heal(name)
    assert (healed.accepts, healed.actions) == (True, ("thawed",))
    assert stack.unit(name).state == "running"


async def test_frozen_stops_the_backends_too(stack: Stack) -> None:
    busy = await asyncpg.connect(stack.database_url("dashboard"), timeout=5)
    await stack.freeze("postgres")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(asyncio.wait({running(busy)}))), 0.3)
    await stack.heal("postgres")
    busy.terminate()


def running(connection: asyncpg.Connection) -> asyncio.Task[object]:
    return asyncio.ensure_future(connection.fetchval("SELECT 1", timeout=10))


async def test_killed_while_frozen(stack: Stack) -> None:
    await stack.freeze("postgres")
    await stack.kill("postgres")
    assert stack.unit("postgres").state == "killed"
    assert (await stack.heal("postgres")).accepts


async def test_delayed_on_the_edges_only(stack: Stack) -> None:
    await stack.delay("postgres", 200)
    begun = time.monotonic()
    await query(through_edge(stack))
    assert time.monotonic() - begun > 0.6  # several answers: greeting, authentication, result
    assert (await stack.heal("postgres")).actions == ("connections mended",)
    took = []
    for _ in range(3):
        begun = time.monotonic()
        await query(through_edge(stack))
        took.append(time.monotonic() - begun)
    assert min(took) < 0.6


async def test_cut_resets_present_and_new_connections(stack: Stack) -> None:
    before = await asyncpg.connect(through_edge(stack), timeout=5)
    await stack.cut("postgres")
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await before.fetchval("SELECT 1", timeout=5)
    with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
        await asyncpg.connect(through_edge(stack), timeout=5)
    assert await query(stack.database_url("dashboard")) == 1
    await stack.heal("postgres")
    assert await query(through_edge(stack)) == 1


async def test_healing_the_healthy_changes_nothing(stack: Stack) -> None:
    process = stack.unit("redis").process
    healed = await stack.heal("redis")
    assert (healed.accepts, healed.actions) == (True, ())
    assert stack.unit("redis").process is process


async def test_what_is_not_there_cannot_be_broken(stack: Stack) -> None:
    with pytest.raises(ChaosError, match="postgres, redis"):
        await stack.kill("kafka")


async def test_the_fault_proxy_is_revived_with_its_faults(stack: Stack) -> None:
    proxy = stack._proxy
    assert proxy is not None
    assert proxy.process is not None
    await stack.cut("redis")
    dead = proxy.process
    psutil.Process(dead.pid).send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        while proxy.process is dead or not await is_cut_by_the_proxy(stack):  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.05)
    await stack.heal("redis")
    assert not await is_cut(stack)


async def is_cut_by_the_proxy(stack: Stack) -> bool:
    """Not merely refused because the proxy is not there yet."""
    return await stack.plan.proxy.accepts() and await is_cut(stack)


async def is_cut(stack: Stack) -> bool:
    url = stack.plan.redis.url_at(stack.plan.listen("dashboard-redis"))
    try:
        async with redis.Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            await client.ping()
    except (redis.ConnectionError, OSError):
        return True
    return False


async def test_the_same_directory_cannot_run_twice(stack: Stack) -> None:
    with pytest.raises(AlreadyRunningError, match="already running"):
        await Stack(stack.state.path, SERVERS, port_base=None).open()


async def test_stack_json_says_what_runs_and_is_private(stack: Stack) -> None:
    described = stack.state.read("stack.json")
    assert described["components"]["postgres"]["pid"] == stack.unit("postgres").process.pid  # type: ignore[union-attr]
    assert described["components"]["redis"]["url"] == stack.url("redis")
    assert described["admin_token"] == stack.admin_token
    assert stack.state.stack_file.stat().st_mode & 0o077 == 0


async def test_two_stacks_side_by_side(stack: Stack, tmp_path: Path) -> None:
    async with Stack(tmp_path, SERVERS, port_base=None) as other:
        mine, theirs = set(stack.plan.ports.known.values()), set(other.plan.ports.known.values())
        assert not mine & theirs
        assert other.admin_token != stack.admin_token
        assert await query(other.database_url("dashboard")) == 1
    assert not (tmp_path / "stack.json").exists()
    assert await query(stack.database_url("dashboard")) == 1


async def test_a_second_start_finds_data_and_ports_again(tmp_path: Path) -> None:
    async with Stack(tmp_path, SERVERS, port_base=None) as first:
        known = dict(first.plan.ports.known)
        await query(first.database_url("webrtc"), "CREATE TABLE kept AS SELECT 1 AS number")
    async with Stack(tmp_path, SERVERS, port_base=None) as second:
        assert second.plan.ports.known == known
        assert await query(second.database_url("webrtc"), "SELECT number FROM kept") == 1


async def test_a_broken_cluster_is_explained_and_stops_nobody_else(tmp_path: Path) -> None:
    async with Stack(tmp_path, SERVERS, port_base=None) as first:
        data = first.plan.postgres.home.data
    (data / "PG_VERSION").write_text("9\n")
    broken = Stack(tmp_path, SERVERS, port_base=None, autostart=False)
    async with broken:
        await broken.start()
        with pytest.raises(NotReadyError, match="incompatible"):
            await broken.wait_ready(10)
        assert await broken.accepts("redis")
        assert broken.unit("postgres").state in ("exited", "failed")


async def test_started_in_any_order_and_without_proxies(tmp_path: Path) -> None:
    bare = Stack(tmp_path, Topology(only=SERVERS.only, proxied=False), port_base=None, autostart=False)
    async with bare:
        await bare.start("redis")
        await bare.wait_ready(10, "redis")
        assert bare.unit("postgres").state == "not started"
        await bare.start("postgres")
        await bare.wait_ready(30)
        assert bare.plan.listen("dashboard-postgres") == bare.plan.postgres.port
        with pytest.raises(ChaosError, match="without fault proxies"):
            await bare.cut("redis")
        await bare.stop("redis")
        assert bare.unit("redis").state == "stopped"


async def test_a_busy_port_names_its_holder(tmp_path: Path) -> None:
    ports = Ports()
    base = ports.free("base")
    ports.release()
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", base)
    try:
        with pytest.raises(PortBusyError, match=rf"port {base} .* pid {psutil.Process().pid}") as error:
            await Stack(tmp_path, SERVERS, port_base=base).open()
        assert psutil.Process().name() in str(error.value)
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dashboard", "dashboard"), ("dashboard-2", "dashboard"), ("ai-core", "ai-core"), ("webrtc-2", "webrtc")],
)
async def test_instances_are_of_one_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


async def test_the_layout_of_ports(tmp_path: Path) -> None:
    stack = Stack(tmp_path, Topology(dashboards=2, webrtcs=2, only=frozenset()), port_base=18_400, autostart=False)
    async with stack:
        urls = [stack.url(name) for name in ("dashboard", "ai-core", "webrtc", "dashboard-2", "webrtc-2")]
        assert urls == [f"http://127.0.0.1:{18_400 + number}" for number in range(5)]
        assert stack.grpc("ai-core") == "127.0.0.1:19401"
