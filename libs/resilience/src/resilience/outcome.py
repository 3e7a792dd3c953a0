"""Degraded is a value: what was served travels together with where it came from and how old it is.

Use cases return `Served`; the inbound layer turns it into headers, metadata and body fields in one place, so that
application code never touches a header and can never forget one.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


class Degradation(NamedTuple):
    """One fallback that took part in an answer.

    `circuit` is written as in headers: "open", "half-open" or "closed". `retry_after` is in seconds.
    """

    row: str
    fallback: str
    circuit: str
    retry_after: float | None = None


class Served(Generic[T_co]):
    """A value and its provenance; not to be changed once made.

    `as_of` (Unix seconds) is set when it is a copy; `pending` when it already shows queued writes.
    """

    __slots__ = ("as_of", "degradations", "pending", "value")

    def __init__(
        self,
        value: T_co,
        degradations: tuple[Degradation, ...] = (),
        as_of: float | None = None,
        pending: bool = False,
    ) -> None:
        self.value = value
        self.degradations = degradations
        self.as_of = as_of
        self.pending = pending

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
        return Served(self.value, merged, self.as_of, self.pending)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Served):
            return NotImplemented
        mine, others = (self.degradations, self.as_of, self.pending), (other.degradations, other.as_of, other.pending)
        return mine == others and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash((self.value, self.degradations, self.as_of, self.pending))

    def __repr__(self) -> str:
        return f"Served({self.value!r}, {self.degradations!r}, as_of={self.as_of!r}, pending={self.pending!r})"
