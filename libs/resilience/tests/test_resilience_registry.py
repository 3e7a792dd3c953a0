"""Breakers by key: made once, bounded in number, and forgotten only when nothing is lost, or when it must be."""

import itertools
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import CircuitBreaker, CircuitState, FakeClock
from resilience.registry import BreakerRegistry


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def registry_of(clock: FakeClock, **settings: Any) -> BreakerRegistry:
    return BreakerRegistry(
        lambda key: CircuitBreaker(key, failure_threshold=2, recovery_timeout=30.0, clock=clock),
        clock=clock,
        **settings,
    )


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.acquire().failure(ValueError())


def test_a_key_has_one_breaker_that_is_made_when_first_asked_for(clock: FakeClock) -> None:
    registry = registry_of(clock)
    assert len(registry) == 0
    assert registry.peek("a") is None
    assert "a" not in registry
    first = registry.get("a")
    assert first.name == "a"
    assert registry.get("a") is first
    assert registry.get("b") is not first
    assert registry.peek("a") is first
    assert "a" in registry
    assert len(registry) == 2
    assert list(registry) == [registry.get("a"), registry.get("b")]


def test_the_usual_breaker_is_one_with_default_rules_and_the_key_for_a_name() -> None:
    breaker = BreakerRegistry().get("payments")
    assert (breaker.name, breaker.settings.failure_threshold) == ("payments", 5)


def test_one_can_be_removed(clock: FakeClock) -> None:
    registry = registry_of(clock)
    first = registry.get("a")
    assert registry.remove("a")
    assert not registry.remove("a")
    assert registry.get("a") is not first


def test_items_are_told_least_recently_used_first_and_peeking_is_no_use(clock: FakeClock) -> None:
    registry = registry_of(clock)
    for key in "abc":
        registry.get(key)
    registry.get("a")
    registry.peek("b")
    assert [key for key, _ in registry.items()] == ["b", "c", "a"]


def test_one_that_was_not_asked_for_in_max_idle_seconds_is_forgotten(clock: FakeClock) -> None:
    registry = registry_of(clock, max_idle=100.0)
    registry.get("a")
    clock.move(99.9)
    registry.get("b")
    assert "a" in registry
    clock.move(0.1)
    registry.get("b")
    assert "a" in registry, "looked for only when one is added"
    registry.get("c")
    assert "a" not in registry
    assert "b" in registry


@pytest.mark.parametrize("why", ["failures", "open", "held", "shadow", "inside"])
def test_one_that_would_lose_something_is_kept(clock: FakeClock, why: str) -> None:
    registry = registry_of(clock, max_idle=100.0)
    breaker = registry.get("a")
    if why == "failures":
        fail(breaker)
    elif why == "open":
        fail(breaker, 2)
    elif why == "held":
        breaker.force_closed()
    elif why == "shadow":
        breaker.shadow()
    else:
        inside = breaker.acquire()
    clock.move(1_000.0)
    registry.get("b")
    assert registry.peek("a") is breaker
    if why == "inside":
        inside.success()
    else:
        breaker.reset()
    clock.move(1_000.0)
    registry.get("c")
    assert "a" not in registry
    assert "b" not in registry


def test_failures_that_time_has_taken_out_of_a_window_keep_nothing(clock: FakeClock) -> None:
    registry = BreakerRegistry(
        lambda key: CircuitBreaker(key, window_seconds=10.0, clock=clock), max_idle=100.0, clock=clock
    )
    fail(registry.get("a"))
    registry.get("a").acquire().success()  # ends the streak, so that only the window remembers
    assert not registry.get("a").idle
    clock.move(100.0)
    registry.get("b")
    assert "a" not in registry


def test_idle_ones_cannot_hide_behind_one_that_is_kept(clock: FakeClock) -> None:
    registry = registry_of(clock, max_idle=100.0)
    for number in range(20):
        breaker = registry.get(f"old {number}")
        if number < 6:
            fail(breaker)
    clock.move(100.0)
    for number in range(20):
        registry.get(f"new {number}")
    assert sum(key.startswith("old") for key, _ in registry.items()) == 6


def test_when_full_the_least_recently_used_closed_one_goes(clock: FakeClock) -> None:
    registry = registry_of(clock, max_breakers=3)
    opened = registry.get("open")
    fail(opened, 2)
    registry.get("a")
    registry.get("b")
    registry.get("c")
    assert [key for key, _ in registry.items()] == ["open", "b", "c"]
    assert registry.evicted_open == 0
    assert registry.peek("open") is opened
    assert registry.get("open").state is CircuitState.OPEN


def test_when_full_of_open_and_held_ones_the_least_recently_used_goes_and_is_counted(clock: FakeClock) -> None:
    registry = registry_of(clock, max_breakers=3)
    fail(registry.get("open"), 2)
    registry.get("held open").force_open()
    registry.get("held closed").force_closed()
    registry.get("new")
    assert [key for key, _ in registry.items()] == ["held open", "held closed", "new"]
    assert registry.evicted_open == 1
    registry.get("newer")
    assert [key for key, _ in registry.items()] == ["held open", "held closed", "newer"]
    assert registry.evicted_open == 1


def test_a_maker_that_fails_leaves_nothing_behind(clock: FakeClock) -> None:
    made = 0

    def make(key: str) -> CircuitBreaker:
        nonlocal made
        made += 1
        if made == 2:
            raise LookupError(key)
        return CircuitBreaker(key)

    registry = BreakerRegistry(make, max_breakers=1, clock=clock)
    registry.get("a")
    with pytest.raises(LookupError):
        registry.get("b")
    assert [key for key, _ in registry.items()] == ["a"], "nobody was evicted for it"
    registry.get("b")
    assert len(registry) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_breakers": 0}, "max_breakers must be at least 1, not 0"),
        ({"max_idle": 0}, "max_idle must be a positive number of seconds, not 0"),
        ({"max_idle": float("nan")}, "max_idle must be a positive number of seconds, not nan"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        BreakerRegistry(**settings)
    assert str(caught.value) == text


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0.0, 5.0, 60.0]), st.booleans()), max_size=60))
def test_there_are_never_too_many_and_an_open_one_goes_only_when_all_are(steps: list[tuple[int, float, bool]]) -> None:
    clock = FakeClock()
    registry = registry_of(clock, max_breakers=4, max_idle=100.0)
    for key, wait, bad in steps:
        clock.move(wait)
        before = dict(registry.items())
        evicted = registry.evicted_open
        breaker = registry.get(str(key))
        if bad and breaker.state is CircuitState.CLOSED:
            fail(breaker)
        assert len(registry) <= 4
        assert registry.items()[-1] == (str(key), breaker)
        gone = [one for name, one in before.items() if name not in registry]
        lost = [one for one in gone if one.state is not CircuitState.CLOSED]
        assert len(lost) == registry.evicted_open - evicted
        if lost:
            assert all(one.state is not CircuitState.CLOSED for one in before.values())


def test_eight_threads_get_the_same_breaker(clock: FakeClock) -> None:
    registry = registry_of(clock, max_breakers=50)
    barrier, seen = threading.Barrier(8), []

    def work() -> None:
        barrier.wait(20)
        for number in itertools.chain(range(40), range(40)):
            seen.append((number, id(registry.get(str(number)))))
            len(registry.items())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(seen) == 8 * 80
    assert len(set(seen)) == 40
