"""What a caller sees of a write that was not accepted, and of one of which nobody can tell at the moment."""

from __future__ import annotations

from resilience.matrix import Row
from resilience.row_policy import RowPolicy
from resilience.writer import WriteRefused

from .errors import DependencyUnavailable, QueueFull, ServiceError


def write_refused(
    error: WriteRefused, row: Row, circuit: str = "", lead: str = "Service temporarily unavailable"
) -> ServiceError:
    """Neither the target, whose ``row`` it is, nor the queue has taken the write. ``lead``: the text's beginning."""
    kind: type[ServiceError] = DependencyUnavailable
    text = f"{lead}. Your change was not saved."
    if not error.certain:
        text = f"{lead}. It is not known whether your change was saved; repeat it later."
    elif error.full:
        kind = QueueFull
        text = "Too many changes are waiting; this one was not saved."
    return kind(text, retry_after=error.retry_after, row=row.id, circuit=circuit, queued=error.queued)


def unasked(queue: RowPolicy) -> ServiceError:
    """An accepted write may wait where nobody can ask; ``queue`` is the policy of its store."""
    wait = queue.breaker.retry_after() or queue.row.probe_interval
    text = "It cannot be told at the moment what became of this change; ask again later."
    return DependencyUnavailable(text, retry_after=wait, row=queue.row.id, circuit=queue.breaker.state.header)
