"""Degraded is a value: what was served travels together with where it came from and how old it is.

Use cases return `Served`; the inbound layer turns it into headers, metadata and body fields in one place, so that
application code never touches a header and can never forget one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Degradation:
    """One fallback that took part in an answer.

    `circuit` is written as in headers: "open", "half-open" or "closed". `retry_after` is in seconds.
    """

    row: str
    fallback: str
    circuit: str
    retry_after: float | None = None


@dataclass(frozen=True)  # no slots: a generic class with both cannot be made as Served[X](...) on Python 3.11
class Served(Generic[T_co]):
    """A value and its provenance.

    `as_of` (Unix seconds) is set when it is a copy; `pending` when it already shows queued writes.
    """

    value: T_co
    degradations: tuple[Degradation, ...] = ()
    as_of: float | None = None
    pending: bool = False

    @property
    def degraded(self) -> bool:
        """Whether any fallback took part."""
        return bool(self.degradations)

    def map(self, fn: Callable[[T_co], U]) -> "Served[U]":
        """The same provenance around `fn(value)`."""
        return Served(fn(self.value), self.degradations, self.as_of, self.pending)

    def also(self, *degradations: Degradation) -> "Served[T_co]":
        """The same value, with further fallbacks that took part; repeated ones are named once."""
        merged = tuple(dict.fromkeys((*self.degradations, *degradations)))
        return replace(self, degradations=merged)
