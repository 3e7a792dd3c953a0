"""One soak: the nemesis at work while the load goes on, and what it did and how long each recovery took."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from tests.harness.checker import Outage
from tests.harness.platform import Platform, eventually
from tests.harness.routes import PROVIDERS
from tests.harness.run import Run
from tests.harness.simulator import Simulator
from tests.soak.nemesis import Episode, Fault

TOKEN = 0.02  # s between two tokens: an answer takes half a second, so that faults meet streams in the middle
GIVEN_UP = 20.0  # s after which a recovery is given up and the run goes on

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Broken:
    """A fault as it was. Times are the history's; ``recovery``: s from the component accepting work to all its circuits
    closed, infinity when it was given up."""

    fault: Fault
    start: float
    noticed: float
    healing: float
    recovery: float


@dataclass(frozen=True, slots=True)
class Past:
    """An episode as it was. ``settled``: s from the last recovery until the queue was empty and the mode normal."""

    broken: tuple[Broken, ...]
    over: float
    settled: float

    def outages(self) -> list[Outage]:
        """For the checker."""
        return [Outage(one.start, one.noticed, one.healing, self.over, one.fault.component) for one in self.broken]


class Soak:
    """Episodes one after the other on a running platform under load."""

    def __init__(self, run: Run, say: Say) -> None:
        self.past: list[Past] = []
        self._platform: Platform = run.platform
        self._say = say
        self._begun = time.monotonic()

    async def through(self, episodes: Iterable[Episode], seconds: float) -> None:
        """As many episodes as begin within so many seconds."""
        await self._paced()
        for episode in episodes:
            if time.monotonic() - self._begun > seconds:
                return
            await asyncio.sleep(episode.pause)
            self.past.append(await self._episode(episode))
            self._say(f"{time.monotonic() - self._begun:6.1f} s  {told(self.past[-1])}")

    async def _episode(self, episode: Episode) -> Past:
        broken = await asyncio.gather(*(self._break(fault) for fault in episode.faults))
        begun = time.monotonic()
        with suppress(AssertionError):
            await self._platform.drained(GIVEN_UP)
            await eventually(self._normal, "the mode is normal", GIVEN_UP)
        over = time.monotonic()
        return Past(tuple(broken), over, over - begun)

    async def _break(self, fault: Fault) -> Broken:
        stack, component = self._platform.stack, fault.component
        await asyncio.sleep(fault.after)
        start = time.monotonic()
        watching = asyncio.create_task(self._noticed(component))
        await getattr(stack, fault.kind)(component)
        await asyncio.sleep(fault.lasts)
        healing = time.monotonic()
        watching.cancel()
        await asyncio.wait([watching])
        noticed = math.inf if watching.cancelled() else watching.result()
        healed = await stack.heal(component)
        if component == PROVIDERS and healed.accepts:
            await self._paced()
        return Broken(fault, start, noticed, healing, await self._recovered(component) if healed.accepts else math.inf)

    async def _paced(self) -> None:
        """A new process has forgotten it."""
        if PROVIDERS in self._platform.stack.units:
            await Simulator(self._platform).pace(TOKEN)

    async def _noticed(self, component: str) -> float:
        """When all circuits of the Dashboards to the component are open."""

        async def opened() -> bool:
            found = await self._platform.circuits(component, self._platform.dashboards)
            return bool(found) and "closed" not in found and "unknown" not in found

        with suppress(AssertionError):
            await eventually(opened, f"circuits of {component} open", GIVEN_UP)
            return time.monotonic()
        return math.inf

    async def _recovered(self, component: str) -> float:
        begun = time.monotonic()

        async def closed() -> bool:
            # A service that is broken itself has its own time, and its page may be as slow as its answers.
            units, services = self._platform.stack.units, self._platform.stack.topology.services
            well = [name for name in services if not units[name].faults]
            return set(await self._platform.circuits(component, well)) <= {"closed", "unknown"}

        with suppress(AssertionError):
            await eventually(closed, f"circuits of {component} closed", GIVEN_UP)
            return time.monotonic() - begun
        return math.inf

    async def _normal(self) -> bool:
        return set((await self._platform.modes()).values()) == {"normal"}


def told(past: Past) -> str:
    """An episode in one line."""
    parts = [
        f"{one.fault.component} {one.fault.kind} {one.fault.lasts:.1f} s, back after {one.recovery:.1f} s"
        for one in past.broken
    ]
    return f"{' + '.join(parts)}; settled after {past.settled:.1f} s"
