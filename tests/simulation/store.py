"""The simulated store: what `RedisQueueStore` does, script by script and trip by trip, on a server that fails.

Each method of `StoreServer` is one of the Redis scripts (or one pipeline) and happens whole or not at all; `SimStore`
makes the same trips in the same order, guarded by a policy as there. What was carried out is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from resilience.errors import (
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    MalformedOperation,
    QueueFull,
    QueueUnavailable,
)
from resilience.queue import (
    Burial,
    Described,
    Entry,
    Operation,
    OperationRecord,
    OperationStatus,
    QueueStats,
    QueueUnanswered,
    replayed,
)
from resilience.row_policy import RowPolicy
from tests.simulation.loop import WALL, Process
from tests.simulation.network import Connection, Server, ServerError

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


class SimStore:
    """See resilience.queue.QueueStore; one per process. ``timeout`` (seconds) is the bound of one access: after it, an
    append that is still under way must not take effect any more."""

    name = "simulated"

    def __init__(self, server: StoreServer, process: Process, policy: RowPolicy, timeout: float) -> None:
        self._server = server
        self._process = process
        self._policy = policy
        self._timeout = timeout
        self._knows_clock = False

    async def _call(self, label: str, work: Callable[[], Any], about: str = "") -> Any:
        sent = False

        def send() -> Any:
            nonlocal sent
            answer = self._server.send(Connection(self._process), lambda _: work(), label, about)
            sent = True
            return answer

        try:
            return await self._policy.call(send)
        except (ServerError, ConnectionRefusedError, BulkheadFull, CircuitBreakerOpen) as error:
            raise QueueUnavailable("the store does nothing") from error
        except (OSError, CallTimeout) as error:
            kind = QueueUnanswered if sent and about else QueueUnavailable
            raise kind("the store does not answer") from error

    async def append(self, operation: Operation) -> OperationRecord:
        server = self._server
        deadline = server.now() + self._timeout if self._knows_clock else 0.0
        said, found = await self._call(
            f"append {operation.fence}", lambda: server.append(operation, deadline), operation.id
        )
        match said:
            case "queued":
                return OperationRecord(found, OperationStatus.QUEUED)
            case "known":
                return await self._known(operation)
            case "done":
                return OperationRecord(found, OperationStatus.APPLIED)
            case "full":
                server.world.count("queue full")
                raise QueueFull("full")
            case _:
                raise QueueUnavailable("answered too late")

    async def _known(self, operation: Operation) -> OperationRecord:
        """It was accepted before. What has become of it is a second question, whose failure takes nothing back."""
        try:
            found = await self.record(operation.id)
        except QueueUnavailable:
            return OperationRecord(operation, OperationStatus.QUEUED)
        return found or OperationRecord(operation, OperationStatus.DEAD, "discarded")

    async def read(self, limit: int, after: str = "", *, claim: bool = False) -> tuple[list[Entry], float]:
        found: tuple[list[Entry], float] = await self._call("read", lambda: self._server.read(after, limit, claim))
        self._knows_clock = True
        return found

    async def settle(self, applied: Sequence[Entry], buried: Sequence[Burial]) -> None:
        if applied or buried:
            names = [entry.operation.fence for entry in applied if entry.operation]
            label = f"settle {names} bury {[burial.entry.position for burial in buried]}"
            await self._call(label, lambda: self._server.settle(applied, buried))

    async def note_failure(self, operation_id: str, error: str) -> int:
        count: int = await self._call(f"failed {operation_id}", lambda: self._server.note_failure(operation_id, error))
        return count

    async def record(self, operation_id: str) -> OperationRecord | None:
        found, gone = await self._look_up(operation_id)
        return (await self._look_up(operation_id))[0] if gone else found

    async def _look_up(self, operation_id: str) -> tuple[OperationRecord | None, bool]:
        at, done, applying = await self._call("look up", lambda: self._server.look_up(operation_id))
        if at is not None:
            found = await self._record_at(at, applying)
            return found, found is None
        return (OperationRecord(done, OperationStatus.APPLIED) if done else None), False

    async def _record_at(self, at: str, applying: str) -> OperationRecord | None:
        if at.startswith("dead:"):
            letter = await self._call("letter", lambda: self._server.dead.get(at[5:]))
            return OperationRecord(letter.operation, OperationStatus.DEAD, letter.error) if letter else None
        found = await self._call("entry", lambda: self._server.queue.get(at))
        if found is None:
            return None
        return OperationRecord(found[1], OperationStatus.APPLYING if at <= applying else OperationStatus.QUEUED)

    async def is_waiting(self, entity: str) -> bool:
        waiting: bool = await self._call(f"waiting {entity}?", lambda: entity in self._server.entities)
        return waiting

    async def waiting(self, entity: str) -> list[Operation]:
        found: list[Operation] = await self._call("waiting", lambda: self._server.waiting(entity))
        return found

    async def stats(self) -> QueueStats:
        stats: QueueStats = await self._call("stats", self._server.stats)
        self._knows_clock = True
        return stats

    async def list(self, limit: int, after: str = "") -> Described:
        entries, _ = await self.read(limit, after)
        return [{"id": entry.operation.id if entry.operation else entry.position} for entry in entries]

    async def dead(self, limit: int, after: str = "") -> Described:
        letters = await self._call("letters", lambda: self._server.letters(limit, after))
        return [{"id": _id_of(letter), "position": at} for at, letter in letters]

    async def _letter_of(self, operation_id: str) -> tuple[str, Letter] | None:
        at = await self._call("where", lambda: self._server.index.get(operation_id))
        if at is None or not at.startswith("dead:"):
            return None
        letter = await self._call("letter", lambda: self._server.dead.get(at[5:]))
        return (at[5:], letter) if letter else None

    async def replay(self, operation_id: str) -> bool:
        found = await self._letter_of(operation_id)
        if found is None:
            return False
        position, letter = found
        if letter.operation is None:
            raise MalformedOperation("not an operation")
        again = replayed(letter.operation)
        done: bool = await self._call(f"replay {again.fence}", lambda: self._server.replay(position, again))
        return done

    async def discard(self, operation_id: str) -> bool:
        found = await self._letter_of(operation_id)
        if found is None:
            return False
        done: bool = await self._call(f"discard {operation_id}", lambda: self._server.discard(operation_id, found[0]))
        return done

    async def clear(self) -> int:
        count = 0
        while letters := await self.dead(500):
            for letter in letters:
                count += await self.discard(letter["id"])
        return count


def _id_of(letter: Letter) -> str:
    return letter.operation.id if letter.operation else letter.position
