"""Outcomes as values, and the ladder that produces them."""

import pytest

from resilience import (
    MISSING,
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    CircuitHeldOpen,
    Degradation,
    Missing,
    QueueFull,
    ResilienceError,
    Rung,
    RungOutcome,
    Served,
    descend,
)


class Down(Exception):
    pass


class NotYours(Exception):
    pass


def mark(fallback: str) -> Degradation:
    return Degradation("d.db", fallback, "open", 12.0)


class Recorder:
    def __init__(self) -> None:
        self.tried: list[tuple[str, RungOutcome]] = []

    def __call__(self, name: str, outcome: RungOutcome) -> None:
        self.tried.append((name, outcome))


async def from_cache(_failure: BaseException) -> Served[str]:
    return Served("copy", as_of=5.0)


async def plain(_failure: BaseException) -> str:
    return "default"


async def nothing(_failure: BaseException) -> Missing:
    return MISSING


async def broken(_failure: BaseException) -> str:
    raise ConnectionError("redis://:secret@cache")


async def forbidden(_failure: BaseException) -> str:
    raise NotYours


async def test_the_first_rung_that_has_something_serves() -> None:
    recorder = Recorder()
    rungs = [Rung[str]("memory", nothing), Rung[str]("redis", from_cache), Rung[str]("default", plain)]
    served = await descend(Down(), rungs, degradation=mark, tried=recorder)
    assert served == Served("copy", (mark("redis"),), as_of=5.0)
    assert recorder.tried == [("memory", "missing"), ("redis", "success")]


async def test_a_plain_value_is_wrapped() -> None:
    served = await descend(Down(), [Rung[str]("default", plain)], degradation=mark)
    assert served == Served("default", (mark("default"),))


async def test_when_all_fail_the_original_failure_is_raised_with_notes_and_no_secret() -> None:
    recorder, failure = Recorder(), Down("original")
    rungs = [Rung[str]("memory", nothing), Rung[str]("redis", broken)]
    with pytest.raises(Down) as caught:
        await descend(failure, rungs, degradation=mark, tried=recorder)
    assert caught.value is failure
    assert failure.__notes__ == ["fallback memory had nothing to serve", "fallback redis failed: ConnectionError"]
    assert recorder.tried == [("memory", "missing"), ("redis", "failure")]


async def test_a_rung_is_given_the_failure() -> None:
    failure = Down()

    async def look(error: BaseException) -> bool:
        return error is failure

    served = await descend(failure, [Rung("look", look)], degradation=mark)
    assert served.value is True


async def test_a_rungs_answer_ends_the_descent() -> None:
    rungs = [Rung("redis", forbidden, answers=(NotYours,)), Rung("default", plain)]
    with pytest.raises(NotYours):
        await descend(Down(), rungs, degradation=mark)


async def test_without_rungs_the_failure_is_raised() -> None:
    with pytest.raises(Down):
        await descend(Down(), [], degradation=mark)


def test_served_keeps_its_provenance() -> None:
    served = Served(2, (mark("redis"),), as_of=5.0, pending=True)
    assert served.map(str) == Served("2", (mark("redis"),), as_of=5.0, pending=True)
    assert served.degraded
    assert not Served(2).degraded
    twice = served.also(mark("redis"), mark("memory"))
    assert twice.degradations == (mark("redis"), mark("memory"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CircuitBreakerOpen("db", 1.25), "circuit 'db' is open, next trial in 1.2 s"),
        (CircuitBreakerOpen("db"), "circuit 'db' is open"),
        (CircuitHeldOpen("db"), "circuit 'db' is held open by an operator"),
        (CallTimeout("db", 0.25), "db did not answer within 0.25 s"),
        (BulkheadFull("db"), "too many concurrent calls to db"),
        (QueueFull("full"), "full"),
    ],
)
def test_errors_say_what_happened(error: ResilienceError, text: str) -> None:
    assert str(error) == text
    assert str(type(error)(*error.args)) == text  # so they survive copying and pickling
