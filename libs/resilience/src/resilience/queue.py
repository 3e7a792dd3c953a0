"""Durable write queue: writes accepted while their database is away are applied later, once and in order.

The rules, whatever dies at whatever moment:

* *Once.* Every write carries an operation id. The target records the id in the transaction that applies the write
  (the "fence"), so one that arrives twice (a retry, a second drainer, a frozen statement that wakes up) has one effect.
* *In order.* The store keeps one sequence. Operations of one entity are applied in that sequence; one that fails holds
  back the later ones of its entity, and only those, until it succeeds or is buried.
* *Nothing lost.* An operation leaves the queue only after its transaction has committed. A crash in between is repaired
  by the next drainer, who finds the fence and only tidies up.
* *Nothing silent.* What cannot be applied (failed after its retries, too old, malformed) moves to the dead letters
  with its reason.

This module holds the values, the rules as pure functions, the ports and the drain loop. A store lives in
``resilience.integrations``; the target belongs to the service whose rows are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, MalformedOperation, QueueUnavailable

T = TypeVar("T")


class QueueUnanswered(QueueUnavailable):
    """The store was sent an operation and did not answer: whether it was accepted is unknown."""


class OperationStatus(StrEnum):
    """Where an accepted write is."""

    QUEUED = "queued"
    APPLYING = "applying"
    APPLIED = "applied"
    DEAD = "dead"


@dataclass(slots=True)  # not frozen: made by the thousand in a drain, and freezing trebles the cost
class Operation:
    """One accepted write. ``entity`` names what it changes (``user:<id>``) and is the unit of ordering."""

    id: str
    kind: str
    entity: str
    owner: str
    payload: dict[str, Any]
    fingerprint: str = ""
    generation: int = 0
    """Counts the replays of a buried operation; each generation is fenced on its own."""
    accepted_at: float = 0.0
    """Unix seconds on the store's clock; set by the store."""

    @property
    def fence(self) -> str:
        """The key under which the target remembers that this operation was applied or buried."""
        return f"{self.id}#{self.generation}" if self.generation else self.id

    def encode(self) -> bytes:
        """The stored form; ``accepted_at`` is the store's to keep."""
        document: dict[str, Any] = {
            "id": self.id,
            "kind": self.kind,
            "entity": self.entity,
            "owner": self.owner,
            "payload": self.payload,
        }
        if self.fingerprint:
            document["fingerprint"] = self.fingerprint
        if self.generation:
            document["generation"] = self.generation
        return json.dumps(document, separators=(",", ":")).encode()


def decode(body: bytes, accepted_at: float, loads: Callable[[bytes], Any] = json.loads) -> Operation:
    """Reads a stored operation. Raises MalformedOperation when it is none."""
    try:
        document = loads(body)
        operation = Operation(
            id=document["id"],
            kind=document["kind"],
            entity=document["entity"],
            owner=document["owner"],
            payload=document["payload"],
            fingerprint=document.get("fingerprint", ""),
            generation=document.get("generation", 0),
            accepted_at=accepted_at,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MalformedOperation(f"not an operation: {type(error).__name__}") from error
    texts = (operation.id, operation.kind, operation.entity, operation.owner, operation.fingerprint)
    if {*map(type, texts)} != {str} or type(operation.payload) is not dict or type(operation.generation) is not int:
        raise MalformedOperation("not an operation: wrong types")
    if not (operation.id and operation.kind and operation.entity):
        raise MalformedOperation("not an operation: empty fields")
    return operation


@dataclass(slots=True)  # not frozen: made by the thousand in a drain, and freezing trebles the cost
class Entry:
    """One place in the queue; ``operation`` is None when the stored bytes are malformed."""

    position: str
    body: bytes
    operation: Operation | None


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """What is known of an operation."""

    operation: Operation | None
    status: OperationStatus
    error: str = ""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Size and age of a queue; ``oldest_age`` in seconds, 0 when empty."""

    depth: int
    oldest_age: float
    dead: int


@dataclass(frozen=True, slots=True)
class Burial:
    """An entry on its way to the dead letters."""

    entry: Entry
    reason: str
    """``failed``, ``expired`` or ``malformed``."""
    error: str


Described = list[dict[str, Any]]
"""Queue items as plain data, without their payloads."""


class QueueAdmin(Protocol):
    """What an operator can do with a queue; all raise QueueUnavailable when the store is away."""

    name: str

    async def stats(self) -> QueueStats: ...
    async def list(self, limit: int, after: str = "") -> Described: ...
    async def dead(self, limit: int, after: str = "") -> Described: ...
    async def replay(self, operation_id: str) -> bool: ...
    async def discard(self, operation_id: str) -> bool: ...
    async def clear(self) -> int: ...


class QueueStore(QueueAdmin, Protocol):
    """The durable sequence of accepted writes, shared by all instances of a service.

    Every method raises QueueUnavailable when the store cannot be reached in time.
    """

    async def append(self, operation: Operation) -> OperationRecord:
        """Accepts an operation, or returns what became of the same id before.

        Happens whole or not at all. Raises QueueFull, QueueUnavailable: nothing was accepted; QueueUnanswered: nobody
        knows, so it must not be reported as refused.
        """
        ...

    async def read(self, limit: int, after: str = "", *, claim: bool = False) -> tuple[Sequence[Entry], float]:
        """Entries in order of acceptance behind position ``after``, and the store's time (unix seconds).

        With ``claim`` they are shown as being applied for a while.
        """
        ...

    async def settle(self, applied: Sequence[Entry], buried: Sequence[Burial]) -> None:
        """Removes entries whose fate is recorded; harmless when repeated."""
        ...

    async def note_failure(self, operation_id: str, error: str) -> int:
        """Counts a failed attempt and returns how many there were; 0 when the operation waits no more."""
        ...

    async def record(self, operation_id: str) -> OperationRecord | None:
        """What the store knows of an operation; None when nothing."""
        ...

    async def is_waiting(self, entity: str) -> bool:
        """Whether the entity has accepted and not yet settled operations."""
        ...

    async def waiting(self, entity: str) -> Sequence[Operation]:
        """The entity's accepted and not yet settled operations, in order."""
        ...


class Fate(StrEnum):
    """What the target did with an operation of a batch."""

    APPLIED = "applied"
    REJECTED = "rejected"
    BURIED = "buried"


@dataclass(slots=True)  # not frozen: made by the thousand in a drain, and freezing trebles the cost
class Result:
    """Outcome of one operation; ``value`` is the target's own (a fresh row, for the caches)."""

    operation: Operation
    fate: Fate
    error: str = ""
    value: Any = None


class TargetSession(Protocol):
    """One transaction of the target, held by one drainer at a time."""

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        """Applies operations in order and fences each; one already fenced is reported as what it was.

        A rejected operation leaves no trace, and the later ones of its entity are left alone and not reported. An
        exception means that nothing of the batch has happened.
        """
        ...

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        """Fences operations as dead, so that a late duplicate cannot apply them; one already fenced stays what it was.

        The drainer has them applied next in the same transaction, which says of each what it is.
        """
        ...


class Target(Protocol):
    """Where queued writes go. ``session`` yields None when another drainer has it."""

    def session(self) -> AbstractAsyncContextManager[TargetSession | None]: ...

    def is_outage(self, error: BaseException) -> bool:
        """True when the target itself failed; False when it refused the data."""
        ...


Caller = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(slots=True)
class Plan:
    """What to do with a stretch of the queue."""

    apply: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    malformed: list[Entry] = field(default_factory=list)


# The rules of the drain: functions of what is known, without a clock and without effects.


def plan(entries: Sequence[Entry], now: float, ttl: float, blocked: Container[str]) -> Plan:
    """Sorts entries by what is due; those of a blocked entity wait, expired ones included, so that order holds."""
    result = Plan()
    for entry in entries:
        operation = entry.operation
        if operation is None:
            result.malformed.append(entry)
        elif operation.entity in blocked:
            continue
        elif now - operation.accepted_at > ttl:
            result.expired.append(entry)
        else:
            result.apply.append(entry)
    return result


def settlement(work: Plan, results: Sequence[Result]) -> tuple[list[Entry], list[Burial]]:
    """What leaves the queue, and how, after the target has said what became of it. What it has not named stays.

    A fence is the key, not an id: an operation and its replay may both be there.
    """
    expired = {entry.operation.fence: entry for entry in work.expired if entry.operation}
    due = {entry.operation.fence: entry for entry in work.apply if entry.operation}
    applied: list[Entry] = []
    buried = [Burial(entry, "malformed", "not an operation") for entry in work.malformed]
    for result in results:
        fence = result.operation.fence
        if result.fate is Fate.APPLIED:
            applied.append(expired.get(fence) or due[fence])
        elif fence in expired:
            buried.append(Burial(expired[fence], "expired", "older than the queue's time to live"))
        else:
            buried.append(Burial(due[fence], "failed", result.error))
    return applied, buried


def retry_wait(attempts: int, waits: Sequence[float]) -> float | None:
    """Seconds for which an entity is held back after its operation failed for the `attempts`-th time; None: no retry is
    left, it is buried. With 0 attempts it waits no more: whatever the next walk finds there is newer."""
    if attempts > len(waits):
        return None
    return waits[max(attempts, 1) - 1] if waits else 0.0


def still_held(held: Mapping[str, float], now: float) -> dict[str, float]:
    """The entities whose retry is not due yet.

    Asked between two walks only: an entity that was held back in a walk stays so to its end, or a later write of it
    would go first.
    """
    return {entity: due for entity, due in held.items() if due > now}


def walk_pause(held: Mapping[str, float], now: float, contended_wait: float) -> float:
    """Seconds until the next walk makes sense: until the first retry is due, or another drainer may have finished."""
    return max(0.01, min(held.values()) - now) if held else contended_wait


def next_batch_size(size: int, full: int, *, timed_out: bool) -> int:
    """A batch that did not end in time is tried again at half its size; one that did brings the full size back."""
    return max(1, size // 2) if timed_out else full


class WalkEnd(StrEnum):
    """How a walk over the queue ended."""

    DONE = "done"
    """At the end of the queue, with everything settled."""
    LEFT = "left"
    """At the end of the queue, but not everything could be applied yet."""
    BUSY = "busy"
    """Another drainer has the target."""
    TIMED_OUT = "timed out"
    OUTAGE = "outage"
    """The target is gone: the circuit's recovery asks for a drain again."""

    @property
    def again(self) -> bool:
        """Whether another walk should follow soon."""
        return self not in (WalkEnd.DONE, WalkEnd.OUTAGE)


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """``ttl`` and ``interval`` in seconds; ``retry_waits`` are the pauses before each retry of a failing operation.

    They are short: an outage is no failure of an operation, and whoever repeats a refused write must not fall behind
    its earlier ones.
    """

    batch_size: int = 2000
    ttl: float = 3600.0
    interval: float = 30.0
    retry_waits: tuple[float, ...] = (0.05, 0.1, 0.2)
    contended_wait: float = 0.2


class Busy(Exception):
    """Another drainer holds the target."""


class Drainer:
    """Moves the queue into the target while the target can be reached.

    ``call`` runs one transaction under the dependency's policy. ``on_applied`` receives the results of each committed
    batch (to refresh caches); its failure is the caller's to handle, it must not raise.
    """

    def __init__(
        self,
        store: QueueStore,
        target: Target,
        *,
        call: Caller,
        settings: DrainSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_applied: Callable[[Sequence[Result]], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._target = target
        self._call = call
        self._settings = settings or DrainSettings()
        self._clock = clock
        self._on_applied = on_applied
        self._kicked = asyncio.Event()
        self._held: dict[str, float] = {}  # entities of a failing operation, and when its retry is due
        self._batch_size = self._settings.batch_size

    def kick(self) -> None:
        """Asks for a drain now: the circuit closed, or somebody saw a waiting write."""
        self._kicked.set()

    async def run(self) -> None:
        """Drains on every kick and every ``interval`` seconds, until cancelled."""
        while True:
            timer = self._clock.call_later(self._settings.interval, self._kicked.set)
            try:
                await self._kicked.wait()
            finally:
                timer.cancel()
            self._kicked.clear()
            await self.drain()

    async def drain(self) -> int:
        """Walks over the queue until it is empty or the target or the store is gone; returns how many were settled."""
        settled = 0
        with contextlib.suppress(QueueUnavailable, CircuitBreakerOpen, BulkheadFull):
            while True:
                done, end = await self._walk()
                settled += done
                if not end.again:
                    break
                pause = walk_pause(self._held, self._clock.monotonic(), self._settings.contended_wait)
                await self._clock.sleep(pause)
        return settled

    async def _walk(self) -> tuple[int, WalkEnd]:
        """One walk over the whole queue: how many were settled, and how it ended."""
        self._held = still_held(self._held, self._clock.monotonic())
        walk = _Walk(self._store.read(self._batch_size, claim=True))
        try:
            end = await self._batches(walk)
        except Busy:
            end = WalkEnd.BUSY
        except CallTimeout:
            self._resize(timed_out=True)
            end = WalkEnd.TIMED_OUT
        except Exception as error:
            if not self._target.is_outage(error):
                raise
            end = WalkEnd.OUTAGE
        finally:
            await walk.finish()
        return walk.settled, end

    async def _batches(self, walk: _Walk) -> WalkEnd:
        """While a batch is applied, the next one is read and the one before it is settled."""
        left = False
        create_task = asyncio.get_running_loop().create_task
        while True:
            entries, time = await walk.ahead
            if not entries:
                await walk.settling
                return WalkEnd.LEFT if left else WalkEnd.DONE
            walk.ahead = create_task(self._store.read(self._batch_size, entries[-1].position, claim=True))
            applied, buried = await self._batch(entries, time)
            await walk.settling
            walk.settling = create_task(self._store.settle(applied, buried))
            self._resize(timed_out=False)
            walk.settled += len(applied) + len(buried)
            left = left or len(applied) + len(buried) < len(entries)

    def _resize(self, *, timed_out: bool) -> None:
        self._batch_size = next_batch_size(self._batch_size, self._settings.batch_size, timed_out=timed_out)

    async def _batch(self, entries: Sequence[Entry], now: float) -> tuple[list[Entry], list[Burial]]:
        """Brings the entries that are due to their fate in the target; returns what is to be settled."""
        work = plan(entries, now, self._settings.ttl, self._held)
        results: list[Result] = []
        if expired := [entry.operation for entry in work.expired if entry.operation]:
            results += await self._call(lambda: self._bury(expired, "expired"))
        results += await self._apply([entry.operation for entry in work.apply if entry.operation])
        applied = [result for result in results if result.fate is Fate.APPLIED]
        if self._on_applied and applied:
            await self._on_applied(applied)
        return settlement(work, results)

    async def _apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Applies a batch in one transaction; a refused batch is halved until the refused operation stands alone."""
        due = [operation for operation in operations if operation.entity not in self._held]
        if not due:
            return []
        try:
            results = list(await self._call(lambda: self._transaction(due)))
        except (Busy, BulkheadFull, CallTimeout, CircuitBreakerOpen, QueueUnavailable):
            raise
        except Exception as error:
            if self._target.is_outage(error):
                raise
            if len(due) == 1:
                return await self._failed(due[0], type(error).__name__)
            middle = len(due) // 2
            return await self._apply(due[:middle]) + await self._apply(due[middle:])
        return await self._sort_out(results)

    async def _transaction(self, operations: Sequence[Operation]) -> Sequence[Result]:
        async with self._target.session() as session:
            if session is None:
                raise Busy
            return await session.apply(operations)

    async def _bury(self, operations: Sequence[Operation], error: str) -> Sequence[Result]:
        async with self._target.session() as session:
            if session is None:
                raise Busy
            await session.bury(operations, error)
            # All of them are fenced now, and this only says as what: one may have been applied before, by a commit
            # whose answer was lost. It would be applied twice if it became a dead letter and somebody replayed it.
            return await session.apply(operations)

    async def _sort_out(self, results: Sequence[Result]) -> list[Result]:
        done = [result for result in results if result.fate is not Fate.REJECTED]
        for result in results:
            if result.fate is Fate.REJECTED:
                done += await self._failed(result.operation, result.error)
        return done

    async def _failed(self, operation: Operation, error: str) -> list[Result]:
        """Counts the attempt: holds the entity back until the retry is due, or buries the operation."""
        attempts = await self._store.note_failure(operation.id, error)
        wait = retry_wait(attempts, self._settings.retry_waits)
        self._held[operation.entity] = self._clock.monotonic() + (wait or 0.0)
        if wait is not None:
            return []
        return list(await self._call(lambda: self._bury([operation], error)))


async def _nothing() -> None:
    return None


class _Walk:
    """A walk's count, and the two tasks that it has beside itself: they never outlive it, and their errors are seen."""

    __slots__ = ("ahead", "settled", "settling")

    def __init__(self, first: Coroutine[Any, Any, tuple[Sequence[Entry], float]]) -> None:
        create_task = asyncio.get_running_loop().create_task
        self.settled = 0
        self.ahead = create_task(first)
        self.settling = create_task(_nothing())

    async def finish(self) -> None:
        """Drops the read that nobody waits for, and lets the settlement end: its store bounds it."""
        self.ahead.cancel()
        for error in await asyncio.gather(self.ahead, self.settling, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, QueueUnavailable):
                raise error


def replayed(operation: Operation) -> Operation:
    """The next generation of a buried operation: a new fence, so that it may be applied once more."""
    return replace(operation, generation=operation.generation + 1, accepted_at=0.0)
