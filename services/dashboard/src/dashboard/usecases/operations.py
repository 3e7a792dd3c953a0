"""What became of an accepted write."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from dashboard.model import OperationUnknown
from dashboard.ports import Users
from resilience import OperationRecord, QueueStore, RowPolicy, Served
from resilience.lookup import find_operation

Elsewhere = Callable[[str], Awaitable[OperationRecord | None]]
"""What another service knows of the caller's own operation with that id."""


class Operations:
    """Asks the queues first, then the database, where applied operations are remembered for a day.

    ``elsewhere``: asked in the end, on behalf of whoever is logged in.
    """

    def __init__(
        self, queues: Sequence[QueueStore], users: Users, policy: RowPolicy, elsewhere: Elsewhere | None = None
    ) -> None:
        self._queues = queues
        self._users = users
        self._policy = policy
        self._elsewhere = elsewhere

    async def status(self, operation_id: str, caller: str | None) -> Served[OperationRecord]:
        """Raises OperationUnknown when there is none, or it is somebody else's; QueueUnavailable when nobody can tell.

        An operation without an owner (a registration) is shown to whoever knows its id.
        """
        record = await self._find(operation_id, caller)
        owner = record.operation.owner if record and record.operation else None
        if record is None or (owner and owner != caller):
            raise OperationUnknown
        return Served(record)

    async def _find(self, operation_id: str, caller: str | None) -> OperationRecord | None:
        elsewhere = self._elsewhere if caller else None
        try:
            record = await find_operation(
                self._queues, lambda: self._policy.call(lambda: self._users.operation(operation_id)), operation_id
            )
        except Exception:
            # One database server may be both services': what waits in the other one is known nevertheless. When the
            # other one cannot tell either, the own failure is the answer.
            record = None
            if elsewhere is not None:
                with contextlib.suppress(Exception):
                    record = await elsewhere(operation_id)
            if record is None:
                raise
            return record
        return record if record or elsewhere is None else await elsewhere(operation_id)
