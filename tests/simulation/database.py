"""The simulated database: rows, fences and transactions as PostgreSQL keeps them.

A direct write is one statement and takes effect at one instant. A drain is a transaction of several round trips: what
it has fenced or changed is locked, so that a direct write that wants the same waits for its end, as it would there.
Its advisory lock ends with it, however it ends. One that stays idle is ended by the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from resilience.queue import Fate, Operation, Result
from tests.simulation.loop import Process
from tests.simulation.network import WAITS, Connection, Request, Server

if TYPE_CHECKING:
    from tests.simulation.world import World

IDLE_SECONDS = 3.0


class Refused(Exception):
    """The database's answer to a direct write: it works, and says no."""


class BadValue(Exception):
    """A value that the server does not take: the whole statement fails, and with it the transaction."""


@dataclass(slots=True)
class Row:
    """An entity. ``value`` is the id of the operation that wrote it last; ``unordered_at`` is that of ADR 0001, but a
    deletion does not end it."""

    exists: bool
    value: str = ""
    revision: int = 0
    unordered_at: float = 0.0

    def after(self, operation: Operation, unordered_at: float = 0.0) -> Row:
        """What the operation makes of it."""
        stamp = max(unordered_at, self.unordered_at)
        return Row(operation.kind != "delete", operation.id, self.revision + 1, stamp)


@dataclass(frozen=True, slots=True)
class Effect:
    """An operation took effect: what the checker believes, kept apart from what the database itself goes by."""

    operation: Operation
    at: float
    sent: float = inf
    """When the statement of a direct write was sent; infinite for one that came through the queue."""
    late: bool = False
    """A direct write whose caller had given up by then: a frozen statement that woke up."""
    unordered_at: float = 0.0
    """Of a direct write made while the store could not be asked: what it has overtaken was accepted before this."""
    overtaken: bool = False
    """It changed nothing, as a later write had been applied before it."""

    @property
    def direct(self) -> bool:
        """It did not come through the queue."""
        return self.sent < inf


class Transaction:
    """What a drain has done and not yet committed."""

    __slots__ = ("connection", "effects", "fences", "idle", "open", "rows", "waiting")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.open = True
        self.fences: dict[str, str | None] = {}
        self.rows: dict[str, Row] = {}
        self.effects: list[Effect] = []
        self.waiting: list[Request] = []
        self.idle: Any = None


class Database(Server):
    """``fences``: operation fence → None when applied, else why it is dead."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "database")
        self.rows: dict[str, Row] = {}
        self.fences: dict[str, str | None] = {}
        self.holder: Transaction | None = None
        self.transactions: list[Transaction] = []

    # -- direct writes

    def write(self, operation: Operation, sent: float, unordered_at: float, request: Request) -> Any:
        """Fence and change in one statement. Raises Refused; a repeated one changes nothing.

        ``unordered_at`` is not 0 when the store could not be asked: the moment (Unix seconds) at which that was so.
        """
        for transaction in self.transactions:
            if operation.fence in transaction.fences or operation.entity in transaction.rows:
                self.world.count("direct write waited for a drain")
                transaction.waiting.append(request)
                return WAITS
        if operation.fence in self.fences:
            self.world.count("direct write met its fence")
            if (error := self.fences[operation.fence]) is not None:
                raise Refused(error)
            return "repeated"
        row = self.rows[operation.entity]
        if problem := _problem(operation, row):
            raise Refused(problem)
        effect = Effect(operation, self.loop.time(), sent, request.future.done(), unordered_at)
        self._take_effect(effect, row.after(operation, unordered_at))
        return "written"

    def _take_effect(self, effect: Effect, row: Row | None) -> None:
        operation = effect.operation
        self.fences[operation.fence] = None
        if operation.generation:
            self.world.count("replayed operation applied")
        if row is not None:
            self.rows[operation.entity] = row
        if not effect.direct:
            self.world.check_turn(operation)
        self.world.history.took_effect(effect)

    # -- transactions

    def begin(self, connection: Connection, request: Request) -> bool:
        """Whether this one got the advisory lock."""
        connection.transaction = transaction = Transaction(connection)
        self.transactions.append(transaction)
        if self.holder is not None:
            self.world.count("drainers contended")
        else:
            self.holder = transaction
            self.world.ambush(connection)
        self._idle(transaction)
        return self.holder is transaction

    def fence(self, transaction: Transaction, operations: Sequence[Operation], error: str | None) -> list[Result]:
        """Fences operations (as dead, with an error) and returns those that were fenced before, with their fate."""
        self._busy(transaction)
        earlier = []
        for operation in operations:
            known = self.fences if operation.fence in self.fences else transaction.fences
            if operation.fence not in known:
                transaction.fences[operation.fence] = error
            elif (why := known[operation.fence]) is None:
                self.world.count("drain met a fence: applied" if error is None else "burial met a fence: applied")
                earlier.append(Result(operation, Fate.APPLIED))
            else:
                self.world.count("drain met a fence: dead")
                earlier.append(Result(operation, Fate.BURIED, why))
        self._idle(transaction)
        return earlier

    def change(self, transaction: Transaction, operations: Sequence[Operation]) -> list[Result]:
        """Applies operations in order. Raises BadValue, which ends the transaction."""
        self._busy(transaction)
        results: list[Result] = []
        rejected: set[str] = set()
        for operation in operations:
            if operation.kind == "bad":
                if len(operations) > 1:
                    self.world.count("batch refused for one bad value")
                self.abort(transaction)
                raise BadValue
            if operation.entity in rejected:
                del transaction.fences[operation.fence]
                continue
            row = transaction.rows.get(operation.entity) or self.rows[operation.entity]
            overtaken = operation.accepted_at <= row.unordered_at
            problem = "" if overtaken else _problem(operation, row)
            if problem:
                rejected.add(operation.entity)
                del transaction.fences[operation.fence]
                results.append(Result(operation, Fate.REJECTED, problem))
                continue
            transaction.effects.append(Effect(operation, self.loop.time(), overtaken=overtaken))
            if overtaken:
                self.world.count("overtaken by an unordered write")
            else:
                transaction.rows[operation.entity] = row.after(operation)
            results.append(Result(operation, Fate.APPLIED))
        self._idle(transaction)
        return results

    def commit(self, transaction: Transaction, request: Request) -> None:
        """All of it at once."""
        self._busy(transaction)
        if transaction.effects and request.future.done():
            self.world.count("commit of a drain that had given up")
        elif transaction.effects and request.lost == "after":
            self.world.count("commit of a drain, answer lost")
        for fence, error in transaction.fences.items():
            self.fences.setdefault(fence, error)
        for effect in transaction.effects:
            self._take_effect(effect, transaction.rows.get(effect.operation.entity))
        self._end(transaction)

    def _busy(self, transaction: Transaction) -> None:
        if not transaction.open:
            raise ConnectionResetError("the transaction is over")
        if transaction.idle is not None:
            transaction.idle.cancel()
            transaction.idle = None

    def _idle(self, transaction: Transaction) -> None:
        transaction.idle = self.loop.call_later(
            IDLE_SECONDS, self._idle_too_long, transaction, context=self.world.context
        )

    def _idle_too_long(self, transaction: Transaction) -> None:
        if self.frozen:
            self._backlog.append(lambda: self._idle_too_long(transaction))
        elif transaction.open and transaction.idle is not None:
            self.world.count("idle transaction ended by the server")
            self.abort(transaction)

    def abort(self, transaction: Transaction) -> None:
        """Nothing of it has happened, and its connection is gone."""
        if transaction.open:
            transaction.connection.cut = True
            self._end(transaction)

    def _end(self, transaction: Transaction) -> None:
        transaction.open = False
        if transaction.idle is not None:
            transaction.idle.cancel()
        self.transactions.remove(transaction)
        if self.holder is transaction:
            self.holder = None
        for request in transaction.waiting:
            self.carry_out(request)

    def cut(self, connection: Connection) -> None:
        """See Server: what was not committed is undone."""
        super().cut(connection)
        if connection.transaction is not None:
            self.abort(connection.transaction)

    def crashed(self) -> None:
        """Every transaction is undone."""
        for transaction in list(self.transactions):
            self.abort(transaction)

    def forget(self, process: Process) -> None:
        """A process is no more: mostly its connections are closed with it, sometimes the network does not say so."""
        for transaction in list(self.transactions):
            if transaction.connection.owner is process:
                self.world.count("killed while draining")
                if self.world.random() < 0.7:
                    self.hang_up(transaction.connection)


def _problem(operation: Operation, row: Row) -> str:
    """Why the rows do not allow an operation."""
    if operation.kind == "bad":
        return "BAD_VALUE"
    if operation.kind == "create":
        return "CONFLICT" if row.exists else ""
    return "" if row.exists else "NOT_FOUND"
