"""Creations in AI Core that survive its absence (row D3, dashboard.ai_core): at once, or queued and made later.

What is made gets its id here, before AI Core hears of it: a creation that has to wait in the queue is known by the same
id as the one that was made at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from dashboard.model import KeyReused, Made, WriteFailed
from resilience import Accepted, Clock, DurableWriter, Operation, OperationStatus, Served, Written

T = TypeVar("T")

CREATIONS = frozenset({"agent.create", "memory.create"})
"""Kinds of operations whose result is what they made."""


class Creations:
    """Makes agents and memories at once or, while AI Core is away, later.

    ``key_secret`` makes operation ids from idempotency keys unguessable.
    """

    def __init__(self, writer: DurableWriter, clock: Clock, *, key_secret: bytes) -> None:
        self._writer = writer
        self._clock = clock
        self._key_secret = key_secret

    def operation(self, kind: str, entity: str, owner: str, payload: dict[str, Any], key: str | None) -> Operation:
        """The creation as an operation; its payload gets the id of what it makes."""
        operation_id, fingerprint = uuid.uuid4().hex, ""
        if key is not None:
            operation_id = hmac.new(self._key_secret, f"{owner}\n{kind}\n{key}".encode(), hashlib.sha256).hexdigest()[
                :32
            ]
            fingerprint = hashlib.sha256(json.dumps([kind, payload], sort_keys=True).encode()).hexdigest()[:32]
        return Operation(operation_id, kind, entity, owner, {"id": made_id(operation_id), **payload}, fingerprint)

    async def make(
        self, operation: Operation, direct: Callable[[], Awaitable[Served[Made[T]]]], promised: Callable[[Operation], T]
    ) -> Served[Made[T]]:
        """What ``direct`` made, or what was ``promised`` when it will be made, or was, by way of the queue.

        ``direct`` may have been promised it as well: AI Core queues what its own database cannot take.

        Raises KeyReused, WriteFailed, WriteRefused.
        """
        served = await self._writer.write(operation, lambda _: direct())
        match served.value:
            case Written(made):
                return made.also(*served.degradations)
            case Accepted(record):
                known = record.operation or operation
                if operation.fingerprint and known.fingerprint != operation.fingerprint:
                    raise KeyReused
                if record.status is OperationStatus.DEAD:
                    raise WriteFailed
                value = promised(replace(operation, accepted_at=known.accepted_at or self._clock.time()))
                if record.status is OperationStatus.APPLIED and not served.degraded:
                    return Served(Made(value))
                return Served(Made(value, operation.id), served.degradations, pending=True)

    async def waiting(self, entity: str, limit: int) -> list[Operation]:
        """The newest creations that wait, newest first."""
        return list(await self._writer.pending(entity))[-limit:][::-1]


def made_id(operation_id: str) -> str:
    """The id of what an operation makes: the same whenever and however often it is asked for."""
    return str(uuid.UUID(hashlib.sha256(operation_id.encode()).hexdigest()[:32], version=4))
