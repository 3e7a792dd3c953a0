"""Assertions on what was served."""

from typing import Any, TypeVar

from resilience.outcome import Degradation, Served

T = TypeVar("T")


def assert_degraded(
    served: Served[T], *, fallback: str | None = None, row: str | None = None, circuit: str | None = None
) -> T:
    """A fallback took part: one whose `Degradation` is as given, where given. Returns the value.

    `circuit` is written as in headers: "open", "half-open" or "closed".

    Raises:
        AssertionError: the text says what was served.
    """
    __tracebackhide__ = True
    _check_type(served)
    wanted = {"fallback": fallback, "row": row, "circuit": circuit}
    fields = {name: value for name, value in wanted.items() if value is not None}
    if any(all(getattr(mark, name) == value for name, value in fields.items()) for mark in served.degradations):
        return served.value
    sought = ", ".join(f"{name} {value!r}" for name, value in fields.items())
    raise AssertionError(f"expected an answer of a fallback{f' with {sought}' if sought else ''}, but {_story(served)}")


def assert_fresh(served: Served[T]) -> T:
    """The dependency itself answered: no fallback, no copy, no queued write shown. Returns the value.

    Raises:
        AssertionError: the text says what was served.
    """
    __tracebackhide__ = True
    _check_type(served)
    if served.degraded or served.as_of is not None or served.pending:
        raise AssertionError(f"expected a fresh answer, but {_story(served)}")
    return served.value


def _check_type(served: object) -> None:
    __tracebackhide__ = True
    if not isinstance(served, Served):
        raise AssertionError(f"not a Served but {served!r}: `serve` says where a value came from, `call` does not")


def _story(served: Served[Any]) -> str:
    marks = "; ".join(_mark(mark) for mark in served.degradations)
    parts = [f"it was degraded: {marks}" if marks else "no fallback took part"]
    if served.as_of is not None:
        parts.append(f"it was a copy as of {served.as_of:.3f}")
    if served.pending:
        parts.append("it showed queued writes")
    return f"{', '.join(parts)}\n  value: {served.value!r}"


def _mark(mark: Degradation) -> str:
    return f"fallback {mark.fallback!r} of row {mark.row!r}, circuit {mark.circuit!r}"
