"""The rows: what is measured, on which function, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.resilience.libraries.base import Function


class Unavailable(ConnectionError):
    """What the dependency says when it is down."""


async def noop() -> None:
    """The dependency at its fastest."""


async def fails() -> None:
    """The dependency when it is down."""
    raise Unavailable


async def looks_up(name: str) -> str:
    """The dependency behind a cache."""
    return name


@dataclass(frozen=True)
class Row:
    """`method` of a library gives its forms for `function`; each call of them `reaches` it, or must not. What is
    subtracted is the bare call of `noop`, or, where the row `catches`, of `function` in a try statement.

    `target` is the ratio to the best peer: the goal that was set beforehand over the best peer as measured then, and
    never above 1, which is to be first.
    """

    title: str
    method: str
    target: float
    function: Function = noop
    reaches: bool = True
    catches: bool = False


ROWS: dict[str, Row] = {
    "closed": Row("breaker closed", "closed", 1.0),
    "window": Row("breaker closed, rate window and slow calls", "window", 1.0),
    "open": Row("breaker open, rejection", "open", round(0.25 / 0.53, 2), reaches=False),
    "retry": Row("retry, succeeds at once", "retry", 1.0),
    "timeout": Row("timeout", "timeout", 0.8 / 4.0),
    "bulkhead": Row("bulkhead", "bulkhead", round(0.35 / 0.74, 2)),
    "rate": Row("rate limiter", "rate", 1.0),
    "fallback": Row("fallback not taken", "fallback", 1.0),
    "fallback-taken": Row("fallback taken", "fallback", round(0.35 / 0.58, 2), fails, catches=True),
    "cache": Row("cache hit", "cache", 1.0, looks_up, reaches=False),
    "pair": Row("breaker + retry", "pair", 1.0),
    "policy": Row("whole policy", "policy", round(1.3 / 8.2, 2)),
}
REFERENCE = "pair"
"""The whole policy is also measured against the best peer's breaker plus retry, in the same rounds."""

OTHER_ROWS = {
    "threads": "breaker, sync, 8 threads",
    "memory": "memory per idle breaker",
    "import": "import after asyncio",
}


@dataclass(frozen=True)
class Cell:
    """One form of one library in one row: microseconds above the bare call, one per round."""

    library: str
    form: str
    samples: tuple[float, ...]
    reference: bool = False

    def as_json(self) -> dict[str, Any]:
        return {"library": self.library, "form": self.form, "samples": self.samples, "reference": self.reference}
