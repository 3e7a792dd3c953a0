"""The promises of the matrix as checks on what was recorded. A check returns what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from devstack.demo.load import Call

DEADLINE = 2.0  # s: REQUEST_TIMEOUT's default
SLACK = 0.5  # s for a busy machine
RECOVERY_LIMIT = 5.0  # s from the moment the component accepts


@dataclass(frozen=True)
class Observed:
    """All that is known after one scenario."""

    calls: tuple[Call, ...]
    recovery: float | None  # s until the circuit was closed and the queue empty; None: not within the limit
    final_name: str = ""  # the display name at the end, from the database
    operations: Mapping[str, str] = field(default_factory=dict)  # status of each queued write at the end

    def during(self, kind: str = "") -> list[Call]:
        """Calls begun while the fault lasted."""
        return [call for call in self.calls if call.phase == "broken" and kind in ("", call.kind)]


Check = Callable[[Observed], str]


def every_call_is_answered_in_time(seen: Observed) -> str:
    lost = [call for call in seen.calls if call.status == 0]
    late = [call for call in seen.calls if call.status and call.seconds > DEADLINE + SLACK]
    if lost:
        return f"{len(lost)} calls without an answer ({lost[0].error})"
    return f"{len(late)} answers after the deadline, the latest {max(c.seconds for c in late):.1f} s" if late else ""


def no_internal_error(seen: Observed) -> str:
    bad = [call for call in seen.calls if call.status == 500]
    return f"{len(bad)} answers were 500" if bad else ""


def reads_are_served(seen: Observed) -> str:
    bad = sorted({call.status for call in seen.during("read") if call.status != 200})
    return f"reads were answered {bad}" if bad else ""


def reads_tell_that_they_are_degraded(seen: Observed) -> str:
    marked = [call for call in seen.during("read") if call.degraded and call.fallback]
    unmarked = [call for call in seen.calls if call.phase == "healthy" and call.degraded]
    if not marked:
        return "no read said that it came from a fallback"
    return f"{len(unmarked)} healthy answers said that they were degraded" if unmarked else ""


def writes_are_kept(seen: Observed) -> str:
    refused = [call for call in seen.during("write") if call.status >= 300 and not call.queued]
    if refused:
        return f"{len(refused)} writes were refused ({sorted({call.status for call in refused})})"
    return "" if any(call.queued for call in seen.during("write")) else "no write was queued"


def queued_writes_are_applied(seen: Observed) -> str:
    left = sorted({status for status in seen.operations.values() if status != "applied"})
    return f"queued writes ended as {left}" if left else ""


def the_last_accepted_write_wins(seen: Observed) -> str:
    accepted = [call for call in seen.calls if call.kind == "write" and (call.status == 200 or call.queued)]
    last = max((int(call.name.rpartition(" ")[2]) for call in accepted), default=0)
    return "" if seen.final_name == f"name {last}" else f"the database has {seen.final_name!r}, not 'name {last}'"


def recovers_in_time(seen: Observed) -> str:
    if seen.recovery is None:
        return "did not recover"
    return f"recovery took {seen.recovery:.1f} s" if seen.recovery > RECOVERY_LIMIT else ""
