"""Writes that survive their database: straight to it when that is safe, otherwise into the queue.

A direct write may only go when no accepted write of the same entity is still waiting. If one is, the new write joins
the queue behind it and its caller waits for the drain: even across the moment of recovery an entity's writes are
applied in the order in which they were accepted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from resilience.breaker import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import QueueError, QueueFull, QueueUnavailable, ResilienceError
from resilience.fallback import Rung
from resilience.mirror import Mirror, Pending
from resilience.outcome import Served
from resilience.queue import (
    Drainer,
    Operation,
    OperationRecord,
    OperationStatus,
    QueueStats,
    QueueStore,
    QueueUnanswered,
)
from resilience.row_policy import RowPolicy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """The write is in the database; ``value`` is what the target returned."""

    value: T


@dataclass(frozen=True, slots=True)
class Accepted:
    """The write is in the queue, or went through it; ``record.status`` says how far it is."""

    record: OperationRecord


class WriteRefused(ResilienceError):
    """Neither the database nor the queue took the write; ``full`` when the queue had no room, ``retry_after`` in s.

    ``certain``: this call has had no effect and will have none. Otherwise the database or the queue was sent the write
    and has not answered, so it may take effect yet, once: its author should hear that, and may repeat it under the
    same id. ``queued`` is False when it certainly is not in the queue, and None when the queue has not answered.
    """

    def __init__(self, *, full: bool, retry_after: float, certain: bool = True, queued: bool | None = False) -> None:
        super().__init__("the write was not accepted" if certain else "the write was not answered")
        self.full = full
        self.retry_after = retry_after
        self.certain = certain
        self.queued = queued


_UNSETTLED = (OperationStatus.QUEUED, OperationStatus.APPLYING)


class DurableWriter:
    """The write path of a row with a queue; ``fallback`` is the queue's name in headers and metrics.

    ``settle_wait`` (seconds) bounds how long a write that had to queue behind another waits to be applied before its
    caller is told that it is queued.
    """

    def __init__(
        self,
        policy: RowPolicy,
        store: QueueStore,
        drainer: Drainer,
        *,
        fallback: str,
        settle_wait: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._policy = policy
        self._store = store
        self._drainer = drainer
        self._fallback = fallback
        self._settle_wait = settle_wait
        self._clock = clock
        self._depth = 0
        self._mirror = Mirror()

    async def write(
        self,
        operation: Operation,
        direct: Callable[[bool], Awaitable[T]],
        *,
        settle: bool = True,
        queue_first: bool = False,
    ) -> Served[Written[T] | Accepted]:
        """Applies the operation with ``direct`` or queues it.

        ``direct(unordered)`` runs one transaction; ``unordered`` is True when the queue could not be asked about older
        writes; it is stamped with the time of this call, not of its arrival, as one that is late must not pass for
        newer than what was accepted meanwhile. Errors that are answers of the target are raised as they are.
        ``settle=False``: behind another write the caller does not wait for it to be applied. ``queue_first``: the
        caller has just seen the target fail; it is not asked again unless the queue cannot be.

        Raises WriteRefused: nothing was accepted, or (not ``certain``) nobody answered.
        """
        unordered = False
        try:
            older = await self._store.is_waiting(operation.entity)
        except QueueUnavailable:
            older, unordered = False, True
        if older or (queue_first and not unordered):
            return await self._behind(operation, settle)

        refused: QueueError | None = None
        unanswered = False

        async def attempt() -> Written[T] | Accepted:
            nonlocal unanswered
            before, unanswered = unanswered, True
            try:
                return Written(await direct(unordered))
            except ConnectionRefusedError:  # it has not even been sent
                unanswered = before
                raise

        async def enqueue(_: BaseException) -> Written[T] | Accepted:
            nonlocal refused
            try:
                return await self._enqueue(operation)
            except QueueError as error:
                refused = error
                raise

        try:
            return await self._policy.serve(attempt, Rung(self._fallback, enqueue))
        except Exception as failure:
            if refused is None:
                raise
            raise self._refusal(refused, certain=not unanswered) from failure

    def _refusal(self, refused: QueueError, *, certain: bool = True) -> WriteRefused:
        unanswered = isinstance(refused, QueueUnanswered)
        return WriteRefused(
            full=isinstance(refused, QueueFull),
            retry_after=self._policy.degradation(self._fallback).retry_after or 0.0,
            certain=certain and not unanswered,
            queued=None if unanswered else False,
        )

    async def _enqueue(self, operation: Operation) -> Accepted:
        record = await self._store.append(operation)
        self._depth = max(1, self._depth)
        if record.status in _UNSETTLED:
            self._mirror.add(record.operation or operation)
        return Accepted(record)

    async def _behind(self, operation: Operation, settle: bool) -> Served[Accepted]:
        """Queues behind an older write of the entity and, with the database there, waits for both to be applied."""
        try:
            accepted = await self._enqueue(operation)
        except QueueError as error:
            raise self._refusal(error) from error
        if settle and self._policy.breaker.state is not CircuitState.OPEN:
            accepted = Accepted(await self._settled(operation.id, accepted.record))
        if accepted.record.status is OperationStatus.APPLIED:
            return Served(accepted)
        self._policy.note_fallback(self._fallback)
        return Served(accepted, degradations=(self._policy.degradation(self._fallback),))

    async def _settled(self, operation_id: str, record: OperationRecord) -> OperationRecord:
        self._drainer.kick()
        deadline = self._clock.monotonic() + self._settle_wait
        while record.status in _UNSETTLED and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.02)
            with contextlib.suppress(QueueUnavailable):
                record = await self._store.record(operation_id) or record
        return record

    async def pending(self, entity: str, *, ask: bool = False) -> Pending:
        """The entity's accepted writes that are not applied yet; as last seen when the queue cannot be asked.

        While the target works the queue is asked only if it was seen to hold something in the last second, or with
        ``ask``: for a caller that has found the target failing, as another instance may have before.
        """
        if not (ask or self._depth) and self._policy.breaker.state is CircuitState.CLOSED:
            found = Pending()
            found.asked = False
            return found
        try:
            found = Pending(await self._store.waiting(entity))
        except QueueUnavailable:
            return self._mirror.of(entity)
        for operation in found:
            self._depth = max(1, self._depth)
            self._mirror.add(operation)
        return found

    async def watch(self, interval: float = 1.0) -> None:
        """Has waiting writes drained, also those that other instances accepted; runs until cancelled."""
        while True:
            with contextlib.suppress(QueueUnavailable):
                added = self._mirror.added
                stats: QueueStats = await self._store.stats()
                self._depth = stats.depth
                await self._mirror.look(self._store, stats.depth, added)
                if stats.depth and self._policy.breaker.state is CircuitState.CLOSED:
                    self._drainer.kick()
            await self._clock.sleep(interval)
