"""What became of an accepted write: the queues know those that wait, the target remembers those that are settled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from resilience.errors import QueueUnavailable
from resilience.queue import OperationRecord, QueueStore


async def find_operation(
    queues: Sequence[QueueStore], settled: Callable[[], Awaitable[OperationRecord | None]], operation_id: str
) -> OperationRecord | None:
    """What is known of an operation; None when it certainly is none.

    ``settled`` asks the target. Raises QueueUnavailable when a queue that may well have it cannot be asked, and what
    ``settled`` raises.
    """
    unasked: QueueUnavailable | None = None
    for queue in queues:
        try:
            record = await queue.record(operation_id)
        except QueueUnavailable as error:
            unasked = error
            break
        if record and record.operation:
            return record
    found = await settled()
    if found is None and unasked is not None:  # it may well wait there: to deny it would be a lie
        raise unasked
    return found
