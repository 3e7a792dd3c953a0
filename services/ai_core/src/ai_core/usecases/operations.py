"""What became of a write that was accepted while the database was away."""

from ai_core.model import OperationUnknown
from ai_core.ports import Committing
from resilience import OperationRecord, QueueStore, RowPolicy, Served
from resilience.lookup import find_operation


class Operations:
    """Asks the queue first, then the database, where applied operations are remembered for a day."""

    def __init__(self, queue: QueueStore, settled: Committing, postgres: RowPolicy) -> None:
        self._queue = queue
        self._settled = settled
        self._postgres = postgres

    async def status(self, owner: str, operation_id: str) -> Served[OperationRecord]:
        """Raises OperationUnknown when there is none or it is another's, QueueUnavailable when nobody can tell."""
        record = await find_operation(
            [self._queue], lambda: self._postgres.call(self._settled.operation, operation_id), operation_id
        )
        if record is None or record.operation is None or record.operation.owner != owner:
            raise OperationUnknown
        return Served(record)
