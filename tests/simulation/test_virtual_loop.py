"""The loop that the simulation runs on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from tests.simulation.loop import OWNER, Process, VirtualLoop


def loop_of(*work: Callable[[VirtualLoop], Awaitable[None]], seconds: float = 1e6) -> VirtualLoop:
    """A loop on which these have run."""
    loop = VirtualLoop(Random(1))
    for one in work:
        loop.create_task(one(loop))
    loop.run(seconds)
    return loop


def test_virtual_time_jumps_and_keeps_its_order() -> None:
    woken: list[tuple[float, str]] = []

    async def sleeper(loop: VirtualLoop) -> None:
        for seconds in (3600.0, 0.5, 7.25):
            await asyncio.sleep(seconds)
            woken.append((loop.time(), "slept"))

    async def impatient(loop: VirtualLoop) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await loop.create_future()
        woken.append((loop.time(), "gave up"))

    loop = loop_of(sleeper, impatient)
    assert woken == [(60.0, "gave up"), (3600.0, "slept"), (3600.5, "slept"), (3607.75, "slept")]
    assert loop.pending_timers() == []
    assert loop.failures == []


def test_a_livelock_ends_the_simulation() -> None:
    loop = VirtualLoop(Random(1))

    def spin() -> None:
        loop.call_soon(spin)

    spin()
    with pytest.raises(AssertionError, match="livelock"):
        loop.run(1.0)


def test_a_paused_process_does_nothing_until_it_goes_on() -> None:
    loop, process, seen = VirtualLoop(Random(1)), Process("p"), []

    async def ticking() -> None:
        while True:
            await asyncio.sleep(1.0)
            seen.append(loop.time())

    context = contextvars.Context()
    context.run(OWNER.set, process)
    task = loop.create_task(ticking(), context=context)
    loop.run(2.5)
    process.paused = True
    loop.run(10.0)
    assert seen == [1.0, 2.0]
    loop.resume(process)
    loop.run(12.5)
    assert seen == [1.0, 2.0, 10.0, 11.0, 12.0]
    assert process.running == [task]
    task.cancel()
    loop.run(13.0)
    assert process.running == []
