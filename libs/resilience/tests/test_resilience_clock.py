"""The fake clock keeps its promises, and the real one is the real one."""

import asyncio
import time

import pytest

from resilience import SYSTEM_CLOCK, FakeClock


async def test_sleepers_wake_in_the_order_they_are_due() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        start = clock.monotonic()
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic() - start))

    tasks = [asyncio.create_task(sleeper(name, at)) for name, at in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
    await clock.advance(2.5)
    assert woken == [("a", 1.0), ("b", 2.0)]
    await clock.advance(10)
    assert woken[-1] == ("c", 3.0)
    await asyncio.gather(*tasks)


async def test_a_woken_task_can_sleep_again_within_one_advance() -> None:
    clock = FakeClock()
    start = clock.monotonic()
    ticks: list[float] = []

    async def ticker() -> None:
        for _ in range(5):
            await clock.sleep(1.0)
            ticks.append(clock.monotonic() - start)

    task = asyncio.create_task(ticker())
    await clock.advance(5.0)
    await task
    assert ticks == [1.0, 2.0, 3.0, 4.0, 5.0]


async def test_a_cancelled_sleeper_and_timer_leave_nothing() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(9.0))
    await clock.advance(0)
    assert clock.pending == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    clock.call_later(1.0, pytest.fail).cancel()
    await clock.advance(5.0)
    assert clock.pending == 0


def test_the_wall_clock_jumps_alone() -> None:
    clock = FakeClock(start=10.0, wall=1_000.0)
    clock.move(5.0)
    assert (clock.monotonic(), clock.time()) == (15.0, 1_005.0)
    clock.jump_wall(-3600.0)
    assert (clock.monotonic(), clock.time()) == (15.0, -2_595.0)


async def test_the_system_clock_is_the_systems() -> None:
    assert abs(SYSTEM_CLOCK.monotonic() - time.monotonic()) < 1.0
    assert abs(SYSTEM_CLOCK.time() - time.time()) < 1.0
    fired = asyncio.Event()
    SYSTEM_CLOCK.call_later(0.001, fired.set)
    before = SYSTEM_CLOCK.monotonic()
    await SYSTEM_CLOCK.sleep(0.002)
    await asyncio.wait_for(fired.wait(), 5)
    assert SYSTEM_CLOCK.monotonic() - before >= 0.001
