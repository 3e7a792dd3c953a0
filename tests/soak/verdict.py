"""What a soak has to show: the issue's numbers, each with what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.harness.checker import Database, Violation, broken, check, useful
from tests.harness.history import Event
from tests.harness.routes import READABLE, ROUTES
from tests.harness.run import RECOVERY, report
from tests.soak.soak import Past

ERRORS = 0.005  # of the readable requests, at most
USEFUL = 0.999  # of the requests for which the matrix promises something, at least
LIES = ("labelled",)
LOSSES = ("applied once", "in order", "made once", "no dead letters", "read your writes")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the closing table."""

    what: str
    found: str
    wanted: str
    kept: bool


@dataclass(frozen=True)
class Verdict:
    """The table, and every violation behind it."""

    lines: tuple[Line, ...]
    violations: tuple[Violation, ...]

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return all(line.kept for line in self.lines)


def judge(events: Sequence[Event], before: Database, after: Database, past: Sequence[Past]) -> Verdict:
    """Holds a history against the matrix. Single errors where something is promised are counted, not forbidden: the
    rates say how many there may be."""
    outages = [outage for one in past for outage in one.outages()]
    violations = check(events, before, after, outages)
    count = Counter(violation.rule for violation in violations)
    promised = [event for event in events if ROUTES[event.kind].promised(broken(event, outages))]
    recoveries = [one.recovery for episode in past for one in episode.broken]
    lines = (
        _none("degraded answers without a true label", sum(count[rule] for rule in LIES)),
        _none("accepted writes lost, doubled or out of order", sum(count[rule] for rule in LOSSES)),
        _none("answers after their deadline", count["in time"]),
        _none("requests without an answer, or with a status that is not documented", count["answered"]),
        _none("streams that stopped without saying how", count["ended"]),
        _at_most("errors among readable requests", [event for event in promised if event.kind in READABLE]),
        _at_least("useful answers where the matrix promises one", promised),
        _in_time("slowest recovery", recoveries),
    )
    return Verdict(lines, tuple(violations))


def _none(what: str, count: int) -> Line:
    return Line(what, str(count), "0", count == 0)


def _share(events: Sequence[Event]) -> float:
    return sum(not useful(event) for event in events) / len(events) if events else 1.0


def _at_most(what: str, events: Sequence[Event]) -> Line:
    share = _share(events)
    return Line(what, f"{share:.3%} of {len(events)}", f"< {ERRORS:.1%}", share < ERRORS)


def _at_least(what: str, events: Sequence[Event]) -> Line:
    share = 1 - _share(events)
    return Line(what, f"{share:.3%} of {len(events)}", f"≥ {USEFUL:.1%}", share >= USEFUL)


def _in_time(what: str, seconds: Sequence[float]) -> Line:
    slowest = max(seconds, default=0.0)
    return Line(what, f"{slowest:.1f} s of {len(seconds)}", f"< {RECOVERY:g} s", slowest < RECOVERY)


def table(verdict: Verdict) -> str:
    """For people: the table, then every sort of violation."""
    rows = [("", "found", "wanted", "kept?")]
    rows += [(one.what, one.found, one.wanted, "yes" if one.kept else "NO") for one in verdict.lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(["", report(verdict.violations)] if verdict.violations else [])])


def usage(events: Sequence[Event]) -> str:
    """How much of what was asked, and how it was answered."""
    answers: dict[str, Counter[str]] = {}
    for event in events:
        how = f"{event.status or 'none'}{' degraded' if event.degraded else ''}"
        how += " broken off" if event.body.get("ended") == "error" else ""
        answers.setdefault(event.kind, Counter())[how] += 1
    return "\n".join(
        f"  {kind:<11} {', '.join(f'{count} × {how}' for how, count in found.most_common())}"
        for kind, found in sorted(answers.items())
    )
