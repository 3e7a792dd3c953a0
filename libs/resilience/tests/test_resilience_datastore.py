"""The store that remembers the last good answer of a source."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from resilience.clock import FakeClock
from resilience.datastore import CachedDataStore
from resilience.errors import CallTimeout, ClientError
from resilience.events import Event, Events
from resilience.freshness import CacheServed
from resilience.outcome import Degradation, Served


class NotFound(Exception):
    pass


async def good() -> int:
    return 1


async def better() -> int:
    return 2


async def away() -> int:
    raise ConnectionError("away")


async def test_it_works_as_the_specification_writes_it() -> None:
    assert await CachedDataStore().get_with_fallback("key", good, max_age_seconds=300) == 1


async def test_the_source_is_always_asked_first() -> None:
    store = CachedDataStore(clock=FakeClock())
    assert await store.get_with_fallback("k", good) == 1
    assert await store.get_with_fallback("k", better) == 2
    assert await store.get_with_fallback("k", away) == 2


@pytest.mark.parametrize(("age", "served"), [(0.0, True), (299.9, True), (300.0, True), (300.1, False)])
async def test_the_remembered_answer_serves_until_it_is_too_old(age: float, served: bool) -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock)
    await store.get_with_fallback("k", good)
    clock.move(age)
    if served:
        assert await store.get_with_fallback("k", away, max_age_seconds=300) == 1
    else:
        with pytest.raises(ConnectionError):
            await store.get_with_fallback("k", away, max_age_seconds=300)


async def test_each_call_says_what_is_too_old_for_it() -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock)
    await store.get_with_fallback("k", good, max_age_seconds=1)
    clock.move(5_000.0)
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away, max_age_seconds=10)
    assert await store.get_with_fallback("k", away, max_age_seconds=5_000) == 1
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away, max_age_seconds=0)


async def test_without_a_remembered_answer_the_sources_error_is_raised_as_it_is() -> None:
    error = ConnectionError("away")

    async def failing() -> int:
        raise error

    with pytest.raises(ConnectionError) as caught:
        await CachedDataStore().get_with_fallback("k", failing)
    assert caught.value is error


async def test_a_failure_does_not_make_the_answer_younger() -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock)
    await store.get_with_fallback("k", good)
    for _ in range(3):
        clock.move(100.0)
        assert await store.get_with_fallback("k", away) == 1
    clock.move(1.0)
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away)


async def test_the_wall_clock_does_not_matter() -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock)
    await store.get_with_fallback("k", good)
    for jump in (86_400.0, -172_800.0):
        clock.jump_wall(jump)
        assert await store.get_with_fallback("k", away, max_age_seconds=1) == 1


async def test_serve_tells_a_remembered_answer_from_a_new_one() -> None:
    clock, events = FakeClock(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    store = CachedDataStore(clock=clock, name="prices", events=events)
    assert await store.serve("k", good) == Served(1)
    asked = clock.time()
    clock.move(7.0)
    served = await store.serve("k", away)
    assert served == Served(1, (Degradation("prices", "stale-cache", "closed"),), asked)
    assert told == [CacheServed("prices", "miss", 0.0), CacheServed("prices", "stale-if-error", 7.0)]


async def test_what_a_fallback_gave_is_passed_on_and_not_remembered() -> None:
    store = CachedDataStore(clock=FakeClock())

    async def degraded() -> Served[int]:
        return Served(9, (Degradation("r", "f", "open"),))

    value: object = await store.get_with_fallback("k", degraded)
    assert value == 9
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away)


async def test_an_answer_of_the_source_is_never_hidden() -> None:
    store = CachedDataStore(clock=FakeClock(), gone=NotFound)
    await store.get_with_fallback("k", good)

    async def forbidden() -> int:
        raise ClientError("forbidden")

    async def missing() -> int:
        raise NotFound

    with pytest.raises(ClientError):
        await store.get_with_fallback("k", forbidden)
    assert await store.get_with_fallback("k", away) == 1
    with pytest.raises(NotFound):
        await store.get_with_fallback("k", missing)
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away)


async def test_what_is_an_answer_can_be_said() -> None:
    store = CachedDataStore(clock=FakeClock(), answers=(ConnectionError,))
    await store.get_with_fallback("k", good)
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away)


async def test_a_source_that_does_not_answer_in_time_has_failed() -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock, timeout=2.0)
    await store.get_with_fallback("k", good)

    async def frozen() -> int:
        await asyncio.sleep(3_600)
        return 3

    for key in ("k", "new"):
        task = asyncio.create_task(store.get_with_fallback(key, frozen))
        await clock.advance(2.0)
        if key == "k":
            assert await task == 1
        else:
            with pytest.raises(CallTimeout):
                await task
    assert clock.pending == 0


async def test_a_cancelled_caller_is_cancelled_and_served_nothing() -> None:
    store = CachedDataStore(clock=FakeClock())
    await store.get_with_fallback("k", good)
    task = asyncio.create_task(store.get_with_fallback("k", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_sync_source_runs_in_a_thread_and_does_not_block_the_loop() -> None:
    store = CachedDataStore(clock=FakeClock())
    gate = threading.Event()
    threads: list[int] = []

    def blocking() -> int:
        threads.append(threading.get_ident())
        assert gate.wait(10)
        return 5

    task = asyncio.create_task(store.get_with_fallback("k", blocking))
    await asyncio.sleep(0)
    gate.set()
    assert await task == 5
    assert threads != [threading.get_ident()]
    assert await store.get_with_fallback("k", lambda: 1 // 0) == 5


async def test_an_awaitable_from_a_sync_source_is_awaited_on_the_loop() -> None:
    store = CachedDataStore(clock=FakeClock())
    threads: list[int] = []

    async def fetch(value: int) -> int:
        threads.append(threading.get_ident())
        return value

    assert await store.get_with_fallback("k", lambda: fetch(6)) == 6
    assert await store.get_with_fallback("k", lambda: away()) == 6
    assert threads == [threading.get_ident()]


def test_sync_code_has_the_same_store() -> None:
    clock = FakeClock()
    store = CachedDataStore(clock=clock)
    assert store.get_with_fallback_sync("k", lambda: 1) == 1
    clock.move(3.0)
    assert store.serve_sync("k", lambda: 1 // 0, 3.0).degraded
    with pytest.raises(ZeroDivisionError):
        store.get_with_fallback_sync("k", lambda: 1 // 0, max_age_seconds=2.9)


async def test_a_write_can_forget_what_is_remembered_and_what_is_being_read() -> None:
    store = CachedDataStore(clock=FakeClock())
    gate = asyncio.Event()

    async def slow() -> int:
        await gate.wait()
        return 1

    reading = asyncio.create_task(store.get_with_fallback("k", slow))
    await asyncio.sleep(0)
    assert not store.invalidate("k")
    gate.set()
    assert await reading == 1
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("k", away)
    await store.get_with_fallback("k", good)
    assert store.invalidate("k")
    await store.get_with_fallback("k", good)
    store.clear()
    assert len(store) == 0


async def test_the_number_of_answers_is_bounded() -> None:
    store = CachedDataStore(max_entries=2, clock=FakeClock())
    await store.get_with_fallback("a", good)
    await store.get_with_fallback("b", good)
    await store.get_with_fallback("a", away)
    await store.get_with_fallback("c", good)
    assert len(store) == 2
    assert await store.get_with_fallback("a", away) == 1
    with pytest.raises(ConnectionError):
        await store.get_with_fallback("b", away)


def test_one_store_serves_many_threads_and_loops() -> None:
    store = CachedDataStore(max_entries=16)
    failures: list[BaseException] = []

    async def work(index: int) -> None:
        for turn in range(100):
            key = f"{(index * 7 + turn) % 32}"
            assert await store.get_with_fallback(key, good) == 1
            with contextlib.suppress(ConnectionError):  # the others may have displaced it in between
                assert await store.get_with_fallback(key, away if index % 2 else good, max_age_seconds=60) == 1

    def run(index: int) -> None:
        try:
            asyncio.run(work(index))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures
    assert len(store) <= 16


@pytest.mark.parametrize(("settings", "field"), [({"timeout": 0.0}, "timeout"), ({"max_entries": 0}, "max_entries")])
def test_a_bad_setting_fails_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        CachedDataStore(**settings)
