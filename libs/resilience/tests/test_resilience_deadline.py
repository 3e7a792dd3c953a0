"""`hard_timeout` returns at the limit whatever the call does, and leaves nothing behind."""

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncGenerator

import pytest

from resilience import (
    ABANDONED,
    AbandonedTasks,
    BulkheadFull,
    CallTimeout,
    Deadline,
    FakeClock,
    current_deadline,
    deadline_scope,
    hard_timeout,
    without_deadline,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def complaints() -> AsyncGenerator[list[dict[str, object]]]:
    """What asyncio would have logged, such as exceptions never retrieved; must stay empty."""
    seen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))
    yield seen
    gc.collect()
    await asyncio.sleep(0)
    assert seen == []


async def value_after(clock: FakeClock, seconds: float) -> str:
    await clock.sleep(seconds)
    return "value"


class Stubborn:
    """A call that does not end when it is cancelled, until it is let go; then it may raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.cancelled = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ended = asyncio.Event()
        self.error = error

    async def __call__(self) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.let_go.wait()
        finally:
            self.ended.set()
        if self.error:
            raise self.error
        return "too late"


@pytest.mark.usefixtures("complaints")
class TestHardTimeout:
    async def test_a_call_in_time_returns_its_value_and_leaves_no_timer(self, clock: FakeClock) -> None:
        call = asyncio.create_task(hard_timeout(value_after(clock, 1.0), 2.0, clock=clock))
        await clock.advance(1.0)
        assert await call == "value"
        assert clock.pending == 0

    async def test_its_error_is_raised_unchanged(self, clock: FakeClock) -> None:
        error = LookupError("x")

        async def broken() -> None:
            raise error

        with pytest.raises(LookupError) as caught:
            await hard_timeout(broken(), 1.0, clock=clock)
        assert caught.value is error

    async def test_a_call_that_is_too_slow_is_cancelled(self, clock: FakeClock) -> None:
        call = asyncio.create_task(hard_timeout(value_after(clock, 5.0), 2.0, name="db", clock=clock))
        await clock.advance(2.0)
        with pytest.raises(CallTimeout, match="db did not answer within 2 s") as caught:
            await call
        assert isinstance(caught.value, TimeoutError)
        assert (len(ABANDONED), clock.pending) == (0, 0)

    async def test_it_returns_at_the_limit_even_if_the_cancellation_is_swallowed(self, clock: FakeClock) -> None:
        stubborn, abandoned = Stubborn(), AbandonedTasks()
        call = asyncio.create_task(hard_timeout(stubborn(), 2.0, clock=clock, abandoned=abandoned))
        await clock.advance(2.0)
        with pytest.raises(CallTimeout):
            await call
        await stubborn.cancelled.wait()
        assert len(abandoned) == 1
        stubborn.let_go.set()
        await stubborn.ended.wait()
        await clock.advance(0)
        assert len(abandoned) == 0

    async def test_slow_clean_up_does_not_delay_it_in_real_time(self) -> None:
        stubborn = Stubborn()
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            await hard_timeout(stubborn(), 0.05)
        assert 0.04 < time.monotonic() - began < 1.0
        stubborn.let_go.set()
        await stubborn.ended.wait()

    async def test_a_late_error_is_not_logged(self, clock: FakeClock) -> None:
        stubborn = Stubborn(error=ConnectionError("late"))
        call = asyncio.create_task(hard_timeout(stubborn(), 1.0, clock=clock))
        await clock.advance(1.0)
        with pytest.raises(CallTimeout):
            await call
        stubborn.let_go.set()
        await stubborn.ended.wait()
        await clock.advance(0)

    async def test_an_abandoned_task_is_kept_alive_until_it_ends(self, clock: FakeClock) -> None:
        stubborn, abandoned = Stubborn(), AbandonedTasks()
        call = asyncio.create_task(hard_timeout(stubborn(), 1.0, clock=clock, abandoned=abandoned))
        await clock.advance(1.0)
        with pytest.raises(CallTimeout):
            await call
        gc.collect()
        stubborn.let_go.set()
        await asyncio.wait_for(stubborn.ended.wait(), 5)

    async def test_past_the_bound_no_further_call_is_begun(self, clock: FakeClock) -> None:
        stubborn, abandoned = Stubborn(), AbandonedTasks(limit=1)
        call = asyncio.create_task(hard_timeout(stubborn(), 1.0, clock=clock, abandoned=abandoned))
        await clock.advance(1.0)
        with pytest.raises(CallTimeout):
            await call
        with pytest.raises(BulkheadFull):
            await hard_timeout(value_after(clock, 0), 1.0, clock=clock, abandoned=abandoned)
        stubborn.let_go.set()
        await clock.advance(0)
        assert await hard_timeout(value_after(clock, 0), 1.0, clock=clock, abandoned=abandoned) == "value"

    async def test_the_callers_cancellation_is_passed_on_and_raised_at_once(self, clock: FakeClock) -> None:
        stubborn, abandoned = Stubborn(error=ConnectionError("late")), AbandonedTasks()
        call = asyncio.create_task(hard_timeout(stubborn(), 60.0, clock=clock, abandoned=abandoned))
        await clock.advance(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await stubborn.cancelled.wait()
        assert clock.pending == 0
        stubborn.let_go.set()
        await clock.advance(0)
        assert len(abandoned) == 0

    @pytest.mark.parametrize("error", [None, ConnectionError("unseen")])
    async def test_cancellation_in_the_moment_of_the_result_wins(self, error: Exception | None) -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        call = asyncio.create_task(hard_timeout(answer, 60.0))
        await asyncio.sleep(0)
        answer.set_exception(error) if error else answer.set_result("value")
        await asyncio.sleep(0)  # the result has woken the caller, which has not run yet
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def test_cancellation_in_the_moment_of_the_timeout_wins(self, clock: FakeClock) -> None:
        call = asyncio.create_task(hard_timeout(asyncio.Event().wait(), 1.0, clock=clock))
        await clock.advance(0)
        clock.move(1.0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def test_an_answer_in_the_moment_of_the_timeout_counts(self, clock: FakeClock) -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        call = asyncio.create_task(hard_timeout(answer, 1.0, clock=clock))
        await clock.advance(0)
        answer.set_result("value")
        clock.move(1.0)
        assert await call == "value"

    @pytest.mark.parametrize("seconds", [0.0, -1.0])
    async def test_without_time_the_call_is_not_begun(self, clock: FakeClock, seconds: float) -> None:
        began = False

        async def call() -> None:
            nonlocal began
            began = True

        with pytest.raises(CallTimeout):
            await hard_timeout(call(), seconds, clock=clock)
        assert not began

    async def test_an_error_leaves_no_reference_cycle(self) -> None:
        class Payload:
            pass

        async def broken() -> None:
            payload = Payload()
            held.append(weakref.ref(payload))
            raise LookupError

        held: list[weakref.ref[Payload]] = []
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(LookupError):
                await hard_timeout(broken(), 1.0)
            await asyncio.sleep(0)
            assert held[0]() is None
        finally:
            gc.enable()

    async def test_a_thousand_timeouts_leave_nothing_behind(self, clock: FakeClock) -> None:
        before = len(asyncio.all_tasks())
        calls = [hard_timeout(asyncio.Event().wait(), 1.0, clock=clock) for _ in range(1_000)]
        results = asyncio.gather(*calls, return_exceptions=True)
        await clock.advance(1.0)
        assert {type(result) for result in await results} == {CallTimeout}
        await clock.advance(0)
        assert (len(ABANDONED), clock.pending, len(asyncio.all_tasks())) == (0, 0, before)


# -- deadlines


def test_a_deadline_counts_down_to_zero(clock: FakeClock) -> None:
    with deadline_scope(2.0, clock=clock) as deadline:
        assert current_deadline() == deadline == Deadline(clock.monotonic() + 2.0)
        clock.move(1.5)
        assert deadline.remaining(clock) == pytest.approx(0.5)
        clock.move(1.5)
        assert deadline.remaining(clock) == 0.0
    assert current_deadline() is None


def test_an_inner_scope_shortens_but_never_extends(clock: FakeClock) -> None:
    with deadline_scope(2.0, clock=clock) as outer:
        with deadline_scope(9.0, clock=clock) as inner:
            assert inner == outer
        with deadline_scope(1.0, clock=clock) as inner:
            assert inner.remaining(clock) == 1.0
        assert current_deadline() == outer


async def test_tasks_inherit_the_deadline_unless_told_otherwise(clock: FakeClock) -> None:
    async def seen() -> Deadline | None:
        return current_deadline()

    with deadline_scope(2.0, clock=clock) as deadline:
        request_task = asyncio.create_task(seen())
        with without_deadline():
            background_task = asyncio.create_task(seen())
        assert current_deadline() == deadline
    assert await request_task == deadline
    assert await background_task is None
