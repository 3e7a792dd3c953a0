"""Who uses the system: clients that write and repeat, and an operator with the dead letters. They never die."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resilience.errors import ResilienceError
from resilience.queue import Operation, OperationStatus
from resilience.writer import Accepted, WriteRefused, Written
from tests.simulation.database import BadValue, Refused
from tests.simulation.history import Write
from tests.simulation.service import Answer, Instance

if TYPE_CHECKING:
    from tests.simulation.world import World

ATTEMPTS = 4


class Client:
    """Writes one operation after the other; one that was not clearly answered is mostly repeated under the same id."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name

    async def run(self) -> None:
        """All of its writes."""
        world = self.world
        for number in range(world.scenario.writes):
            await asyncio.sleep(world.random() * 2 * world.scenario.seconds / world.scenario.writes)
            await self._write(self._operation(f"{self.name}-{number}"))

    def _operation(self, operation_id: str) -> Operation:
        scenario, random = self.world.scenario, self.world.random
        entity = f"e{int(random() * scenario.entities)}"
        kind = "change"
        if random() < scenario.bad:
            kind = "bad"
        elif random() < scenario.creates:
            kind = "create" if random() < 0.6 else "delete"
        return Operation(operation_id, kind, entity, self.name, {})

    async def _write(self, operation: Operation) -> None:
        world = self.world
        again = 0.8
        for _ in range(ATTEMPTS):
            settled = await self._attempt(world.history.invoked(operation), operation)
            if settled and world.random() < 0.95:
                return
            if settled:
                world.count("repeated though accepted")
            elif world.random() > again:
                return
            await asyncio.sleep(world.random() * 1.5)

    async def _attempt(self, write: Write, operation: Operation) -> bool:
        """Whether the client knows what became of its write."""
        world = self.world
        instance = world.pick(world.instances)
        world.note(self.name, f"{operation.kind} {operation.id} of {operation.entity} at {instance.name}")
        try:
            async with asyncio.timeout(world.scenario.patience):
                answer = await instance.request(operation)
        except Exception as error:  # noqa: BLE001 - sorted by what it says of the write
            world.note(self.name, f"{operation.id}: {error!r}")
            return self._failed(write, error)
        world.note(self.name, f"{operation.id}: {_text(answer)}")
        return self._accepted(write, answer)

    def _accepted(self, write: Write, answer: Answer) -> bool:
        history = self.world.history
        value = answer.value
        if isinstance(value, Written):
            self.world.count("written directly")
            history.told_applied(write)
        elif value.record.status is OperationStatus.APPLIED:
            self.world.count("told as applied by the queue")
            history.told_applied(write)
        elif value.record.status is OperationStatus.DEAD:
            self.world.count("told as dead")
            history.told_dead(write)
        else:
            self.world.count("accepted by the queue")
            history.acknowledged(write)
        return True

    def _failed(self, write: Write, error: Exception) -> bool:
        world, count = self.world, self.world.count
        if isinstance(error, Refused | BadValue):
            count("refused by the database")
            write.refused = True
            return True
        if isinstance(error, ConnectionRefusedError):  # the instance is down
            write.refused = True
        elif isinstance(error, WriteRefused):
            if error.certain:
                count("refused: queue full" if error.full else "refused: nothing accepted")
                write.refused = True
            else:
                count("refused: outcome unknown")
                world.history.told_unknown(write)
        else:
            count("no answer")
            write.unknown = True
            if not isinstance(error, ConnectionError | TimeoutError | ResilienceError):
                count(f"no answer: {type(error).__name__}")
        return False


def _text(answer: Answer) -> str:
    value = answer.value
    return value.record.status.value if isinstance(value, Accepted) else str(value.value)


class Operator:
    """Looks at the queue now and then, and does something about the dead letters; sometimes two do so at once."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self) -> None:
        """Until some time after the faults are over."""
        world, pause = self.world, self.world.scenario.operator_pause
        while world.loop.time() < world.scenario.seconds + 10:
            await asyncio.sleep(pause * (0.5 + world.random()))
            for _ in range(2 if world.random() < 0.3 else 1):
                instance = world.pick(world.instances)
                if instance.process.alive:
                    world.loop.create_task(self._act(instance), context=instance.context())

    async def _act(self, instance: Instance) -> None:
        world, store = self.world, instance.store
        try:
            if world.random() < 0.2:
                await store.stats()
                await store.list(10)
            elif letters := await store.dead(10):
                await self._decide(instance, world.pick(letters[:2])["id"])
        except ResilienceError as error:
            world.note("operator", f"{error!r}")

    async def _decide(self, instance: Instance, letter: str) -> None:
        world, store = self.world, instance.store
        choice = world.random()
        if choice < 0.65:
            await self._replay(instance, letter)
        elif choice < 0.95:
            world.note("operator", f"discard {letter}: {await store.discard(letter)}")
        else:
            world.note("operator", f"clear: {await store.clear()}")
            world.count("dead letters cleared")

    async def _replay(self, instance: Instance, letter: str) -> None:
        world = self.world
        if letter in world.history.writes:
            write = world.history.writes[letter]
            write.replayed = min(write.replayed, world.loop.time())
        if await instance.store.replay(letter):
            world.count("dead letter replayed")
            world.note("operator", f"replayed {letter}")
