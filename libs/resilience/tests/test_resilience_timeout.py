"""Structured timeouts on a shared timer: exact, and leaving nothing behind."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resilience import CallTimeout, FakeClock, deadline_scope
from resilience.timeout import Timeout


async def start(work: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await work()

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def answer(value: int) -> int:
    return value


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_an_answer_in_time_is_passed_on() -> None:
    timeout = Timeout(1.0, clock=FakeClock())
    assert await timeout.call(answer, 5) == 5
    assert await timeout.call(lambda: 6) == 6
    assert await timeout.call(answer, value=7) == 7


async def test_no_answer_in_time_is_a_timeout_error_at_exactly_the_limit() -> None:
    clock = FakeClock()
    timeout = Timeout(2.0, name="db", clock=clock)
    call = await start(lambda: timeout.call(forever))
    await clock.advance(1.999)
    assert not call.done()
    await clock.advance(0.001)
    with pytest.raises(TimeoutError, match=r"db did not answer within 2 s") as caught:
        await call
    assert isinstance(caught.value, CallTimeout)
    assert not clock.pending


async def test_one_timer_serves_all_calls_and_each_keeps_its_own_limit() -> None:
    clock = FakeClock()
    timeout = Timeout(10.0, clock=clock)
    calls = []
    for _ in range(5):
        calls.append(await start(lambda: timeout.call(forever)))
        await clock.advance(1.0)
    assert clock.pending == 1
    for number, call in enumerate(calls):
        await clock.advance(5.0 if number == 0 else 1.0)
        assert call.done()
        assert sum(other.done() for other in calls) == number + 1
        with pytest.raises(CallTimeout):
            await call


async def test_calls_that_end_in_time_are_forgotten_at_once() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    for _ in range(1_000):
        await timeout.call(answer, 1)
    assert timeout._shared.notes == {}
    assert clock.pending == 0, "a shared timer that waits for nobody does not count"
    await clock.advance(1.0)
    assert timeout._shared.timer is None


async def test_a_late_call_is_not_disturbed_by_the_timer_of_an_earlier_one() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    await timeout.call(answer, 1)
    await clock.advance(0.9)
    call = await start(lambda: timeout.call(forever))
    await clock.advance(0.9)
    assert not call.done()
    await clock.advance(0.1)
    with pytest.raises(CallTimeout):
        await call


async def test_an_error_is_passed_on_unchanged() -> None:
    error = ValueError("mine")

    async def fail() -> None:
        raise error

    timeout = Timeout(1.0, clock=FakeClock())
    with pytest.raises(ValueError) as caught:
        await timeout.call(fail)
    assert caught.value is error
    assert timeout._shared.notes == {}


async def test_the_callers_cancellation_is_no_timeout() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    call = await start(lambda: timeout.call(forever))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert timeout._shared.notes == {}


async def test_when_both_happen_at_once_the_callers_cancellation_wins() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    call = await start(lambda: timeout.call(forever))
    clock.move(1.0)  # over time, but its task has not run yet
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_clean_up_is_awaited() -> None:
    clock = FakeClock()
    cleaned = []

    async def careful() -> None:
        try:
            await forever()
        finally:
            await clock.sleep(0.5)
            cleaned.append(clock.monotonic())

    call = await start(lambda: Timeout(1.0, clock=clock).call(careful))
    await clock.advance(1.0)
    assert not call.done()
    await clock.advance(0.5)
    with pytest.raises(CallTimeout):
        await call
    assert cleaned == [1001.5]


async def test_an_answer_given_in_spite_of_the_cancellation_is_kept_and_the_task_stays_whole() -> None:
    clock = FakeClock()

    async def stubborn() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "late"
        return "never"

    async def caller() -> tuple[str, int]:
        said = await Timeout(1.0, clock=clock).call(stubborn)
        await asyncio.sleep(0)  # a cancellation that was left over would strike here
        task = asyncio.current_task()
        assert task is not None
        return said, task.cancelling()

    call = await start(caller)
    await clock.advance(1.0)
    assert await call == ("late", 0)


async def test_an_error_in_the_clean_up_is_passed_on() -> None:
    clock = FakeClock()

    async def broken() -> None:
        try:
            await forever()
        finally:
            raise KeyError("in the clean-up")

    async def caller() -> int:
        with pytest.raises(KeyError):
            await Timeout(1.0, clock=clock).call(broken)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    call = await start(caller)
    await clock.advance(1.0)
    assert await call == 0


async def test_timeouts_nest_and_the_inner_one_strikes_first() -> None:
    clock = FakeClock()
    outer, inner = Timeout(3.0, name="outer", clock=clock), Timeout(1.0, name="inner", clock=clock)
    call = await start(lambda: outer.call(inner.call, forever))
    await clock.advance(1.0)
    with pytest.raises(CallTimeout, match="inner"):
        await call


async def test_the_same_timeout_can_be_entered_twice_by_one_task() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    call = await start(lambda: timeout.call(timeout.call, forever))
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    assert not clock.pending


async def test_the_callers_deadline_shortens_it() -> None:
    clock = FakeClock()
    timeout = Timeout(5.0, clock=clock)

    async def caller() -> None:
        with deadline_scope(2.0, clock=clock):
            await timeout.call(forever)

    call = await start(caller)
    await clock.advance(2.0)
    with pytest.raises(CallTimeout, match="within 2 s"):
        await call
    assert not clock.pending


async def test_with_no_time_left_nothing_is_called() -> None:
    clock = FakeClock()
    with deadline_scope(1.0, clock=clock):
        clock.move(1.0)
        with pytest.raises(CallTimeout):
            await Timeout(5.0, clock=clock).call(pytest.fail, "called")


async def test_hard_returns_at_the_limit_whatever_the_clean_up_does() -> None:
    clock = FakeClock()
    released = asyncio.Event()

    async def hanging() -> None:
        try:
            await forever()
        finally:
            await released.wait()

    call = await start(lambda: Timeout(1.0, hard=True, clock=clock).call(hanging))
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    released.set()
    assert await Timeout(1.0, hard=True, clock=clock).call(lambda: 3) == 3


async def test_a_block_is_cancelled_at_the_limit() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, name="block", clock=clock)

    async def caller() -> None:
        async with timeout.block():
            await forever()

    call = await start(caller)
    await clock.advance(1.0)
    with pytest.raises(CallTimeout, match="block"):
        await call
    async with timeout.block():
        pass
    assert clock.pending == 0


async def test_a_block_without_time_is_not_entered() -> None:
    clock = FakeClock()
    with deadline_scope(1.0, clock=clock):
        clock.move(2.0)
        with pytest.raises(CallTimeout):
            async with Timeout(1.0, clock=clock).block():
                pytest.fail("entered")


async def test_a_block_passes_errors_and_cancellation_on() -> None:
    clock = FakeClock()

    async def caller() -> None:
        async with Timeout(1.0, clock=clock).block():
            await forever()

    with pytest.raises(KeyError):
        async with Timeout(1.0, clock=clock).block():
            raise KeyError
    call = await start(caller)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert clock.pending == 0


def test_it_may_be_used_by_one_event_loop_after_another_and_by_several_at_once() -> None:
    timeout = Timeout(30.0)
    both = threading.Barrier(2)
    seen: list[int] = []

    async def work() -> None:
        seen.extend([await timeout.call(answer, number) for number in range(200)])

    def run() -> None:
        both.wait(10)
        asyncio.run(work())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    asyncio.run(work())
    assert len(seen) == 600


async def test_it_decorates() -> None:
    timeout = Timeout(1.0, clock=FakeClock())

    @timeout
    async def double(value: int) -> int:
        """Twice."""
        return 2 * value

    assert await double(4) == 8
    assert double.__doc__ == "Twice."


async def test_a_closed_coroutine_leaves_no_note() -> None:
    timeout = Timeout(1.0, clock=FakeClock())
    call: Any = timeout.call(forever)
    call.send(None)
    call.close()
    assert timeout._shared.notes == {}


async def test_a_call_timeout_leaves_no_reference_cycle() -> None:
    clock = FakeClock()
    timeout = Timeout(1.0, clock=clock)
    call = await start(lambda: timeout.call(forever))
    await clock.advance(1.0)
    with pytest.raises(CallTimeout):
        await call
    del call
    gc.collect()
    assert timeout._shared.notes == {}


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_bad_settings_are_named(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Timeout(seconds)
