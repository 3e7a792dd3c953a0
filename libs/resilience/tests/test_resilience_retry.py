"""Retry: the schedule as a function, and the loop around it."""

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import FakeClock, RetrySchedule, deadline_scope, retry


class Down(Exception):
    pass


def is_down(error: Exception) -> bool:
    return isinstance(error, Down)


class Flaky:
    """Fails `failures` times, then answers."""

    def __init__(self, failures: int, error: type[BaseException] = Down) -> None:
        self.left = failures
        self.error = error
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return self.calls


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_a_wait_lies_within_the_exponential_bound(attempt: int, seed: int) -> None:
    schedule = RetrySchedule(attempts=20_000, base=0.1, factor=2.0, cap=5.0, random=Random(seed))
    wait = schedule.wait(attempt)
    assert wait is not None
    assert 0.0 <= wait <= schedule.bound(attempt) <= 5.0


def test_the_bound_doubles_up_to_the_cap_and_never_overflows() -> None:
    schedule = RetrySchedule(base=0.1, cap=1.0)
    assert [schedule.bound(n) for n in (1, 2, 3, 4, 5)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    assert schedule.bound(10**6) == 1.0


def test_the_same_seed_gives_the_same_waits() -> None:
    first, second = (RetrySchedule(attempts=9, random=Random(7)) for _ in range(2))
    assert [first.wait(n) for n in range(1, 9)] == [second.wait(n) for n in range(1, 9)]


def test_after_the_last_attempt_there_is_no_wait() -> None:
    assert RetrySchedule(attempts=2).wait(2) is None


@pytest.mark.parametrize("settings", [{"attempts": 0}, {"base": -1.0}, {"factor": float("nan")}, {"cap": -0.1}])
def test_a_bad_schedule_fails_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RetrySchedule(**settings)  # type: ignore[arg-type]


async def test_it_retries_until_it_works() -> None:
    clock, flaky = FakeClock(), Flaky(2)
    call = asyncio.create_task(retry(flaky, retry_on=is_down, clock=clock))
    await clock.advance(1.0)
    assert await call == 3


async def test_the_last_error_is_raised() -> None:
    clock, flaky = FakeClock(), Flaky(9)
    call = asyncio.create_task(retry(flaky, retry_on=is_down, attempts=3, clock=clock))
    await clock.advance(5.0)
    with pytest.raises(Down):
        await call
    assert flaky.calls == 3


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_anything_else_is_not_retried(error: type[BaseException]) -> None:
    flaky = Flaky(1, error)
    with pytest.raises(error):
        await retry(flaky, retry_on=is_down)
    assert flaky.calls == 1


async def test_it_does_not_begin_a_wait_that_outlasts_the_deadline() -> None:
    clock, flaky = FakeClock(), Flaky(9)

    class Longest(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    schedule = RetrySchedule(attempts=9, base=1.0, random=Longest())
    with deadline_scope(2.5, clock=clock):
        call = asyncio.create_task(retry(flaky, retry_on=is_down, schedule=schedule, clock=clock))
    await clock.advance(1.0)
    with pytest.raises(Down):
        await call
    assert flaky.calls == 2


async def test_attempts_and_schedule_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        await retry(Flaky(0), retry_on=is_down, attempts=1, schedule=RetrySchedule())
