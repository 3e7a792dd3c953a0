"""The stale-serving cache: what it may serve and when, and that identical loads are one."""

import asyncio
import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.clock import FakeClock
from resilience.deadline import ABANDONED, current_deadline, deadline_scope
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, ClientError, TransientError
from resilience.events import Event, Events
from resilience.flight import LoadCancelled, duplicate
from resilience.freshness import CacheServed, RefreshFailed, cache_status, freshness
from resilience.outcome import Degradation, Served
from resilience.stale import StaleCache


class NotFound(Exception):
    """The source's answer: there is none."""


class Source:
    """Counts how often it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended = 0
        self.error: BaseException | None = None
        self.gate: asyncio.Event | None = None

    def hold(self) -> asyncio.Event:
        self.gate = asyncio.Event()
        return self.gate

    async def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            return call
        finally:
            self.ended += 1


def cache_of(clock: FakeClock, **changed: Any) -> StaleCache[int]:
    return StaleCache("stock", **{"max_age": 10.0, "stale_if_error": 100.0, "clock": clock, **changed})


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- the rule


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, "fresh"),
        (599.999, "fresh"),
        (600.0, "stale-while-revalidate"),
        (630.0, "stale-while-revalidate"),
        (630.001, "stale-if-error"),
        (1_800.0, "stale-if-error"),
        (1_800.001, "too old"),
    ],
)
def test_the_windows_begin_and_end_where_the_rfc_says(age: float, expected: str) -> None:
    assert freshness(age, 600.0, 30.0, 1_200.0) == expected


def test_a_window_of_nothing_is_none_at_all() -> None:
    assert freshness(0.0, 0.0) == "too old"
    assert freshness(600.0, 600.0, 0.0, 0.0) == "too old"
    assert freshness(600.0, 600.0, 0.0, 1.0) == "stale-if-error"
    assert freshness(700.0, 600.0, 100.0, 50.0) == "stale-while-revalidate"
    assert freshness(1e12, float("inf")) == "fresh"


AGES = st.floats(0, 1e6)


@given(AGES, AGES, AGES, AGES, AGES)
def test_a_value_never_gets_better_with_age(
    younger: float, more: float, max_age: float, revalidate: float, error: float
) -> None:
    ranks = ["fresh", "stale-while-revalidate", "stale-if-error", "too old"]
    before = ranks.index(freshness(younger, max_age, revalidate, error))
    assert ranks.index(freshness(younger + more, max_age, revalidate, error)) >= before


# -- serving


async def test_a_fresh_value_is_served_without_asking_and_says_from_when_it_is() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    first = await cache.get("k", source)
    assert first == Served(1)
    asked = clock.time()
    clock.move(9.999)
    again = await cache.get("k", source)
    assert (again.value, again.as_of, again.degraded, source.calls) == (1, asked, False, 1)
    clock.move(0.001)
    assert (await cache.get("k", source)).value == 2


async def test_a_sync_load_and_one_that_only_returns_an_awaitable_are_loads_too() -> None:
    cache = cache_of(FakeClock())
    source = Source()
    assert (await cache.get("a", lambda: 7)).value == 7
    assert (await cache.get("b", lambda: source())).value == 1


async def test_while_revalidating_the_stale_value_is_served_at_once_and_the_source_asked_once() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=5.0)
    await cache.get("k", source)
    asked = clock.time()
    gate = source.hold()
    clock.move(10.0)
    stale = await asyncio.gather(*(cache.get("k", source) for _ in range(10)))
    assert {(served.value, served.as_of, served.degraded) for served in stale} == {(1, asked, False)}
    await turns()
    assert source.calls == 2
    gate.set()
    await turns()
    fresh = await cache.get("k", source)
    assert (fresh.value, source.calls) == (2, 2)
    assert cache.stats().refreshes == 1
    assert (cache.stats().stale, cache.stats().hits, cache.stats().loading) == (10, 1, 0)
    assert clock.pending == 0


async def test_a_failed_revalidation_is_counted_told_and_not_repeated_at_once() -> None:
    clock, source, events = FakeClock(), Source(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    cache = cache_of(clock, stale_while_revalidate=50.0, revalidate_pause=2.0, events=events)
    await cache.get("k", source)
    clock.move(10.0)
    source.error = ConnectionError("away")
    for _ in range(5):
        assert (await cache.get("k", source)).value == 1
        await turns()
    assert source.calls == 2
    failed = [event for event in told if isinstance(event, RefreshFailed)]
    assert [(event.name, event.error) for event in failed] == [("stock", source.error)]
    assert cache.stats().refresh_failures == 1
    clock.move(2.0)
    source.error = None
    await cache.get("k", source)
    await turns()
    assert (await cache.get("k", source)).value == 3


async def test_a_revalidation_that_a_fallback_answered_is_not_repeated_at_once() -> None:
    clock = FakeClock()
    cache = cache_of(clock, stale_while_revalidate=50.0, revalidate_pause=2.0)
    cache.put("k", 1)
    clock.move(10.0)
    asked: list[float] = []

    def load() -> Served[int]:
        asked.append(clock.monotonic())
        return Served(0, (Degradation("r", "f", "open"),))

    for _ in range(8):
        assert (await cache.get("k", load)).value == 1
        await turns()
        clock.move(0.5)
    assert len(asked) == 2
    assert cache.stats().refresh_failures == 0


async def test_no_more_revalidations_than_the_limit_and_none_without_permission() -> None:
    clock, source = FakeClock(), Source()
    allowed = True
    cache = cache_of(clock, stale_while_revalidate=5.0, revalidate_limit=2, may_revalidate=lambda: allowed)
    for key in "abc":
        await cache.get(key, source)
    clock.move(12.0)
    gate = source.hold()
    allowed = False
    await cache.get("a", source)
    await turns()
    assert (source.calls, cache.stats().refreshes) == (3, 0)
    allowed = True
    for key in "abc":
        assert not (await cache.get(key, source)).degraded
    await turns()
    assert (source.calls, cache.stats().loading) == (5, 2)
    gate.set()
    await turns()
    await cache.get("c", source)
    await turns()
    assert (source.calls, cache.stats().loading) == (6, 0)


async def test_a_governor_that_raises_costs_nobody_the_answer_nor_a_place() -> None:
    clock, source = FakeClock(), Source()

    def broken() -> bool:
        raise ZeroDivisionError

    cache = cache_of(clock, stale_while_revalidate=50.0, revalidate_limit=1, may_revalidate=broken)
    await cache.get("k", source)
    clock.move(10.0)
    for _ in range(3):
        clock.move(2.0)
        assert (await cache.get("k", source)).value == 1
    assert (cache.stats().refresh_failures, cache.stats().loading, source.calls) == (3, 0, 1)


async def test_past_the_revalidation_window_callers_wait_and_join_the_revalidation_under_way() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=5.0)
    await cache.get("k", source)
    clock.move(12.0)
    gate = source.hold()
    assert (await cache.get("k", source)).value == 1
    await turns()
    clock.move(4.0)
    waiting = asyncio.create_task(cache.get("k", source))
    gone = asyncio.create_task(cache.get("k", source))
    await turns()
    gone.cancel()
    await turns()
    gate.set()
    assert await waiting == Served(2)
    assert (source.calls, source.ended) == (2, 2)


async def test_a_revalidation_goes_on_when_the_one_who_joined_it_leaves() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=5.0)
    await cache.get("k", source)
    clock.move(12.0)
    gate = source.hold()
    await cache.get("k", source)
    clock.move(4.0)
    joined = asyncio.create_task(cache.get("k", source))
    await turns()
    joined.cancel()
    await turns()
    gate.set()
    await turns()
    assert ((await cache.get("k", source)).value, source.calls) == (2, 2)


@pytest.mark.parametrize(
    ("error", "circuit", "retry_after"),
    [
        (ConnectionError("away"), "closed", None),
        (TransientError("busy", retry_after=7.0), "closed", 7.0),
        (CircuitBreakerOpen("stock", 3.0), "open", 3.0),
        (CircuitBreakerOpen("stock", 0.0), "half-open", 0.0),
    ],
)
async def test_instead_of_an_error_a_stale_copy_is_served_marked_as_such(
    error: Exception, circuit: str, retry_after: float | None
) -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    await cache.get("k", source)
    asked = clock.time()
    source.error = error
    clock.move(10.0)
    served = await cache.get("k", source)
    assert (served.value, served.as_of) == (1, asked)
    assert served.degradations == (Degradation("stock", "stale-cache", circuit, retry_after),)
    clock.move(100.0)
    assert (await cache.get("k", source)).degraded
    clock.move(0.001)
    with pytest.raises(type(error)) as caught:
        await cache.get("k", source)
    assert caught.value is error
    assert len(cache) == 0


async def test_the_wall_clock_decides_nothing_and_the_stamp_follows_its_correction() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    await cache.get("k", source)
    clock.jump_wall(-3_600.0)
    clock.move(9.0)
    assert source.calls == 1
    assert (await cache.get("k", source)).value == 1
    clock.move(3.0)
    clock.jump_wall(7_200.0)
    source.error = ConnectionError()
    served = await cache.get("k", source)
    assert served.as_of == clock.time() - 12.0


async def test_age_counts_from_when_the_source_was_asked() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    gate = source.hold()
    task = asyncio.create_task(cache.get("k", source))
    await turns()
    clock.move(6.0)
    gate.set()
    await task
    kept = cache.peek("k")
    assert kept is not None
    assert kept.as_of == clock.time() - 6.0
    clock.move(4.0)
    await cache.get("k", source)
    assert source.calls == 2


async def test_an_answer_is_never_hidden_behind_a_copy_and_leaves_it_alone() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    await cache.get("k", source)
    clock.move(10.0)
    source.error = ClientError("bad request")
    with pytest.raises(ClientError):
        await cache.get("k", source)
    source.error = ConnectionError()
    assert (await cache.get("k", source)).value == 1


async def test_what_counts_as_an_answer_is_configurable() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, answers=lambda error: "no" in str(error))
    await cache.get("k", source)
    clock.move(10.0)
    source.error = ConnectionError("no")
    with pytest.raises(ConnectionError):
        await cache.get("k", source)
    source.error = ClientError("yes")
    assert (await cache.get("k", source)).degraded


async def test_a_fallbacks_answer_is_passed_on_and_never_kept() -> None:
    cache: StaleCache[int] = StaleCache("stock", clock=FakeClock())
    degraded = Served(1, (Degradation("r", "f", "open"),), 5.0)
    for answer in (degraded, Served(1, as_of=5.0), Served(1, pending=True)):
        assert await cache.get("k", lambda answer=answer: answer) is answer  # type: ignore[misc]
        assert len(cache) == 0
    assert await cache.get("k", lambda: Served(2)) == Served(2)
    assert (await cache.get("k", lambda: 3)).value == 2


# -- negative caching


async def test_not_found_is_remembered_for_its_time_and_raised_anew_each_time() -> None:
    clock, source, events = FakeClock(), Source(), Events()
    told: list[Event] = []
    events.subscribe(told.append)
    cache = cache_of(clock, negative=NotFound, negative_max_age=3.0, events=events)
    source.error = NotFound("k")
    raised: list[NotFound] = []
    for _ in range(3):
        with pytest.raises(NotFound, match="k") as caught:
            await cache.get("k", source)
        raised.append(caught.value)
    assert source.calls == 1
    assert len({id(error) for error in raised}) == 3
    assert cache.peek("k") is None
    assert told == [CacheServed("stock", "negative-hit", 0.0)] * 2
    clock.move(3.0)
    source.error = None
    assert (await cache.get("k", source)).value == 2


async def test_not_found_replaces_the_copy_so_that_the_dead_do_not_rise() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, negative=(NotFound,), negative_max_age=3.0)
    await cache.get("k", source)
    clock.move(10.0)
    source.error = NotFound()
    with pytest.raises(NotFound):
        await cache.get("k", source)
    clock.move(3.0)
    source.error = ConnectionError()
    with pytest.raises(ConnectionError):
        await cache.get("k", source)


async def test_a_negative_answer_of_no_duration_only_drops_the_copy() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, negative=lambda error: isinstance(error, NotFound), negative_max_age=0.0)
    await cache.get("k", source)
    clock.move(10.0)
    source.error = NotFound()
    for _ in range(2):
        with pytest.raises(NotFound):
            await cache.get("k", source)
    assert (len(cache), source.calls) == (0, 3)


class Uncopyable(Exception):
    def __reduce__(self) -> str:
        raise TypeError("no copies")

    def __new__(cls, *args: object) -> "Uncopyable":
        if args == ("copied",):
            raise TypeError("no copies")
        return super().__new__(cls, *args)

    def __init__(self) -> None:
        super().__init__("copied")


class Fussy(Exception):
    """Like those of HTTP clients: what it is made of is not what it shows."""

    def __init__(self, message: str, *, response: object) -> None:
        super().__init__(message)
        self.response = response


class Prefixed(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class Itself(Exception):
    def __copy__(self) -> "Itself":
        return self


def test_a_duplicate_says_the_same_and_holds_no_frames() -> None:
    response = object()
    for original in (NotFound("a", 1), Fussy("404", response=response), Prefixed("key"), Itself("x"), OSError(2, "no")):
        original.add_note("note")
        try:
            raise original from ValueError("cause")
        except Exception:  # noqa: BLE001
            pass
        twin = duplicate(original)
        assert twin is not None
        assert twin is not original
        assert (type(twin), twin.args, str(twin)) == (type(original), original.args, str(original))
        assert (twin.__traceback__, twin.__cause__, twin.__context__) == (None, None, None)
        twin.add_note("another")
        assert original.__notes__ == ["note"]
    twin = duplicate(Fussy("404", response=response))
    assert isinstance(twin, Fussy)
    assert twin.response is response
    assert duplicate(Uncopyable()) is None


async def test_an_error_that_cannot_be_copied_is_not_remembered() -> None:
    source = Source()
    source.error = Uncopyable()
    cache = cache_of(FakeClock(), negative=Uncopyable)
    for _ in range(2):
        with pytest.raises(Uncopyable):
            await cache.get("k", source)
    assert (source.calls, len(cache)) == (2, 0)


async def test_ten_thousand_remembered_errors_leave_memory_and_tracebacks_flat() -> None:
    source = Source()
    source.error = NotFound("k")
    cache = cache_of(FakeClock(), negative=NotFound)

    async def depth() -> int:
        try:
            await cache.get("k", source)
        except NotFound as error:
            trace, frames = error.__traceback__, 0
            while trace is not None:
                trace, frames = trace.tb_next, frames + 1
            return frames
        raise AssertionError

    await depth()
    first = await depth()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10_000):
            await depth()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert await depth() == first
    assert grown < 20_000
    assert source.calls == 1


# -- single flight


async def test_a_hundred_callers_reach_the_source_once() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    gate = source.hold()
    tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(100)]
    await turns()
    assert (source.calls, cache.stats().loading) == (1, 1)
    gate.set()
    assert {served.value for served in await asyncio.gather(*tasks)} == {1}
    assert (source.calls, cache.stats().loading, clock.pending) == (1, 0, 0)


async def test_the_first_callers_cancellation_does_not_fail_the_others() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    gate = source.hold()
    leader, follower, other = (asyncio.create_task(cache.get("k", source)) for _ in range(3))
    await turns()
    leader.cancel()
    other.cancel()
    await turns()
    assert leader.cancelled()
    assert other.cancelled()
    assert source.ended == 0
    gate.set()
    assert (await follower).value == 1
    assert source.calls == 1


async def test_when_the_last_waiter_goes_the_load_is_cancelled_and_the_next_caller_begins_anew() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    gate = source.hold()
    tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    await turns()
    assert (source.ended, cache.stats().loading, clock.pending, len(ABANDONED)) == (1, 0, 0, 0)
    gate.set()
    assert (await cache.get("k", source)).value == 2


async def test_a_load_that_ignores_its_cancellation_stores_nothing() -> None:
    cache = cache_of(FakeClock())
    gate = asyncio.Event()

    async def stubborn() -> int:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            await gate.wait()
        return 1

    task = asyncio.create_task(cache.get("k", stubborn))
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled()
    gate.set()
    await turns()
    assert (len(cache), len(ABANDONED)) == (0, 0)


async def test_a_failed_load_is_told_to_all_each_with_an_error_of_its_own() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    gate = source.hold()
    source.error = ConnectionError("away")
    source.error.__cause__ = ValueError("why")
    tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(50)]
    await turns()
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {ConnectionError}
    assert len({id(result) for result in results}) == 50
    assert source.error in results
    depths = set()
    for result in results:
        assert isinstance(result, ConnectionError)
        assert isinstance(result.__cause__, ValueError)
        frames, trace = [], result.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert frames[-1] == "__call__"
        depths.add(len(frames))
    assert len(depths) == 1


async def test_an_error_that_cannot_be_copied_is_shared() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    gate = source.hold()
    source.error = Uncopyable()
    tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(3)]
    await turns()
    gate.set()
    assert set(await asyncio.gather(*tasks, return_exceptions=True)) == {source.error}


async def test_a_failed_load_leaves_no_garbage_for_the_collector() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    gc.collect()
    gc.disable()
    try:
        for waiters in (1, 3):
            source.error = NotFound("x")
            seen = weakref.ref(source.error)
            gate = source.hold()
            tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(waiters)]
            await turns()
            gate.set()
            await asyncio.wait(tasks)
            for task in tasks:
                assert task.exception() is not None
            del task, tasks
            source.error = None
            await turns()
            assert seen() is None
    finally:
        gc.enable()


async def test_the_load_is_bounded_by_a_limit_of_its_own_and_not_by_the_callers_deadline() -> None:
    clock = FakeClock()
    cache = cache_of(clock, load_timeout=20.0)
    seen: list[float] = []
    gate = asyncio.Event()

    async def load() -> int:
        deadline = current_deadline()
        assert deadline is not None
        seen.append(deadline.remaining(clock))
        await gate.wait()
        return 1

    async def hurried() -> Served[int]:
        with deadline_scope(2.0, clock=clock):
            return await cache.get("k", load)

    first = asyncio.create_task(hurried())
    patient = asyncio.create_task(cache.get("k", load))
    await clock.advance(1.9)
    assert not first.done()
    await clock.advance(0.1)
    with pytest.raises(CallTimeout):
        await first
    assert seen == [20.0]
    gate.set()
    assert (await patient).value == 1
    assert clock.pending == 0


async def test_a_load_past_its_limit_fails_everybody_and_is_given_up() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, load_timeout=20.0)
    source.hold()
    tasks = [asyncio.create_task(cache.get("k", source)) for _ in range(3)]
    await clock.advance(20.0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, CallTimeout)
        assert result.limit == 20.0
    await turns()
    assert (source.ended, cache.stats().loading, clock.pending, len(ABANDONED)) == (1, 0, 0, 0)


async def test_a_callers_deadline_makes_it_take_the_stale_copy() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    await cache.get("k", source)
    source.hold()
    clock.move(10.0)

    async def hurried() -> Served[int]:
        with deadline_scope(2.0, clock=clock):
            return await cache.get("k", source)

    task = asyncio.create_task(hurried())
    await clock.advance(2.0)
    assert (await task).degraded
    assert source.ended == 2


async def test_a_deadline_that_has_passed_begins_no_load() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    with deadline_scope(0.0, clock=clock), pytest.raises(CallTimeout):
        await cache.get("k", source)
    assert source.calls == 0


async def test_no_load_is_begun_beside_too_many_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    cache = cache_of(FakeClock())
    monkeypatch.setattr(ABANDONED, "limit", 0)
    with pytest.raises(BulkheadFull):
        await cache.get("k", source)
    assert (source.calls, cache.stats().loading) == (0, 0)


async def test_a_load_that_cancels_itself_is_a_failure_and_nobodys_cancellation() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=0.0)
    source.error = asyncio.CancelledError()
    with pytest.raises(LoadCancelled, match="stock"):
        await cache.get("k", source)
    source.error = None
    await cache.get("k", source)
    clock.move(10.0)
    source.error = asyncio.CancelledError()
    assert (await cache.get("k", source)).degraded
    assert "a value" in str(LoadCancelled(""))


def test_an_exit_in_the_load_ends_the_program_and_strands_nobody() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    source.error = SystemExit(3)
    followers: list[asyncio.Task[Served[int]]] = []

    async def main() -> None:
        followers.append(asyncio.create_task(cache.get("k", source)))
        await cache.get("k", source)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert followers[0].done()
    assert cache.stats().loading == 0


# -- invalidation


async def test_a_load_begun_before_an_invalidation_is_not_kept_and_not_joined() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    gate = source.hold()
    before = asyncio.create_task(cache.get("k", source))
    await turns()
    assert not cache.invalidate("k")
    after = asyncio.create_task(cache.get("k", source))
    await turns()
    assert source.calls == 2
    gate.set()
    assert ((await before).value, (await after).value) == (1, 2)
    kept = cache.peek("k")
    assert kept is not None
    assert kept.value == 2
    assert cache.invalidate("k")
    assert cache.peek("k") is None


async def test_a_load_begun_before_clear_or_put_does_not_overwrite() -> None:
    for error in (None, NotFound()):
        for negative_max_age in (0.0, 5.0):
            source = Source()
            cache = cache_of(FakeClock(), negative=NotFound, negative_max_age=negative_max_age)
            gate = source.hold()
            source.error = error
            tasks = [asyncio.create_task(cache.get(key, source)) for key in "ab"]
            await turns()
            cache.clear()
            cache.put("b", 99)
            gate.set()
            await asyncio.wait(tasks)
            assert {task.exception() for task in tasks} == {error}  # who asked before is told what was true then
            kept = cache.peek("b")
            assert kept is not None
            assert (kept.value, len(cache)) == (99, 1)


@pytest.mark.parametrize("old_answer", [1, NotFound()])
@pytest.mark.parametrize("remembered", [0.0, 5.0])
def test_an_answer_whose_load_began_earlier_does_not_replace_a_later_one(
    old_answer: int | NotFound, remembered: float
) -> None:
    clock = FakeClock()
    cache = cache_of(clock, negative=NotFound, negative_max_age=remembered)
    slow, fast = asyncio.new_event_loop(), asyncio.new_event_loop()
    gate: list[asyncio.Event] = []

    async def old() -> int:
        gate.append(asyncio.Event())
        await gate[0].wait()
        if isinstance(old_answer, NotFound):
            raise old_answer
        return old_answer

    async def new() -> int:
        return 2

    async def nothing() -> None:
        await turns()

    try:
        waiting = slow.create_task(cache.get("k", old))
        slow.run_until_complete(nothing())
        clock.move(1.0)
        assert fast.run_until_complete(cache.get("k", new)).value == 2
        gate[0].set()
        slow.run_until_complete(asyncio.wait([waiting]))
        assert waiting.exception() is old_answer or waiting.result().value == old_answer
    finally:
        slow.close()
        fast.close()
    kept = cache.peek("k")
    assert kept is not None
    assert kept.value == 2


async def test_what_was_put_while_a_load_failed_is_served_as_fresh() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    gate = source.hold()
    source.error = ConnectionError()
    task = asyncio.create_task(cache.get("k", source))
    await turns()
    cache.put("k", 7)
    gate.set()
    served = await task
    assert (served.value, served.degraded) == (7, False)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["finish", "fail", "write", "put", "turn"]), st.just(0)),
        st.tuples(st.just("tick"), st.integers(1, 12)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_nobody_is_served_what_was_outdated_before_he_asked(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        clock = FakeClock()
        cache = cache_of(clock, stale_while_revalidate=5.0, load_timeout=30.0)
        version = 0
        loads: list[asyncio.Future[bool]] = []
        callers: dict[int, tuple[int, asyncio.Task[Served[int]]]] = {}

        async def load() -> int:
            seen = version
            loads.append(asyncio.get_running_loop().create_future())
            if not await loads[-1]:
                raise ConnectionError
            return seen

        def check(caller: int) -> None:
            asked, task = callers.pop(caller)
            if not task.cancelled() and task.exception() is None:
                assert task.result().value >= asked

        def end(good: bool) -> None:
            for gate in loads:
                if not gate.done():
                    gate.set_result(good)
                    return

        for step, number in steps:
            if step == "get" and number not in callers:
                callers[number] = (version, asyncio.create_task(cache.get("k", load)))
            elif step == "cancel" and number in callers:
                callers[number][1].cancel()
            elif step in ("finish", "fail"):
                end(step == "finish")
            elif step == "write":
                version += 1
                cache.invalidate("k")
            elif step == "put":
                version += 1
                cache.put("k", version)
            elif step == "tick":
                await clock.advance(number)
            else:
                await turns(2)
            assert cache.stats().loading <= 1
            for caller in [caller for caller, (_, task) in callers.items() if task.done()]:
                check(caller)
        await clock.advance(31.0)
        for caller in tuple(callers):
            assert callers[caller][1].done()
            check(caller)
        await cache.aclose()
        assert (cache.stats().loading, clock.pending, len(ABANDONED)) == (0, 0, 0)

    asyncio.run(play())


# -- bounds


async def test_the_least_recently_used_goes_first() -> None:
    clock = FakeClock()
    cache = cache_of(clock, max_entries=2)
    cache.put("a", 1)
    cache.put("b", 2)
    await cache.get("a", lambda: 0)
    cache.put("c", 3)
    assert [cache.peek(key) is not None for key in "abc"] == [True, False, True]
    assert cache.stats().evicted == 1


def test_memory_is_bounded_by_what_size_says() -> None:
    cache: StaleCache[bytes] = StaleCache("x", max_bytes=2_000, size=len, clock=FakeClock())
    for key in "abcd":
        cache.put(key, bytes(500))
    stats = cache.stats()
    assert (stats.entries, stats.evicted) == (2, 2)
    assert stats.bytes == 2 * (500 + StaleCache.ENTRY_OVERHEAD + sys.getsizeof("a"))
    cache.put("d", bytes(5_000))
    assert cache.peek("d") is None
    assert cache.peek("c") is not None
    cache.clear()
    assert (cache.stats().bytes, len(cache)) == (0, 0)


def test_the_size_it_counts_is_about_the_size_it_takes() -> None:
    cache: StaleCache[bytes] = StaleCache("x", max_bytes=10_000_000, clock=FakeClock())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            cache.put(f"key-{number}", bytes(200))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 < cache.stats().bytes / taken < 1.25


async def test_a_size_function_that_raises_is_the_callers_to_see() -> None:
    def broken(_value: int) -> int:
        raise ZeroDivisionError

    cache: StaleCache[int] = StaleCache("x", max_bytes=1_000, size=broken, clock=FakeClock())
    with pytest.raises(ZeroDivisionError):
        await cache.get("k", Source())
    assert cache.stats().loading == 0


def test_jitter_shortens_ages_and_never_lengthens_them() -> None:
    clock = FakeClock()
    cache = cache_of(clock, jitter=0.5, random=Random(1), stale_if_error=0.0)
    for key in range(100):
        cache.put(key, key)
    left = []
    for _ in range(11):
        left.append(sum(cache.peek(key) is not None for key in range(100)))
        clock.move(1.0)
    assert left[5] == 100
    assert 20 < left[7] < 95
    assert left[10] == 0


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"max_age": -1.0}, "max_age"),
        ({"max_age": float("nan")}, "max_age"),
        ({"stale_while_revalidate": -1.0}, "stale_while_revalidate"),
        ({"stale_if_error": -1.0}, "stale_if_error"),
        ({"negative_max_age": -1.0}, "negative_max_age"),
        ({"revalidate_limit": -1}, "revalidate_limit"),
        ({"revalidate_pause": -1.0}, "revalidate_pause"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"load_timeout": 0.0}, "load_timeout"),
        ({"jitter": 1.1}, "jitter"),
    ],
)
def test_a_bad_setting_fails_by_name(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        StaleCache("x", **changed)


# -- ending


async def test_aclose_cancels_and_awaits_what_runs_in_the_background() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=50.0)
    await cache.get("k", source)
    source.hold()
    clock.move(10.0)
    await cache.get("k", source)
    await turns()
    await cache.aclose()
    assert (source.calls, source.ended, clock.pending) == (2, 2, 0)
    assert cache.stats()[2:] == (0, 0, 1, 2, 1, 0, 0)
    assert (await cache.get("k", source)).value == 1
    await turns()
    assert source.calls == 2
    await cache.aclose()


async def test_aclose_leaves_a_load_to_those_who_wait_for_it() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=5.0, stale_if_error=0.0)
    await cache.get("k", source)
    gate = source.hold()
    clock.move(12.0)
    await cache.get("k", source)
    clock.move(4.0)
    joined = asyncio.create_task(cache.get("k", source))
    await turns()
    closing = asyncio.create_task(cache.aclose())
    await turns()
    gate.set()
    await closing
    assert (await joined).value == 2


async def test_aclose_does_not_wait_for_ever() -> None:
    clock = FakeClock()
    cache = cache_of(clock, stale_while_revalidate=50.0)
    gate = asyncio.Event()

    async def stubborn() -> int:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            await gate.wait()
        return 2

    cache.put("k", 1)
    clock.move(10.0)
    await cache.get("k", stubborn)
    await turns()
    closing = asyncio.create_task(cache.aclose(timeout=3.0))
    await clock.advance(2.9)
    assert not closing.done()
    await clock.advance(0.1)
    await closing
    gate.set()
    await turns()
    kept = cache.peek("k")
    assert kept is not None
    assert (kept.value, len(ABANDONED)) == (1, 0)


async def test_a_revalidation_past_its_limit_is_given_up_and_counted() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=500.0, load_timeout=20.0)
    await cache.get("k", source)
    source.hold()
    clock.move(10.0)
    await cache.get("k", source)
    await clock.advance(20.0)
    assert (cache.stats().refresh_failures, cache.stats().loading, source.ended, clock.pending) == (1, 0, 2, 0)


# -- events and headers


async def test_events_tell_how_each_answer_came_about() -> None:
    clock, source, events = FakeClock(), Source(), Events()
    told: list[Event] = []
    events.subscribe(told.append)

    def broken(_event: Event) -> None:
        raise ZeroDivisionError

    events.subscribe(broken)
    cache = cache_of(clock, stale_while_revalidate=5.0, events=events)
    await cache.get("k", source)
    clock.move(1.0)
    await cache.get("k", source)
    clock.move(10.0)
    source.gate = asyncio.Event()
    await cache.get("k", source)
    await cache.aclose()
    clock.move(10.0)
    source.gate = None
    source.error = ConnectionError()
    await cache.get("k", source)
    source.error = None
    await cache.get("k", source)
    assert told == [
        CacheServed("stock", "miss", 0.0),
        CacheServed("stock", "hit", 1.0),
        CacheServed("stock", "stale-while-revalidate", 11.0),
        CacheServed("stock", "stale-if-error", 21.0),
        CacheServed("stock", "refreshed", 0.0),
    ]


def test_the_header_field_is_that_of_rfc_9211() -> None:
    assert cache_status("AuraLink", "hit", ttl=12.9) == "AuraLink; hit; ttl=12"
    assert cache_status("AuraLink", "stale-while-revalidate", ttl=-0.5) == (
        "AuraLink; hit; ttl=-1; detail=stale-while-revalidate"
    )
    assert cache_status("a", "negative-hit", fwd_status=404) == "a; hit; detail=negative-hit"
    assert cache_status("a", "stale-if-error", fwd_status=503) == "a; fwd=stale; fwd-status=503; detail=stale-if-error"
    assert cache_status("a", "refreshed", stored=True, collapsed=True) == "a; fwd=stale; stored; collapsed"
    assert cache_status("a", "miss", ttl=float("inf"), key='x"\\é') == 'a; fwd=miss; key="x\\"\\\\?"'
    assert cache_status("my cache", "hit") == '"my cache"; hit'
    assert cache_status("", "hit") == '""; hit'
    assert cache_status("0-a", "hit") == '"0-a"; hit'
    assert cache_status("memory-cache.v1", "hit") == "memory-cache.v1; hit"


async def test_the_header_of_an_answer() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=5.0)
    assert cache.cache_status(await cache.get("k", source)) == "stock; fwd=miss"
    clock.move(4.0)
    assert cache.cache_status(await cache.get("k", source)) == "stock; hit; ttl=6"
    source.error = ConnectionError()
    clock.move(8.0)
    assert cache.cache_status(await cache.get("k", source)) == "stock; hit; ttl=-2; detail=stale-while-revalidate"
    await cache.aclose()
    clock.move(8.0)
    assert cache.cache_status(await cache.get("k", source)) == "stock; fwd=stale; ttl=-10; detail=stale-if-error"


# -- source first


async def test_source_first_asks_every_time_and_falls_back_to_a_copy_young_enough() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    assert [(await cache.source_first("k", source)).value for _ in range(2)] == [1, 2]
    source.error = ConnectionError("away")
    clock.move(30.0)
    served = await cache.source_first("k", source, max_age=30.0)
    assert (served.value, served.as_of, served.degraded) == (2, clock.time() - 30.0, True)
    with pytest.raises(ConnectionError):
        await cache.source_first("k", source, max_age=29.9)
    with pytest.raises(ConnectionError):
        await cache.source_first("k", source, max_age=0.0)
    assert (await cache.source_first("k", source)).value == 2
    clock.move(80.0)
    assert cache.source_first_sync("k", lambda: 1 // 0).value == 2
    clock.move(0.1)
    with pytest.raises(ConnectionError):
        await cache.source_first("k", source)
    with pytest.raises(ZeroDivisionError):
        cache.source_first_sync("k", lambda: 1 // 0)
    assert cache.source_first_sync("k", lambda: 5) == Served(5)


async def test_source_first_runs_in_the_callers_task_within_its_time_and_keeps_nothing_outdated() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock)
    tasks: list[object] = []
    await cache.source_first("t", lambda: tasks.append(asyncio.current_task()) or 1)  # type: ignore[func-returns-value]
    assert tasks == [asyncio.current_task()]
    gate = source.hold()
    slow = asyncio.create_task(cache.source_first("k", source, timeout=5.0))
    other = asyncio.create_task(cache.source_first("k", source))
    await turns()
    assert (source.calls, cache.stats().loading) == (2, 2)
    cache.invalidate("k")
    await clock.advance(5.0)
    with pytest.raises(CallTimeout):
        await slow
    gate.set()
    assert await other == Served(1)
    assert (cache.peek("k"), cache.stats().loading) == (None, 0)


async def test_source_first_cancelled_leaves_nothing() -> None:
    source = Source()
    cache = cache_of(FakeClock())
    source.hold()
    task = asyncio.create_task(cache.source_first("k", source))
    await turns()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (cache.stats().loading, source.ended) == (0, 1)


# -- threads


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    results: list[object] = [None] * count

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def test_get_sync_serves_fresh_stale_and_instead_of_errors() -> None:
    clock = FakeClock()
    cache = cache_of(clock, stale_while_revalidate=5.0, negative=NotFound)
    assert cache.get_sync("k", lambda: 1) == Served(1)
    clock.move(9.0)
    assert (cache.get_sync("k", lambda: 2).value, cache.get_sync("k", lambda: 2).as_of) == (1, clock.time() - 9.0)
    clock.move(2.0)
    assert cache.get_sync("k", lambda: 2) == Served(2)
    clock.move(20.0)
    assert cache.get_sync("k", lambda: 1 // 0).degraded
    clock.move(100.0)
    with pytest.raises(ZeroDivisionError):
        cache.get_sync("k", lambda: 1 // 0)

    def missing() -> int:
        raise NotFound

    for _ in range(2):
        with pytest.raises(NotFound):
            cache.get_sync("n", missing)
    assert cache.stats().loads == 5


def test_an_async_load_needs_an_event_loop() -> None:
    cache = cache_of(FakeClock())

    class Deferred:
        def __await__(self) -> Any:
            yield

    for load in (Source(), Deferred):
        with pytest.raises(TypeError, match="get_sync"):
            cache.get_sync("k", load)  # type: ignore[arg-type]


@pytest.mark.parametrize("failure", [None, ConnectionError("away"), Uncopyable()])
def test_threads_share_one_load_and_its_failure(failure: Exception | None) -> None:
    cache = cache_of(FakeClock())
    entered, gate = threading.Event(), threading.Event()
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        entered.set()
        assert gate.wait(10)
        if failure is not None:
            raise failure
        return 1

    def work(index: int) -> object:
        if index:
            assert entered.wait(10)
        if index == 7:
            threading.Timer(0.01, gate.set).start()
        return cache.get_sync("k", load).value

    results = in_threads(8, work)
    assert {type(result) for result in results} == {int if failure is None else type(failure)}
    assert cache.stats().loading == 0
    assert len(calls) < 8  # who came after the load had failed began another one


def test_a_thread_that_hangs_in_its_load_holds_up_nobody_for_longer_than_the_limit() -> None:
    clock = FakeClock()
    cache = cache_of(clock, load_timeout=0.02, stale_while_revalidate=5.0)
    cache.put("stale", 1)
    cache.put("old", 1)
    clock.move(11.0)
    entered, gate = threading.Event(), threading.Event()

    def load() -> int:
        entered.set()
        assert gate.wait(10)
        return 2

    hanging = [threading.Thread(target=cache.get_sync, args=(key, load)) for key in ("k", "stale", "old")]
    for thread in hanging:
        entered.clear()
        thread.start()
        assert entered.wait(10)
    try:
        with pytest.raises(CallTimeout):
            cache.get_sync("k", load)
        with deadline_scope(0.001, clock=clock), pytest.raises(CallTimeout):
            cache.get_sync("k", load)
        assert not cache.get_sync("stale", load).degraded
        clock.move(10.0)
        assert cache.get_sync("old", load).degraded
    finally:
        gate.set()
        for thread in hanging:
            thread.join(10)
    assert cache.get_sync("k", load).value == 2


def test_an_interrupted_thread_strands_nobody() -> None:
    cache = cache_of(FakeClock())
    entered, gate = threading.Event(), threading.Event()

    def interrupted() -> int:
        entered.set()
        assert gate.wait(10)
        raise KeyboardInterrupt

    def work(index: int) -> object:
        if index == 0:
            return cache.get_sync("k", interrupted)
        assert entered.wait(10)
        follower = threading.Timer(0.01, gate.set)
        follower.start()
        return cache.get_sync("k", lambda: 3).value

    first, second = in_threads(2, work)
    assert isinstance(first, KeyboardInterrupt)
    assert isinstance(second, LoadCancelled)
    assert cache.get_sync("k", lambda: 3).value == 3


@pytest.mark.skipif(sys.gettrace() is not None, reason="the lock of coverage.py itself blocks event loops in threads")
def test_many_loops_and_threads_keep_the_bounds_and_the_books() -> None:
    cache: StaleCache[int] = StaleCache(
        "x", max_age=0.0005, stale_while_revalidate=0.001, stale_if_error=1.0, max_entries=8, max_bytes=4_000
    )
    random = Random(7)
    plans = [[random.randrange(20) for _ in range(150)] for _ in range(8)]

    async def load() -> int:
        await asyncio.sleep(0)
        return 1

    async def fly(plan: list[int]) -> None:
        for key in plan:
            served = await asyncio.gather(*(cache.get(key, load) for _ in range(3)))
            assert {one.value for one in served} == {1}
            if key == 3:
                cache.invalidate(key)
            if key == 4:
                cache.put(key, 1)

    def work(index: int) -> object:
        if index % 4 == 3:
            return [cache.get_sync(key, lambda: 1).value for key in plans[index]]
        asyncio.run(fly(plans[index]))
        return None

    results = in_threads(8, work)
    assert not [result for result in results if isinstance(result, BaseException)]
    stats = cache.stats()
    assert stats.entries <= 8
    assert stats.bytes <= 4_000
    assert stats.loading == 0
    cache.clear()
    assert cache.stats().bytes == 0


def test_a_loop_closed_in_the_middle_of_a_load_leaves_nothing_behind() -> None:
    clock = FakeClock()
    cache = cache_of(clock, stale_while_revalidate=50.0, revalidate_limit=1)
    cache.put("k", 1)
    clock.move(10.0)
    loop = asyncio.new_event_loop()
    gate: list[asyncio.Future[None]] = []

    async def hang() -> int:
        gate.append(asyncio.get_running_loop().create_future())
        await gate[0]
        return 2

    async def begin() -> Served[int]:
        served = await cache.get("k", hang)
        await turns(3)
        return served

    assert loop.run_until_complete(begin()).value == 1
    left = asyncio.all_tasks(loop)
    loop.close()
    assert cache.stats().loading == 1

    async def again() -> int:
        await cache.get("k", lambda: 3)
        await turns()
        return (await cache.get("k", lambda: 4)).value

    assert asyncio.run(again()) == 3
    assert (cache.stats().loading, cache.stats().refreshes) == (0, 2)
    asyncio.run(cache.aclose())
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    gate.clear()


def test_aclose_reaches_the_background_of_other_loops_and_forgives_closed_ones() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=50.0)
    for key in "ab":
        cache.put(key, 1)
    clock.move(10.0)
    other, closed = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def begin(key: str) -> None:
        source.hold()
        await cache.get(key, source)
        await turns(3)

    async def rest() -> None:
        await turns()

    closed.run_until_complete(begin("a"))
    left = asyncio.all_tasks(closed)
    other.run_until_complete(begin("b"))
    closed.close()
    asyncio.run(cache.aclose())
    other.run_until_complete(rest())
    other.close()
    assert (source.calls, source.ended) == (2, 1)
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_aclose_may_come_after_the_end_of_what_it_stops() -> None:
    clock = FakeClock()
    cache = cache_of(clock, stale_while_revalidate=50.0)
    cache.put("k", 1)
    clock.move(10.0)
    other = asyncio.new_event_loop()
    gate = other.create_future()

    async def load() -> int:
        await gate
        return 2

    async def begin() -> None:
        await cache.get("k", load)
        await turns(3)

    async def rest() -> None:
        await turns()

    other.run_until_complete(begin())
    gate.set_result(None)
    other.call_soon(other.stop)
    other.run_forever()  # one turn: the load ends, and what follows is scheduled before the order to stop it
    asyncio.run(cache.aclose())
    other.run_until_complete(rest())
    other.close()
    kept = cache.peek("k")
    assert kept is not None
    assert (kept.value, cache.stats().loading) == (2, 0)


async def test_a_failed_revalidation_of_what_was_invalidated_meanwhile_is_only_counted() -> None:
    clock, source = FakeClock(), Source()
    cache = cache_of(clock, stale_while_revalidate=50.0)
    await cache.get("k", source)
    clock.move(10.0)
    gate = source.hold()
    source.error = ConnectionError()
    await cache.get("k", source)
    await turns()
    cache.invalidate("k")
    gate.set()
    await turns()
    assert (cache.stats().refresh_failures, len(cache)) == (1, 0)


def test_a_value_that_uses_the_cache_when_it_dies_does_not_deadlock() -> None:
    cache: StaleCache[object] = StaleCache("x", max_entries=1, clock=FakeClock())

    class Dying:
        def __del__(self) -> None:
            cache.invalidate("other")

    def work(_index: int) -> object:
        cache.put("a", Dying())
        cache.put("b", Dying())
        cache.put("b", Dying())
        cache.invalidate("b")
        cache.put("c", Dying())
        cache.clear()
        return "done"

    assert in_threads(1, work) == ["done"]


async def test_an_entry_dropped_by_another_thread_while_it_was_looked_at_is_still_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = cache_of(FakeClock())
    cache.put("k", 1)

    def gone(_key: object) -> None:
        raise KeyError

    monkeypatch.setattr(cache, "_touch", gone)
    assert (await cache.get("k", Source())).value == 1


async def test_an_entry_stored_by_another_thread_meanwhile_is_served_as_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(FakeClock())
    monkeypatch.setattr(type(cache), "_fresh", lambda self, key: self.put(key, 4))
    assert (await cache.get("k", Source())).value == 4
    assert cache.get_sync("k", lambda: 5).value == 4
    assert cache.stats().hits == 2
