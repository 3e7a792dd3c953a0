"""The simulated store: stream, dead letters and indexes as Redis keeps them.

Each method of `StoreServer` is one of the scripts of `RedisQueueStore` (or one pipeline), and happens whole or not at
all. What was carried out is durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from resilience.errors import QueueFull
from resilience.queue import Burial, Entry, Operation, QueueStats
from tests.simulation.loop import WALL
from tests.simulation.network import Server

if TYPE_CHECKING:
    from tests.simulation.world import World

APPLYING_SECONDS = 5.0


class Letter(NamedTuple):
    """A dead letter."""

    position: str
    operation: Operation | None
    reason: str
    error: str


class StoreServer(Server):
    """Stream, dead letters and indexes. An index says where an id is: a position, or ``dead:`` and a position."""

    def __init__(self, world: World, limit: int) -> None:
        super().__init__(world, "store")
        self.limit = limit
        self.queue: dict[str, tuple[float, Operation | None]] = {}
        self.dead: dict[str, Letter] = {}
        self.index: dict[str, str] = {}
        self.done: dict[str, Operation] = {}
        self.entities: dict[str, list[str]] = {}
        self.attempts: dict[str, tuple[int, str]] = {}
        self.applying = ("", 0.0)
        self._sequence = 0

    def now(self) -> float:
        """The server's time, Unix seconds."""
        return WALL + self.loop.time()

    def _position(self) -> str:
        self._sequence += 1
        return f"{self._sequence:08d}"

    def _enqueue(self, operation: Operation) -> str:
        if len(self.queue) >= self.limit:
            self.world.violation(f"the queue holds more than {self.limit}")
        position = self._position()
        self.queue[position] = (self.now(), replace(operation, accepted_at=self.now()))
        self.index[operation.id] = position
        self.entities.setdefault(operation.entity, []).append(position)
        self.world.history.enqueued(operation)
        return position

    def append(self, operation: Operation, deadline: float) -> tuple[str, Any]:
        if deadline and self.now() > deadline:
            self.world.count("append refused as late")
            return "late", None
        if operation.id in self.index:
            return "known", None
        if operation.id in self.done:
            return "done", self.done[operation.id]
        if len(self.queue) >= self.limit or len(self.dead) >= self.limit:
            return "full", None
        position = self._enqueue(operation)
        return "queued", self.queue[position][1]

    def garbage(self) -> None:
        """Somebody else writes into the stream."""
        self.queue[self._position()] = (self.now(), None)

    def read(self, after: str, limit: int, claim: bool) -> tuple[list[Entry], float]:
        positions = sorted(at for at in self.queue if at > after)[:limit]
        if limit < self.world.scenario.drain.batch_size and claim:
            self.world.count("smaller batch after a timeout")
        if claim and positions:
            self.applying = (positions[-1], self.now() + APPLYING_SECONDS)
        return [Entry(at, b"", self.queue[at][1]) for at in positions], self.now()

    def settle(self, applied: Sequence[Entry], buried: Sequence[Burial]) -> None:
        for entry in applied:
            operation = entry.operation
            assert operation is not None
            self.queue.pop(entry.position, None)
            self.index.pop(operation.id, None)
            self._leave(entry.position, operation)
            self.done[operation.id] = replace(operation, payload={})
        for burial in buried:
            self._bury(burial)

    def _leave(self, position: str, operation: Operation) -> None:
        waiting = self.entities.get(operation.entity, [])
        if position in waiting:
            waiting.remove(position)
        if not waiting:
            self.entities.pop(operation.entity, None)
        self.attempts.pop(operation.id, None)

    def _bury(self, burial: Burial) -> None:
        position, operation = burial.entry.position, burial.entry.operation
        if self.queue.pop(position, None) is None:
            return
        at = self._position()
        self.dead[at] = Letter(position, operation, burial.reason, burial.error)
        self.world.count(f"buried: {burial.reason}")
        if operation is not None:
            self._leave(position, operation)
            self.world.history.buried(operation, burial.reason)
        self.index[operation.id if operation is not None else position] = f"dead:{at}"

    def note_failure(self, operation_id: str, error: str) -> int:
        if self.index.get(operation_id, "dead:").startswith("dead:"):
            self.world.count("failure noted of an operation that was gone")
            return 0
        count = self.attempts.get(operation_id, (0, ""))[0] + 1
        self.attempts[operation_id] = (count, error)
        return count

    def look_up(self, operation_id: str) -> tuple[str | None, Operation | None, str]:
        position, until = self.applying
        return self.index.get(operation_id), self.done.get(operation_id), position if self.now() < until else ""

    def waiting(self, entity: str) -> list[Operation]:
        found = (self.queue[at][1] for at in self.entities.get(entity, ()) if at in self.queue)
        return [operation for operation in found if operation is not None]

    def stats(self) -> QueueStats:
        oldest = min((at for at, _ in self.queue.values()), default=self.now())
        return QueueStats(len(self.queue), self.now() - oldest, len(self.dead))

    def letters(self, limit: int, after: str) -> list[tuple[str, Letter]]:
        return [(at, self.dead[at]) for at in sorted(at for at in self.dead if at > after)[:limit]]

    def replay(self, position: str, again: Operation) -> bool:
        if position not in self.dead:
            return False
        if len(self.queue) >= self.limit:
            self.world.count("replay refused: queue full")
            raise QueueFull("full")
        del self.dead[position]
        self.world.history.replayed(again)
        self._enqueue(again)
        return True

    def discard(self, operation_id: str, position: str) -> bool:
        letter = self.dead.pop(position, None)
        if letter is None:
            return False
        self.index.pop(operation_id)
        if letter.operation is not None:
            self.world.history.discarded(letter.operation)
        return True
