"""The fallback ladder: what serves instead, tried in order, and named in the answer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Literal, TypeVar

from resilience.outcome import Degradation, Served

T = TypeVar("T")

RungOutcome = Literal["success", "failure", "missing"]


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""What a rung returns when it works but has nothing to serve, such as an empty cache."""


@dataclass(frozen=True)  # no slots, as for Served
class Rung(Generic[T]):
    """One step of the ladder.

    `call` is given the failure that led here and returns a value, a `Served` (to say how old it is), or `MISSING`.
    `answers` are errors that it raises as its answer to the caller, such as "not found" or "not yours": they end the
    descent. Any other error means that the rung itself failed, and the next one is tried.
    """

    name: str
    call: Callable[[BaseException], Awaitable[Served[T] | T | Missing]]
    answers: tuple[type[Exception], ...] = ()


async def descend(
    failure: Exception,
    rungs: Sequence[Rung[T]],
    *,
    degradation: Callable[[str], Degradation],
    tried: Callable[[str, RungOutcome], None] = lambda _name, _outcome: None,
) -> Served[T]:
    """What the first rung that has something serves, marked with `degradation(name)`.

    `tried` is told the outcome of every rung that was tried.

    Raises:
        Exception: `failure` itself, with a note per rung, when none could serve.
    """
    for rung in rungs:
        try:
            value = await rung.call(failure)
        except Exception as error:
            if isinstance(error, rung.answers):
                tried(rung.name, "success")
                raise
            tried(rung.name, "failure")
            # The type only: a driver's text may hold an address or a value.
            failure.add_note(f"fallback {rung.name} failed: {type(error).__name__}")
            continue
        if value is MISSING:
            tried(rung.name, "missing")
            failure.add_note(f"fallback {rung.name} had nothing to serve")
            continue
        tried(rung.name, "success")
        served = value if isinstance(value, Served) else Served(value)
        return served.also(degradation(rung.name))
    try:
        raise failure
    finally:
        del failure  # it refers to this frame by its traceback: break the cycle
