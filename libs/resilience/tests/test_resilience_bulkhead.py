"""The bulkhead: bounded, fair, and never losing a slot."""

import asyncio
import random

import pytest

from resilience import Bulkhead, BulkheadFull, CallTimeout, FakeClock


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    bulkhead = Bulkhead("db", 2, 100)
    order: list[int] = []
    peak = 0

    async def caller(number: int) -> None:
        nonlocal peak
        async with bulkhead:
            peak = max(peak, bulkhead.active)
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(caller(number) for number in range(50)))
    assert order == list(range(50))
    assert (peak, bulkhead.active, bulkhead.waiting) == (2, 0, 0)


async def test_a_newcomer_cannot_overtake_those_who_wait() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    bulkhead.release()
    assert not bulkhead.try_acquire()
    await waiter


async def test_past_the_queue_it_says_no_at_once() -> None:
    bulkhead = Bulkhead("db", 1, 1)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire())
    await settle()
    with pytest.raises(BulkheadFull, match="db"):
        await bulkhead.acquire()
    bulkhead.release()
    await waiter


async def test_waiting_ends_in_time() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, clock=clock)
    await bulkhead.acquire()
    waiter = asyncio.create_task(bulkhead.acquire(timeout=2.0))
    await clock.advance(2.0)
    with pytest.raises(CallTimeout):
        await waiter
    assert bulkhead.waiting == 0
    bulkhead.release()
    assert (bulkhead.active, clock.pending) == (0, 0)


async def test_cancelled_in_the_moment_of_the_hand_over_the_slot_goes_on() -> None:
    bulkhead = Bulkhead("db", 1, 5)
    await bulkhead.acquire()
    first, second = (asyncio.create_task(bulkhead.acquire()) for _ in range(2))
    await settle()
    bulkhead.release()
    first.cancel()
    await second
    bulkhead.release()
    assert first.cancelled()
    assert bulkhead.active == 0


async def test_given_up_in_the_moment_of_the_hand_over_the_slot_goes_on() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead("db", 1, 5, clock=clock)
    await bulkhead.acquire()
    late = asyncio.create_task(bulkhead.acquire(timeout=1.0))
    patient = asyncio.create_task(bulkhead.acquire(timeout=5.0))
    await settle()
    clock.move(1.0)  # the first waiter's time is up, but it has not run yet
    bulkhead.release()
    await patient
    with pytest.raises(CallTimeout):
        await late
    bulkhead.release()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_no_slot_is_lost_whatever_happens() -> None:
    clock, dice = FakeClock(), random.Random(5)
    bulkhead = Bulkhead("db", 3, 20, clock=clock)

    async def caller() -> None:
        await bulkhead.acquire(timeout=dice.uniform(0.1, 2.0))
        try:
            assert bulkhead.active <= 3
            await clock.sleep(dice.uniform(0.0, 1.0))
        finally:
            bulkhead.release()

    callers: list[asyncio.Task[None]] = []
    for _ in range(300):
        callers.append(asyncio.create_task(caller()))
        await clock.advance(dice.choice([0.0, 0.05, 0.2]))
        if dice.random() < 0.3:
            dice.choice(callers).cancel()
    await clock.advance(60)
    await asyncio.wait(callers, timeout=5)
    assert all(task.done() for task in callers)
    assert (bulkhead.active, bulkhead.waiting, clock.pending) == (0, 0, 0)
    assert {type(task.exception()) for task in callers if not task.cancelled()} >= {type(None), CallTimeout}


@pytest.mark.parametrize(("limit", "waiting", "field"), [(0, 1, "limit"), (1, -1, "max_waiting")])
def test_a_bad_setting_fails_by_name(limit: int, waiting: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Bulkhead("db", limit, waiting)
