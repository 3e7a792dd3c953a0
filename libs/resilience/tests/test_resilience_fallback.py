"""Outcomes as values, and the ladder that produces them."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resilience import (
    MISSING,
    Bulkhead,
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    CircuitHeldOpen,
    ClientError,
    Degradation,
    Events,
    FakeClock,
    Fallback,
    Missing,
    QueueFull,
    RateLimited,
    ResilienceError,
    Rung,
    RungOutcome,
    Served,
    Timeout,
    descend,
)
from resilience.fallback import descend_sync


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

    served = await descend(failure, [Rung[Any]("look", look)], degradation=mark)
    assert served.value is True


async def test_a_rungs_answer_ends_the_descent() -> None:
    rungs = [Rung[Any]("redis", forbidden, answers=(NotYours,)), Rung[Any]("default", plain)]
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


# -- the class


def rung_of(name: str, call: Callable[..., Any], *args: Any, **settings: Any) -> Rung[Any]:
    """A rung may be a sync function as well."""
    return Rung(name, call, *args, **settings)


class Gone(ClientError):
    """The dependency answered."""


def raising(error: BaseException) -> Callable[..., Any]:
    async def fail(*_args: object) -> Any:
        raise error

    return fail


def events_and_log() -> tuple[Events, list[tuple[str, str, str]]]:
    events, log = Events(), list[tuple[str, str, str]]()
    events.subscribe(lambda event: log.append(tuple(event)))
    return events, log


async def test_while_all_is_well_no_rung_is_asked() -> None:
    asked: list[BaseException] = []
    fallback = Fallback(asked.append)

    async def add(a: int, *, b: int) -> int:
        return a + b

    assert await fallback.call(add, 1, b=2) == 3
    assert await fallback.call(lambda: 4) == 4
    assert await fallback.call(lambda a: a, 5) == 5
    assert fallback.call_sync(lambda a: a, 5) == 5
    assert await fallback.serve(add, 1, b=2) == Served(3)
    copy = Served(1, as_of=5.0)
    assert await fallback.serve(lambda: copy) is copy  # type: ignore[arg-type, return-value]
    assert asked == []


async def full(_failure: BaseException) -> str:
    raise BulkheadFull("x")


async def too_many(_failure: BaseException) -> str:
    raise RateLimited("x", 1.0)


# Each ladder with what `call` gives: a value, or "" when the failure is raised, with the notes on it, and the outcomes.
LADDERS: list[tuple[list[Any], object, list[str], list[tuple[str, str]]]] = [
    ([plain], "default", [], [("plain", "success")]),
    ([lambda _failure: 7], 7, [], [("<lambda>", "success")]),
    ([lambda _failure: None], None, [], [("<lambda>", "success")]),
    ([from_cache], "copy", [], [("from_cache", "success")]),
    ([lambda _failure: Served("sync copy")], "sync copy", [], [("<lambda>", "success")]),
    ([lambda _failure: plain(_failure)], "default", [], [("<lambda>", "success")]),
    (
        [nothing, plain],
        "default",
        ["fallback nothing had nothing to serve"],
        [("nothing", "missing"), ("plain", "success")],
    ),
    (
        [broken, plain],
        "default",
        ["fallback broken failed: ConnectionError"],
        [("broken", "failure"), ("plain", "success")],
    ),
    (
        [broken, nothing],
        "",
        ["fallback broken failed: ConnectionError", "fallback nothing had nothing to serve"],
        [("broken", "failure"), ("nothing", "missing")],
    ),
    ([nothing], "", ["fallback nothing had nothing to serve"], [("nothing", "missing")]),
    (
        [full, too_many, plain],
        "default",
        ["fallback full rejected: BulkheadFull", "fallback too_many rejected: RateLimited"],
        [("full", "rejected"), ("too_many", "rejected"), ("plain", "success")],
    ),
]


@pytest.mark.parametrize(("rungs", "value", "notes", "outcomes"), LADDERS)
async def test_the_quick_way_and_the_general_one_differ_in_nothing(
    rungs: list[Any], value: object, notes: list[str], outcomes: list[tuple[str, str]]
) -> None:
    """Quick: a plain function first, and nobody listens."""
    events, log = events_and_log()
    quick, general = Fallback(*rungs, name="d.db"), Fallback(*rungs, name="d.db", events=events)
    unheard = Fallback(*rungs, name="d.db", events=Events())
    for fallback in (quick, general, unheard):
        failure = Down()
        if value == "":
            with pytest.raises(Down) as caught:
                await fallback.call(raising(failure))
            assert caught.value is failure
        else:
            assert await fallback.call(raising(failure)) == value
        assert getattr(failure, "__notes__", []) == notes
    assert log == [("d.db", rung, outcome) for rung, outcome in outcomes]


@pytest.mark.parametrize(("rungs", "value", "notes", "outcomes"), LADDERS)
async def test_recover_and_serve_climb_down_the_same_ladder(
    rungs: list[Any], value: object, notes: list[str], outcomes: list[tuple[str, str]]
) -> None:
    events, log = events_and_log()
    fallback = Fallback(*rungs, name="d.db", events=events)
    failure = Down()
    if value == "":
        with pytest.raises(Down):
            await fallback.recover(failure)
        with pytest.raises(Down):
            await fallback.serve(raising(Down()))
    else:
        assert await fallback.recover(failure) == value
        served = await fallback.serve(raising(Down()))
        assert served.value == value
        assert served.degradations == (Degradation("d.db", outcomes[-1][0], "closed"),)
    assert failure.__notes__ == notes if notes else not hasattr(failure, "__notes__")
    assert log == [("d.db", rung, outcome) for rung, outcome in outcomes] * 2


def test_sync_code_climbs_down_the_same_ladder_and_passes_over_what_is_async() -> None:
    events, log = events_and_log()

    def fail() -> Any:
        raise failure

    failure = Down()
    ladder: list[Any] = [
        plain,
        lambda _failure: MISSING,
        rung_of("redis", lambda _failure: 1 / 0),
        rung_of("copy", lambda _f: Served(3)),
    ]
    fallback = Fallback(*ladder, name="d.db", events=events)
    assert fallback.call_sync(fail) == 3
    assert failure.__notes__ == [
        "fallback plain failed: TypeError",
        "fallback <lambda> had nothing to serve",
        "fallback redis failed: ZeroDivisionError",
    ]
    assert [outcome for _, _, outcome in log] == ["failure", "missing", "failure", "success"]
    assert fallback.recover_sync(Down()) == 3
    failure = Down()
    with pytest.raises(Down) as caught:
        Fallback(plain).call_sync(fail)
    assert caught.value is failure
    with pytest.raises(Gone):
        Fallback(lambda _f: 1).call_sync(lambda: (_ for _ in ()).throw(Gone()))


def test_sync_a_rungs_answer_ends_the_descent() -> None:
    def refuse(_failure: BaseException) -> int:
        raise NotYours

    tried = Recorder()
    rungs = [rung_of("redis", refuse, answers=(NotYours,)), rung_of("default", lambda _failure: 1)]
    with pytest.raises(NotYours):
        descend_sync(Down(), rungs, degradation=mark, tried=tried)
    assert tried.tried == [("redis", "success")]
    with pytest.raises(Down):
        descend_sync(Down(), [rung_of("redis", lambda _f: MISSING)], degradation=mark)
    assert descend_sync(Down(), rungs[1:], degradation=mark) == Served(1, (mark("default"),))


def test_sync_a_rung_that_gives_a_future_fails_as_well() -> None:
    class Later:
        def __await__(self) -> Any:
            yield

    with pytest.raises(TypeError, match="fallback later is async and cannot serve sync code"):
        rung_of("later", lambda _failure: Later()).serve_sync(Down())


async def test_an_answer_is_raised_untouched_and_no_rung_is_asked() -> None:
    asked: list[BaseException] = []
    fallback, answer = Fallback(asked.append), Gone("no such thing")
    for call in (fallback.call, fallback.serve):
        with pytest.raises(Gone) as caught:
            await call(raising(answer))
        assert caught.value is answer
    assert asked == []
    assert not hasattr(answer, "__notes__")


async def test_what_is_served_can_be_chosen() -> None:
    fallback = Fallback(plain, handles=lambda error: isinstance(error, Gone))
    assert await fallback.call(raising(Gone())) == "default"
    for call in (fallback.call, fallback.serve):
        with pytest.raises(Down):
            await call(raising(Down()))


async def test_a_predicate_that_raises_hides_no_failure() -> None:
    fallback, failure = Fallback(plain, handles=lambda error: error.args[0]), Down()
    with pytest.raises(Down) as caught:
        await fallback.call(raising(failure))
    assert caught.value is failure
    assert await fallback.call(raising(Down(1))) == "default"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("listened", [False, True])
async def test_what_is_no_exception_is_never_served_neither_of_the_call_nor_of_a_rung(
    kind: type[BaseException], listened: bool
) -> None:
    events, log = events_and_log()
    events = events if listened else Events()
    for fallback in (Fallback(plain, events=events), Fallback(raising(kind()), plain, events=events)):
        with pytest.raises(kind):
            await fallback.call(raising(kind() if fallback.rungs[0].name == "plain" else Down()))
    assert log == []


async def test_a_rung_is_cancelled_with_its_caller() -> None:
    ended: list[str] = []

    async def slow(_failure: BaseException) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("rung")

    limited = rung_of("limited", slow, limit=1)
    for rung in (slow, limited):
        fallback = Fallback(rung)
        call = asyncio.ensure_future(fallback.call(raising(Down())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert ended == ["rung", "rung"]
    assert limited.limit is not None
    assert limited.limit.active == 0


async def test_a_rung_has_a_limit_of_its_own_and_rejects_past_it() -> None:
    events, log = events_and_log()
    go = asyncio.Event()

    async def slow(_failure: BaseException) -> str:
        await go.wait()
        return "slow"

    fallback = Fallback(rung_of("redis", slow, limit=2), rung_of("default", plain), events=events)
    calls = [asyncio.ensure_future(fallback.call(raising(Down()))) for _ in range(5)]
    done, running = await asyncio.wait(calls, timeout=0.01)
    assert (len(done), len(running)) == (3, 2)
    assert {task.result() for task in done} == {"default"}
    go.set()
    assert await asyncio.gather(*running) == ["slow", "slow"]
    assert sorted(outcome for _, rung, outcome in log if rung == "redis") == ["rejected"] * 3 + ["success"] * 2


def test_sync_it_rejects_past_its_limit_too() -> None:
    shared = Bulkhead("shared", 1, 0)
    rung = rung_of("redis", lambda _failure: "redis", limit=shared)
    assert rung.limit is shared
    fallback = Fallback(rung, lambda _failure: "default")
    failure = Down()
    with shared:
        assert fallback.recover_sync(failure) == "default"
    assert failure.__notes__ == ["fallback redis rejected: BulkheadFull"]
    assert fallback.recover_sync(Down()) == "redis"


async def test_a_rung_has_a_time_limit_of_its_own() -> None:
    clock = FakeClock()

    async def slow(_failure: BaseException) -> str:
        await clock.sleep(5.0)
        return "slow"

    failure = Down()
    fallback = Fallback(rung_of("redis", slow, timeout=Timeout(1.0, name="redis", clock=clock)), plain)
    call = asyncio.ensure_future(fallback.call(raising(failure)))
    await clock.advance(1.0)
    assert await call == "default"
    assert failure.__notes__ == ["fallback redis failed: CallTimeout"]
    assert clock.pending == 0
    limit = rung_of("redis", slow, timeout=3).timeout
    assert limit is not None
    assert (limit.seconds, limit.name) == (3, "redis")


def test_sync_it_has_one_too() -> None:
    hang, seen = threading.Event(), list[BaseException]()

    def slow(failure: BaseException) -> str:
        seen.append(failure)
        hang.wait(20)
        return "slow"

    failure = Down()
    try:
        fallback = Fallback(
            rung_of("redis", slow, timeout=0.02), rung_of("default", lambda _f: "default", timeout=20.0)
        )
        assert fallback.recover_sync(failure) == "default"
    finally:
        hang.set()
    assert seen == [failure]
    assert failure.__notes__ == ["fallback redis failed: CallTimeout"]


async def test_an_answer_of_a_rung_ends_the_descent_and_its_failure_does_not() -> None:
    events, log = events_and_log()
    fallback = Fallback(rung_of("redis", forbidden, answers=(NotYours,)), plain, events=events)
    with pytest.raises(NotYours):
        await fallback.call(raising(Down()))
    assert log == [("", "redis", "success")]
    silent = Fallback(rung_of("redis", forbidden, answers=(NotYours,)), plain)
    with pytest.raises(NotYours):
        await silent.call(raising(Down()))


async def test_a_listener_that_raises_changes_nothing() -> None:
    events = Events()
    events.subscribe(raise_down)
    assert await Fallback(broken, lambda _f: 1, events=events).call(raising(Down())) == 1
    assert events.listener_errors >= 2


async def test_it_decorates() -> None:
    @Fallback(lambda failure: type(failure).__name__)
    async def later(value: int) -> Any:
        raise Down

    @Fallback(lambda failure: type(failure).__name__)
    def now(value: int) -> Any:
        raise Down

    assert await later(1) == "Down"
    assert now(1) == "Down"
    assert (later.__name__, now.__name__) == ("later", "now")


def test_it_needs_a_rung_and_names_each() -> None:
    class Store:
        def __call__(self, _failure: BaseException) -> int:
            return 1

    with pytest.raises(ValueError, match="a fallback needs at least one rung"):
        Fallback()
    rung = rung_of("cache", plain)
    fallback = Fallback(plain, Store(), rung)
    assert [one.name for one in fallback.rungs] == ["plain", "Store", "cache"]
    assert fallback.rungs[2] is rung
    assert fallback.name == ""
    with pytest.raises(ValueError, match="limit"):
        rung_of("cache", plain, limit=0)
    with pytest.raises(ValueError, match="seconds"):
        rung_of("cache", plain, timeout=0)


@pytest.mark.parametrize("listened", [False, True])
async def test_neither_way_leaves_a_reference_cycle(listened: bool) -> None:
    events = events_and_log()[0] if listened else None
    ladders = [Fallback(broken, nothing, events=events), Fallback(broken, plain, events=events)]

    async def fail() -> None:
        raise Down

    async def all_of_them() -> None:
        for fallback in ladders:
            with contextlib.suppress(Down):
                await fallback.call(fail)
            with contextlib.suppress(Down):
                await fallback.serve(fail)
            with contextlib.suppress(Down):
                fallback.call_sync(raise_down)

    await all_of_them()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            await all_of_them()
        assert sum(type(one) is Down for one in gc.get_objects()) == 0
    finally:
        gc.enable()


def raise_down(*_: object) -> None:
    raise Down


def test_eight_threads_share_one() -> None:
    shared = Bulkhead("shared", 3, 0)
    events, log = events_and_log()
    fallback = Fallback(rung_of("redis", lambda _f: "redis", limit=shared), lambda _f: "default", events=events)
    barrier, served = threading.Barrier(8), list[str]()

    def work() -> None:
        barrier.wait(20)
        for _ in range(200):
            served.append(fallback.call_sync(raise_down))  # type: ignore[arg-type]

    async def loop() -> None:
        for _ in range(200):
            served.append(await fallback.call(raising(Down())))

    def in_a_loop() -> None:
        barrier.wait(20)
        asyncio.run(loop())

    threads = [threading.Thread(target=target, daemon=True) for target in [work] * 6 + [in_a_loop] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(served) == 1600
    assert set(served) <= {"redis", "default"}
    assert sum(outcome == "success" for _, _, outcome in log) == 1600
    assert shared.active == 0


# -- provenance


def test_two_served_are_equal_when_all_of_it_is() -> None:
    served = Served(2, (mark("redis"),), as_of=5.0)
    assert served == Served(2, (mark("redis"),), as_of=5.0)
    assert hash(served) == hash(Served(2, (mark("redis"),), as_of=5.0))
    others = (Served(3, (mark("redis"),), 5.0), Served(2), Served(2, (mark("redis"),), 6.0))
    assert all(served != other for other in (*others, Served(2, (mark("redis"),), 5.0, True), 2))
    assert repr(Served(2)) == "Served(2, (), as_of=None, pending=False)"
