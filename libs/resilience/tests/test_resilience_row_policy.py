"""A policy: everything around a call, in its fixed order, seen from outside."""

import asyncio
from collections.abc import Callable

import pytest

from resilience import (
    MISSING,
    Bulkhead,
    BulkheadFull,
    CallFinished,
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    Degradation,
    Event,
    Events,
    FakeClock,
    FallbackUsed,
    Missing,
    Priority,
    Row,
    RowPolicy,
    Rung,
    Served,
    Transitioned,
    Verdict,
    deadline_scope,
)

ROW = Row(
    id="d.db",
    label="D1",
    service="d",
    dependency="db",
    title="DB",
    priority=Priority.P0,
    impact="critical",
    max_failures=3,
    open_seconds=60.0,
    call_timeout=1.0,
    fallbacks=("cache", "default"),
    promise="",
    recovery="",
    data_loss="",
    user_text="",
)


class Down(Exception):
    pass


class NotFound(Exception):
    pass


def classify(error: BaseException) -> Verdict:
    return Verdict.SUCCESS if isinstance(error, NotFound) else Verdict.FAILURE


class World:
    """A policy on a fake clock, with everything it emitted."""

    def __init__(self, **settings: object) -> None:
        self.clock = FakeClock()
        self.events = Events()
        self.seen: list[Event] = []
        self.events.subscribe(self.seen.append)
        self.breaker = CircuitBreaker(
            "d.db", failure_threshold=3, recovery_timeout=60.0, success_threshold=1, classify=classify, clock=self.clock
        )
        values = {"breaker": self.breaker, "events": self.events, "clock": self.clock, **settings}
        self.policy = RowPolicy(ROW, **values)  # type: ignore[arg-type]

    def outcomes(self) -> list[str]:
        return [event.outcome for event in self.seen if isinstance(event, CallFinished)]

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Down):
                await self.policy.call(down)

    async def hang(self, callers: int = 1) -> list[asyncio.Task[object]]:
        calls = [asyncio.create_task(self.policy.call(hang)) for _ in range(callers)]
        await self.clock.advance(0)
        return calls


async def answer() -> str:
    return "answer"


async def down() -> str:
    raise Down


async def missing_row() -> str:
    raise NotFound


async def hang() -> object:
    await asyncio.Event().wait()
    return None


async def cache(_failure: BaseException) -> Served[str]:
    return Served("copy", as_of=5.0)


async def empty(_failure: BaseException) -> Missing:
    return MISSING


async def broken(_failure: BaseException) -> str:
    raise ConnectionError


CACHE = Rung[str]("cache", cache)


# -- calls


async def test_a_call_returns_the_answer_and_is_reported() -> None:
    world = World()

    async def slow() -> str:
        await world.clock.sleep(0.25)
        return "answer"

    call = asyncio.create_task(world.policy.call(slow))
    await world.clock.advance(0.25)
    assert await call == "answer"
    assert world.seen == [CallFinished("d.db", "db", "success", 0.25)]
    assert world.policy.last_latency == 0.25
    assert world.clock.pending == 0


async def test_a_frozen_dependency_opens_the_circuit_by_timeouts() -> None:
    world = World()
    calls = await world.hang(3)
    await world.clock.advance(1.0)
    for call in calls:
        with pytest.raises(CallTimeout, match=r"d\.db did not answer within 1 s"):
            await call
    assert world.breaker.state is CircuitState.OPEN
    assert world.outcomes() == ["timeout"] * 3
    with pytest.raises(CircuitBreakerOpen) as caught:
        await world.policy.call(answer)
    assert caught.value.retry_after == 60.0
    assert world.outcomes()[-1] == "rejected"


async def test_an_answer_that_is_an_error_counts_as_success() -> None:
    world = World()
    await world.fail(2)
    with pytest.raises(NotFound):
        await world.policy.call(missing_row)
    assert world.breaker.snapshot().failures == 0
    assert world.outcomes()[-1] == "success"


async def test_a_timeout_is_a_failure_whatever_the_classifier_says() -> None:
    breaker = CircuitBreaker(failure_threshold=1, classify=lambda _error: Verdict.SUCCESS)
    clock = FakeClock()
    policy = RowPolicy(ROW, breaker=breaker, clock=clock)
    call = asyncio.create_task(policy.serve(hang, Rung[object]("cache", cache)))
    await clock.advance(1.0)
    assert (await call).value == "copy"
    assert breaker.state is CircuitState.OPEN


async def test_a_cancelled_call_is_neutral_and_cancels_what_it_called() -> None:
    world = World()
    ended = asyncio.Event()

    async def query() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.create_task(world.policy.call(query))
    await world.clock.advance(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 5)
    assert world.outcomes() == ["neutral"]
    assert world.breaker.counts.neutral == 1


async def test_a_function_that_raises_before_it_awaits_is_settled_too() -> None:
    world = World()

    def broken_at_once() -> asyncio.Future[None]:
        raise Down

    with pytest.raises(Down):
        await world.policy.call(broken_at_once)
    assert world.breaker.counts.failed == 1


async def test_too_many_abandoned_calls_stop_new_ones_without_blaming_the_dependency() -> None:
    world = World(max_abandoned=1)
    let_go = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await let_go.wait()

    call = asyncio.create_task(world.policy.call(stubborn))
    await world.clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    assert world.policy.abandoned == 1
    with pytest.raises(BulkheadFull):
        await world.policy.call(answer)
    assert world.outcomes() == ["timeout", "rejected"]
    assert world.breaker.snapshot().failures == 1
    let_go.set()
    await world.clock.advance(0)
    assert world.policy.abandoned == 0
    assert await world.policy.call(answer) == "answer"


async def test_a_hundred_callers_at_half_open_make_one_call() -> None:
    world = World()
    await world.fail(3)
    world.clock.move(60.0)
    go, running = asyncio.Event(), 0

    async def trial() -> None:
        nonlocal running
        running += 1
        await go.wait()

    calls = [asyncio.create_task(world.policy.call(trial)) for _ in range(100)]
    await world.clock.advance(0)
    assert running == 1
    go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, CircuitBreakerOpen) for result in results) == 99
    assert world.breaker.state is CircuitState.CLOSED


async def test_a_trial_that_hangs_ends_at_the_timeout_and_reopens() -> None:
    world = World()
    await world.fail(3)
    world.clock.move(60.0)
    (trial,) = await world.hang()
    await world.clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await trial
    assert world.breaker.snapshot().retry_after == 60.0


# -- the caller's deadline


async def test_the_callers_deadline_shortens_the_limit() -> None:
    world = World()
    with deadline_scope(0.75, clock=world.clock):
        (call,) = await world.hang()
    await world.clock.advance(0.75)
    with pytest.raises(CallTimeout):
        await call
    assert world.breaker.snapshot().failures == 1


async def test_a_call_left_with_scraps_of_time_proves_nothing() -> None:
    world = World()
    with deadline_scope(0.1, clock=world.clock):
        (call,) = await world.hang()
    await world.clock.advance(0.1)
    with pytest.raises(CallTimeout):
        await call
    assert world.breaker.counts.neutral == 1
    assert world.outcomes() == ["timeout"]


async def test_a_real_failure_counts_however_little_time_there_was() -> None:
    world = World()
    with deadline_scope(0.1, clock=world.clock):
        await world.fail()
    assert world.breaker.snapshot().failures == 1


async def test_without_time_left_nothing_is_called() -> None:
    world = World()
    with deadline_scope(0.0, clock=world.clock), pytest.raises(CallTimeout):
        await world.policy.call(answer)
    assert world.breaker.counts.started == 0


# -- bulkhead


async def test_waiting_for_the_bulkhead_is_within_the_limit() -> None:
    world = World()
    bulkhead = Bulkhead("d.db", 1, 5, clock=world.clock)
    policy = RowPolicy(ROW, breaker=world.breaker, events=world.events, bulkhead=bulkhead, clock=world.clock)

    async def slow() -> str:
        await world.clock.sleep(0.6)
        return "answer"

    calls = [asyncio.create_task(policy.call(slow)) for _ in range(3)]
    await world.clock.advance(0.6)
    assert await calls[0] == "answer"
    await world.clock.advance(0.4)
    for call in calls[1:]:  # the second got the slot but too late; the third never did
        with pytest.raises(CallTimeout):
            await call
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)
    assert world.breaker.counts.failed == 0  # neither had a fair share of the time


async def test_a_slot_is_free_again_at_the_timeout() -> None:
    world = World()
    bulkhead = Bulkhead("d.db", 1, 0, clock=world.clock)
    policy = RowPolicy(ROW, breaker=world.breaker, bulkhead=bulkhead, clock=world.clock)
    let_go = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await let_go.wait()

    call = asyncio.create_task(policy.call(stubborn))
    await world.clock.advance(0)
    with pytest.raises(BulkheadFull):
        await policy.call(answer)
    await world.clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    assert await policy.call(answer) == "answer"
    let_go.set()


async def test_an_open_circuit_rejects_without_queueing() -> None:
    world = World()
    bulkhead = Bulkhead("d.db", 1, 5, clock=world.clock)
    policy = RowPolicy(ROW, breaker=world.breaker, events=world.events, bulkhead=bulkhead, clock=world.clock)
    await bulkhead.acquire()
    world.breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await policy.call(answer)
    assert world.outcomes() == ["rejected"]


# -- retries


async def test_a_stale_connection_is_retried_and_is_no_failure() -> None:
    world = World(retries=1, retry_on=lambda error: isinstance(error, ConnectionError))
    calls = 0

    async def stale_once() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionResetError
        return "answer"

    assert await world.policy.call(stale_once) == "answer"
    assert (calls, world.breaker.counts.failed, world.outcomes()) == (2, 0, ["success"])


async def test_retries_used_up_count_once_and_other_errors_are_not_retried() -> None:
    world = World(retries=2, retry_on=lambda error: isinstance(error, ConnectionError))
    calls = 0

    async def refused() -> str:
        nonlocal calls
        calls += 1
        raise ConnectionRefusedError if calls < 4 else Down

    with pytest.raises(ConnectionRefusedError):
        await world.policy.call(refused)
    assert (calls, world.breaker.counts.failed) == (3, 1)
    with pytest.raises(Down):
        await world.policy.call(refused)
    assert calls == 4


async def test_retries_share_one_limit() -> None:
    world = World(retries=5, retry_on=lambda _error: True)

    async def slow_failure() -> str:
        await world.clock.sleep(0.4)
        raise Down

    call = asyncio.create_task(world.policy.call(slow_failure))
    await world.clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call


# -- the ladder


async def test_serve_marks_nothing_when_healthy() -> None:
    world = World()
    assert await world.policy.serve(answer, CACHE) == Served("answer")

    async def from_afar() -> Served[str]:
        return Served("answer", (Degradation("other", "x", "open"),))

    assert (await world.policy.serve(from_afar, CACHE)).degradations == (Degradation("other", "x", "open"),)


async def test_serve_descends_after_a_failure_and_without_a_call_when_open() -> None:
    world = World()
    served = await world.policy.serve(down, CACHE)
    assert served == Served("copy", (Degradation("d.db", "cache", "closed", 1.0),), as_of=5.0)
    assert world.policy.fallback_in_use == ""
    await world.fail(2)
    world.clock.move(20.0)
    served = await world.policy.serve(down, CACHE)
    assert served.degradations == (Degradation("d.db", "cache", "open", 40.0),)
    assert world.breaker.counts.started == 3
    assert world.policy.fallback_in_use == "cache"
    assert world.seen.count(FallbackUsed("d.db", "cache", "success")) == 2
    world.breaker.reset()
    assert world.policy.fallback_in_use == ""


async def test_serve_descends_after_a_timeout_and_a_full_bulkhead() -> None:
    world = World()
    call = asyncio.create_task(world.policy.serve(hang, Rung[object]("cache", cache)))
    await world.clock.advance(1.0)
    assert (await call).value == "copy"
    full = Bulkhead("d.db", 1, 0, clock=world.clock)
    await full.acquire()
    policy = RowPolicy(ROW, breaker=world.breaker, bulkhead=full, clock=world.clock)
    assert (await policy.serve(answer, CACHE)).value == "copy"


async def test_serve_raises_the_callers_own_error_untouched() -> None:
    world = World()
    with pytest.raises(NotFound) as caught:
        await world.policy.serve(missing_row, CACHE)
    assert not hasattr(caught.value, "__notes__")
    assert not any(isinstance(event, FallbackUsed) for event in world.seen)


async def test_when_nothing_can_serve_the_row_is_failing_for_a_while() -> None:
    world = World()
    world.breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await world.policy.serve(down, Rung[str]("cache", empty))
    assert not world.policy.status().fallback_failing  # an empty cache works
    with pytest.raises(CircuitBreakerOpen):
        await world.policy.serve(down, Rung[str]("cache", broken))
    assert world.policy.status().fallback_failing
    world.clock.move(5.0)
    assert not world.policy.status().fallback_failing


async def test_a_new_outage_remembers_nothing_of_the_last() -> None:
    world = World()
    await world.fail(3)
    await world.policy.serve(down, CACHE)
    with pytest.raises(CircuitBreakerOpen):
        await world.policy.serve(down, Rung[str]("default", broken))
    world.breaker.reset()
    await world.fail(3)
    status = world.policy.status()
    assert (status.fallback, status.fallback_failing) == ("", False)


# -- watching


async def test_the_status_tells_the_whole_row() -> None:
    world = World()
    await world.policy.call(answer)
    await world.fail(3)
    await world.policy.serve(down, CACHE)
    world.clock.move(15.0)
    status = world.policy.status()
    assert (status.row, status.label, status.dependency, status.priority) == ("d.db", "D1", "db", Priority.P0)
    assert (status.circuit, status.failures, status.state_seconds) == (CircuitState.OPEN, 3, 15.0)
    assert (status.retry_after, status.last_error, status.held) == (45.0, "Down", False)
    assert (status.last_latency, status.fallback, status.down) == (0.0, "cache", True)
    transitions = [event for event in world.seen if isinstance(event, Transitioned)]
    assert [(event.row, event.transition.new) for event in transitions] == [("d.db", CircuitState.OPEN)]


def test_it_can_be_printed() -> None:
    world = World(bulkhead=Bulkhead("d.db", 8, 64), retries=1)
    assert world.policy.timeout == 1.0
    assert world.policy.describe() == (
        "d.db: hard timeout 1 s → circuit 3 failures / 60 s → bulkhead 8 (+64 waiting) → retry 1 → call; "
        "fallback: cache → default"
    )


async def test_a_row_alone_makes_a_policy() -> None:
    policy = RowPolicy(ROW)
    assert await policy.call(answer) == "answer"
    assert policy.describe() == "d.db: hard timeout 1 s → circuit 3 failures / 60 s → call; fallback: cache → default"


@pytest.mark.parametrize("outcome", [answer, down])
async def test_a_raising_listener_does_not_change_the_outcome(outcome: Callable[[], object]) -> None:
    world = World()

    def bug(_event: Event) -> None:
        raise RuntimeError

    world.events.subscribe(bug)
    if outcome is answer:
        assert await world.policy.call(answer) == "answer"
    else:
        await world.fail(3)
        assert world.breaker.state is CircuitState.OPEN
    assert world.events.listener_errors > 0
