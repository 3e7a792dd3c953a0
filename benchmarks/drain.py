"""Draining the write queue: 10,000 changes from Valkey into PostgreSQL, against inserting the same rows and no more.

The drain reads the queue, decodes, keeps the order of each account, changes the accounts, records every operation so
that none can be applied twice, refreshes nothing, and takes what is committed out of the queue. The raw insert puts the
same 10,000 operations into a table of text columns with a primary key, 500 at a time, from lists that are ready. For
registrations it puts the same accounts into a table like theirs.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson

import dashboard
from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target
from dashboard.degradation import POSTGRES
from dashboard.outbound import postgres
from dashboard.outbound.queue_target import UserQueueTarget
from devstack import Stack, Topology
from resilience import CircuitBreaker, Drainer, Operation, RowPolicy
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit.lifecycle import GC_THRESHOLDS
from service_kit.migrations import upgrade
from service_kit.redis_client import create_client

WRITES = 10_000
BATCH = 500
CALLERS = 16  # that queue at once
ENTITIES = (10_000, 1_000, 10)
_RAW_TABLE = """DROP TABLE IF EXISTS raw_operations;
    CREATE TABLE raw_operations (id text PRIMARY KEY, kind text, entity text, owner text, payload text)"""
_RAW_INSERT = """INSERT INTO raw_operations
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])"""
_RAW_USERS_TABLE = "DROP TABLE IF EXISTS raw_users; CREATE TABLE raw_users (LIKE users INCLUDING ALL)"
_RAW_USERS_INSERT = """INSERT INTO raw_users (id, email, display_name, password_hash)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])"""
_PEOPLE = """INSERT INTO users (id, email, display_name, password_hash)
    SELECT id::uuid, id, 'unchanged', 'none' FROM unnest($1::text[]) id"""

Columns = tuple[list[str], ...]


@dataclass(frozen=True)
class Scene:
    """The servers, and the Dashboard's own drain in this process."""

    connection: Any
    store: RedisQueueStore
    drainer: Drainer


async def drain(options: Options) -> Report:
    """10,000 queued writes into the database, against a raw batched insert of the same rows."""
    rounds = 2 if options.quick else 7
    figures, lines = [], []
    async with _scene() as scene:
        for entities in ENTITIES:
            options.say(f"{entities} accounts, {rounds} rounds")
            found = [await _round(scene, entities) for _ in range(rounds + 1)][1:]
            target = Target("at most", 3.0) if entities == WRITES else None
            ratios = [drained / raw for drained, raw in found]
            figures.append(Figure(f"drain, {entities} accounts / raw insert", ratios, "×", target))
            lines.append(f"{entities:>6} accounts: {_line(found)}")
        options.say(f"{WRITES} registrations, {rounds} rounds")
        found = [await _registrations(scene) for _ in range(rounds + 1)][1:]
        ratios = [drained / raw for drained, raw in found]
        figures.append(Figure("drain, 10000 registrations / the same rows", ratios, "×", Target("at most", 3.0)))
        lines.append(f"registrations: {_line(found)}")
    return Report(figures, lines)


def _line(found: Sequence[tuple[float, float]]) -> str:
    return f"drain {_range([one for one, _ in found])}, raw insert {_range([one for _, one in found])}"


def _range(seconds: list[float]) -> str:
    found = sorted(seconds)
    return f"{found[len(found) // 2]:.3f} s ({found[0]:.3f} - {found[-1]:.3f})"


@asynccontextmanager
async def _scene() -> AsyncIterator[Scene]:
    topology = Topology(only=frozenset({"postgres", "redis"}), proxied=False)
    with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
        async with Stack(folder, topology, port_base=None) as stack:
            url = stack.database_url("dashboard")
            await upgrade(url, Path(dashboard.__file__).parent / "migrations")
            database, redis = postgres.Database(url), create_client(stack.url("redis"))
            await database.open()
            connection = await asyncpg.connect(url)
            store = RedisQueueStore(redis, "dashboard", limit=WRITES, loads=orjson.loads)
            policy = RowPolicy(POSTGRES, breaker=CircuitBreaker(POSTGRES.id, classify=postgres.classify))
            # As in a running service, see service_kit.lifecycle.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            try:
                yield Scene(connection, store, Drainer(store, UserQueueTarget(database), call=policy.call))
            finally:
                await connection.close()
                await redis.aclose()
                await database.close()


async def _round(scene: Scene, entities: int) -> tuple[float, float]:
    """Seconds of the drain, and of the raw insert of the same operations right before it."""
    accounts = [str(uuid.uuid4()) for _ in range(entities)]
    operations = [_change(accounts[number % entities], number) for number in range(WRITES)]
    await scene.connection.execute("TRUNCATE users, operations")
    await scene.connection.execute(_PEOPLE, accounts)
    await scene.connection.execute(_RAW_TABLE)
    batches = [_columns(operations[start : start + BATCH]) for start in range(0, WRITES, BATCH)]
    await _queue(scene, operations)
    raw = await _raw_insert(scene.connection, batches)
    begun = time.perf_counter()
    settled = await scene.drainer.drain()
    drained = time.perf_counter() - begun
    await _check(scene, operations, settled)
    return drained, raw


async def _registrations(scene: Scene) -> tuple[float, float]:
    """Seconds of the drain of new accounts, and of inserting the same accounts into the same kind of table."""
    operations = [_registration() for _ in range(WRITES)]
    await scene.connection.execute("TRUNCATE users, operations")
    await scene.connection.execute(_RAW_USERS_TABLE)
    batches = [_people(operations[start : start + BATCH]) for start in range(0, WRITES, BATCH)]
    await _queue(scene, operations)
    begun = time.perf_counter()
    for columns in batches:
        await scene.connection.execute(_RAW_USERS_INSERT, *columns)
    raw = time.perf_counter() - begun
    begun = time.perf_counter()
    settled = await scene.drainer.drain()
    drained = time.perf_counter() - begun
    there = await scene.connection.fetchval("SELECT count(*) FROM users JOIN raw_users USING (id, email, display_name)")
    if (settled, there) != (WRITES, WRITES):
        raise BenchmarkError(f"the drain settled {settled} registrations and made {there} of the accounts")
    return drained, raw


async def _queue(scene: Scene, operations: Sequence[Operation]) -> None:
    for start in range(0, WRITES, CALLERS):
        await asyncio.gather(*(scene.store.append(one) for one in operations[start : start + CALLERS]))
    gc.collect()


def _registration() -> Operation:
    account = str(uuid.uuid4())
    new = {"id": account, "email": f"{account}@example.org", "display_name": "New", "password_hash": "x" * 97}
    return Operation(uuid.uuid4().hex, "user.create", f"email:{account}", "", new)


def _people(operations: Sequence[Operation]) -> Columns:
    rows = [
        (new["id"], new["email"], new["display_name"], new["password_hash"]) for new in (o.payload for o in operations)
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


def _change(account: str, number: int) -> Operation:
    return Operation(uuid.uuid4().hex, "user.update", f"user:{account}", account, {"display_name": f"Name {number}"})


def _columns(operations: Sequence[Operation]) -> Columns:
    rows = [(one.id, one.kind, one.entity, one.owner, orjson.dumps(one.payload).decode()) for one in operations]
    return tuple(list(column) for column in zip(*rows, strict=True))


async def _raw_insert(connection: Any, batches: Sequence[Columns]) -> float:
    begun = time.perf_counter()
    for columns in batches:
        await connection.execute(_RAW_INSERT, *columns)
    return time.perf_counter() - begun


async def _check(scene: Scene, operations: Sequence[Operation], settled: int) -> None:
    """A fast drain that loses, repeats or reorders is none.

    Raises:
        BenchmarkError: the database is not what applying the operations one after the other would have made it.
    """
    wanted = {one.owner: one.payload["display_name"] for one in operations}
    rows = await scene.connection.fetch("SELECT id::text, display_name, revision FROM users")
    changes = sum(revision - 1 for _, _, revision in rows)
    fences = await scene.connection.fetchval("SELECT count(*) FROM operations WHERE error IS NULL")
    if settled != WRITES or fences != WRITES or {row[0]: row[1] for row in rows} != wanted:
        raise BenchmarkError(f"the drain settled {settled}, fenced {fences}; accounts as expected: no")
    if changes != WRITES:
        raise BenchmarkError(f"{WRITES} changes raised the revisions by {changes}")
