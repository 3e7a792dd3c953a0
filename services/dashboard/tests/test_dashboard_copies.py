"""Copies (rows D1 and D2): the newest wins, what is forgotten stays so, memory is bounded by what it really takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

import service_kit.copies as module
from dashboard.degradation import MEMORY_CACHE, REDIS_CACHE
from dashboard.model import User
from dashboard.outbound.copies import UserCopies
from resilience import MISSING, MemoryCache, Rung
from resilience.testing import FakeClock
from service_kit.copies import CopyStore
from service_kit.redis_client import create_client

pytestmark = pytest.mark.asyncio(loop_scope="session")

AT = 1_700_000_000.0


async def direct(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


def store(client: Redis, clock: FakeClock | None = None, call: Any = direct) -> CopyStore:
    clock = clock or FakeClock()
    return CopyStore(client, call, MemoryCache(1_000_000, 300.0, clock), clock)


def user(revision: int, name: str = "Alice") -> User:
    return User("1", "a@example.org", name, "user", AT, AT, revision)


async def served(rung: Rung[Any]) -> Any:
    found = await rung.call(RuntimeError())
    return found if found is MISSING else found.value


async def test_a_read_that_a_change_has_overtaken_leaves_the_newer_copy_alone(redis_client: Redis) -> None:
    copies = store(redis_client)
    users = UserCopies(copies)
    users.keep(user(2, "new"))
    users.keep(user(1, "old"))
    await copies.flush_all()
    users.keep(user(1, "old"))
    await copies.flush_all()
    other = store(redis_client)
    UserCopies(other).keep(user(1, "old"))
    await other.flush_all()
    for one in (users, UserCopies(other)):
        assert (await served(one.rungs("1")[0])).display_name == "new"
    assert (await served(users.rungs("1")[1])).display_name == "new"


async def test_the_rungs_are_called_what_the_matrix_calls_them(redis_client: Redis) -> None:
    rungs = UserCopies(store(redis_client)).rungs("1")
    assert [rung.name for rung in rungs] == [REDIS_CACHE, MEMORY_CACHE]
    assert [await served(rung) for rung in rungs] == [MISSING, MISSING]


async def test_what_is_forgotten_while_it_is_being_written_stays_forgotten(redis_client: Redis) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(action: Callable[[], Awaitable[Any]]) -> Any:
        if not arrived.is_set():
            arrived.set()
            await go_on.wait()
        return await action()

    copies = store(redis_client, call=slow)
    copies.keep("user:1", {"id": "1"}, 1)
    copies.keep("user:2", {"id": "2"}, 1)
    flushing = asyncio.create_task(copies.flush_all())
    await arrived.wait()
    await copies.forget("user:1")
    go_on.set()
    await flushing
    assert await copies.shared("user:1") is None
    assert await copies.any("user:2") is not None


async def test_what_is_forgotten_while_redis_is_away_is_not_written_when_it_is_back(redis_client: Redis) -> None:
    away = True

    async def call(action: Callable[[], Awaitable[Any]]) -> Any:
        if away:
            raise ConnectionError
        return await action()

    copies = store(redis_client, call=call)
    copies.keep("user:1", {"id": "1"}, 1)
    copies.keep("user:2", {"id": "2"}, 1)
    assert not await copies.flush()
    await copies.forget("user:1")
    away = False
    assert await copies.flush()
    assert await copies.shared("user:1") is None
    assert await copies.shared("user:2") is not None


async def test_what_waits_for_redis_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BEHIND", 100)
    monkeypatch.setattr(module, "_MAX_BEHIND_BYTES", 5_000)
    client = create_client("redis://127.0.0.1:1/0")
    copies = store(client)
    for number in range(300):
        copies.keep(f"key:{number}", "x", number)
    assert len(copies._behind) == 100
    for number in range(300):
        copies.keep(f"key:{number}", "x" * 500, 1_000 + number)
    behind = copies._behind
    assert behind._bytes == sum(map(len, behind._copies.values())) <= 5_000
    assert not await copies.flush()
    assert behind._bytes == sum(map(len, behind._copies.values())) <= 5_000
    await client.aclose()


@pytest.mark.parametrize(
    "copy", [b"", b"x", b"1", b"1 [", b"1 [1e999, {}]", b'1 ["x", {}]', b"1 {}", b"\xff\xfe", b"7 7"]
)
async def test_a_copy_that_cannot_be_read_is_none(redis_client: Redis, copy: bytes) -> None:
    copies = store(redis_client)
    await redis_client.set("copy:user:1", copy)
    assert await copies.shared("user:1") is None
    assert await served(UserCopies(copies).rungs("1")[0]) is MISSING
    copies.keep("user:1", user(1), 9)
    assert await copies.shared("user:1") is not None
    await copies.flush_all()
    assert await copies.shared("user:1") is not None


FILL = """
import resource, sys
from resilience import MemoryCache
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
limit = 20_000_000
cache = MemoryCache(limit, 300.0)
before, most = resident(), 0
for number in range(150_000):
    cache.set(f"user:{number:036d}", bytes((200, 250, 300, 2_000)[number % 4]))
    if number % 5_000 == 0:
        most = max(most, resident() - before)
print(cache.bytes_used / limit, most / limit, cache.get("user:" + "0" * 36), cache.get(f"user:{149_999:036d}") is None)
"""


async def test_the_memory_cache_takes_no_more_real_memory_than_it_may() -> None:
    """A fifth of the default size, filled five times over, in a process of its own."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FILL, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    booked, resident, oldest, newest_is_gone = out.decode().split()
    assert 0.98 < float(booked) <= 1.0
    assert 0.85 < float(resident) < 1.15
    assert (oldest, newest_is_gone) == ("None", "False")
