"""The degradation matrix as typed data.

A service declares its rows next to the code that keeps them; breakers, health pages, metrics, documents and chaos tests
are all made from the same declarations, so that none of them can drift from what is promised.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Priority(StrEnum):
    """How much of the service depends on the dependency: P0 is the most."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One service × dependency, and what is promised while the dependency is gone. Times in seconds."""

    id: str  # "dashboard.postgres": one grep from promise to code, test, metric, alert and runbook
    label: str  # "D1"
    service: str
    dependency: str  # the component's name in health pages and chaos commands: "postgres"
    title: str  # "PostgreSQL"
    priority: Priority
    impact: str  # "critical"
    max_failures: int  # consecutive failures that open the circuit
    open_seconds: float  # upper bound from opening to the next trial
    call_timeout: float  # the hard limit of one call
    fallbacks: tuple[str, ...]  # the ladder, in order
    promise: str  # what a caller sees
    recovery: str
    data_loss: str
    user_text: str  # shown to people while the row is degraded
    probe_interval: float = 1.0

    def __post_init__(self) -> None:
        for name in ("id", "label", "service", "dependency", "title"):
            if not getattr(self, name):
                raise ValueError(f"row {self.id!r}: {name} must not be empty")
        for name in ("max_failures", "open_seconds", "call_timeout", "probe_interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"row {self.id!r}: {name} must be positive, not {getattr(self, name)!r}")


_COLUMNS = (
    "row",
    "dependency",
    "priority / impact",
    "opens after / for",
    "fallback",
    "what a caller sees",
    "recovery",
    "data loss risk",
)


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, with a trailing newline."""
    lines = [_line(_COLUMNS), _line("---" for _ in _COLUMNS)]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    """The rows as plain data for `json.dumps`."""
    return [asdict(row) for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.label} `{row.id}`",
        row.title,
        f"{row.priority} {row.impact}",
        f"{row.max_failures} / {row.open_seconds:g} s",
        " → ".join(row.fallbacks) or "none",
        row.promise,
        row.recovery,
        row.data_loss,
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
