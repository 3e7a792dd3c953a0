"""The one way of writes: to the database at once or, while it is away, through the queue (row A1, ai_core.postgres).

What is made gets its id here, so that it is known by the same id whether it is made at once or later.
"""

import hashlib
import hmac
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ai_core.degradation import REDIS_QUEUE
from ai_core.model import AgentUnknown, DomainError, KeyReused, MemoryUnknown, WriteFailed
from ai_core.ports import Committing
from resilience import Accepted, Clock, DurableWriter, Operation, OperationStatus, RowPolicy, Served, Written
from resilience.deadline import current_deadline, hard_timeout
from resilience.mirror import Pending

T = TypeVar("T")

QUEUE_SECONDS = 0.25
"""Of a request's time, for accepting a write into the queue."""

_GONE: Mapping[str, type[DomainError]] = {
    "agent": AgentUnknown,
    "conversation": AgentUnknown,
    "memory": MemoryUnknown,
}
"""What NOT_FOUND means, by the part of an operation's kind before the point."""


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What a write makes; ``operation_id`` finds it again while it is still to be applied, else empty."""

    value: T
    operation_id: str = ""


class Writes:
    """``key_secret`` makes operation ids from idempotency keys unguessable."""

    def __init__(
        self, committing: Committing, postgres: RowPolicy, writer: DurableWriter, clock: Clock, *, key_secret: bytes
    ) -> None:
        self._committing = committing
        self._postgres = postgres
        self._writer = writer
        self._clock = clock
        self._key_secret = key_secret

    def operation(
        self, kind: str, entity: str, owner: str, payload: Mapping[str, Any], *, key: str = "", request: str = ""
    ) -> Operation:
        """A write, with its moment (``at``, unix seconds) in the payload.

        ``entity`` is the unit of ordering. The same ``key`` of an owner makes the same operation, and ``request`` (its
        fingerprint) tells whether it came with the same request.
        """
        operation_id = self._id(kind, owner, key) if key else uuid.uuid4().hex
        given = {"at": round(self._clock.time(), 6), **payload}  # as exact as the database
        return Operation(operation_id, kind, entity, owner, given, request if key else "")

    def _id(self, kind: str, owner: str, key: str) -> str:
        return hmac.new(self._key_secret, f"{owner}\n{kind}\n{key}".encode(), hashlib.sha256).hexdigest()[:32]

    async def make(
        self, operation: Operation, promised: Callable[[Operation], Awaitable[T]], *, queue_first: bool | None = None
    ) -> Served[Made[T]]:
        """What is there after the write, or what was ``promised`` when it will be applied.

        ``queue_first``, when it is said: nobody waits for older writes of the entity that are about to be applied, nor
        (True) for a database that has just failed.

        Raises KeyReused, WriteFailed, the domain errors of the write, WriteRefused.
        """
        served = await self._writer.write(
            operation,
            lambda unordered: self._commit(operation, unordered),
            settle=queue_first is None,
            queue_first=bool(queue_first),
        )
        match served.value:
            case Written(value):
                return served.map(lambda _: Made(value))
            case Accepted(record):
                known = record.operation or operation
                if known.fingerprint != operation.fingerprint:
                    raise KeyReused
                if record.status is OperationStatus.DEAD:
                    raise _buried(operation, record.error)
                if record.status is OperationStatus.APPLIED and (done := await self._applied(operation)) is not None:
                    return done
                value = await promised(replace(operation, payload=known.payload or operation.payload))
                told = served.degradations or (self._postgres.degradation(REDIS_QUEUE),)
                return Served(Made(value, operation.id), told, pending=True)

    async def _commit(self, operation: Operation, unordered: bool) -> Any:
        """Leaves the time for the queue, when the caller has so little that a late database would use it up."""
        work = self._committing.commit(operation, unordered=unordered)
        deadline = current_deadline()
        try:
            if deadline is None:
                return await work
            return await hard_timeout(work, max(0.0, deadline.remaining() - QUEUE_SECONDS), name=self._postgres.name)
        except WriteFailed as failed:
            raise _buried(operation, failed.error) from failed

    async def _applied(self, operation: Operation) -> Served[Made[Any]] | None:
        """What a write that went through the queue has made; None when the database is gone again."""
        try:
            found = await self._postgres.serve(lambda: self._commit(operation, unordered=False))
        except DomainError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the write is applied, and the caller must hear that
            return None
        return found.map(Made)

    async def pending(self, entity: str) -> Pending:
        """The entity's accepted writes that are not applied yet, in order. To be asked before the rows are read."""
        return await self._writer.pending(entity)


def made_id(operation_id: str) -> str:
    """The id of what an operation makes: the same whenever and however often it is asked for."""
    return str(uuid.UUID(hashlib.sha256(operation_id.encode()).hexdigest()[:32], version=4))


def _buried(operation: Operation, error: str) -> DomainError:
    if error == "NOT_FOUND":
        return _GONE[operation.kind.partition(".")[0]]()
    return WriteFailed(error)
