"""The waits between attempts as pure functions."""

from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.ambient import RANDOM
from resilience.backoff import Backoff, Jitter, exponential

SEEDS = st.integers(0, 2**32)
SECONDS = st.floats(0, 1e6)


class Fixed(Random):
    """Draws the same place between the two ends every time."""

    def __init__(self, place: float) -> None:
        super().__init__(0)
        self.place = place

    def random(self) -> float:
        return self.place


LOWEST, MIDDLE, HIGHEST = Fixed(0.0), Fixed(0.5), Fixed(1.0)


def waits(backoff: Backoff, random: Random, attempts: int = 5) -> list[float]:
    found: list[float] = []
    for attempt in range(1, attempts + 1):
        found.append(backoff.wait(attempt, random, found[-1] if found else 0.0))
    return found


def test_without_jitter_it_doubles_up_to_the_cap() -> None:
    assert waits(Backoff(1.0, cap=10.0, jitter="none"), LOWEST) == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert waits(Backoff(1, factor=3, cap=100, jitter="none"), LOWEST) == [1.0, 3.0, 9.0, 27.0, 81.0]
    assert waits(Backoff(1.0, factor=1.0, jitter="none"), LOWEST) == [1.0] * 5


@pytest.mark.parametrize(
    ("jitter", "lowest", "middle", "highest"),
    [
        ("full", [0.0, 0.0, 0.0, 0.0], [0.5, 1.0, 2.0, 2.5], [1.0, 2.0, 4.0, 5.0]),
        ("equal", [0.5, 1.0, 2.0, 2.5], [0.75, 1.5, 3.0, 3.75], [1.0, 2.0, 4.0, 5.0]),
        ("proportional", [0.9, 1.8, 3.6, 4.5], [1.0, 2.0, 4.0, 4.75], [1.1, 2.2, 4.4, 5.0]),
        ("decorrelated", [1.0, 1.0, 1.0, 1.0], [2.0, 3.5, 5.0, 5.0], [3.0, 5.0, 5.0, 5.0]),
    ],
)
def test_each_jitter_at_both_ends_and_in_the_middle(
    jitter: Jitter, lowest: list[float], middle: list[float], highest: list[float]
) -> None:
    backoff = Backoff(1.0, cap=5.0, jitter=jitter)
    assert waits(backoff, LOWEST, 4) == pytest.approx(lowest)
    assert waits(backoff, MIDDLE, 4) == pytest.approx(middle)
    assert waits(backoff, HIGHEST, 4) == pytest.approx(highest)


def test_the_share_of_proportional_jitter_can_be_set() -> None:
    backoff = Backoff(1.0, cap=5.0, jitter="proportional", share=0.5)
    assert (backoff.wait(1, LOWEST), backoff.wait(1, HIGHEST)) == (0.5, 1.5)


def test_decorrelated_waits_depend_on_the_wait_before_and_not_on_the_attempt() -> None:
    backoff = Backoff(1.0, cap=100.0, factor=7.0, jitter="decorrelated")
    assert backoff.wait(1, HIGHEST, 4.0) == backoff.wait(9, HIGHEST, 4.0) == 12.0
    assert backoff.wait(1, HIGHEST, 0.5) == 3.0  # never below what `base` gives
    assert backoff.wait(1, LOWEST, 50.0) == 1.0


@given(
    st.sampled_from(get_args(Jitter)),
    st.integers(1, 10**9),
    SECONDS,
    st.floats(0, 1e3),
    SECONDS,
    st.floats(0, 1),
    SECONDS,
    SEEDS,
)
def test_no_wait_is_negative_or_above_the_cap_whatever_the_attempt(
    jitter: Jitter, attempt: int, base: float, factor: float, cap: float, share: float, previous: float, seed: int
) -> None:
    backoff = Backoff(base, factor=factor, cap=cap, jitter=jitter, share=share)
    wait = backoff.wait(attempt, Random(seed), previous)
    assert 0.0 <= wait <= cap
    if jitter in ("none", "full", "equal"):
        assert wait <= backoff.bound(attempt)


@given(st.integers(1, 200), SEEDS)
def test_proportional_jitter_stays_within_its_share(attempt: int, seed: int) -> None:
    backoff = Backoff(1.0, cap=60.0, jitter="proportional", share=0.1)
    bound = min(60.0, 2.0 ** (attempt - 1))
    assert bound * 0.9 <= backoff.wait(attempt, Random(seed)) <= min(60.0, bound * 1.1)


def test_at_the_cap_proportional_jitter_still_spreads() -> None:
    backoff = Backoff(1.0, cap=60.0, jitter="proportional")
    random = Random(3)
    assert len({backoff.wait(50, random) for _ in range(100)}) == 100


@pytest.mark.parametrize("attempt", [10**3, 10**6, 10**18])
def test_a_huge_attempt_number_neither_overflows_nor_takes_long(attempt: int) -> None:
    assert exponential(attempt, 1, 2, 7) == 7
    assert exponential(attempt, 0.0, 2.0, 7.0) == 0.0  # waits of nothing stay nothing
    assert exponential(attempt, 1.0, 0.5, 7.0) < 1e-300
    assert Backoff(1.0, cap=7.0, jitter="full").wait(attempt, HIGHEST) == 7.0


def test_the_same_seed_gives_the_same_waits() -> None:
    for jitter in get_args(Jitter):
        backoff = Backoff(0.1, jitter=jitter)
        assert waits(backoff, Random(5)) == waits(backoff, Random(5))


def test_without_a_source_of_chance_the_ambient_one_is_used() -> None:
    state = RANDOM.getstate()
    try:
        RANDOM.seed(11)
        first = Backoff(1.0).wait(1)
        RANDOM.seed(11)
        assert Backoff(1.0).wait(1) == first
    finally:
        RANDOM.setstate(state)


@pytest.mark.parametrize("name", ["base", "factor", "cap"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_bad_time_fails_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Backoff(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("share", -0.1), ("share", 1.1), ("share", float("nan")), ("jitter", "some")]
)
def test_a_bad_jitter_fails_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Backoff(**{name: value})


def test_the_defaults() -> None:
    assert repr(Backoff()) == "Backoff(0.05, factor=2, cap=5, jitter='full')"


@pytest.mark.parametrize(("share", "factor", "cap"), [(0, 0, 0), (1, 1, 1)])
def test_the_ends_of_the_ranges_are_allowed(share: float, factor: float, cap: float) -> None:
    assert Backoff(0, factor=factor, cap=cap, share=share, jitter="proportional").wait(1) == 0.0


def test_they_say_what_they_are() -> None:
    assert repr(Backoff(1.0)) == "Backoff(1, factor=2, cap=5, jitter='full')"
    assert repr(Backoff(1, jitter="proportional")) == "Backoff(1, factor=2, cap=5, jitter='proportional', share=0.1)"
