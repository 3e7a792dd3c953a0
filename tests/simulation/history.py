"""What clients were told and what really happened: the ledger that the checks read.

A client's write ends as in tests/harness/history: accepted (it must take effect once), refused (never), or unknown
(once at most).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from resilience.queue import Operation
from tests.simulation.database import Effect


@dataclass(slots=True)
class Write:
    """One operation as its client lived it, over all attempts. Times are virtual seconds."""

    operation: Operation
    invoked: float
    acknowledged: float = inf
    unknown: bool = False
    """Some attempt ended without an answer, or with one that does not say what became of it."""
    refused: bool = False
    in_doubt: bool = False
    """It was refused with the remark that nobody knows whether it was accepted."""
    dead: bool = False
    """It was accepted, and the client was told that it is among the dead letters."""
    replayed: float = inf
    """When an operator first asked for it to be repeated."""


@dataclass(slots=True)
class Burial:
    """An operation was moved to the dead letters."""

    operation: Operation
    reason: str
    at: float


@dataclass(slots=True)
class History:
    """Written by clients and by the simulated servers, read by the checks. ``now`` gives the virtual time."""

    now: Callable[[], float]
    violation: Callable[[str], None]
    count: Callable[[str], None]
    writes: dict[str, Write] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    burials: list[Burial] = field(default_factory=list)
    discards: set[str] = field(default_factory=set)
    queued: set[str] = field(default_factory=set)
    """Fences of all that was ever in the queue."""
    applied: dict[str, float] = field(default_factory=dict)
    """When an id first took effect."""

    unanswered: Counter[str] = field(default_factory=Counter)
    """By operation id: requests that might bring it into effect and were not answered, or not clearly."""

    # -- clients

    def invoked(self, operation: Operation) -> Write:
        """An attempt begins."""
        return self.writes.setdefault(operation.id, Write(operation, self.now()))

    def acknowledged(self, write: Write) -> None:
        """The client was told that it is accepted."""
        write.acknowledged = min(write.acknowledged, self.now())

    def told_applied(self, write: Write) -> None:
        """The client was told that it has taken effect: so it must have, by now."""
        self.acknowledged(write)
        if write.operation.id not in self.applied:
            self.violation(f"told as applied but is not: {write.operation.id}")

    def told_dead(self, write: Write) -> None:
        """The client was told that it was given up."""
        write.dead = True
        if not any(burial.operation.id == write.operation.id for burial in self.burials):
            self.violation(f"told as dead but is not: {write.operation.id}")

    def excused(self, why: str) -> None:
        """A check met one of the documented exceptions."""
        self.count(f"excused: {why}")

    def told_unknown(self, write: Write) -> None:
        """The client was told that nobody knows; only a request that was not answered excuses that."""
        write.unknown = write.in_doubt = True
        if not self.unanswered[write.operation.id]:
            self.violation(f"told as unknown but is not: {write.operation.id}")

    # -- servers

    def sent(self, operation_id: str) -> None:
        """A request that may bring it into effect is on its way."""
        self.unanswered[operation_id] += 1

    def answered(self, operation_id: str) -> None:
        """That request has been answered."""
        self.unanswered[operation_id] -= 1

    def took_effect(self, effect: Effect) -> None:
        """Checked at once: twice is wrong whatever comes later."""
        fence = effect.operation.fence
        if any(fence == earlier.operation.fence for earlier in self.effects):
            self.violation(f"applied twice: {fence}")
        if any(fence == burial.operation.fence for burial in self.burials):
            self.violation(f"applied though buried: {fence}")
        self.effects.append(effect)
        self.applied.setdefault(effect.operation.id, self.now())

    def enqueued(self, operation: Operation) -> None:
        """The store took it."""
        self.queued.add(operation.fence)

    def buried(self, operation: Operation, reason: str) -> None:
        """The store moved it to the dead letters."""
        self.burials.append(Burial(operation, reason, self.now()))
        if any(effect.operation.fence == operation.fence for effect in self.effects):
            self.violation(f"buried though applied: {operation.fence} ({reason})")

    def replayed(self, operation: Operation) -> None:
        """The store put a dead letter back; ``operation`` is its next generation."""
        self.queued.add(operation.fence)

    def discarded(self, operation: Operation) -> None:
        """An operator threw a dead letter away."""
        self.discards.add(operation.id)
