"""What became of an accepted write."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.model import OperationUnknown
from dashboard.ports import Users
from resilience import OperationRecord, QueueStore, QueueUnavailable, RowPolicy, Served


class Operations:
    """Asks the queues first, then the database, where applied operations are remembered for a day."""

    def __init__(self, queues: Sequence[QueueStore], users: Users, policy: RowPolicy) -> None:
        self._queues = queues
        self._users = users
        self._policy = policy

    async def status(self, operation_id: str, caller: str | None) -> Served[OperationRecord]:
        """Raises OperationUnknown when there is none, or it is somebody else's; QueueUnavailable when nobody can tell.

        An operation without an owner (a registration) is shown to whoever knows its id.
        """
        record = await self._find(operation_id)
        owner = record.operation.owner if record and record.operation else None
        if record is None or (owner and owner != caller):
            raise OperationUnknown
        return Served(record)

    async def _find(self, operation_id: str) -> OperationRecord | None:
        unasked: QueueUnavailable | None = None
        for queue in self._queues:
            try:
                record = await queue.record(operation_id)
            except QueueUnavailable as error:
                unasked = error
                break
            if record and record.operation:
                return record
        settled = await self._policy.call(lambda: self._users.operation(operation_id))
        if settled is None and unasked is not None:  # it may well wait there: to deny it would be a lie
            raise unasked
        return settled
