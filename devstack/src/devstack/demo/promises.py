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
    final_name: str = ""  # at the end, from the database
    noticed: bool = False  # the circuits were open when the fault ended
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
    bad = [call for call in seen.calls if call.status in (500, 504)]
    return f"{len(bad)} answers were {sorted({call.status for call in bad})}" if bad else ""


def a_healthy_answer_says_nothing(seen: Observed) -> str:
    marked = [call for call in seen.calls if call.phase in ("healthy", "recovered") and call.degraded]
    return f"{len(marked)} healthy answers said that they were degraded" if marked else ""


def is_served(kind: str, *statuses: int) -> Check:
    """Every request of the kind is answered with one of these statuses (200), by whatever serves."""
    good = statuses or (200,)

    def check(seen: Observed) -> str:
        bad = sorted({call.status for call in seen.during(kind) if call.status not in good})
        return f"{kind}s were answered {bad}" if bad else "" if seen.during(kind) else f"there was no {kind}"

    return check


def is_served_by(kind: str, *fallbacks: str) -> Check:
    """A fallback serves it, one of these, and says so."""

    def check(seen: Observed) -> str:
        marked = {call.fallback for call in seen.during(kind) if call.degraded}
        if not marked:
            return f"no {kind} said that it came from a fallback"
        strange = sorted(name for name in marked if not any(one in name for one in fallbacks))
        return f"{kind}s were served by {strange}" if strange else ""

    return check


def is_refused(kind: str, text: str) -> Check:
    """It cannot be had: an error, that says so in the matrix's words, and when to come back."""

    def check(seen: Observed) -> str:
        refused = [call for call in seen.during(kind) if call.status in (429, 503)]
        if not refused:
            return f"no {kind} was refused"
        strange = [call for call in refused if text not in call.message or not call.waits]
        return f"{len(strange)} refusals of a {kind} do not say {text!r} and when to retry" if strange else ""

    return check


def does_not_notice(*kinds: str) -> Check:
    """It is answered as ever, by the real thing."""

    def check(seen: Observed) -> str:
        calls = [call for call in seen.during() if call.kind in kinds]
        noticed = [call for call in calls if call.status >= 300 or call.degraded]
        return f"{len(noticed)} of {len(calls)} answers to {', '.join(kinds)} noticed" if noticed else ""

    return check


def is_kept(kind: str) -> Check:
    """A write is made at once or queued, and never refused."""

    def check(seen: Observed) -> str:
        refused = [call for call in seen.during(kind) if call.status >= 300 and not call.queued]
        if refused:
            return f"{len(refused)} {kind}s were refused ({sorted({call.status for call in refused})})"
        return "" if any(call.queued for call in seen.during(kind)) else f"no {kind} was queued"

    return check


def queued_writes_are_applied(seen: Observed) -> str:
    left = sorted({status for status in seen.operations.values() if status != "applied"})
    return f"queued writes ended as {left}" if left else ""


def the_last_accepted_wins(kind: str) -> Check:
    """The database has what the last accepted write of the kind wrote."""

    def check(seen: Observed) -> str:
        accepted = [call for call in seen.calls if call.kind == kind and (call.status == 200 or call.queued)]
        last = max((int(call.name.rpartition(" ")[2]) for call in accepted), default=0)
        return "" if seen.final_name == f"name {last}" else f"the database has {seen.final_name!r}, not 'name {last}'"

    return check


def its_circuit_opens(seen: Observed) -> str:
    return "" if seen.noticed else "its circuit was not open"


def recovers_in_time(seen: Observed) -> str:
    if seen.recovery is None:
        return "did not recover"
    return f"recovery took {seen.recovery:.1f} s" if seen.recovery > RECOVERY_LIMIT else ""
