"""Applies queued writes of row D1 (dashboard.postgres): a few statements for hundreds of writes, one transaction.

Changes of one user are merged in order and applied once; the fence table says which operations were here before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from dashboard.outbound.postgres import Database, is_outage
from dashboard.outbound.users import COLUMNS, user_of
from resilience import Fate, Operation, Result

# One drainer at a time: any number, the same in every instance ("D1" in ASCII).
_LOCK = 0x4431
# A batch touches few rows of a large table: without other joins the planner looks each up instead of reading them all.
_EXCLUSIVE = """SELECT pg_try_advisory_xact_lock($1),
    set_config('idle_in_transaction_session_timeout', '3s', true),
    set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"""
# Two arrays instead of five: the driver's cost is per element.
_OPERATION = "id, " + ", ".join(rf"split_part(rest, E'\n', {number})" for number in (1, 2, 3, 4))
_FENCE = f"""INSERT INTO operations (id, kind, entity, owner, fingerprint)
    SELECT {_OPERATION} FROM unnest($1::text[], $2::text[]) AS n (id, rest)
    ON CONFLICT (id) DO NOTHING RETURNING id"""  # noqa: S608 - constants only
_FENCED = "SELECT id, error FROM operations WHERE id = any($1::text[])"
_UNFENCE = "DELETE FROM operations WHERE id = any($1::text[])"
_BURY = f"""INSERT INTO operations (id, kind, entity, owner, fingerprint, error)
    SELECT {_OPERATION}, $3 FROM unnest($1::text[], $2::text[]) AS n (id, rest)
    ON CONFLICT (id) DO NOTHING"""  # noqa: S608
_CREATE = f"""WITH u AS (
    INSERT INTO users (id, email, display_name, password_hash)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
    ON CONFLICT DO NOTHING RETURNING *) SELECT {COLUMNS} FROM u"""  # noqa: S608
_UPDATE = f"""UPDATE users u SET display_name = coalesce(n.display_name, u.display_name),
        revision = u.revision + n.changes, updated_at = clock_timestamp()
    FROM unnest($1::uuid[], $2::text[], $3::int[], $4::float8[]) AS n (id, display_name, changes, accepted_at)
    WHERE u.id = n.id AND $5::text[] IS NOT NULL
        AND (u.unordered_at IS NULL OR u.unordered_at < to_timestamp(n.accepted_at))
    RETURNING {COLUMNS}"""  # noqa: S608
# A change that a later one, made while the queue could not be asked, has overtaken: it counts, and shows no more.
_COUNT = f"UPDATE users u SET revision = u.revision + 1 WHERE u.id = $1::uuid RETURNING {COLUMNS}"  # noqa: S608
_DELETE = "DELETE FROM users WHERE id = any($1::uuid[])"
_EXISTING = f"SELECT {COLUMNS} FROM users u WHERE u.id = any($1::uuid[])"  # noqa: S608


def _user_id(operation: Operation) -> str:
    return operation.entity.removeprefix("user:")


def _columns(operations: Sequence[Operation]) -> tuple[list[str], list[str]]:
    rest = [f"{o.kind}\n{o.entity}\n{o.owner}\n{o.fingerprint}" for o in operations]
    return [o.fence for o in operations], rest


def _runs(operations: Sequence[Operation]) -> list[list[list[Operation]]]:
    """Splits a batch into waves: a wave has at most one run per entity, a run is consecutive operations of one kind.

    Waves are applied one after the other, so an entity's order is kept, and all runs of a wave at once.
    """
    waves: list[list[list[Operation]]] = []
    last: dict[str, tuple[int, list[Operation]]] = {}
    for operation in operations:
        wave, run = last.get(operation.entity, (-1, None))
        if run and run[0].kind == operation.kind:
            run.append(operation)
            continue
        run = [operation]
        last[operation.entity] = (wave + 1, run)
        if wave + 1 == len(waves):
            waves.append([])
        waves[wave + 1].append(run)
    return waves


class _Session:
    """See resilience.queue.TargetSession."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        new = {row[0] for row in await self._connection.fetch(_FENCE, *_columns(operations))}
        results = await self._earlier([o for o in operations if o.fence not in new])
        rejected: set[str] = set()
        for wave in _runs([o for o in operations if o.fence in new]):
            for result in await self._wave([run for run in wave if run[0].entity not in rejected]):
                results.append(result)
                if result.fate is Fate.REJECTED:
                    rejected.add(result.operation.entity)
        if rejected:
            applied = {result.operation.fence for result in results if result.fate is not Fate.REJECTED}
            await self._connection.execute(_UNFENCE, [fence for fence in new if fence not in applied])
        return results

    async def _earlier(self, operations: Sequence[Operation]) -> list[Result]:
        """What became of operations that were here before."""
        if not operations:
            return []
        fenced = {
            row["id"]: row["error"] for row in await self._connection.fetch(_FENCED, [o.fence for o in operations])
        }
        return [
            Result(o, Fate.APPLIED) if fenced.get(o.fence) is None else Result(o, Fate.BURIED, fenced[o.fence])
            for o in operations
        ]

    async def _wave(self, runs: Sequence[list[Operation]]) -> list[Result]:
        by_kind: dict[str, list[list[Operation]]] = {}
        for run in runs:
            by_kind.setdefault(run[0].kind, []).append(run)
        results: list[Result] = []
        for kind, of_kind in by_kind.items():
            match kind:
                case "user.update":
                    results += await self._update(of_kind)
                case "user.create":
                    results += await self._create([operation for run in of_kind for operation in run])
                case "user.delete":
                    results += await self._delete([operation for run in of_kind for operation in run])
                case _:
                    results += [Result(run[0], Fate.REJECTED, f"unknown kind {kind}") for run in of_kind]
        return results

    async def _update(self, runs: Sequence[list[Operation]]) -> list[Result]:
        ids, names, changes, accepted = [], [], [], []
        overwritten: list[str] = []  # sent along, so that the server refuses what it would have refused one by one
        for run in runs:
            given = [o.payload["display_name"] for o in run if o.payload.get("display_name") is not None]
            ids.append(_user_id(run[0]))
            names.append(given[-1] if given else None)
            overwritten += given[:-1]
            changes.append(len(run))
            accepted.append(run[0].accepted_at)
        rows = await self._connection.fetch(_UPDATE, ids, names, changes, accepted, overwritten)
        fresh = {row[0]: row for row in rows}
        missed = [user_id for user_id in ids if user_id not in fresh]
        # There but not updated: a later direct write, made while the queue could not be asked, has overtaken these.
        overtaken = {row[0]: row for row in await self._connection.fetch(_EXISTING, missed)} if missed else {}
        results: list[Result] = []
        for run in runs:
            user_id = _user_id(run[0])
            row = fresh.get(user_id) or overtaken.get(user_id)
            if row is None:
                results.append(Result(run[0], Fate.REJECTED, "NOT_FOUND"))
            elif user_id in overtaken and len(run) > 1:  # perhaps not all of them: one by one
                for operation in run:
                    results += await self._update([[operation]])
            elif user_id in overtaken:
                counted = await self._connection.fetchrow(_COUNT, user_id)
                results.append(Result(run[0], Fate.APPLIED, value=user_of(counted)))
            else:
                user = user_of(row)
                results += [Result(operation, Fate.APPLIED, value=user) for operation in run]
        return results

    async def _create(self, operations: Sequence[Operation]) -> list[Result]:
        first: dict[str, Operation] = {}
        for operation in operations:
            first.setdefault(operation.payload["email"], operation)
        rows = [
            (p["id"], p["email"], p["display_name"], p["password_hash"]) for p in (o.payload for o in first.values())
        ]
        made = {row[0]: row for row in await self._connection.fetch(_CREATE, *map(list, zip(*rows, strict=True)))}
        return [
            Result(operation, Fate.APPLIED, value=user_of(made[operation.payload["id"]]))
            if operation.payload["id"] in made
            else Result(operation, Fate.REJECTED, "CONFLICT")
            for operation in operations
        ]

    async def _delete(self, operations: Sequence[Operation]) -> list[Result]:
        await self._connection.execute(_DELETE, [_user_id(operation) for operation in operations])
        return [Result(operation, Fate.APPLIED) for operation in operations]

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        await self._connection.execute(_BURY, *_columns(operations), error)


class UserQueueTarget:
    """See resilience.queue.Target."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_Session | None]:
        """One transaction; None when another instance is draining."""
        async with self._database.transaction() as connection:
            row: asyncpg.Record = await connection.fetchrow(_EXCLUSIVE, _LOCK)
            yield _Session(connection) if row[0] else None

    def is_outage(self, error: BaseException) -> bool:
        """See resilience.queue.Target."""
        return is_outage(error)


class SettledOperations:
    """Forgets fences a day old: nothing that could repeat them lives that long."""

    _PRUNE = """DELETE FROM operations WHERE id IN (
        SELECT id FROM operations WHERE settled_at < clock_timestamp() - interval '1 day' LIMIT 5000)"""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prune(self) -> None:
        """Deletes a bounded number of old fences."""
        await self._database.fetch(self._PRUNE)
