"""The retry budget: what a window allows, exactly, also under threads."""

import itertools
import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import FakeClock
from resilience.retry_budget import RetryBudget


def deposit(budget: RetryBudget, times: int) -> None:
    for _ in range(times):
        budget.deposit()


def withdraw_all(budget: RetryBudget) -> int:
    taken = 0
    while budget.withdraw():
        taken += 1
    return taken


def test_ten_requests_pay_for_one_retry() -> None:
    budget = RetryBudget(ratio=0.1, min_per_second=0, clock=FakeClock())
    deposit(budget, 9)
    assert not budget.withdraw()
    budget.deposit()
    assert budget.balance == 1
    assert budget.withdraw()
    assert not budget.withdraw()


@pytest.mark.parametrize(
    ("ratio", "requests", "retries"), [(0.1, 1_000, 100), (0.2, 5, 1), (1, 7, 7), (2.5, 4, 10), (0, 9, 0)]
)
def test_the_ratio_is_exact(ratio: float, requests: int, retries: int) -> None:
    budget = RetryBudget(ratio=ratio, min_per_second=0, clock=FakeClock())
    deposit(budget, requests)
    assert budget.balance == retries
    assert withdraw_all(budget) == retries


def test_the_reserve_lets_a_caller_without_traffic_retry() -> None:
    clock = FakeClock()
    budget = RetryBudget(min_per_second=0.5, ttl=10.0, clock=clock)
    assert withdraw_all(budget) == 5
    clock.move(9.0)
    assert withdraw_all(budget) == 0
    clock.move(1.0)
    assert withdraw_all(budget) == 5


def test_by_default_it_allows_ten_retries_in_ten_seconds_and_a_tenth_of_the_requests() -> None:
    budget = RetryBudget(clock=FakeClock())
    assert (budget.name, budget.balance) == ("", 10)
    deposit(budget, 30)
    assert budget.balance == 13
    assert RetryBudget("stock").name == "stock"


def test_requests_stop_counting_after_the_ttl() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=1, min_per_second=0, ttl=10.0, clock=clock)
    deposit(budget, 5)
    clock.move(9.5)
    assert budget.balance == 5
    clock.move(0.5)
    assert budget.balance == 0
    assert budget.deposited == 5


def test_an_hour_of_traffic_before_the_outage_does_not_pay_for_it() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=0.1, min_per_second=0, ttl=10.0, clock=clock)
    for _ in range(3_600):
        deposit(budget, 1)
        clock.move(1.0)
    assert budget.balance <= 1


def test_each_request_is_forgotten_in_its_own_time_also_if_nobody_looked_meanwhile() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=1, min_per_second=0, ttl=10.0, clock=clock)
    deposit(budget, 3)
    clock.move(5.0)
    deposit(budget, 4)
    clock.move(7.0)
    assert budget.balance == 4
    clock.move(3.0)
    assert budget.balance == 0


def test_after_a_long_silence_it_is_as_new() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=1, min_per_second=0, clock=clock)
    deposit(budget, 3)
    clock.move(1e9)
    assert budget.balance == 0
    deposit(budget, 2)
    assert budget.balance == 2


def test_refused_retries_take_nothing() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=0.5, min_per_second=0, clock=clock)
    deposit(budget, 3)
    assert [budget.withdraw() for _ in range(4)] == [True, False, False, False]
    budget.deposit()
    assert budget.withdraw()
    assert (budget.deposited, budget.withdrawn, budget.refused) == (4, 2, 3)


def test_a_balance_is_never_negative() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=1, min_per_second=0, ttl=10.0, clock=clock)
    deposit(budget, 3)
    clock.move(5.0)
    withdraw_all(budget)
    clock.move(5.0)  # what was paid in is forgotten before what was taken out
    assert budget.balance == 0
    assert not budget.withdraw()


def test_looking_at_it_changes_nothing() -> None:
    budget = RetryBudget(ratio=1, min_per_second=0, clock=FakeClock())
    deposit(budget, 2)
    for _ in range(100):
        assert (budget.balance, budget.deposited) == (2, 2)


@pytest.mark.parametrize("step", [0.0, 0.05, 0.3, 1.0, 2.5])
def test_its_size_does_not_depend_on_the_traffic(step: float) -> None:
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    for _ in range(1_000):
        deposit(budget, 3)
        budget.withdraw()
        clock.move(step)
    assert len(budget._slots) == 10


@given(
    st.lists(st.tuples(st.sampled_from("dw"), st.floats(0, 4), st.integers(1, 5)), max_size=60),
    st.sampled_from([0, 0.1, 0.5, 2]),
    st.sampled_from([0, 0.2, 1]),
    st.sampled_from([1.0, 3.0, 10.0]),
)
def test_no_window_holds_more_retries_than_its_requests_and_the_reserve_allow(
    steps: list[tuple[str, float, int]], ratio: float, reserve: float, ttl: float
) -> None:
    clock = FakeClock(start=0.0)
    budget = RetryBudget(ratio=ratio, min_per_second=reserve, ttl=ttl, clock=clock)
    paid: list[float] = []
    taken: list[float] = []
    for what, pause, times in steps:
        clock.move(pause)
        for _ in range(times):
            if what == "d":
                budget.deposit()
                paid.append(clock.monotonic())
            elif budget.withdraw():
                taken.append(clock.monotonic())
    for end in taken:
        retries = sum(end - 0.9 * ttl < at <= end for at in taken)
        requests = sum(end - ttl < at <= end for at in paid)
        assert retries <= ratio * requests + reserve * ttl + 1e-9
    assert (budget.deposited, budget.withdrawn) == (len(paid), len(taken))


def test_eight_threads_keep_exact_counts() -> None:
    budget = RetryBudget(ratio=0.25, min_per_second=0, ttl=1e6)
    taken: list[int] = []

    def work() -> None:
        own = 0
        for n in range(4_000):
            budget.deposit()
            if n % 2:
                own += budget.withdraw()
        taken.append(own)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert budget.deposited == 32_000
    assert sum(taken) == budget.withdrawn
    assert budget.withdrawn + budget.refused == 16_000
    assert budget.withdrawn + budget.balance == 8_000


def test_threads_that_turn_the_window_together_lose_no_request() -> None:
    looks = itertools.count()
    moving: Any = SimpleNamespace(monotonic=lambda: next(looks) / 100)  # every look at it moves it
    budget = RetryBudget(ratio=1, min_per_second=0, ttl=1.0, clock=moving)
    threads = [threading.Thread(target=deposit, args=(budget, 2_000)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert budget.deposited == 16_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ratio", value) for value in (-0.1, 1_001, math.nan)),
        *(("min_per_second", value) for value in (-1, math.nan, math.inf)),
        *(("ttl", value) for value in (0, -1, math.nan, math.inf)),
    ],
)
def test_a_bad_setting_fails_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        RetryBudget(**{name: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_allowed() -> None:
    budget = RetryBudget(ratio=1_000, min_per_second=0)
    budget.deposit()
    assert budget.balance == 1_000
