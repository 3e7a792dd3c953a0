"""The home page: every part on its own, and the page there whatever is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dashboard.usecases.home import Home, Part, PartLeftOut, PartTooSlow
from resilience import CallTimeout, FakeClock, Served, current_deadline

pytestmark = pytest.mark.asyncio

SECONDS = 1.2


def serving(value: Any) -> Part:
    async def read(_: str) -> Served[Any]:
        return Served(value)

    return Part(read)


def failing(error: Exception) -> Part:
    async def read(_: str) -> Served[Any]:
        raise error

    return Part(read)


class Slow:
    """A part that never answers; ``cancelled`` when it was told to stop."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def read(self, _: str) -> Served[Any]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


async def shown(home: Home, clock: FakeClock, seconds: float = 0.0) -> dict[str, Any]:
    task = asyncio.create_task(home.show("ann"))
    await clock.advance(seconds)
    assert task.done()
    return dict(task.result())


async def test_every_part_is_shown() -> None:
    clock = FakeClock()
    home = Home({"user": serving(1), "rooms": serving([2])}, seconds=SECONDS, clock=clock)
    assert await shown(home, clock) == {"user": Served(1), "rooms": Served([2])}
    assert clock.pending == 0


async def test_a_part_that_fails_takes_no_other_with_it() -> None:
    clock, error = FakeClock(), CallTimeout("postgres", 1.0)
    home = Home({"user": failing(error), "rooms": serving(2)}, seconds=SECONDS, clock=clock)
    assert await shown(home, clock) == {"user": error, "rooms": Served(2)}


async def test_a_slow_part_is_given_up_when_its_time_is_over() -> None:
    clock, slow = FakeClock(), Slow()
    home = Home({"agents": Part(slow.read), "rooms": serving(2)}, seconds=SECONDS, clock=clock)
    task = asyncio.create_task(home.show("ann"))
    await clock.advance(SECONDS - 0.01)
    assert not task.done()
    await clock.advance(0.01)
    found = task.result()
    assert isinstance(found["agents"], PartTooSlow)
    assert found["rooms"] == Served(2)
    assert slow.cancelled.is_set()


async def test_the_calls_of_a_part_end_early_enough_for_what_serves_instead() -> None:
    clock = FakeClock()

    async def read(_: str) -> Served[Any]:
        deadline = current_deadline()
        assert deadline is not None
        await clock.sleep(deadline.remaining(clock))
        return Served("copy")

    home = Home({"user": Part(read)}, seconds=SECONDS, clock=clock)
    assert await shown(home, clock, SECONDS - 0.01) == {"user": Served("copy")}


async def test_who_goes_away_takes_the_parts_along() -> None:
    clock, slow = FakeClock(), Slow()
    task = asyncio.create_task(Home({"agents": Part(slow.read)}, seconds=SECONDS, clock=clock).show("ann"))
    await slow.begun.wait()
    task.cancel()
    await slow.cancelled.wait()
    await asyncio.wait((task,))
    assert clock.pending == 0


async def test_an_optional_part_is_not_even_begun_while_it_is_not_wanted() -> None:
    clock, slow = FakeClock(), Slow()
    parts = {"analytics": Part(slow.read, optional=True), "rooms": serving(2)}
    home = Home(parts, seconds=SECONDS, optional_parts=lambda: False, clock=clock)
    found = await shown(home, clock)
    assert isinstance(found["analytics"], PartLeftOut)
    assert found["rooms"] == Served(2)
    assert not slow.begun.is_set()
