"""Retry: the schedule as a function, and the loop around it."""

import asyncio
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Events, FakeClock, deadline_scope
from resilience.ambient import TESTING
from resilience.backoff import Backoff
from resilience.classify import ERRORS, Category
from resilience.errors import BulkheadFull, CircuitBreakerOpen, ClientError, RateLimited, TransientError
from resilience.retry import DEFAULT_BACKOFF, GaveUp, Idempotency, Retried, Retry, RetryBudget

T = TypeVar("T")


class Down(Exception):
    pass


def is_down(error: Exception) -> bool:
    return isinstance(error, Down)


class Flaky:
    """Fails `failures` times, then answers."""

    def __init__(self, failures: int, error: Callable[[], BaseException] = Down) -> None:
        self.left = failures
        self.error = error
        self.calls = 0

    async def __call__(self) -> int:
        return self.sync()

    def sync(self) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error()
        return self.calls


class Longest(Random):
    """Draws the longest wait every time."""

    def uniform(self, a: float, b: float) -> float:
        return b


# -- Retry: the forms


def a_retry(clock: FakeClock, **settings: Any) -> Retry:
    """Waits of exactly 1, 2, 4, ... seconds, for `Down`."""
    defaults: dict[str, Any] = {"backoff": Backoff(1.0, cap=100.0, jitter="none"), "retry_on": Down, "clock": clock}
    return Retry("stock", **{**defaults, **settings})


class Recorder:
    """Listens, and gives what it heard."""

    def __init__(self) -> None:
        self.events = Events()
        self.heard: list[Any] = []
        self.events.subscribe(self.heard.append)


async def in_form(form: str, guard: Retry, flaky: Flaky) -> int:
    """What `flaky` gives when it is retried in one of the forms."""
    if form == "sync":
        return guard.call_sync(flaky.sync)
    if form == "block":
        async for attempt in guard.attempts():
            with attempt:
                return await flaky()
    if form == "async block":
        async for attempt in guard.attempts():
            async with attempt:
                return await flaky()
    if form == "sync block":
        for sync_attempt in guard.attempts_sync():
            with sync_attempt:
                return flaky.sync()
    return await guard.call(flaky)


async def finished(clock: FakeClock, call: Awaitable[T], seconds: float = 1_000.0) -> T:
    """The result of `call`, with time moving on until it is there."""
    task = asyncio.ensure_future(call)
    await clock.advance(seconds)
    assert task.done(), "it still waits"
    assert clock.pending == 0
    return task.result()


@pytest.mark.parametrize("form", ["call", "block", "async block"])
async def test_every_async_form_retries_until_it_works(form: str) -> None:
    clock, flaky = FakeClock(), Flaky(2)
    call = asyncio.ensure_future(in_form(form, a_retry(clock), flaky))
    await clock.advance(2.9)
    assert not call.done()
    await clock.advance(0.1)
    assert await call == 3
    assert clock.pending == 0


@pytest.mark.parametrize("form", ["sync", "sync block"])
async def test_every_sync_form_retries_until_it_works(form: str) -> None:
    clock = FakeClock(start=0.0)
    assert await in_form(form, a_retry(clock), Flaky(2)) == 3
    assert clock.monotonic() == 3.0


async def test_a_sync_function_can_be_called_from_async_code() -> None:
    clock = FakeClock()
    assert await finished(clock, a_retry(clock).call(Flaky(2).sync), 3.0) == 3


async def test_it_decorates_async_and_sync_functions() -> None:
    clock, flaky, sync_flaky = FakeClock(), Flaky(2), Flaky(2)

    @a_retry(clock)
    async def fetch(extra: int, *, more: int) -> int:
        assert (extra, more) == (1, 2)
        return await flaky()

    @a_retry(clock)
    def fetch_sync(extra: int, *, more: int) -> int:
        assert (extra, more) == (1, 2)
        return sync_flaky.sync()

    assert fetch.__name__ == "fetch"
    assert await finished(clock, fetch(1, more=2)) == 3
    assert fetch_sync(1, more=2) == 3


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("plain", [True, False])
async def test_arguments_reach_the_function_at_every_attempt(failures: int, plain: bool) -> None:
    clock = FakeClock()
    retry = a_retry(clock) if plain else a_retry(clock, max_elapsed=99.0)
    left: list[Exception] = []

    async def func(*args: int, **kwargs: int) -> tuple[Any, Any]:
        if left:
            raise left.pop()
        return args, kwargs

    async def check(*args: int, **kwargs: int) -> None:
        left[:] = [Down() for _ in range(failures)]
        assert await finished(clock, retry.call(func, *args, **kwargs)) == (args, kwargs)

    await check()
    await check(1, 2)
    await check(a=3)
    await check(1, a=3)


async def test_whatever_can_be_awaited_is_awaited() -> None:
    clock = FakeClock()

    async def value() -> int:
        return 5

    for guard in (a_retry(clock), a_retry(clock, max_elapsed=9.0)):
        assert await guard.call(lambda: asyncio.ensure_future(value())) == 5
        assert await guard.call(partial(value)) == 5
        assert await guard.call(lambda: "plain") == "plain"


async def test_a_call_that_works_at_once_reads_no_clock() -> None:
    class Untouched:
        def __getattr__(self, name: str) -> Any:
            if name == "monotonic":
                return self
            raise AssertionError(name)

        def __call__(self) -> float:
            raise AssertionError("read")

    clock: Any = Untouched()
    assert await a_retry(clock).call(Flaky(0)) == 1


# -- the last error


async def test_the_last_error_is_raised_unchanged_with_its_own_traceback() -> None:
    clock = FakeClock()
    errors = [Down("first"), Down("second"), Down("third")]
    left = list(errors)

    async def guilty() -> None:
        raise left.pop(0)

    with pytest.raises(Down) as caught:
        await finished(clock, a_retry(clock).call(guilty))
    assert caught.value is errors[2]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "guilty"
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert caught.value.__notes__ == ["retry 'stock': gave up after 3 attempts (attempts)"]
    assert all(not hasattr(error, "__notes__") for error in errors[:2])


async def test_the_note_says_one_attempt_and_no_name() -> None:
    with pytest.raises(Down) as caught:
        await Retry(attempts=1, retry_on=Down).call(Flaky(1))
    assert caught.value.__notes__ == ["retry: gave up after 1 attempt (attempts)"]


async def test_an_error_that_was_never_the_retrys_passes_without_a_trace() -> None:
    heard = Recorder()
    with pytest.raises(LookupError) as caught:
        await a_retry(FakeClock(), events=heard.events).call(Flaky(1, LookupError))
    assert not hasattr(caught.value, "__notes__")
    assert heard.heard == []


async def test_another_error_after_a_retry_is_raised_and_noted() -> None:
    clock, left = FakeClock(), [Down(), LookupError()]

    async def func() -> None:
        raise left.pop(0)

    with pytest.raises(LookupError) as caught:
        await finished(clock, a_retry(clock).call(func))
    assert caught.value.__notes__ == ["retry 'stock': gave up after 2 attempts (not retryable)"]
    assert caught.value.__context__ is None


async def test_an_error_object_raised_for_ever_does_not_collect_notes() -> None:
    only = Down()

    async def func() -> None:
        raise only

    retry = Retry(attempts=1, retry_on=Down)
    for _ in range(50):
        with pytest.raises(Down):
            await retry.call(func)
        only.__traceback__ = None
    assert len(only.__notes__) == 10


async def test_an_error_that_takes_no_note_is_raised_all_the_same() -> None:
    class Proud(Down):
        def add_note(self, note: str) -> None:
            raise RuntimeError(note)

    with pytest.raises(Proud):
        await Retry(attempts=1, retry_on=Down).call(Flaky(1, Proud))


async def test_a_thousand_attempts_leave_the_traceback_flat_and_no_error_behind() -> None:
    clock = FakeClock()
    seen: list[weakref.ref[Down]] = []

    async def func() -> None:
        assert sum(ref() is not None for ref in seen) == 0
        error = Down()
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    with pytest.raises(Down) as caught:
        await a_retry(clock, attempts=1_000, backoff=Backoff(0.0)).call(func)
    assert len(seen) == 1_000
    assert len(traceback.extract_tb(caught.value.__traceback__)) == 3


# -- what is retried


async def test_by_default_the_table_decides() -> None:
    clock = FakeClock()
    retry = Retry(backoff=Backoff(0.0), clock=clock)
    for transient in (TransientError, TimeoutError, ConnectionResetError):
        assert await retry.call(Flaky(2, transient)) == 3
    for other in (ClientError, ValueError, RuntimeError, CircuitBreakerOpen):
        flaky = Flaky(1, partial(other, "x"))
        with pytest.raises(other):
            await retry.call(flaky)
        assert flaky.calls == 1


async def test_a_table_of_its_own_can_be_given() -> None:
    table = ERRORS.copy().add(KeyError, Category.TRANSIENT)
    assert await Retry(backoff=Backoff(0.0), table=table).call(Flaky(1, KeyError)) == 2


@pytest.mark.parametrize("retry_on", [Down, (Down,), (KeyError, Down), is_down, lambda _: True])
async def test_which_errors_can_be_given_as_types_or_as_a_predicate(retry_on: Any) -> None:
    assert await Retry(backoff=Backoff(0.0), retry_on=retry_on).call(Flaky(2)) == 3


@pytest.mark.parametrize("retry_on", [KeyError, (), lambda _: False, lambda error: error.missing])
async def test_a_predicate_that_says_no_or_raises_keeps_the_error(retry_on: Any) -> None:
    flaky = Flaky(1)
    with pytest.raises(Down) as caught:
        await Retry(retry_on=retry_on).call(flaky)
    assert flaky.calls == 1
    assert caught.value.__context__ is None


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("form", ["call", "call, not plain", "sync", "block", "sync block"])
async def test_what_is_no_exception_is_never_retried(error: type[BaseException], form: str) -> None:
    flaky = Flaky(1, error)
    retry = Retry(retry_on=lambda _: True, max_elapsed=9.0 if form == "call, not plain" else None)
    with pytest.raises(error):
        await in_form(form, retry, flaky)
    assert flaky.calls == 1


# -- cancellation


@pytest.mark.parametrize("form", ["call", "block", "async block"])
async def test_cancellation_during_back_off_is_immediate(form: str) -> None:
    clock, flaky = FakeClock(), Flaky(9)
    call = asyncio.ensure_future(in_form(form, a_retry(clock), flaky))
    await clock.advance(0.5)
    assert flaky.calls == 1
    call.cancel()
    await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError) as caught:
        await call
    assert caught.value.__context__ is None
    assert clock.pending == 0
    assert flaky.calls == 1


async def test_cancellation_during_an_attempt_reaches_it_and_is_not_retried() -> None:
    begun: list[int] = []

    async def hang() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    call = asyncio.ensure_future(Retry(retry_on=lambda _: True).call(hang))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert begun == [1]


async def test_back_off_of_no_length_still_lets_others_run_and_can_be_cancelled() -> None:
    call = asyncio.ensure_future(Retry(attempts=10**9, backoff=Backoff(0.0), retry_on=Down).call(Flaky(10**9)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


# -- time


async def test_the_wall_clock_set_back_an_hour_changes_nothing() -> None:
    clock, flaky = FakeClock(), Flaky(2)
    with deadline_scope(100.0, clock=clock):
        call = asyncio.ensure_future(a_retry(clock, max_elapsed=50.0).call(flaky))
    await clock.advance(0.5)
    clock.jump_wall(-3_600)
    await clock.advance(0.5)
    assert flaky.calls == 2
    clock.jump_wall(+7_200)
    await clock.advance(2.0)
    assert await call == 3


@pytest.mark.parametrize(("left", "calls"), [(0.0, 1), (1.0, 1), (1.001, 2), (3.0, 2), (3.001, 3), (99.0, 3)])
async def test_it_never_sleeps_past_the_deadline(left: float, calls: int) -> None:
    clock, flaky = FakeClock(start=0.0), Flaky(9)
    with pytest.raises(Down) as caught, deadline_scope(left, clock=clock):
        await finished(clock, a_retry(clock).call(flaky))
    assert flaky.calls == calls
    reason = "attempts" if calls == 3 else "deadline"
    assert caught.value.__notes__ == [f"retry 'stock': gave up after {calls} attempt{'s' * (calls > 1)} ({reason})"]


@given(
    left=st.floats(0, 50), attempts=st.integers(1, 8), base=st.floats(0, 10), elapsed=st.none() | st.floats(0.01, 50)
)
def test_no_attempt_begins_at_or_after_the_deadline_or_the_elapsed_time(
    left: float, attempts: int, base: float, elapsed: float | None
) -> None:
    clock, begun = FakeClock(start=0.0), []

    def func() -> None:
        begun.append(clock.monotonic())
        raise Down

    retry = a_retry(clock, attempts=attempts, backoff=Backoff(base, cap=9.0), max_elapsed=elapsed)
    with pytest.raises(Down), deadline_scope(left, clock=clock):
        retry.call_sync(func)
    assert 1 <= len(begun) <= attempts
    assert all(at < left and (elapsed is None or at < elapsed) for at in begun[1:])
    assert clock.monotonic() == begun[-1]  # and no wait is begun for nothing


@pytest.mark.parametrize(("elapsed", "calls"), [(0.5, 1), (1.0, 1), (1.001, 2), (3.0, 2), (3.001, 3)])
@pytest.mark.parametrize("form", ["call", "sync", "block", "sync block"])
async def test_no_attempt_begins_once_the_elapsed_time_is_over(elapsed: float, calls: int, form: str) -> None:
    clock, flaky = FakeClock(), Flaky(9)
    retry = a_retry(clock, max_elapsed=elapsed)
    with pytest.raises(Down) as caught:
        await finished(clock, in_form(form, retry, flaky))
    assert flaky.calls == calls
    assert ("elapsed" in caught.value.__notes__[0]) == (calls < 3)


async def test_the_time_that_an_attempt_takes_counts_as_elapsed() -> None:
    clock, flaky = FakeClock(), Flaky(9)

    async def slow() -> int:
        await clock.sleep(5.0)
        return await flaky()

    with pytest.raises(Down):
        await finished(clock, a_retry(clock, max_elapsed=6.0).call(slow))
    assert flaky.calls == 1


# -- Retry-After


class Busy(Down):
    def __init__(self, retry_after: object = None, headers: object = None) -> None:
        super().__init__()
        self.retry_after = retry_after
        self.headers = headers


@pytest.mark.parametrize(("asked", "waited"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (7.0, 7.0), (60.0, 60.0)])
async def test_retry_after_makes_the_wait_longer_and_never_shorter(asked: float | None, waited: float) -> None:
    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, events=heard.events)
    assert await finished(clock, retry.call(Flaky(1, partial(Busy, asked)))) == 2
    assert heard.heard == [Retried("stock", 1, waited, "Busy")]


async def test_retry_after_as_a_date_is_honoured() -> None:
    clock = FakeClock(wall=784_111_747.0)  # 08:49:07 on the day of RFC 9110's example
    headers = {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}
    begun = clock.monotonic()
    assert a_retry(clock).call_sync(Flaky(1, partial(Busy, headers=headers)).sync) == 2
    assert clock.monotonic() - begun == 30.0


async def test_who_asks_for_more_than_the_limit_is_not_retried() -> None:
    flaky = Flaky(1, partial(Busy, 60.001))
    with pytest.raises(Busy) as caught:
        await a_retry(FakeClock()).call(flaky)
    assert caught.value.__notes__ == ["retry 'stock': gave up after 1 attempt (retry-after)"]
    assert flaky.calls == 1


async def test_the_limit_of_retry_after_can_be_set() -> None:
    clock = FakeClock()
    with pytest.raises(Busy):
        await a_retry(clock, max_retry_after=2.0).call(Flaky(1, partial(Busy, 2.5)))
    with pytest.raises(Busy):
        await a_retry(clock, max_retry_after=0).call(Flaky(1, partial(Busy, 0.001)))
    assert await finished(clock, a_retry(clock, max_retry_after=300.0).call(Flaky(1, partial(Busy, 300.0)))) == 2


async def test_retry_after_beyond_the_deadline_is_given_up_at_once() -> None:
    clock = FakeClock()
    with pytest.raises(Busy) as caught, deadline_scope(5.0, clock=clock):
        await a_retry(clock).call(Flaky(1, partial(Busy, 7.0)))
    assert "(deadline)" in caught.value.__notes__[0]
    assert clock.pending == 0


async def test_retry_after_can_be_ignored() -> None:
    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, honour_retry_after=False, events=heard.events)
    assert await finished(clock, retry.call(Flaky(1, partial(Busy, 500.0)))) == 2
    assert heard.heard[0].wait == 1.0


async def test_a_long_retry_after_does_not_feed_the_next_decorrelated_wait() -> None:
    clock, heard, left = FakeClock(), Recorder(), [Busy(50.0), Busy()]

    async def func() -> int:
        if left:
            raise left.pop(0)
        return 1

    backoff = Backoff(1.0, cap=100.0, jitter="decorrelated")
    retry = a_retry(clock, backoff=backoff, random=Longest(), events=heard.events)
    assert await finished(clock, retry.call(func)) == 1
    assert [event.wait for event in heard.heard] == [50.0, 9.0]


# -- idempotency


def test_the_kinds_of_operations_can_be_written_in_settings() -> None:
    assert list(Idempotency) == ["safe", "idempotent", "not-idempotent"]


def test_who_does_not_say_otherwise_retries_an_idempotent_operation() -> None:
    assert Retry().idempotency is Idempotency.IDEMPOTENT


@pytest.mark.parametrize("kind", [Idempotency.SAFE, Idempotency.IDEMPOTENT])
async def test_what_may_happen_twice_is_retried_after_any_transient_error(kind: Idempotency) -> None:
    retry = Retry(backoff=Backoff(0.0), idempotency=kind)
    assert await retry.call(Flaky(2, TimeoutError)) == 3


async def test_what_must_not_happen_twice_is_not_retried_when_it_may_have_happened() -> None:
    flaky = Flaky(1, TimeoutError)
    with pytest.raises(TimeoutError) as caught:
        await Retry("order", idempotency=Idempotency.NOT_IDEMPOTENT).call(flaky)
    assert flaky.calls == 1
    assert caught.value.__notes__ == ["retry 'order': gave up after 1 attempt (not idempotent)"]


class NotSent(TransientError):
    not_sent = True


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError, partial(BulkheadFull, "x"), partial(RateLimited, "x", 0.0), NotSent]
)
async def test_what_must_not_happen_twice_is_retried_when_it_never_began(error: Any) -> None:
    retry = Retry(backoff=Backoff(0.0), idempotency=Idempotency.NOT_IDEMPOTENT)
    assert await retry.call(Flaky(2, error)) == 3


async def test_a_refusal_is_still_a_matter_of_what_is_retried() -> None:
    for kind in Idempotency:
        with pytest.raises(CircuitBreakerOpen):
            await Retry(idempotency=kind).call(Flaky(1, partial(CircuitBreakerOpen, "x")))
    waiting = ERRORS.copy().add(CircuitBreakerOpen, Category.TRANSIENT)
    clock = FakeClock()
    retry = Retry(idempotency=Idempotency.NOT_IDEMPOTENT, table=waiting, clock=clock)
    assert await finished(clock, retry.call(Flaky(1, partial(CircuitBreakerOpen, "x", 30.0)))) == 2


async def test_the_same_retry_serves_operations_of_another_kind() -> None:
    budget = RetryBudget(min_per_second=1, ttl=1.0, ratio=0)
    retry = Retry("x", attempts=7, backoff=Backoff(0.0), budget=budget)
    unsafe = retry.for_operation(Idempotency.NOT_IDEMPOTENT)
    assert (retry.idempotency, unsafe.idempotency) == (Idempotency.IDEMPOTENT, Idempotency.NOT_IDEMPOTENT)
    assert (type(unsafe), unsafe.name, unsafe.max_attempts, unsafe.budget) == (Retry, "x", 7, budget)
    with pytest.raises(TimeoutError):
        await unsafe.call(Flaky(1, TimeoutError))
    assert await retry.call(Flaky(1, TimeoutError)) == 2
    assert (budget.deposited, budget.withdrawn) == (2, 1)
    with pytest.raises(ValueError, match="often"):
        retry.for_operation("often")  # type: ignore[arg-type]


# -- the budget


async def test_without_budget_left_the_error_is_raised() -> None:
    clock = FakeClock()
    budget = RetryBudget(ratio=0, min_per_second=0.1, ttl=10.0, clock=clock)
    retry = a_retry(clock, budget=budget)
    flaky = Flaky(9)
    with pytest.raises(Down) as caught:
        await finished(clock, retry.call(flaky), 1.0)
    assert flaky.calls == 2
    assert caught.value.__notes__ == ["retry 'stock': gave up after 2 attempts (budget)"]
    assert (budget.deposited, budget.withdrawn, budget.refused) == (1, 1, 1)


async def test_every_call_pays_in_once_in_every_form() -> None:
    budget = RetryBudget()
    retry = Retry(budget=budget, backoff=Backoff(0.0), retry_on=Down)
    await retry.call(Flaky(2))
    retry.call_sync(Flaky(2).sync)
    async for attempt in retry.attempts():
        with attempt:
            pass
    for sync_attempt in retry.attempts_sync():
        with sync_attempt:
            pass
    assert (budget.deposited, budget.withdrawn) == (4, 4)


async def test_what_is_not_retried_for_another_reason_takes_nothing_from_the_budget() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    retry = a_retry(clock, budget=budget, attempts=2, max_elapsed=50.0)
    with deadline_scope(0.5, clock=clock), pytest.raises(Down):
        await retry.call(Flaky(9))
    for error in (LookupError, partial(Busy, 99.0), partial(Busy, 55.0)):
        with pytest.raises((LookupError, Busy)):
            await retry.call(Flaky(9, error))
    assert (budget.withdrawn, budget.refused) == (0, 0)


async def test_an_outage_is_not_amplified_beyond_the_budget() -> None:
    clock, flaky = FakeClock(), Flaky(10**9)
    budget = RetryBudget(ratio=0.1, min_per_second=0, clock=clock)
    retry = Retry(attempts=5, backoff=Backoff(0.0), retry_on=Down, budget=budget, clock=clock)
    for _ in range(1_000):
        with pytest.raises(Down):
            await retry.call(flaky)
    assert flaky.calls == 1_100


# -- results


class Pending:
    """Gives 0, 1, 2, ..."""

    def __init__(self) -> None:
        self.next = 0

    async def __call__(self) -> int:
        return self.sync()

    def sync(self) -> int:
        self.next += 1
        return self.next - 1


async def test_an_unwanted_result_is_tried_again() -> None:
    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, retry_result=lambda result: result < 2, events=heard.events)
    assert await finished(clock, retry.call(Pending())) == 2
    assert heard.heard == [Retried("stock", 1, 1.0, None), Retried("stock", 2, 2.0, None)]
    assert retry.call_sync(Pending().sync) == 2


async def test_when_attempts_run_out_the_last_result_is_returned() -> None:
    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, retry_result=lambda result: True, attempts=2, events=heard.events)
    assert await finished(clock, retry.call(Pending())) == 1
    assert heard.heard[-1] == GaveUp("stock", 2, "attempts", None)
    assert retry.call_sync(Pending().sync) == 1


async def test_results_and_errors_share_the_attempts() -> None:
    clock, left = FakeClock(), [Down(), 0, Down(), 0]

    def func() -> object:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    retry = a_retry(clock, retry_result=lambda result: result == 0, attempts=4)
    assert await finished(clock, retry.call(func)) == 0
    assert left == []


async def test_a_result_predicate_that_raises_does_not_lose_the_result() -> None:
    retry = a_retry(FakeClock(), retry_result=lambda result: result.missing)
    assert await retry.call(Pending()) == 0
    assert retry.call_sync(Pending().sync) == 0


async def test_the_retry_after_of_an_unwanted_answer_is_honoured() -> None:
    class Answer:
        headers: ClassVar = {"Retry-After": "30"}

    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, retry_result=lambda _: True, attempts=2, events=heard.events)
    answer = await finished(clock, retry.call(Answer))
    assert isinstance(answer, Answer)
    assert heard.heard[0].wait == 30.0
    impatient = a_retry(clock, retry_result=lambda _: True, max_retry_after=29.0, events=heard.events)
    assert isinstance(impatient.call_sync(Answer), Answer)
    assert heard.heard[-1] == GaveUp("stock", 1, "retry-after", None)


async def test_an_unwanted_result_shows_that_the_operation_happened() -> None:
    retry = a_retry(FakeClock(), retry_result=lambda _: True, idempotency=Idempotency.NOT_IDEMPOTENT)
    assert await retry.call(Pending()) == 0


# -- events


async def test_events_tell_every_wait_and_the_end() -> None:
    clock, heard = FakeClock(), Recorder()
    with pytest.raises(Down):
        await finished(clock, a_retry(clock, events=heard.events).call(Flaky(9)))
    assert heard.heard == [
        Retried("stock", 1, 1.0, "Down"),
        Retried("stock", 2, 2.0, "Down"),
        GaveUp("stock", 3, "attempts", "Down"),
    ]


async def test_a_call_that_works_at_once_is_no_event() -> None:
    heard = Recorder()
    await a_retry(FakeClock(), events=heard.events).call(Flaky(0))
    assert heard.heard == []


async def test_a_listener_that_raises_or_retries_itself_changes_nothing() -> None:
    clock, events = FakeClock(), Events()
    inner = Retry("inner", backoff=Backoff(0.0), retry_on=Down, clock=clock)
    calls: list[int] = []

    def listener(event: Any) -> None:
        calls.append(inner.call_sync(Flaky(1).sync))
        raise RuntimeError

    events.subscribe(listener)
    assert await finished(clock, a_retry(clock, events=events).call(Flaky(2))) == 3
    assert calls == [2, 2]
    assert events.listener_errors == 2


# -- blocks


async def test_a_block_knows_its_attempt() -> None:
    clock, numbers = FakeClock(), []

    async def run() -> None:
        async for attempt in a_retry(clock).attempts():
            async with attempt as same:
                assert same is attempt
                numbers.append(attempt.number)
                if attempt.number < 3:
                    raise Down

    await finished(clock, run())
    assert numbers == [1, 2, 3]


def test_a_block_that_works_at_once_runs_once() -> None:
    attempts = a_retry(FakeClock()).attempts_sync()
    assert attempts.number == 1
    assert [attempt.__enter__().__exit__(None, None, None) for attempt in attempts] == [False]
    assert list(attempts) == []


async def test_a_block_raises_the_last_error_unchanged() -> None:
    clock, errors = FakeClock(), [Down(), Down()]
    left = list(errors)

    async def run() -> None:
        async for attempt in a_retry(clock, attempts=2).attempts():
            with attempt:
                raise left.pop(0)

    with pytest.raises(Down) as caught:
        await finished(clock, run())
    assert caught.value is errors[1]
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == ["retry 'stock': gave up after 2 attempts (attempts)"]


def test_leaving_a_block_early_ends_it() -> None:
    attempts = a_retry(FakeClock()).attempts_sync()
    for attempt in attempts:
        with attempt:
            break
    assert list(attempts) == []


async def test_a_loop_without_its_with_fails_instead_of_running_for_ever() -> None:
    with pytest.raises(RuntimeError, match="with attempt"):
        for _ in a_retry(FakeClock()).attempts_sync():
            pass
    with pytest.raises(RuntimeError, match="with attempt"):
        async for _attempt in a_retry(FakeClock()).attempts():
            pass


def test_an_attempt_entered_outside_its_loop_decides_nothing() -> None:
    attempts = a_retry(FakeClock()).attempts_sync()
    with pytest.raises(Down), attempts:
        raise Down
    assert list(attempts) == []


# -- under test


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TESTING, "backoff", False)


@pytest.mark.usefixtures("no_backoff")
async def test_under_test_nothing_waits() -> None:
    clock, heard = FakeClock(), Recorder()
    retry = a_retry(clock, attempts=50, events=heard.events)
    begun = clock.monotonic()
    assert await retry.call(Flaky(20)) == 21
    assert await retry.call(Flaky(1, partial(Busy, 30.0))) == 2
    assert retry.call_sync(Flaky(20).sync) == 21
    async for attempt in retry.attempts():
        with attempt:
            if attempt.number < 9:
                raise Down
    assert clock.monotonic() == begun
    assert {event.wait for event in heard.heard} == {0.0}


@pytest.mark.usefixtures("no_backoff")
async def test_under_test_a_deadline_and_a_limit_still_hold() -> None:
    clock = FakeClock()
    with deadline_scope(0.0, clock=clock), pytest.raises(Down):
        await a_retry(clock).call(Flaky(1))
    with pytest.raises(Busy):
        await a_retry(clock).call(Flaky(1, partial(Busy, 61.0)))


@pytest.mark.parametrize(("cap", "calls"), [(None, 5), (1, 1), (2, 2), (9, 5), (0, 1)])
async def test_under_test_attempts_can_be_capped(cap: int | None, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TESTING, "attempts", cap)
    flaky = Flaky(9)
    with pytest.raises(Down):
        await Retry(attempts=5, backoff=Backoff(0.0), retry_on=Down).call(flaky)
    assert flaky.calls == calls


# -- a loop of one's own


def test_a_loop_of_ones_own_is_driven_by_next_wait() -> None:
    retry = a_retry(FakeClock(), attempts=4, max_elapsed=20.0)
    run = retry.begin(100.0)
    assert run.attempt == 1
    assert retry.next_wait(run, Down(), 101.0) == 1.0
    assert (run.attempt, run.reason) == (2, None)
    assert retry.next_wait(run, Down(), 102.0, 200.0) == 2.0
    assert (run.attempt, run.reason) == (3, None)
    error = Down()
    assert retry.next_wait(run, error, 116.0, 200.0) is None
    assert (run.attempt, run.reason) == (3, "elapsed")
    assert error.__notes__ == ["retry 'stock': gave up after 3 attempts (elapsed)"]


@pytest.mark.parametrize(
    ("settings", "error", "deadline_at", "reason"),
    [
        ({}, LookupError(), None, "not retryable"),
        ({"attempts": 1}, Down(), None, "attempts"),
        ({"idempotency": Idempotency.NOT_IDEMPOTENT}, Down(), None, "not idempotent"),
        ({}, Busy(61), None, "retry-after"),
        ({}, Down(), 101.0, "deadline"),
        ({"max_elapsed": 1.0}, Down(), None, "elapsed"),
        ({"budget": RetryBudget(ratio=0, min_per_second=0)}, Down(), None, "budget"),
        ({"attempts": 1, "max_elapsed": 1.0}, LookupError(), 0.0, "not retryable"),
        ({"max_elapsed": 1.0}, Down(), 101.0, "deadline"),
    ],
)
def test_why_it_gave_up_is_told(
    settings: dict[str, Any], error: Exception, deadline_at: float | None, reason: str
) -> None:
    retry = a_retry(FakeClock(), **settings)
    run = retry.begin(100.0)
    assert retry.next_wait(run, error, 100.0, deadline_at) is None
    assert (run.attempt, run.reason) == (1, reason)


def test_a_run_begins_with_nothing_behind_it() -> None:
    run = a_retry(FakeClock()).begin()
    assert (run.started, run.attempt, run.previous, run.reason) == (0.0, 1, 0.0, None)


def test_a_reason_to_give_up_does_not_stick() -> None:
    retry = a_retry(FakeClock())
    run = retry.begin()
    assert retry.next_wait(run, Down(), 0.0, 1.0) is None
    assert retry.next_wait(run, Down(), 0.0, 1.1) == 1.0
    assert run.reason is None


# -- many at once


def test_one_retry_serves_eight_threads() -> None:
    retry = Retry(backoff=Backoff(0.0), retry_on=Down)
    results: list[int] = []

    def work() -> None:
        results.extend(retry.call_sync(Flaky(n % 3).sync) for n in range(300))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == sorted([1, 2, 3] * 800)


async def test_one_retry_serves_many_tasks() -> None:
    clock = FakeClock()
    retry = a_retry(clock)
    calls = asyncio.gather(*(retry.call(Flaky(n % 3)) for n in range(300)))
    assert await finished(clock, calls) == [1, 2, 3] * 100


def test_jitter_comes_from_the_source_given() -> None:
    def waits(seed: int) -> list[Any]:
        heard = Recorder()
        retry = Retry(attempts=9, random=Random(seed), retry_on=Down, clock=FakeClock(), events=heard.events)
        retry.call_sync(Flaky(8).sync)
        return heard.heard

    assert waits(1) == waits(1) != waits(2)


# -- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("attempts", value) for value in (0, -1)),
        *(("max_elapsed", value) for value in (0, -1, float("nan"))),
        *(("max_retry_after", value) for value in (-1, float("nan"), float("inf"))),
        *(("retry_on", value) for value in (KeyboardInterrupt, (Down, BaseException), (Down, 3), 3, "Down")),
    ],
)
def test_a_bad_setting_fails_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Retry(**{name: value})


def test_an_unknown_idempotency_fails() -> None:
    with pytest.raises(ValueError, match="often"):
        Retry(idempotency="often")  # type: ignore[arg-type]
    assert Retry(idempotency="safe").idempotency is Idempotency.SAFE  # type: ignore[arg-type]


def test_the_settings_can_be_read() -> None:
    retry = Retry()
    assert (retry.name, retry.max_attempts, retry.max_elapsed, retry.budget) == ("", 3, None, None)
    assert (retry.backoff, retry.max_retry_after) == (DEFAULT_BACKOFF, 60.0)
