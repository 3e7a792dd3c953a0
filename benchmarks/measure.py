"""What a benchmark returns, and the arithmetic that all of them share.

A shared machine drifts by a third within minutes, so nothing is compared across time: variants take turns within
a round, a ratio is taken within the round, and the median over the rounds is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

Say = Callable[[str], None]
Sense = Literal["at least", "at most"]


class BenchmarkError(Exception):
    """What was measured did not do its work, so that its speed means nothing."""


@dataclass(frozen=True)
class Options:
    """`quick`: fewer and shorter rounds, to see that everything works; its numbers are rough."""

    quick: bool
    say: Say


@dataclass(frozen=True)
class Target:
    """What a figure should reach."""

    sense: Sense
    value: float

    def met(self, figure: float) -> bool:
        """Whether `figure`, unrounded, reaches it."""
        return figure >= self.value if self.sense == "at least" else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.sense == 'at least' else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: the median of `samples`, one per round. `unit` is "×" for a ratio, else "s"."""

    what: str
    samples: Sequence[float]
    unit: Literal["×", "s"] = "×"
    target: Target | None = None
    notes: str = ""

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def met(self) -> bool | None:
        """None without a target."""
        return self.target.met(self.value) if self.target else None

    def as_json(self) -> dict[str, Any]:
        """For programs; samples unrounded."""
        return {**asdict(self), "value": self.value, "met": self.met}


@dataclass(frozen=True)
class Report:
    """What one benchmark found: figures for the table, and lines that explain them (rates, latencies, CPU)."""

    figures: Sequence[Figure]
    details: Sequence[str] = field(default=())


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """The order within a round: rotated, so that nobody always follows the same neighbour or always comes first."""
    cut = round_number % len(names)
    return [*names[cut:], *names[:cut]]


def table(figures: Sequence[Figure]) -> str:
    """A Markdown table that is also readable on a terminal."""
    rows = [("what", "median", "rounds (min - max)", "target", "met?")]
    for figure in figures:
        low, high = min(figure.samples), max(figure.samples)
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        spread = f"{len(figure.samples)} ({low:.2f} - {high:.2f})"
        rows.append((figure.what, f"{figure.value:.2f} {figure.unit}", spread, str(figure.target or ""), met))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
