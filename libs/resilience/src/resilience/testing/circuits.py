"""Assertions on circuits, and how to open one as a broken dependency would."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Final, NoReturn

from resilience.breaker import CircuitBreaker, Transition, Verdict
from resilience.circuit import HALF_OPEN, OPEN, CircuitState
from resilience.errors import CircuitBreakerOpen
from resilience.testing.recorder import Recorder

_STATES: Final = {str(state): state for state in CircuitState} | {state.header: state for state in CircuitState}
MAX_CALLS: Final = 10_000
"""Failing calls that `break_circuit` makes at most."""


def assert_circuit(breaker: CircuitBreaker, state: CircuitState | str, *, held: bool | None = None) -> None:
    """The breaker is in `state` ("closed", "open" or "half_open"), and held by hand or not, if `held` is given.

    Raises:
        AssertionError: the text tells the breaker's story.
        ValueError: there is no such state.
    """
    __tracebackhide__ = True
    wanted = _state(state)
    found, found_held = breaker.state, breaker.held
    if found is wanted and held in (None, found_held):
        return
    told = found_held if found_held or held is not None else None
    text = f"expected {_described(wanted, held)}, but circuit {breaker.name!r} is {_described(found, told)}"
    wait = breaker.retry_after()
    if wanted is HALF_OPEN and found is OPEN and wait is not None:
        text += f"\n  an open circuit becomes half-open when a call is admitted as the trial, {wait:.3g} s from now"
    raise AssertionError(f"{text}\n{_story(breaker)}")


def break_circuit(breaker: CircuitBreaker, error: Exception | None = None) -> None:
    """Open the circuit as a broken dependency would: by calls that raise `error`, a `ConnectionError` if not given.

    They are judged by the breaker's own classification and rules. A circuit that is open already is left alone.

    Raises:
        AssertionError: they do not open it; the text says why, as far as can be told.
    """
    __tracebackhide__ = True
    failure = ConnectionError("broken by break_circuit") if error is None else error

    def fail() -> NoReturn:
        raise failure.with_traceback(None)  # one object raised thousands of times would grow its traceback

    for _ in range(0 if breaker.held or breaker.snapshot().shadow else MAX_CALLS):
        if breaker.state is OPEN:
            break
        try:
            breaker.call_sync(fail)
        except Exception as raised:
            if raised is failure:
                continue
            if isinstance(raised, CircuitBreakerOpen):
                break
            raise
    if breaker.state is not OPEN:
        raise AssertionError(f"circuit {breaker.name!r} did not open: {_why(breaker, failure)}\n{_story(breaker)}")


@contextmanager
def expect_transitions(breaker: CircuitBreaker, *expected: str) -> Iterator[Recorder[Transition]]:
    """The block causes exactly these transitions in this order, written "closed->open"; none when none is given.

    What the block raises is raised, with a note of the transitions until then.

    Raises:
        AssertionError: others, or in another order; the text sets both lists side by side.
        ValueError: there is no such state.
    """
    __tracebackhide__ = True
    wanted = [_arrow(text) for text in expected]
    with Recorder(breaker) as seen:
        try:
            yield seen
        except BaseException as error:
            error.add_note(f"transitions of circuit {breaker.name!r} until then:\n{_lines(seen)}")
            raise
    if [(change.old, change.new) for change in seen] != wanted:
        raise AssertionError(_comparison(breaker, wanted, seen))


def _state(text: str) -> CircuitState:
    if text not in _STATES:
        raise ValueError(f"state must be one of {', '.join(CircuitState)}, not {text!r}")
    return _STATES[text]


def _arrow(text: str) -> tuple[CircuitState, CircuitState]:
    old, arrow, new = text.partition("->")
    if not arrow:
        raise ValueError(f"a transition is written 'closed->open', not {text!r}")
    return _state(old.strip()), _state(new.strip())


def _described(state: CircuitState, held: bool | None) -> str:
    return state if held is None else f"{state}, {'held by hand' if held else 'not held'}"


def _story(breaker: CircuitBreaker) -> str:
    """What a person wants to know of a breaker that is not as expected."""
    now, counts, limit = breaker.snapshot(), breaker.counts, breaker.settings.failure_threshold
    rule = "" if limit is None else f" of {limit}"
    lines = [f"for {now.state_seconds:.3g} s, {now.failures}{rule} consecutive failures, last error: {now.last_error}"]
    if now.retry_after is not None:
        lines.append(f"next trial in {now.retry_after:.3g} s")
    if now.shadow:
        lines.append("in shadow: it never opens")
    if now.calls:
        lines.append(f"window: {now.calls} calls, {_share(now.failure_rate)} failed, {_share(now.slow_rate)} slow")
    lines.append("calls: " + ", ".join(f"{count} {name}" for name, count in counts._asdict().items()))
    return "\n".join(f"  {line}" for line in lines)


def _why(breaker: CircuitBreaker, failure: Exception) -> str:
    if breaker.held:
        return "it is held closed by hand"
    verdict, settings = breaker.verdict(failure), breaker.settings
    if breaker.snapshot().shadow:
        return "it is in shadow"
    if verdict is not Verdict.FAILURE:
        return f"its classification takes a {type(failure).__name__} for a {verdict}; break it with another error"
    if breaker.state is HALF_OPEN:
        return "it is half-open and all its trials are taken"
    if settings.failure_threshold is None and settings.failure_rate is None:
        return f"it opens for slow calls only, those over {settings.slow_call_seconds:g} s"
    return f"{MAX_CALLS} failures in a row are not enough for its rules"


def _comparison(
    breaker: CircuitBreaker, wanted: list[tuple[CircuitState, CircuitState]], seen: list[Transition]
) -> str:
    lines = [f"circuit {breaker.name!r} did not go the expected way", "  expected              was"]
    for pair, change in zip_longest(wanted, seen):
        same = pair is not None and change is not None and pair == (change.old, change.new)
        left = "-" if pair is None else f"{pair[0]}->{pair[1]}"
        lines.append(f"{'  ' if same else '> '}{left:22}{'-' if change is None else _told(change)}")
    return "\n".join([*lines, _story(breaker)])


def _share(rate: float | None) -> str:
    return "too few to say how many" if rate is None else f"{rate:.0%}"


def _lines(seen: list[Transition]) -> str:
    return "\n".join(f"  {_told(change)}" for change in seen) or "  none"


def _told(change: Transition) -> str:
    return f"{change.old}->{change.new} ({change.reason})"
