"""Writes of row A1 (ai_core.postgres): made at once or drained from the queue, with the same statements, each once.

The transaction that applies a write records its id in ``operations`` (the fence): whatever brings it again, a repeated
request, a second drainer or a frozen statement that wakes up, meets the fence and changes nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ai_core.model import (
    AgentUnknown,
    ConversationUnknown,
    DomainError,
    KeyReused,
    MemoryUnknown,
    WriteFailed,
)
from ai_core.outbound.engine import reading, writing
from ai_core.ports import StoreUnavailable
from resilience import Fate, Operation, OperationRecord, OperationStatus, Result

# One drainer at a time: any number, the same in every instance ("A1" in ASCII).
_LOCK = 0x4131
_EXCLUSIVE = sa.text("SELECT pg_try_advisory_xact_lock(:lock)")
_COLUMNS = "id, kind, entity, owner, fingerprint"
_ARRAYS = ", ".join(f"CAST(:{name} AS text[])" for name in ("ids", "kinds", "entities", "owners", "fingerprints"))
_FENCE = sa.text(f"""INSERT INTO operations ({_COLUMNS})
    SELECT * FROM unnest({_ARRAYS}) ON CONFLICT (id) DO NOTHING RETURNING id""")  # noqa: S608 - constants only
_BURY = sa.text(f"""INSERT INTO operations ({_COLUMNS}, error)
    SELECT n.*, :error FROM unnest({_ARRAYS}) AS n ON CONFLICT (id) DO NOTHING""")  # noqa: S608
_UNFENCE = sa.text("DELETE FROM operations WHERE id = any(CAST(:ids AS text[]))")
_FENCED = sa.text(f"SELECT {_COLUMNS}, error FROM operations WHERE id = any(CAST(:ids AS text[]))")  # noqa: S608
_PRUNE = sa.text("""DELETE FROM operations WHERE id IN (
    SELECT id FROM operations WHERE settled_at < clock_timestamp() - interval '1 day' LIMIT 5000)""")


async def _nothing(_: AsyncConnection, __: Operation) -> None:
    return None


class Applier(NamedTuple):
    """How writes of one kind are made.

    ``apply(connection, operation, unordered)``: the statements, in a transaction that is not theirs to end; returns
    what is there afterwards; raises DomainError when it cannot be done. ``unordered``: it is made without asking the
    queue for older writes, which must not undo it later. One from the queue has ``operation.accepted_at``. ``found``:
    what is there now, of an operation that was applied before.
    """

    apply: Callable[[AsyncConnection, Operation, bool], Awaitable[Any]]
    found: Callable[[AsyncConnection, Operation], Awaitable[Any]] = _nothing


Appliers = Mapping[str, Applier]
"""By kind of operation."""


class PostgresWrites:
    """See ports.Committing; also forgets fences a day old: nothing that could repeat them lives that long."""

    def __init__(self, engine: AsyncEngine, appliers: Appliers) -> None:
        self._engine = engine
        self._appliers = appliers

    async def commit(self, operation: Operation, *, unordered: bool) -> Any:
        """See the port."""
        applier = self._appliers[operation.kind]
        async with writing(self._engine) as connection:
            if (await connection.execute(_FENCE, _columns([operation]))).first() is not None:
                return await applier.apply(connection, operation, unordered)
            fenced = (await connection.execute(_FENCED, {"ids": [operation.fence]})).one()
            if fenced.fingerprint != operation.fingerprint:
                raise KeyReused
            if fenced.error is not None:
                raise WriteFailed(fenced.error)
            return await applier.found(connection, operation)

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """See the port."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_FENCED, {"ids": [operation_id]})).one_or_none()
        if row is None:
            return None
        operation = Operation(row.id, row.kind, row.entity, row.owner, {}, row.fingerprint)
        if row.error is None:
            return OperationRecord(operation, OperationStatus.APPLIED)
        return OperationRecord(operation, OperationStatus.DEAD, row.error)

    async def prune(self) -> None:
        """Deletes a bounded number of old fences."""
        async with writing(self._engine) as connection:
            await connection.execute(_PRUNE)


class AiCoreTarget:
    """See resilience.queue.Target."""

    def __init__(self, engine: AsyncEngine, appliers: Appliers) -> None:
        self._engine = engine
        self._appliers = appliers

    @asynccontextmanager
    async def session(self) -> AsyncIterator["_Session | None"]:
        """One transaction; None when another instance is draining."""
        async with writing(self._engine) as connection:
            alone = (await connection.execute(_EXCLUSIVE, {"lock": _LOCK})).scalar_one()
            yield _Session(connection, self._appliers) if alone else None

    def is_outage(self, error: BaseException) -> bool:
        """See resilience.queue.Target."""
        return isinstance(error, StoreUnavailable)


class _Session:
    """See resilience.queue.TargetSession."""

    def __init__(self, connection: AsyncConnection, appliers: Appliers) -> None:
        self._connection = connection
        self._appliers = appliers

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        fenced = await self._connection.execute(_FENCE, _columns(operations))
        new = {row.id for row in fenced}
        fresh = [operation for operation in operations if operation.fence in new]
        results = await self._earlier([operation for operation in operations if operation.fence not in new])
        return [*results, *await self._fresh(fresh)]

    async def _earlier(self, operations: Sequence[Operation]) -> list[Result]:
        """What became of operations that were here before."""
        if not operations:
            return []
        rows = await self._connection.execute(_FENCED, {"ids": [one.fence for one in operations]})
        errors = {row.id: row.error for row in rows}
        return [
            Result(one, Fate.APPLIED) if errors.get(one.fence) is None else Result(one, Fate.BURIED, errors[one.fence])
            for one in operations
        ]

    async def _fresh(self, operations: Sequence[Operation]) -> list[Result]:
        """All at once; if one is refused, that is undone, and each is applied under a savepoint of its own."""
        try:
            async with self._connection.begin_nested():
                return [await self._one(operation) for operation in operations]
        except _Refused:
            return await self._one_by_one(operations)

    async def _one_by_one(self, operations: Sequence[Operation]) -> list[Result]:
        results: list[Result] = []
        rejected: set[str] = set()
        undone: list[str] = []
        for operation in operations:
            if operation.entity not in rejected:
                try:
                    async with self._connection.begin_nested():
                        results.append(await self._one(operation))
                    continue
                except _Refused as refused:
                    results.append(Result(operation, Fate.REJECTED, refused.error))
                    rejected.add(operation.entity)
            undone.append(operation.fence)
        await self._connection.execute(_UNFENCE, {"ids": undone})
        return results

    async def _one(self, operation: Operation) -> Result:
        applier = self._appliers.get(operation.kind)
        if applier is None:
            raise _Refused(f"unknown kind {operation.kind}")
        try:
            return Result(operation, Fate.APPLIED, value=await applier.apply(self._connection, operation, False))
        except DomainError as error:
            raise _Refused(code_of(error)) from error

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        await self._connection.execute(_BURY, {**_columns(operations), "error": error})


class _Refused(Exception):
    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def code_of(error: DomainError) -> str:
    """The error table's code for why a write cannot be made."""
    missing = isinstance(error, AgentUnknown | ConversationUnknown | MemoryUnknown)
    return "NOT_FOUND" if missing else "CONFLICT"


def _columns(operations: Sequence[Operation]) -> dict[str, list[str]]:
    return {
        "ids": [one.fence for one in operations],
        "kinds": [one.kind for one in operations],
        "entities": [one.entity for one in operations],
        "owners": [one.owner for one in operations],
        "fingerprints": [one.fingerprint for one in operations],
    }
