"""The memory cache: bounded in bytes and in time."""

import sys
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import FakeClock, MemoryCache


def test_it_keeps_a_value_until_it_is_too_old() -> None:
    clock = FakeClock()
    cache = MemoryCache(10_000, ttl=300.0, clock=clock)
    cache.set("a", b"1")
    cache.set("b", b"2", ttl=10.0)
    clock.move(299.9)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"1", None, None)
    clock.move(0.1)
    assert cache.get("a") is None
    assert (len(cache), cache.bytes_used) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    cache = MemoryCache(1_200, ttl=300.0, clock=FakeClock())
    for key in "abc":
        cache.set(key, b"x" * 50)
    cache.get("a")
    cache.set("d", b"x" * 50)
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]


def test_replacing_counts_once_and_deleting_frees() -> None:
    cache = MemoryCache(10_000, ttl=300.0, clock=FakeClock())
    cache.set("a", b"x" * 100)
    once = cache.bytes_used
    cache.set("a", b"y" * 100)
    assert (cache.bytes_used, cache.get("a")) == (once, b"y" * 100)
    assert cache.delete("a")
    assert not cache.delete("a")
    assert cache.bytes_used == 0


def test_a_value_larger_than_the_cache_is_not_stored_and_evicts_nothing_else() -> None:
    cache = MemoryCache(1_000, ttl=300.0, clock=FakeClock())
    cache.set("a", b"1")
    cache.set("b", b"1")
    cache.set("b", b"x" * 2_000)
    assert (cache.get("a"), cache.get("b")) == (b"1", None)
    cache.clear()
    assert (len(cache), cache.bytes_used) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 900), st.sampled_from(["set", "get", "delete"]))))
def test_the_bound_holds_and_the_books_agree(steps: list[tuple[str, int, str]]) -> None:
    clock = FakeClock()
    cache = MemoryCache(2_000, ttl=5.0, clock=clock)
    for key, size, action in steps:
        clock.move(0.5)
        if action == "set":
            cache.set(key, b"x" * size)
        elif action == "get":
            value = cache.get(key)
            assert value is None or sys.getsizeof(value) < 2_000
        else:
            cache.delete(key)
        assert 0 <= cache.bytes_used <= 2_000
        assert (cache.bytes_used == 0) == (len(cache) == 0)


def test_the_size_it_counts_is_about_the_size_it_takes() -> None:
    cache = MemoryCache(10_000_000, ttl=300.0, clock=FakeClock())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            cache.set(f"key-{number}", bytes(200))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 < cache.bytes_used / taken < 1.25


def test_eight_threads_keep_the_bound_and_the_books() -> None:
    cache = MemoryCache(5_000, ttl=300.0)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for turn in range(400):
                key = str((thread + turn) % 40)
                cache.set(key, b"x" * turn, ttl=0.0 if turn % 7 == 0 else None)
                cache.get(key)
                if turn % 5 == 0:
                    cache.delete(key)
                if turn % 100 == 99:
                    cache.clear()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures
    assert cache.bytes_used <= 5_000
    for number in range(40):
        cache.delete(str(number))
    assert (len(cache), cache.bytes_used) == (0, 0)


@pytest.mark.parametrize(("size", "ttl", "field"), [(0, 1.0, "max_bytes"), (1, 0.0, "ttl"), (1, float("nan"), "ttl")])
def test_a_bad_setting_fails_by_name(size: int, ttl: float, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        MemoryCache(size, ttl)
