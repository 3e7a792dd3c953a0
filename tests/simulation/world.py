"""One seed's world: built, run through its faults, healed, run until it is quiet, stopped, checked."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from resilience.ambient import RANDOM
from resilience.queue import Operation
from tests.simulation.checks import check
from tests.simulation.clients import Client, Operator
from tests.simulation.database import Database, Row
from tests.simulation.faults import Nemesis, heal
from tests.simulation.history import History
from tests.simulation.loop import LoopClock, VirtualLoop
from tests.simulation.network import Connection
from tests.simulation.scenario import Scenario
from tests.simulation.service import STOP_SECONDS, Instance
from tests.simulation.store_server import StoreServer
from tests.simulation.text import brief, name_of

T = TypeVar("T")

QUIET_SECONDS = 200.0
"""Bound on the time from healing to an empty queue: for open circuits, clients that repeat, packets that are still on
their way, and writes that have to expire or fail for good first."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a seed. ``digest`` is the same whenever the same thing happened."""

    seed: int
    violations: tuple[str, ...]
    counts: Counter[str]
    digest: str
    steps: int
    seconds: float
    lines: tuple[str, ...] = ()


class World:
    """Everything there is, and the one source of chance."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        source = Random(seed)
        self.seed = seed
        self.scenario = Scenario.drawn(source)
        self.random = source.random
        self.lines: list[str] | None = [] if trace else None
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self.loop = VirtualLoop(source, shuffle=self.scenario.shuffle)
        self.clock = LoopClock(self.loop)
        self.context = contextvars.Context()
        """Of what belongs to no process."""
        self.history = History(self.loop.time, self.violation, self.count)
        self.store = StoreServer(self, self.scenario.limit)
        self.database = Database(self)
        for number in range(self.scenario.entities):
            self.database.rows[f"e{number}"] = Row(exists=self.random() < 0.8)
        self.instances = [Instance(self, f"i{number}") for number in range(self.scenario.instances)]
        self.nemesis = Nemesis(self)
        self.healed = False
        self.clients = [Client(self, f"c{number}") for number in range(self.scenario.clients)]

    # -- for everybody in it

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[int(self.random() * len(choices))]

    def count(self, situation: str) -> None:
        """A situation was reached."""
        self.counts[situation] += 1

    def note(self, who: str, what: object, outcome: object = None) -> None:
        """A line of the timeline."""
        line = f"{self.loop.time():10.4f}  {who:<8}  {what}"
        self._digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line if outcome is None else f"{line} -> {brief(outcome)}")

    def violation(self, text: str) -> None:
        """Something broke a promise."""
        self.note("world", f"VIOLATION {text}")
        self.violations.append(text)

    def check_turn(self, operation: Operation) -> None:
        """One that comes out of the queue takes effect after everything that was waiting before it for its entity."""
        position = self.store.index.get(operation.id, "")
        for at in self.store.entities.get(operation.entity, ()):
            earlier = self.store.queue[at][1]
            if at < position and earlier is not None and earlier.fence not in self.database.fences:
                self.violation(f"{operation.fence} took effect out of turn: {earlier.fence} waits before it")

    async def clean_up(self, connection: Connection) -> None:
        """What a driver does after a cancellation or an error; while things are broken it may take its time."""
        owner = connection.owner
        if owner is None or not owner.alive or self.healed:
            return
        if self.random() < self.scenario.slow_clean_up:
            self.count("slow clean-up")
            await asyncio.sleep(self.random() * 3)

    def ambush(self, connection: Connection) -> None:
        """A drain has begun over this connection: perhaps something is to happen to it."""
        if not self.healed and self.random() < self.scenario.ambush:
            self.nemesis.ambush(connection)

    # -- the run

    def run(self) -> Report:
        """All phases. A crash of the simulation itself is a violation, never a pass."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001
            self.violation(f"the simulation itself failed: {error!r}")
        self.violations += self.loop.failures
        lines = () if self.lines is None else tuple(self.lines)
        self._digest.update(f"{self.loop.steps} {self.random()}".encode())
        digest = self._digest.hexdigest()
        return Report(self.seed, tuple(self.violations), self.counts, digest, self.loop.steps, self.loop.time(), lines)

    def _run(self) -> None:
        loop = self.loop
        self.note("world", self.scenario)
        for instance in self.instances:
            instance.start()
        users = [loop.create_task(client.run(), context=self.context) for client in self.clients]
        users.append(loop.create_task(self.nemesis.run(), context=self.context))
        if self.scenario.operator_pause:
            users.append(loop.create_task(Operator(self).run(), context=self.context))
        loop.run(self.scenario.seconds)
        self.healed = True
        heal(self)
        self._until_quiet(users)
        self._stop(users)
        for text in check(self.history, self.store, self.database):
            self.violation(text)

    def _until_quiet(self, users: Sequence[asyncio.Task[None]]) -> None:
        end = self.loop.time() + QUIET_SECONDS
        while self.loop.time() < end:
            self.loop.run(self.loop.time() + 1.0)
            heal(self)  # a fault that was under way may have ended otherwise
            if all(user.done() for user in users) and not self.store.queue and not self._busy():
                return
        self.violation(f"not quiet in time: {', '.join(self._unquiet(users))}")

    def _busy(self) -> bool:
        foreign = any(not task.done() for task in self.loop.tasks)
        requests = any(len(instance.process.running) > len(instance.background) for instance in self.instances)
        return foreign or requests or self.store.calls > 0 or self.database.calls > 0

    def _unquiet(self, users: Sequence[asyncio.Task[None]]) -> Iterator[str]:
        yield f"{len(self.store.queue)} in the queue"
        yield f"{sum(not user.done() for user in users)} clients"
        yield f"{self.store.calls} + {self.database.calls} calls"
        for instance in self.instances:
            yield f"{instance.name}: {[task.get_name() for task in instance.process.running]}"

    def _stop(self, users: Sequence[asyncio.Task[None]]) -> None:
        for instance in self.instances:
            instance.stop()
        self.loop.run(self.loop.time() + STOP_SECONDS)
        for user in users:
            if user.done() and not user.cancelled() and user.exception() is not None:
                self.violation(f"a client crashed: {user.exception()!r}")
        for instance in self.instances:
            instance.stopped()
            for task in instance.process.running:
                self.violation(f"{instance.name}: still running: {name_of(task.get_coro())}")
            instance.kill()
        for task in self.loop.tasks:
            if not task.done():
                self.violation(f"still running: {name_of(task.get_coro())}")
        self.loop.run(self.loop.time() + STOP_SECONDS)
        for timer in self.loop.pending_timers():
            self.violation(f"timer left behind: {name_of(timer.callback)} due at {timer.when():.3f}")


def simulate(seed: int, *, trace: bool = False) -> Report:
    """Run one seed. Garbage is collected between seeds only: when it happens must not depend on what ran before."""
    RANDOM.seed(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        return World(seed, trace=trace).run()
    finally:
        if collecting:
            gc.enable()
