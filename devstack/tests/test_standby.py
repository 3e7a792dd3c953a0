"""A real standby: it follows, survives the death of either side, and starts anew when it cannot follow."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count

import asyncpg
import psutil
import pytest
import pytest_asyncio

from devstack import Stack, Topology
from devstack.components.standby import SLOT

PAIR = Topology(only=frozenset({"postgres", "standby"}), standby=True)
LIMIT = 15.0  # s until a change must be seen
pytestmark = pytest.mark.asyncio(loop_scope="module")
numbers = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("standby"), PAIR, port_base=None) as running:
        await query(running, "postgres", "CREATE TABLE seen (number int)")
        yield running


async def query(stack: Stack, server: str, sql: str) -> object:
    port = stack.unit(server).component.port
    return await at(stack.plan.postgres.url_at(port), sql)


async def at(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(sql, timeout=5)
    finally:
        connection.terminate()


async def latest(stack: Stack) -> object:
    return await query(stack, "standby", "SELECT max(number) FROM seen")


async def write(stack: Stack) -> int:
    number = next(numbers)
    await query(stack, "postgres", f"INSERT INTO seen VALUES ({number})")
    return number


async def follows(stack: Stack) -> None:
    """What is written now arrives."""
    number = await write(stack)
    async with asyncio.timeout(LIMIT):
        while True:
            with suppress(OSError, asyncpg.PostgresError):  # it may be starting
                if await latest(stack) == number:
                    return
            await asyncio.sleep(0.02)


async def test_follows_and_only_answers_reads(stack: Stack) -> None:
    await follows(stack)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await query(stack, "standby", "INSERT INTO seen VALUES (0)")
    through_edge = stack.plan.standby.url_at(stack.plan.listen("dashboard-standby"))
    assert await at(through_edge, "SELECT pg_is_in_recovery()") is True
    assert stack.plan.edges_to("standby") == ["dashboard-standby"]


async def test_no_secret_on_its_command_line(stack: Stack) -> None:
    process = stack.unit("standby").process
    assert process is not None
    assert stack.state.secret("postgres") not in " ".join(psutil.Process(process.pid).cmdline())


async def test_killed_primary(stack: Stack) -> None:
    number = await write(stack)
    await follows(stack)
    await stack.kill("postgres")
    assert await latest(stack) == number + 1
    await stack.heal("postgres")
    await follows(stack)


async def test_killed_standby_has_not_missed_anything(stack: Stack) -> None:
    await stack.kill("standby")
    number = await write(stack)
    assert (await stack.heal("standby")).accepts
    await follows(stack)
    assert await query(stack, "standby", f"SELECT count(*) FROM seen WHERE number = {number}") == 1


async def test_both_killed_and_the_standby_is_back_first(stack: Stack) -> None:
    await stack.kill("postgres")
    await stack.kill("standby")
    assert (await stack.heal("standby")).accepts
    assert await latest(stack) is not None
    await stack.heal("postgres")
    await follows(stack)


async def test_a_frozen_standby_holds_no_commit_up(stack: Stack) -> None:
    await stack.freeze("standby")
    async with asyncio.timeout(2):
        await write(stack)
    await stack.heal("standby")
    await follows(stack)


async def test_a_standby_that_cannot_follow_is_made_anew(stack: Stack) -> None:
    await stack.kill("standby")
    await query(stack, "postgres", f"SELECT pg_drop_replication_slot('{SLOT}')")
    assert (await stack.heal("standby")).accepts
    await follows(stack)


async def test_another_cluster_in_the_primarys_place(stack: Stack) -> None:
    """Also with a slot of the same name there: the copy is of a cluster that does not exist any more."""
    await stack.kill("standby")
    control = stack.plan.standby.home.data / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    content[0] ^= 0xFF
    control.write_bytes(content)
    assert (await stack.heal("standby")).accepts
    await follows(stack)


async def test_first_start_without_a_primary_says_so_and_is_healed_later(stack: Stack) -> None:
    await stack.kill("standby")
    await stack.kill("postgres")
    shutil.rmtree(stack.plan.standby.home.data)
    assert not (await stack.heal("standby")).accepts
    assert stack.unit("standby").state == "failed"
    assert "chaos heal standby" in stack.explain("standby")
    assert (await stack.heal("postgres")).accepts
    assert (await stack.heal("standby")).accepts
    await follows(stack)


async def test_off_unless_asked_for() -> None:
    assert "standby" not in Topology().components
    assert "standby" in Topology(standby=True).components
