"""A process's way to the simulated store: the trips that `RedisQueueStore` makes, guarded by a policy as there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from tests.simulation.loop import Process
from tests.simulation.network import Connection, ServerError
from tests.simulation.store_server import Letter, StoreServer


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
