"""Windows against a recount of everything that ever happened."""

from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.window import BUCKETS, FAILED, SLOW, CountWindow, TimeWindow

OUTCOMES = st.lists(st.sampled_from([0, 0, 0, FAILED, SLOW, FAILED | SLOW]), max_size=60)


def totals(outcomes: list[int]) -> tuple[int, int, int]:
    return len(outcomes), sum(o in (FAILED, FAILED | SLOW) for o in outcomes), sum(o >= SLOW for o in outcomes)


def read(window: CountWindow | TimeWindow) -> tuple[int, int, int]:
    return window.calls, window.failures, window.slow


# -- the latest N


@given(size=st.integers(1, 12), outcomes=OUTCOMES)
def test_case_04_a_count_window_equals_a_recount_of_its_latest(size: int, outcomes: list[int]) -> None:
    window, latest = CountWindow(size), deque[int](maxlen=size)
    for outcome in outcomes:
        window.add(outcome)
        latest.append(outcome)
        window.advance(1e9)
        assert read(window) == totals(list(latest))
        assert window.full is (len(latest) == size)
        assert list(window.ring[window.at :] + window.ring[: window.at]) == list(latest)
        assert 0 <= window.at < size


@given(size=st.integers(1, 12), outcomes=OUTCOMES, other=st.integers(1, 15), later=OUTCOMES)
@example(size=3, outcomes=[1, 2, 3, 0], other=3, later=[1])
def test_a_resized_window_keeps_the_latest_and_goes_on_as_if_it_had_always_been_so(
    size: int, outcomes: list[int], other: int, later: list[int]
) -> None:
    window = CountWindow(size)
    for outcome in outcomes:
        window.add(outcome)
    resized, latest = window.resized(other), deque(outcomes[-size:], maxlen=other)
    assert read(window) == totals(outcomes[-size:]), "the old one is as it was"
    assert read(resized) == totals(list(latest))
    for outcome in later:
        resized.add(outcome)
        latest.append(outcome)
        assert read(resized) == totals(list(latest))
    assert resized.size == other


def test_a_count_window_takes_no_memory_for_what_it_has_not_seen() -> None:
    assert len(TimeWindow(10.0)._counts) == 3 * BUCKETS
    window = CountWindow(1_000_000)
    window.add(FAILED)
    assert len(window.ring) == 1
    assert not window.full


# -- the last S seconds

TIMES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.5, 9.75, 10.0, 40.0]),  # since the one before
        st.sampled_from([0.0, 0.25, 1.0, 5.0, 9.0, 9.75, 10.0, 30.0]),  # how long it took
        st.sampled_from([0, FAILED, SLOW, FAILED | SLOW]),
    ),
    max_size=50,
)


@given(start=st.sampled_from([0.0, 0.75, 1_000.0, 12_345.25]), steps=TIMES, seconds=st.sampled_from([10.0, 5.0, 20.0]))
def test_case_05_06_07_a_time_window_equals_a_recount(
    start: float, steps: list[tuple[float, float, int]], seconds: float
) -> None:
    """Credited to the step in which the call began; a step counts while any part of it is within the window."""
    window, now, width = TimeWindow(seconds), start, seconds / BUCKETS
    seen: list[tuple[float, int]] = []

    def recount() -> tuple[int, int, int]:
        first = now // width - BUCKETS
        return totals([outcome for began, outcome in seen if began // width > first])

    for wait, took, outcome in steps:
        now += wait
        began = max(0.0, now - took)
        window.add(outcome, began, now)
        seen.append((began, outcome))
        assert read(window) == recount()
        now += 0.25
        window.advance(now)
        assert read(window) == recount()


@given(
    st.floats(0.001, 1e5, allow_nan=False), st.lists(st.floats(0.0, 1e3), min_size=1, max_size=30), st.floats(0, 1e7)
)
def test_whatever_the_numbers_nothing_is_counted_longer_than_the_window_or_forgotten_before_nine_tenths(
    seconds: float, waits: list[float], start: float
) -> None:
    window, now = TimeWindow(seconds), start
    seen: list[float] = []
    for wait in waits:
        now += wait
        window.add(FAILED, now, now)
        seen.append(now)
        slack = 1e-6 * seconds + now * 1e-12
        certain = sum(now - at < 0.9 * seconds - slack for at in seen)
        possible = sum(now - at < seconds + slack for at in seen)
        assert certain <= window.calls <= possible
        assert window.failures == window.calls
        assert window.slow == 0


def test_case_05_at_exactly_its_length_an_outcome_is_gone() -> None:
    window = TimeWindow(10.0)
    window.add(FAILED, 1_000.0, 1_000.0)
    window.advance(1_009.999)
    assert read(window) == (1, 1, 0)
    window.advance(1_010.0)
    assert read(window) == (0, 0, 0)


def test_case_05_a_boundary_that_rounding_puts_just_below_is_the_boundary() -> None:
    for start in range(0, 1_000, 7):
        window = TimeWindow(1.0)
        at = start * 0.1
        window.add(FAILED, at, at)
        window.advance(at + 1.0)
        assert window.calls == 0, start


def test_case_06_after_a_long_pause_nothing_old_is_left_in_any_bucket() -> None:
    window = TimeWindow(10.0)
    for second in range(10):
        window.add(FAILED | SLOW, 100.0 + second, 100.0 + second)
    assert read(window) == (10, 10, 10)
    window.add(0, 1e8, 1e8)
    assert read(window) == (1, 0, 0)
    for second in range(10):
        window.advance(1e8 + second)
    assert read(window) == (1, 0, 0)


@pytest.mark.parametrize(("took", "counted"), [(0.0, 1), (9.0, 1), (9.999, 1), (10.0, 0), (1e4, 0)])
def test_case_07_a_call_is_credited_to_when_it_began_or_dropped(took: float, counted: int) -> None:
    window = TimeWindow(10.0)
    window.add(FAILED, 2_000.0, 2_000.0 + took)
    assert window.calls == counted
    window.advance(2_009.999)
    assert window.calls == counted
    window.advance(2_010.0)
    assert window.calls == 0


def test_time_that_goes_backwards_changes_nothing() -> None:
    """The monotonic clock does not, but two threads may read it in one order and be counted in the other."""
    window = TimeWindow(10.0)
    window.add(FAILED, 105.0, 105.0)
    window.add(SLOW, 103.0, 104.0)
    window.advance(90.0)
    assert read(window) == (2, 1, 1)
    window.advance(113.0)
    assert read(window) == (1, 1, 0)


def test_a_call_of_which_nobody_knows_when_it_began_is_credited_to_its_end() -> None:
    window = TimeWindow(10.0)
    window.add(FAILED, float("inf"), 105.0)
    window.advance(114.9)
    assert window.calls == 1
    window.advance(115.0)
    assert window.calls == 0
