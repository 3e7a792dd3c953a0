"""The rate limiter: never more than burst + rate x time, by any clock, thread or cancellation."""

import asyncio
import dis
import random
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import limiter as module
from resilience.clock import SYSTEM_CLOCK, FakeClock
from resilience.deadline import deadline_scope
from resilience.errors import RateLimited
from resilience.events import Event, Events
from resilience.gcra import Quota, gcra, rate_limit_headers
from resilience.limiter import Decision, KeyedRateLimiter, RateLimiter, RateLimitRejected


@pytest.fixture(params=[True, False], ids=["gil", "no-gil"])
def _either_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GIL", request.param)


either_build = pytest.mark.usefixtures("_either_build")


def taken(limiter: RateLimiter, tries: int = 50) -> int:
    return sum(bool(limiter.try_acquire()) for _ in range(tries))


# -- the rule


def fractions(most: int) -> st.SearchStrategy[Fraction]:
    return st.integers(0, most * 64).map(lambda number: Fraction(number, 64))


@given(
    st.integers(1, 8),
    fractions(4).map(lambda value: value + Fraction(1, 64)),
    st.lists(st.tuples(fractions(6), st.integers(1, 10)), max_size=40),
)
def test_it_is_a_token_bucket(burst: int, interval: Fraction, calls: list[tuple[Fraction, int]]) -> None:
    now = tat = Fraction(0)
    tokens, filled_at = Fraction(burst), now
    for pause, cost in calls:
        now += pause
        tokens = min(Fraction(burst), tokens + (now - filled_at) / interval)
        filled_at = now
        decision, tat = gcra(tat, now, interval, (burst - 1) * interval, cost)  # type: ignore[arg-type, assignment]
        assert decision.allowed is (tokens >= cost)
        if not decision.allowed:
            assert decision.retry_after == (None if cost > burst else (cost - tokens) * interval)
        tokens -= cost if decision.allowed else 0
        assert decision.free == tokens
        assert decision.reset_after == (burst - tokens) * interval == max(tat - now, Fraction(0))


pauses = st.lists(st.floats(0, 3, allow_nan=False), min_size=1, max_size=60)


@given(st.floats(0.1, 50), st.floats(0.1, 10), st.integers(1, 7), pauses)
def test_in_no_stretch_of_time_more_than_burst_and_rate(
    rate: float, per: float, burst: int, moments: list[float]
) -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", rate, per, burst, clock=clock)
    allowed: list[float] = []
    for pause in moments:
        clock.move(pause)
        allowed += [clock.monotonic() for _ in range(3) if limiter.try_acquire()]
    for first, start in enumerate(allowed):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + (allowed[last] - start) * rate / per + 1e-6


@given(st.floats(0.05, 1000), st.floats(0.1, 100), st.integers(1, 5), st.integers(1, 80))
def test_whoever_waits_as_long_as_told_is_let_in(rate: float, per: float, burst: int, rounds: int) -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", rate, per, burst, clock=clock)
    for _ in range(rounds):
        decision = limiter.try_acquire()
        if not decision:
            assert decision.retry_after is not None
            clock.move(decision.retry_after)
            decision = limiter.try_acquire()
        assert decision.allowed


@given(st.floats(0.1, 20), st.integers(1, 6), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 7)), max_size=40))
def test_the_limiter_follows_the_rule(rate: float, burst: int, calls: list[tuple[float, int]]) -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", rate, burst=burst, clock=clock)
    quota, tat = limiter.quota, clock.monotonic()
    for pause, cost in calls:
        clock.move(pause)
        said = limiter.try_acquire(cost)
        expected, tat = gcra(tat, clock.monotonic(), quota.interval, quota.tolerance, cost, quota.slack)
        assert said == pytest.approx(expected, abs=1e-6)


@either_build
def test_a_decision_says_what_is_left() -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", 10, burst=4, clock=clock)
    first = limiter.try_acquire()
    assert first == pytest.approx((True, 0.0, 3, 0.1, False), abs=1e-6)
    assert limiter.try_acquire(2).remaining == 1
    refused = limiter.try_acquire(3)
    assert not refused
    assert refused.retry_after == pytest.approx(0.2)
    assert refused.remaining == 1
    assert refused.reset_after == pytest.approx(0.3)
    clock.move(0.25)
    assert limiter.try_acquire().remaining == 2
    clock.move(60)
    assert limiter.try_acquire() == first


@either_build
def test_the_burst_is_the_rate_unless_given() -> None:
    assert taken(RateLimiter("api", 7, clock=FakeClock())) == 7
    assert taken(RateLimiter("api", 7, burst=2, clock=FakeClock())) == 2
    assert taken(RateLimiter("api", 0.2, clock=FakeClock())) == 1


@either_build
def test_more_than_the_burst_is_never_allowed_and_takes_nothing() -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", 10, burst=4, max_wait=60, clock=clock)
    decision = limiter.try_acquire(5)
    assert decision == Decision(False, None, decision.free, 0.0)
    assert decision.remaining == 4
    with pytest.raises(RateLimited) as caught:
        limiter.acquire(4.5)
    assert caught.value.retry_after is None
    with pytest.raises(RateLimited, match="never"):
        limiter.wait_sync(5)
    assert taken(limiter) == 4


@pytest.mark.parametrize("cost", [0, -1, float("nan")])
async def test_a_cost_is_positive(cost: float) -> None:
    limiter = RateLimiter("api", 10, clock=FakeClock())
    keyed = KeyedRateLimiter("api", 10, clock=FakeClock())
    calls: list[Callable[[], object]] = [
        lambda: limiter.try_acquire(cost),
        lambda: limiter.acquire(cost),
        lambda: limiter.wait_sync(cost),
        lambda: keyed.try_acquire("a", cost),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="cost"):
            call()
    with pytest.raises(ValueError, match="cost"):
        await limiter.wait(cost)


def test_a_rejection_says_when_to_come_again() -> None:
    limiter = RateLimiter("api", 4, burst=1, clock=FakeClock())
    limiter.acquire()
    with pytest.raises(RateLimited) as caught:
        limiter.acquire()
    assert caught.value.name == "api"
    assert caught.value.retry_after == pytest.approx(0.25)


def test_the_wall_clock_changes_nothing() -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", 1, burst=2, clock=clock)
    assert taken(limiter) == 2
    for jump in (86_400.0, -200_000.0):
        clock.jump_wall(jump)
        assert taken(limiter) == 0
    clock.move(1)
    assert taken(limiter) == 1


def test_a_very_high_rate_stays_exact_after_a_long_uptime() -> None:
    clock = FakeClock(start=1e7)
    limiter = RateLimiter("api", 1e6, burst=100, clock=clock)
    total = taken(limiter, 1_000)
    for _ in range(2_000):
        clock.move(1e-5)
        total += taken(limiter, 20)
    elapsed = clock.monotonic() - 1e7
    assert total == pytest.approx(100 + elapsed * 1e6, abs=2)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"rate": 1, "per": 0}, "per"),
        ({"rate": 1, "per": float("inf")}, "per"),
        ({"rate": 1e300, "per": 1e-300}, "rate and per"),
        ({"rate": 1, "burst": 0}, "burst"),
        ({"rate": 1, "burst": 10**400}, "burst"),
        ({"rate": 1, "max_wait": -1}, "max_wait"),
        ({"rate": 1, "max_wait": float("inf")}, "max_wait"),
    ],
)
def test_a_bad_setting_fails_by_name(settings: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RateLimiter("api", **settings)  # type: ignore[arg-type]


# -- events


def test_every_rejection_is_told_and_a_listener_that_raises_changes_nothing() -> None:
    told: list[Event] = []
    events = Events()

    def listener(event: Event) -> None:
        told.append(event)
        raise RuntimeError

    limiter = RateLimiter("api", 4, burst=1, clock=FakeClock(), events=events)
    keyed = KeyedRateLimiter("user", 4, burst=1, clock=FakeClock(), events=events)
    assert not limiter.try_acquire(2)
    events.subscribe(listener)
    assert limiter.try_acquire()
    assert not limiter.try_acquire()
    with pytest.raises(RateLimited):
        limiter.wait_sync()
    assert keyed.try_acquire("a")
    assert not keyed.try_acquire("a", 2)
    assert told == [
        RateLimitRejected("api", None, 0.25),
        RateLimitRejected("api", None, 0.25),
        RateLimitRejected("user", "a", None),
    ]
    assert events.listener_errors == 3


# -- waiting


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def busy(clock: FakeClock) -> RateLimiter:
    """One call a second, one at once, none left; up to 10 s of waiting."""
    limiter = RateLimiter("api", 1, burst=1, max_wait=10, clock=clock)
    limiter.acquire()
    return limiter


@either_build
async def test_first_come_first_served_and_nobody_overtakes(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=1, max_wait=10, clock=clock)
    limiter.acquire()
    start, order = clock.monotonic(), []

    async def caller(number: int) -> None:
        waited = await limiter.wait()
        order.append((number, round(clock.monotonic() - start, 6), round(waited, 6)))

    tasks = [asyncio.create_task(caller(number)) for number in range(4)]
    for _ in range(10):
        await clock.advance(0.5)
        assert not limiter.try_acquire() or len(order) == 4
    await asyncio.gather(*tasks)
    assert order == [(number, number + 1.0, number + 1.0) for number in range(4)]
    assert clock.pending == 0


@either_build
async def test_nobody_waits_longer_than_max_wait(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=1, max_wait=2, clock=clock)
    limiter.acquire()
    waiting = [asyncio.create_task(limiter.wait()) for _ in range(2)]
    await clock.advance(0)
    with pytest.raises(RateLimited) as caught:
        await limiter.wait()
    assert caught.value.retry_after == pytest.approx(3)
    await clock.advance(1)  # it took nothing: the next turn is now two seconds away
    waiting.append(asyncio.create_task(limiter.wait()))
    await clock.advance(2)
    assert [round(task.result()) for task in waiting] == [1, 2, 2]


@either_build
async def test_nobody_waits_past_the_deadline(clock: FakeClock) -> None:
    busy = RateLimiter("api", 1, burst=1, max_wait=10, clock=clock)
    busy.acquire()
    with deadline_scope(0.9, clock=clock), pytest.raises(RateLimited):
        await busy.wait()
    with deadline_scope(1.1, clock=clock):
        waiting = asyncio.create_task(busy.wait())
        await clock.advance(1.0)
        assert await waiting == pytest.approx(1)
    clock.move(5)
    with deadline_scope(0.0, clock=clock):
        clock.move(1)  # it has passed; but nobody has to wait
        assert await busy.wait() == 0.0
        with pytest.raises(RateLimited):
            await busy.wait()


async def cancelled(*tasks: "asyncio.Task[float]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1)
    assert all(task.cancelled() for task in tasks)


@either_build
async def test_a_cancelled_turn_is_given_back_if_it_is_the_latest(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=1, max_wait=10, clock=clock)
    limiter.acquire()
    one, two, three = (asyncio.create_task(limiter.wait()) for _ in range(3))
    await clock.advance(0)
    await cancelled(three)
    await cancelled(two)
    four = asyncio.create_task(limiter.wait())
    await clock.advance(2)
    assert [one.result(), four.result()] == pytest.approx([1, 2])
    assert clock.pending == 0


async def test_a_cancelled_turn_with_others_behind_it_stays_unused(clock: FakeClock, busy: RateLimiter) -> None:
    one, two = (asyncio.create_task(busy.wait()) for _ in range(2))
    await clock.advance(0)
    await cancelled(one)
    three = asyncio.create_task(busy.wait())
    await clock.advance(1)
    assert not two.done()
    await clock.advance(2)
    assert [two.result(), three.result()] == pytest.approx([2, 3])


async def test_a_turn_that_is_due_is_not_given_back(clock: FakeClock, busy: RateLimiter) -> None:
    waiting = asyncio.create_task(busy.wait())
    await clock.advance(0)
    clock.move(1.0)  # due, but the task has not run yet
    await cancelled(waiting)
    assert not busy.try_acquire()
    clock.move(1.0)
    assert busy.try_acquire()


async def test_whatever_is_cancelled_the_limit_holds() -> None:
    dice = random.Random(7)
    clock = FakeClock()
    limiter = RateLimiter("api", 2, burst=2, max_wait=5, clock=clock)
    passed: list[float] = []

    async def caller() -> None:
        await limiter.wait(dice.choice([1, 1, 2]))
        passed.append(clock.monotonic())

    tasks: list[asyncio.Task[None]] = []
    for _ in range(200):
        tasks.append(asyncio.create_task(caller()))
        await clock.advance(dice.choice([0.0, 0.1, 0.5, 2.0]))
        if dice.random() < 0.4:
            dice.choice(tasks).cancel()
    await clock.advance(10)
    await asyncio.wait(tasks, timeout=5)
    assert {type(task.exception()) for task in tasks if not task.cancelled()} == {type(None), RateLimited}
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= 2 + (passed[last] - start) * 2 + 1e-6
    assert clock.pending == 0
    assert taken(limiter) == 2


def test_waiting_without_an_event_loop_blocks(clock: FakeClock, busy: RateLimiter) -> None:
    before = clock.monotonic()
    assert busy.wait_sync() == pytest.approx(1)
    assert clock.monotonic() - before == pytest.approx(1)
    clock.move(3)
    assert busy.wait_sync() == 0.0


def test_an_interrupted_wait_gives_its_turn_back(busy: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeClock, "block", lambda _, seconds: interrupt(seconds))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            busy.wait_sync()
    decision = busy.try_acquire()
    assert decision.retry_after == pytest.approx(1)


# -- forms


async def answer(value: int) -> int:
    return value


def answer_sync(value: int) -> int:
    return value


@either_build
async def test_every_form_takes_one(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=7, clock=clock)
    decorated, decorated_sync = limiter(answer), limiter(answer_sync)
    assert await limiter.call(answer, 1) == 1
    assert await limiter.call(answer_sync, 2) == 2
    assert limiter.call_sync(answer_sync, 3) == 3
    assert await decorated(4) == 4
    assert decorated_sync(5) == 5
    async with limiter:
        pass
    with limiter:
        pass
    assert not limiter.try_acquire()
    for form in (lambda: limiter.call_sync(answer_sync, 1), lambda: decorated_sync(1), limiter.__enter__):
        with pytest.raises(RateLimited):
            form()
    for made in (limiter.call(answer, 1), decorated(1), limiter.__aenter__()):
        with pytest.raises(RateLimited):
            await made


@either_build
async def test_a_call_waits_for_its_turn(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=1, max_wait=1.5, clock=clock)

    async def block() -> int:
        async with limiter:
            return 8

    calls = [asyncio.create_task(limiter.call(answer, 7)), asyncio.create_task(block())]
    await clock.advance(0)
    assert [task.done() for task in calls] == [True, False]
    await clock.advance(1)
    assert [task.result() for task in calls] == [7, 8]


async def test_errors_pass_through_and_a_failed_call_has_been_taken(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, burst=2, clock=clock)

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await limiter.call(fail)
    with pytest.raises(KeyError):
        async with limiter:
            raise KeyError
    assert not limiter.try_acquire()


# -- threads


@pytest.mark.parametrize("name", ["try_acquire", "_took", "_enter", "_give_back"])
def test_no_thread_can_come_between_reading_the_clock_and_the_last_assignment(name: str) -> None:
    """CPython with its global lock switches threads at calls and at jumps backwards."""
    steps = [(step.opname, step.argval) for step in dis.get_instructions(getattr(RateLimiter, name))]
    reading = next(at for at, (_, value) in enumerate(steps) if value == "_monotonic")
    begin = next(at for at, (code, _) in enumerate(steps) if at > reading and code == "CALL")
    end = max(at for at, (code, value) in enumerate(steps) if code == "STORE_ATTR" and value in {"_at", "_last"})
    between = {code for code, _ in steps[begin + 1 : end]}
    assert {"_level"} <= {value for code, value in steps[begin:] if code == "STORE_ATTR"}
    assert not [code for code in between if "CALL" in code or code in {"JUMP_BACKWARD", "FOR_ITER", "BEFORE_WITH"}]


def test_without_the_global_lock_ours_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GIL", False)
    clock = FakeClock()
    limiter = RateLimiter("api", 1, burst=3, clock=clock)
    held: list[bool] = []
    limiter._monotonic = lambda: held.append(limiter._lock.locked()) or clock.monotonic()  # type: ignore[func-returns-value]
    assert taken(limiter, 5) == 3
    assert held.count(True) == 5
    assert not limiter._lock.locked()


@pytest.fixture
def _switching() -> Iterator[None]:
    """Threads switch as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[], object], threads: int = 8) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(threads, timeout=20)

    def run() -> None:
        together.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    assert errors == []
    assert not any(worker.is_alive() for worker in workers)


@either_build
@pytest.mark.usefixtures("_switching")
def test_eight_threads_never_get_one_too_many() -> None:
    clock = FakeClock()
    limiter = RateLimiter("api", 100, burst=500, clock=clock)
    allowed: list[Decision] = []

    def hammer() -> None:
        for number in range(600):
            if number % 100 == 99:
                clock.move(0.125)
            decision = limiter.try_acquire()
            if decision:
                allowed.append(decision)

    in_threads(hammer)
    elapsed = clock.monotonic() - 1_000.0
    assert 500 < len(allowed) <= 500 + elapsed * 100
    clock.move(60)
    allowed.clear()
    assert taken(limiter, 600) == 500


@either_build
@pytest.mark.usefixtures("_switching")
def test_eight_threads_by_the_real_clock() -> None:
    limiter = RateLimiter("api", 20_000, burst=100)
    allowed: list[Decision] = []
    began = SYSTEM_CLOCK.monotonic()

    def hammer() -> None:
        while SYSTEM_CLOCK.monotonic() - began < 0.1:
            decision = limiter.try_acquire()
            if decision:
                allowed.append(decision)

    in_threads(hammer)
    assert 100 < len(allowed) <= 101 + (SYSTEM_CLOCK.monotonic() - began) * 20_000


@either_build
@pytest.mark.usefixtures("_switching")
def test_eight_threads_get_a_turn_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClock, "block", lambda _, seconds: None)  # time stands still
    limiter = RateLimiter("api", 8, burst=1, max_wait=1_000, clock=FakeClock())
    turns: list[float] = []
    in_threads(lambda: turns.extend([limiter.wait_sync() for _ in range(100)]))
    assert sorted(turns) == pytest.approx([number / 8 for number in range(800)], abs=1e-6)


@pytest.mark.usefixtures("_switching")
def test_eight_threads_share_each_key() -> None:
    keyed = KeyedRateLimiter("user", 1, burst=50, max_keys=3, clock=FakeClock())
    allowed: list[str] = []

    def hammer() -> None:
        for number in range(300):
            key = "abc"[number % 3]
            if keyed.try_acquire(key):
                allowed.append(key)

    in_threads(hammer)
    assert {key: allowed.count(key) for key in "abc"} == dict.fromkeys("abc", 50)


# -- keys


def keyed_taken(keyed: KeyedRateLimiter, key: object, tries: int = 20) -> int:
    return sum(bool(keyed.try_acquire(key)) for _ in range(tries))


def test_each_key_has_a_limit_of_its_own(clock: FakeClock) -> None:
    keyed = KeyedRateLimiter("user", 1, burst=3, clock=clock)
    assert [keyed_taken(keyed, key) for key in ("a", "b", 7)] == [3, 3, 3]
    with pytest.raises(RateLimited) as caught:
        keyed.acquire("a")
    assert caught.value.retry_after == pytest.approx(1)
    clock.move(2)
    assert keyed.acquire("a").remaining == 1
    assert keyed.try_acquire("a", 4).retry_after is None
    assert keyed_taken(keyed, "b") == 2


def test_keys_with_their_whole_burst_are_forgotten(clock: FakeClock) -> None:
    keyed = KeyedRateLimiter("user", 1, burst=3, clock=clock)
    for number in range(100):
        keyed.acquire(number)
    assert len(keyed) == 100
    clock.move(1)
    for number in range(100, 150):
        keyed.acquire(number)
    assert (len(keyed), keyed.crowded_out) == (50, 0)


def test_a_key_with_its_whole_burst_makes_room_before_all_others(clock: FakeClock) -> None:
    keyed = KeyedRateLimiter("user", 1, burst=3, max_keys=3, clock=clock)
    keyed.acquire("greedy", 3)
    keyed.acquire("twice")
    keyed.acquire("once")
    clock.move(0.5)
    keyed.acquire("twice")
    clock.move(0.5)
    keyed.acquire("new")
    assert (len(keyed), keyed.crowded_out) == (3, 0)
    assert (keyed_taken(keyed, "greedy"), keyed_taken(keyed, "twice")) == (1, 2)


def test_a_key_that_had_to_make_room_gets_no_second_burst(clock: FakeClock) -> None:
    keyed = KeyedRateLimiter("user", 1, burst=3, max_keys=2, clock=clock)
    for key in ("a", "b", "c", "d"):
        keyed_taken(keyed, key)
    assert keyed.crowded_out > 0
    assert len(keyed) == 2
    assert [keyed_taken(keyed, key) for key in ("a", "b", "c", "d")] == [0, 0, 0, 0]
    clock.move(1)
    assert keyed_taken(keyed, "a") <= 1


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1.5)), max_size=120), st.integers(1, 12))
def test_no_key_ever_gets_more_than_its_limit_however_few_are_remembered(
    calls: list[tuple[int, float]], max_keys: int
) -> None:
    clock = FakeClock()
    keyed = KeyedRateLimiter("user", 2, burst=3, max_keys=max_keys, clock=clock)
    passed: dict[int, list[float]] = {}
    for key, pause in calls:
        clock.move(pause)
        for _ in range(4):
            if keyed.try_acquire(key):
                passed.setdefault(key, []).append(clock.monotonic())
        assert len(keyed) <= max_keys
    for moments in passed.values():
        for first, start in enumerate(moments):
            assert len(moments) - first <= 3 + (moments[-1] - start) * 2 + 1e-6


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1.5)), max_size=60))
def test_with_room_for_all_keys_each_is_limited_as_if_alone(calls: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    keyed = KeyedRateLimiter("user", 2, burst=3, max_keys=10, clock=clock)
    alone = {key: RateLimiter("user", 2, burst=3, clock=clock) for key in range(10)}
    for key, pause in calls:
        clock.move(pause)
        assert keyed.try_acquire(key) == pytest.approx(alone[key].try_acquire(), abs=1e-6)


def test_a_flood_of_keys_stays_cheap_and_bounded(clock: FakeClock) -> None:
    keyed = KeyedRateLimiter("address", 1, burst=2, max_keys=100, clock=clock)
    for key in range(100):
        keyed.acquire(key)
    clock.move(0.5)
    for key in range(100):  # every note of when a key has its burst back is out of date now
        keyed.acquire(key)
    clock.move(1.6)  # all have it back: looking at a few must be enough, and nobody is crowded out
    keyed.acquire("new")
    assert (len(keyed), keyed.crowded_out) == (100, 0)
    for key in range(5_000):
        clock.move(0.001)
        keyed.try_acquire(("flood", key))
    assert len(keyed) == len(keyed._heap) == 100


def test_keys_need_room_for_one() -> None:
    with pytest.raises(ValueError, match="max_keys"):
        KeyedRateLimiter("user", 1, max_keys=0)


# -- header fields


def test_the_header_fields_say_what_is_left_and_when_to_come_again(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 2, burst=20, clock=clock)
    headers = rate_limit_headers("default", limiter.quota, limiter.try_acquire(5))
    assert headers == {"RateLimit-Policy": '"default";q=20;w=10', "RateLimit": '"default";r=15;t=1'}
    limiter.acquire(15)
    headers = rate_limit_headers("default", limiter.quota, limiter.try_acquire(5), b"user 7")
    assert headers == {
        "RateLimit-Policy": '"default";q=20;w=10;pk=:dXNlciA3:',
        "RateLimit": '"default";r=0;t=3;pk=:dXNlciA3:',
        "Retry-After": "3",
    }


def test_the_header_fields_of_a_rejection_that_will_not_pass(clock: FakeClock) -> None:
    limiter = RateLimiter("api", 1, 60, burst=5, clock=clock)
    headers = rate_limit_headers("default", limiter.quota, limiter.try_acquire(6))
    assert headers == {"RateLimit-Policy": '"default";q=5;w=300', "RateLimit": '"default";r=5;t=60'}


def test_the_header_fields_of_a_short_window_keep_its_rate() -> None:
    decision = Decision(True, 0.0, 9.0, 0.01)
    policy = rate_limit_headers("x", Quota(100, burst=10), decision)["RateLimit-Policy"]
    assert policy == '"x";q=100;w=1'
    assert rate_limit_headers("x", Quota(3, burst=5), decision)["RateLimit-Policy"] == '"x";q=6;w=2'


def test_header_fields_are_well_formed_whatever_the_name_is() -> None:
    headers = rate_limit_headers('a"b\\c\r\nü', Quota(1e300), Decision(True, 0.0, 1e15, 0.0))
    assert headers["RateLimit-Policy"] == '"a\\"b\\\\c???";q=999999999999999;w=1'


def test_a_degraded_decision_shows_the_policy_only() -> None:
    headers = rate_limit_headers("x", Quota(1), Decision(True, 0.0, 0.0, 0.0, degraded=True))
    assert headers == {"RateLimit-Policy": '"x";q=1;w=1'}
