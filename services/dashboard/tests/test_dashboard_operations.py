"""What became of a write, also when not everybody who could know it can be asked."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.degradation import POSTGRES
from dashboard.model import OperationUnknown
from dashboard.usecases.operations import Operations
from resilience import Operation, OperationRecord, OperationStatus, QueueUnavailable, RowPolicy

RECORD = OperationRecord(Operation("o", "user.update", "user:a", "anna", {}), OperationStatus.APPLIED)


class Known:
    """A queue, or a table of settled operations: an error, a record, or nothing."""

    def __init__(self, found: Exception | OperationRecord | None) -> None:
        self.found = found

    async def record(self, _: str) -> OperationRecord | None:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    operation = record


def operations(queue: Any, table: Any) -> Operations:
    known: list[Any] = [Known(queue)]
    users: Any = Known(table)
    return Operations(known, users, RowPolicy(POSTGRES))


async def test_the_queue_or_the_database_knows() -> None:
    for queue, table in ((RECORD, None), (None, RECORD), (QueueUnavailable("away"), RECORD)):
        assert (await operations(queue, table).status("o", "anna")).value is RECORD


async def test_what_both_do_not_know_there_is_not() -> None:
    with pytest.raises(OperationUnknown):
        await operations(None, None).status("o", "anna")


async def test_what_may_wait_in_a_queue_that_cannot_be_asked_is_not_denied() -> None:
    with pytest.raises(QueueUnavailable):
        await operations(QueueUnavailable("away"), None).status("o", "anna")


async def test_another_s_operation_is_not_shown() -> None:
    with pytest.raises(OperationUnknown):
        await operations(RECORD, None).status("o", "ben")


async def test_what_another_service_has_queued_is_asked_for_there_by_whoever_is_logged_in() -> None:
    asked: list[str] = []

    async def elsewhere(operation_id: str) -> OperationRecord | None:
        asked.append(operation_id)
        return OperationRecord(Operation("o", "agent.update", "ai-core", "", {}), OperationStatus.QUEUED)

    for queue, table in ((None, None), (None, OSError()), (QueueUnavailable("away"), None)):
        known = operations(queue, table)
        known._elsewhere = elsewhere
        assert (await known.status("o", "anna")).value.status is OperationStatus.QUEUED
        with pytest.raises((OperationUnknown, OSError, QueueUnavailable)):
            await known.status("o", None)
    known = operations(RECORD, None)
    known._elsewhere = elsewhere
    assert (await known.status("o", "anna")).value is RECORD
    assert len(asked) == 3


async def test_when_nobody_can_tell_the_own_failure_is_the_answer() -> None:
    async def away(_: str) -> OperationRecord | None:
        raise OSError

    known = operations(QueueUnavailable("away"), None)
    known._elsewhere = away
    with pytest.raises(QueueUnavailable):
        await known.status("o", "anna")
