"""The drain's way into the simulated database: what `UserQueueTarget` is to the real one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

from resilience.queue import Operation, Result
from tests.simulation.database import Database
from tests.simulation.loop import Process
from tests.simulation.network import Connection, ServerError


def is_outage(error: BaseException) -> bool:
    """The database failed, rather than answered."""
    return isinstance(error, OSError | TimeoutError | ServerError)


def is_disconnect(error: BaseException) -> bool:
    """A lost connection: worth one more attempt at once."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError)


class Session:
    """See resilience.queue.TargetSession."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    def _send(self, label: str, work: Any, *args: Any) -> Any:
        connection = self._connection
        return self._database.send(connection, lambda _: work(connection.transaction, *args), label)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        fences = [operation.fence for operation in operations]
        earlier = await self._send(f"fence {fences}", self._database.fence, operations, None)
        known = {result.operation.fence for result in earlier}
        new = [operation for operation in operations if operation.fence not in known]
        if not new:
            return list(earlier)
        changed = await self._send("change", self._database.change, new)
        return [*earlier, *changed]

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        fences = [operation.fence for operation in operations]
        await self._send(f"bury {fences}", self._database.fence, operations, error)


class _Drain:
    """A transaction as a block: committed at its end; undone, and its connection closed, when the block raises."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._connection = Connection(process)

    async def __aenter__(self) -> Session | None:
        try:
            locked = await self._database.send(
                self._connection, partial(self._database.begin, self._connection), "begin"
            )
        except BaseException:
            self._database.hang_up(self._connection)
            raise
        return Session(self._database, self._connection) if locked else None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database, connection = self._database, self._connection
        try:
            if error is None:
                await database.send(
                    connection, lambda request: database.commit(connection.transaction, request), "commit"
                )
        except BaseException:
            database.hang_up(connection)
            await database.world.clean_up(connection)
            raise
        if error is not None:
            database.hang_up(connection)
            await database.world.clean_up(connection)


class SimTarget:
    """See resilience.queue.Target; one per process."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    def session(self) -> _Drain:
        """One transaction; None in it when another drainer has the lock."""
        return _Drain(self._database, self._process)

    def is_outage(self, error: BaseException) -> bool:
        """See resilience.queue.Target."""
        return is_outage(error)
