"""What goes wrong, one thing after the other and several at once, and how all of it is mended at the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.network import Connection, Server

AMBUSHES = (
    "instance killed",
    "instance killed",
    "instance paused",
    "instance stopped",
    "commit lost",
    "commit lost",
    "commit late",
    "commit late",
    "commit late",
    "database crashes",
    "database freezes",
    "store crashes",
    "store freezes",
)

if TYPE_CHECKING:
    from tests.simulation.service import Instance
    from tests.simulation.world import World


class Nemesis:
    """Makes the scenario's faults until its time is over; each lasts for a while of its own."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self) -> None:
        """Until the time of the faults is over."""
        world, scenario = self.world, self.world.scenario
        while True:
            await asyncio.sleep(world.random() * 2 * scenario.fault_pause)
            if world.loop.time() >= scenario.seconds:
                return
            world.loop.create_task(self.make(world.pick(scenario.faults)))

    def ambush(self, connection: Connection) -> None:
        """Something happens in the middle of the drain that has begun over `connection`."""
        world = self.world
        fault = world.pick(AMBUSHES)
        where, _, what = fault.partition(" ")
        if where == "commit":
            world.note("database", fault)
            connection.doom = what
            return
        victim = next((one for one in world.instances if one.process is connection.owner), None)
        world.loop.create_task(self._strike(fault, victim), context=world.context)

    async def _strike(self, fault: str, victim: Instance | None) -> None:
        await asyncio.sleep(self.world.random() * 0.02)
        await self.make(fault, victim)

    async def make(self, fault: str, victim: Instance | None = None) -> None:
        """One fault, from its beginning to its end; if it is one of an instance, of `victim` or of any."""
        world = self.world
        where, _, what = fault.partition(" ")
        world.count(fault)
        if where == "instance":
            await self._to_instance(what, victim or world.pick(world.instances))
        elif where == "garbage":
            world.store.garbage()
        elif where == "both":
            world.loop.create_task(self._to_server(f"{what}s", world.store))
            await self._to_server(f"{what}s", world.database)
        else:
            await self._to_server(what, world.database if where == "database" else world.store)

    async def _to_server(self, what: str, server: Server) -> None:
        world = self.world
        world.note(server.name, what)
        seconds = 0.05 + (world.random() ** 3) * 9
        if what == "freezes":
            server.freeze()
            await asyncio.sleep(seconds)
            if server.frozen:
                world.note(server.name, "thaws")
                server.thaw()
        elif what in ("down", "crashes"):
            if what == "crashes":
                server.crash()
            server.up = False
            await asyncio.sleep(seconds)
            world.note(server.name, "starts")
            server.start()
        else:
            await self._make_bad(what, server, seconds)

    async def _make_bad(self, what: str, server: Server, seconds: float) -> None:
        random = self.world.random
        if what == "slow":
            server.slow = 10 ** (1 + 2 * random())
        elif what == "flaky":
            server.lose = 0.05 + 0.4 * random()
        elif what == "stalls":
            server.stall = 0.02 + 0.3 * random()
        else:
            server.sick = 0.1 + 0.9 * random()
        await asyncio.sleep(seconds)
        server.calm()

    async def _to_instance(self, what: str, instance: Instance) -> None:
        world = self.world
        process = instance.process
        if not process.alive:
            return
        seconds = 0.05 + (world.random() ** 2) * 6
        if what == "paused":
            world.note(instance.name, "paused")
            process.paused = True
            await asyncio.sleep(seconds)
            if process.alive and process.paused:
                world.note(instance.name, "goes on")
                world.loop.resume(process)
            return
        if what == "stopped" and not process.paused:
            instance.stop()
            await asyncio.sleep(world.random() * 2)
        if process is instance.process and process.alive:
            instance.kill()
            await asyncio.sleep(seconds)
            instance.start()


def heal(world: World) -> None:
    """Whatever is broken is mended, at once."""
    world.note("world", "healed")
    for server in (world.store, world.database):
        server.calm()
        if not server.up:
            server.start()
        if server.frozen:
            server.thaw()
    for instance in world.instances:
        if instance.process.paused:
            world.loop.resume(instance.process)
        if not instance.process.alive:
            instance.start()
