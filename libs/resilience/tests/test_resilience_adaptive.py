"""The adaptive limit: finds what a server bears, and never leaves its bounds."""

import asyncio
import functools
import gc
import heapq
import itertools
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import (
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    Event,
    Events,
    FakeClock,
    RateLimited,
)
from resilience import adaptive as module
from resilience import bulkhead as slots
from resilience.adaptive import FEW, MANY, AdaptiveLimit, Gradient, LimitChanged, overloaded
from resilience.bulkhead import BulkheadRejected

PATIENCE = 20.0


@pytest.fixture(params=["with the global lock", "without"])
def _builds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(slots, "_HIDDEN", -(1 << 40))


# -- a server: works on `capacity` calls at once, the others queue; and callers that ask for more than it can do


class Server:
    def __init__(
        self, limit: AdaptiveLimit, clock: FakeClock, *, capacity: int, seconds: float = 0.05, scatter: bool = False
    ):
        self.limit, self.clock = limit, clock
        self.capacity, self.seconds, self.scatter = capacity, seconds, scatter
        self.dice = Random(7)
        self.busy = self.served = self.rejected = 0
        self.queue: deque[Any] = deque()
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.limits: list[int] = []

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.due, (self.clock.monotonic() + seconds, self.order, what))

    def run(self, seconds: float, rate: float) -> list[int]:
        """Offer `rate` calls a second for so long; returns the limit at the end of each second."""
        end, self.rate = self.clock.monotonic() + seconds, rate
        self.due = [entry for entry in self.due if entry[2] not in (self.arrive, self.note)]
        heapq.heapify(self.due)
        self.limits = []
        self.after(self.dice.expovariate(rate), self.arrive)
        self.after(1.0, self.note)
        while self.due[0][0] <= end:
            at, _, what = heapq.heappop(self.due)
            self.clock.move(at - self.clock.monotonic())
            what()
        return self.limits

    def note(self) -> None:
        self.limits.append(self.limit.limit)
        self.after(1.0, self.note)

    def arrive(self) -> None:
        self.after(self.dice.expovariate(self.rate), self.arrive)
        try:
            self.queue.append(self.limit.acquire())
        except BulkheadFull:
            self.rejected += 1
            return
        self.work()

    def work(self) -> None:
        while self.queue and self.busy < self.capacity:
            self.busy += 1
            permit = self.queue.popleft()
            seconds = self.dice.expovariate(1 / self.seconds) if self.scatter else self.seconds
            self.after(seconds, functools.partial(self.end, permit))

    def end(self, permit: Any) -> None:
        self.busy -= 1
        self.served += 1
        permit.success()
        self.work()


def overload(server: Server) -> float:
    return 1.5 * server.capacity / server.seconds


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize(("capacity", "initial"), [(20, 2), (20, 100), (5, 20), (40, 20)])
def test_it_settles_near_what_the_server_bears_from_below_and_from_above(
    capacity: int, initial: int, scatter: bool
) -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", initial=initial, clock=clock)
    server = Server(limit, clock, capacity=capacity, scatter=scatter)
    server.run(25, overload(server))
    before = server.served
    late = server.run(10, overload(server))
    assert 0.9 * capacity <= statistics.median(late) <= 2 * capacity + 2
    assert server.served - before >= 0.85 * capacity * 10 / server.seconds  # and wastes little of it


@pytest.mark.parametrize("scatter", [False, True])
def test_it_falls_quickly_when_the_capacity_falls_to_a_third_and_recovers_afterwards(scatter: bool) -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    server = Server(limit, clock, capacity=21, scatter=scatter)
    rate = overload(server)
    assert 19 <= statistics.median(server.run(30, rate)[-10:]) <= 44
    server.capacity = 7
    fallen = server.run(20, rate)
    assert min(fallen[:8]) <= 14  # within about a thousand calls
    assert 6 <= statistics.median(fallen[10:]) <= 16
    server.capacity = 21
    recovered = server.run(25, rate)
    assert max(recovered[:15]) >= 19
    assert 19 <= statistics.median(recovered[-10:]) <= 44


def test_a_server_that_is_slower_but_bears_as_much_is_not_throttled_for_ever() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    server = Server(limit, clock, capacity=20)
    server.run(30, 600)
    server.seconds = 0.15
    assert min(server.run(15, 600)) < 20  # it looks like an overload at first
    assert statistics.median(server.run(15, 600)) >= 25
    assert limit.baseline == pytest.approx(0.15, rel=0.2)
    server.seconds = 0.05
    assert 19 <= statistics.median(server.run(30, 600)[-10:]) <= 45
    assert limit.baseline == pytest.approx(0.05, rel=0.35)


def test_under_a_constant_overload_the_limit_does_not_drift_away() -> None:
    """What `Gradient2` does: the latency under overload becomes its normal."""
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    server = Server(limit, clock, capacity=10)
    assert max(server.run(120, 300)[20:]) <= 25


def test_when_every_call_times_out_the_limit_falls_to_the_minimum_and_not_to_the_maximum() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", min_limit=2, clock=clock)
    for _ in range(200):
        permits = [limit.acquire() for _ in range(limit.limit)]
        clock.move(5.0)
        for permit in permits:
            permit.settle(TimeoutError())
    assert limit.limit == 2


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    for _ in range(1_000):
        permits = [limit.acquire() for _ in range(5)]
        clock.move(0.05)
        for permit in permits:
            permit.success()
    assert limit.limit == 20


def test_few_drops_of_an_idle_limit_do_not_wear_it_down() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    for number in range(30_000):
        permit = limit.acquire()
        clock.move(0.05)
        if number % 300:
            permit.success()
        else:
            permit.dropped()
    assert limit.limit >= 10


# -- the machine


class Sample(NamedTuple):
    seconds: float
    in_flight: int
    dropped: bool


SAMPLES = st.lists(
    st.builds(
        Sample,
        st.one_of(st.floats(0, 100), st.sampled_from([0.0, -1.0, float("inf"), float("nan"), 1e-300, 1e300])),
        st.integers(1, 400),
        st.booleans(),
    ),
    max_size=150,
)


@st.composite
def machines(draw: st.DrawFn) -> Gradient:
    low = draw(st.integers(1, 50))
    high = draw(st.integers(low, 300))
    smoothing = draw(st.floats(0.01, 1.0))
    tolerance = draw(st.one_of(st.none(), st.floats(1.0, 1.99)))
    return Gradient(draw(st.integers(low, high)), low, high, smoothing, tolerance)


def feed(machine: Gradient, seconds: float, *, rounds: int = 1) -> None:
    """Rounds of calls that take `seconds` each, with the limit fully used."""
    for _ in range(rounds):
        left = machine._left
        while machine._left == left:
            machine.step(seconds, machine.allowed)


@settings(max_examples=60, deadline=None)
@given(machines(), SAMPLES, st.integers(1, 20))
def test_it_never_leaves_its_bounds(machine: Gradient, samples: list[Sample], times: int) -> None:
    for sample in samples * times:
        machine.step(sample.seconds, sample.in_flight, dropped=sample.dropped)
        assert machine.min_limit <= machine.allowed <= machine.max_limit
        assert machine.min_limit <= machine.estimate <= machine.max_limit
        assert machine.allowed <= machine.estimate
        assert machine.baseline is None or 0 < machine.baseline < float("inf")
        assert machine.used_from <= machine.allowed


@settings(max_examples=60, deadline=None)
@given(machines(), SAMPLES, st.integers(1, 20))
def test_drops_never_raise_it(machine: Gradient, samples: list[Sample], times: int) -> None:
    for sample in samples * times:
        before, probing = machine.estimate, machine.probing
        machine.step(sample.seconds, sample.in_flight, dropped=sample.dropped)
        if sample.dropped:
            assert machine.estimate <= before
            assert machine.probing is probing


@settings(max_examples=60, deadline=None)
@given(machines(), st.floats(0.001, 10.0), st.integers(0, 1_000))
def test_calls_at_less_than_half_of_the_limit_never_raise_it(machine: Gradient, seconds: float, calls: int) -> None:
    for _ in range(calls):
        before = machine.estimate
        machine.step(seconds, max(1, machine.allowed // 2 - 1))
        assert machine.estimate <= before or machine.allowed <= 3


@settings(max_examples=60, deadline=None)
@given(machines(), st.floats(0.001, 10.0), st.floats(1.0, 20.0), st.floats(1.0, 20.0))
def test_a_slower_round_never_leads_to_a_higher_limit(machine: Gradient, fast: float, slow: float, more: float) -> None:
    outcomes = []
    for factor in (slow, slow * more):
        twin = Gradient(machine.allowed, machine.min_limit, machine.max_limit, machine.smoothing, machine.tolerance)
        twin.baseline, twin.probing, twin._skip = fast, False, 0
        feed(twin, fast * factor)
        outcomes.append(twin.estimate)
    assert outcomes[1] <= outcomes[0] or machine.tolerance is None


def measured(seconds: float = 1.0, **how: Any) -> Gradient:
    """A machine whose first round is over."""
    machine = Gradient(**how)
    for _ in range(machine.allowed + 2 * max(MANY, machine.allowed)):
        machine.step(seconds, 1)
    return machine


def test_the_first_round_measures_and_changes_nothing() -> None:
    machine = measured(0.25)
    assert (machine.baseline, machine.allowed, machine.probing) == (0.25, 20, False)


def test_a_round_within_the_tolerance_adds_a_share_of_the_square_root() -> None:
    machine = measured()
    feed(machine, 1.5)
    assert machine.estimate == pytest.approx(20 + 0.3 * 20**0.5)


def test_a_slow_round_shrinks_by_the_gradient_and_not_by_more_than_half() -> None:
    machine = measured(smoothing=1.0)
    feed(machine, 2.0)
    assert machine.estimate == pytest.approx(15.0)
    machine = measured(smoothing=1.0)
    feed(machine, 1_000.0)
    assert machine.estimate == 10.0


@pytest.mark.parametrize(("drops", "estimate"), [(10, 15.0), (20, 10.0)])
def test_drops_shrink_by_half_their_share(drops: int, estimate: float) -> None:
    machine = measured()
    for number in range(20):
        machine.step(1.0, 5, dropped=number < drops)
    assert machine.estimate == estimate


def test_of_few_calls_no_share_of_drops_is_taken() -> None:
    machine = measured(initial=1)
    for _ in range(FEW - 1):
        machine.step(1.0, 1, dropped=True)
    assert machine.estimate == 1.0
    machine = measured(initial=4)
    for _ in range(FEW):
        machine.step(1.0, 1, dropped=True)
    assert machine.allowed == 2


def test_it_measures_at_half_the_limit_and_less_often_when_there_is_no_news() -> None:
    machine = measured()
    pauses = []
    for _ in range(5):
        pause = 0
        while not machine.probing:
            feed(machine, 1.0)
            pause += 1
        pauses.append(pause)
        assert machine.allowed == int(machine.estimate) // 2
        for _ in range(1_000):
            if machine.probing:
                machine.step(1.0, 1)
    assert pauses == [5, 10, 20, 40, 40]
    while not machine.probing:
        feed(machine, 1.0)
    while machine.probing:
        machine.step(3.0, 1)
    assert machine.baseline == 3.0
    for _ in range(5):
        assert not machine.probing
        feed(machine, 3.0)
    assert machine.probing


def test_a_measurement_takes_none_that_began_before_it_nor_the_first_to_end() -> None:
    machine = measured()
    while not machine.probing:
        feed(machine, 1.0)
    allowed = machine.allowed
    for _ in range(1_000):
        machine.step(9.0, allowed + 1)
    for _ in range(allowed):
        machine.step(0.1, allowed)
    for _ in range(2 * MANY):
        assert machine.probing
        machine.step(1.1, allowed)
    assert not machine.probing
    assert machine.baseline == pytest.approx(1.05)  # by chance, so half believed


def test_a_baseline_above_the_latency_under_load_comes_down() -> None:
    machine = measured(4.0)
    feed(machine, 1.0)
    assert machine.baseline == 2.5


def test_a_limit_that_falls_to_half_measures_again() -> None:
    machine = measured()
    rounds = 0
    while not machine.probing:
        feed(machine, 10.0)
        rounds += 1
    assert machine.estimate <= 10
    assert rounds == 5


def test_at_the_minimum_it_measures_though_calls_are_slow() -> None:
    machine = measured(initial=3, min_limit=3)
    for _ in range(5):
        assert not machine.probing
        feed(machine, 10.0)
    assert machine.probing
    assert machine.allowed == 3


def test_without_a_tolerance_only_drops_count() -> None:
    machine = Gradient(tolerance=None)
    feed(machine, 1.0)
    assert machine.estimate == pytest.approx(20 + 0.3 * 20**0.5)
    feed(machine, 1_000.0, rounds=80)
    assert machine.baseline is None
    assert machine.allowed == 200
    for _ in range(200):
        machine.step(1.0, 200, dropped=True)
    assert machine.allowed == 100
    for _ in range(1_000):
        machine.step(1.0, 49)
    assert machine.allowed == 100


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"min_limit": 0}, "min_limit"),
        ({"min_limit": 30, "max_limit": 29}, "max_limit"),
        ({"initial": 201}, "initial"),
        ({"initial": 4, "min_limit": 5}, "initial"),
        ({"smoothing": 0.0}, "smoothing"),
        ({"smoothing": 1.1}, "smoothing"),
        ({"tolerance": 0.9}, "tolerance"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_a_bad_setting_fails_by_name(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        AdaptiveLimit("api", **wrong)


# -- forms


@pytest.mark.usefixtures("_builds")
async def test_every_form_takes_one_place_and_gives_it_back() -> None:
    limit = AdaptiveLimit("api", initial=1)

    async def seen(number: int, *, extra: int = 0) -> tuple[int, int]:
        await asyncio.sleep(0)
        return limit.in_flight, number + extra

    def seen_sync(number: int, *, extra: int = 0) -> tuple[int, int]:
        return limit.in_flight, number + extra

    assert await limit.call(seen, 1, extra=2) == (1, 3)
    assert await limit.call(seen_sync, 1, extra=2) == (1, 3)
    assert await limit(seen)(1, extra=2) == (1, 3)
    assert limit(seen_sync)(1, extra=2) == (1, 3)
    assert limit.call_sync(seen_sync, 1, extra=2) == (1, 3)
    with limit.acquire():
        assert limit.in_flight == 1
    async with limit.acquire():
        assert limit.in_flight == 1
    assert (limit.in_flight, limit.limit, limit.full) == (0, 1, False)


@pytest.mark.usefixtures("_builds")
async def test_at_the_limit_it_rejects_at_once() -> None:
    events, seen = Events(), list[Event]()
    events.subscribe(seen.append)
    limit = AdaptiveLimit("api", initial=2, events=events)
    limit.check()
    permits = [limit.acquire() for _ in range(2)]
    assert limit.full
    for reject in (limit.check, limit.acquire, lambda: limit.call_sync(len, "")):
        with pytest.raises(BulkheadFull, match="api"):
            reject()
    with pytest.raises(BulkheadFull, match="api"):
        await limit.call(len, "")
    assert seen == [BulkheadRejected("api", 2, 0)] * 4
    permits[0].success()
    assert await limit.call(len, "abc") == 3


class Spy(Gradient):
    """Remembers its steps."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.steps: list[tuple[float, int, bool]] = []

    def step(self, seconds: float, in_flight: int, *, dropped: bool = False) -> None:
        self.steps.append((seconds, in_flight, dropped))
        super().step(seconds, in_flight, dropped=dropped)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AdaptiveLimit, FakeClock, list[tuple[float, int, bool]]]]:
    monkeypatch.setattr(module, "Gradient", Spy)
    clock = FakeClock()
    limit = AdaptiveLimit("api", clock=clock)
    assert isinstance(limit._rule, Spy)
    yield limit, clock, limit._rule.steps
    assert limit.in_flight == 0


Spied = tuple[AdaptiveLimit, FakeClock, list[tuple[float, int, bool]]]


@pytest.mark.usefixtures("_builds")
async def test_a_call_is_a_sample_of_how_long_it_took_and_how_many_were_under_way(spied: Spied) -> None:
    limit, clock, steps = spied
    with limit.acquire():
        task = asyncio.create_task(limit.call(clock.sleep, 0.5))
        await clock.advance(0.5)
        await task
        await clock.advance(0.25)
    limit.call_sync(clock.move, 0.125)
    assert steps == [(0.5, 2, False), (0.75, 1, False), (0.125, 1, False)]


@pytest.mark.parametrize("error", [TimeoutError(), CallTimeout("x", 1.0), RateLimited("x", 1.0), BulkheadFull("x")])
async def test_errors_of_overload_are_drops(spied: Spied, error: Exception) -> None:
    limit, _, steps = spied

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        await limit.call(fails)
    with pytest.raises(type(error)):
        limit.call_sync(fails)
    assert [dropped for _, _, dropped in steps] == [True, True]


class Exit(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError(), CircuitBreakerOpen("x", 1.0, None), KeyboardInterrupt(), Exit()])
async def test_other_errors_say_nothing(spied: Spied, error: BaseException) -> None:
    limit, _, steps = spied

    async def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        await limit.call(fails)
    with pytest.raises(type(error)), limit.acquire():
        raise error
    assert steps == []


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_at_any_await_it_is_ignored_and_gives_its_place_back(spied: Spied, turns: int) -> None:
    limit, clock, steps = spied

    async def work() -> None:
        await asyncio.sleep(0)
        await clock.sleep(1.0)

    task = asyncio.create_task(limit.call(work))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == []
    assert clock.pending == 0


class Answer:
    status_code: object = 429


class ReadTimeout(Exception):  # as some clients have it
    pass


class Strange(Exception):
    @property
    def status_code(self) -> int:
        raise RuntimeError


def with_status(**attributes: object) -> Exception:
    error = Exception()
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    ("error", "means_overload"),
    [
        (ReadTimeout(), True),
        (with_status(status_code=503), True),
        (with_status(status=429), True),
        (with_status(response=Answer()), True),
        (with_status(status_code=404), False),
        (with_status(status="429"), False),
        (Strange(), False),
        (ConnectionResetError(), False),
    ],
)
def test_what_overload_looks_like(error: Exception, means_overload: bool) -> None:
    assert overloaded(error) is means_overload


def test_what_a_drop_is_can_be_told_and_a_judge_that_raises_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Gradient", Spy)

    def judge(error: BaseException) -> bool:
        if isinstance(error, LookupError):
            raise RuntimeError
        return isinstance(error, ValueError)

    limit = AdaptiveLimit("api", is_drop=judge)
    for error in (ValueError(), LookupError(), TimeoutError()):
        with pytest.raises(type(error)), limit.acquire():
            raise error
    assert isinstance(limit._rule, Spy)
    assert [dropped for _, _, dropped in limit._rule.steps] == [True]
    assert limit.in_flight == 0


# -- permits


@pytest.mark.parametrize("first", ["success", "dropped", "ignored"])
def test_a_permit_is_settled_once(spied: Spied, first: str) -> None:
    limit, _, steps = spied
    limit.acquire()  # lost at once
    other, permit = limit.acquire(), limit.acquire()
    getattr(permit, first)()
    for again in (permit.success, permit.dropped, permit.ignored, lambda: permit.settle(TimeoutError())):
        again()
    assert limit.in_flight == 1
    assert len(steps) == (first != "ignored")
    other.ignored()


def test_a_lost_permit_is_given_back(spied: Spied) -> None:
    limit, _, steps = spied
    permits = [limit.acquire() for _ in range(3)]
    assert limit.in_flight == 3
    cycle: list[Any] = [permits.pop()]
    cycle.append(cycle)
    del permits[:], cycle
    gc.collect()
    assert (limit.in_flight, steps) == (0, [])


# -- events


def fails(_event: Event) -> None:
    raise ValueError


def test_changes_are_told_in_order_and_a_raising_listener_changes_nothing() -> None:
    clock, events, seen = FakeClock(), Events(), list[Event]()
    events.subscribe(fails)
    events.subscribe(seen.append)
    limit = AdaptiveLimit("api", events=events, clock=clock)
    server = Server(limit, clock, capacity=10)
    server.run(20, overload(server))
    changes = [event for event in seen if isinstance(event, LimitChanged)]
    assert changes[0].old == 20
    assert changes[-1].new == limit.limit
    assert all(before.new == after.old for before, after in itertools.pairwise(changes))
    assert all(change.name == "api" and change.old != change.new for change in changes)
    assert events.listener_errors == len(seen)


@pytest.mark.usefixtures("_builds")
def test_where_the_limit_shrinks_those_under_way_may_finish() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit("api", initial=10, clock=clock)
    permits = [limit.acquire() for _ in range(10)]
    for _ in range(9):
        permits.pop().dropped()
        permits.append(limit.acquire())
    permits.pop().dropped()
    assert (limit.limit, limit.in_flight) == (5, 9)
    for _ in range(4):
        permits.pop().ignored()
        with pytest.raises(BulkheadFull):
            limit.acquire()
    permits.pop().ignored()
    permits.append(limit.acquire())
    assert limit.in_flight == 5


# -- threads


@pytest.mark.usefixtures("_builds")
def test_eight_threads_keep_exact_counts_while_the_limit_moves() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    limit = AdaptiveLimit("api", initial=6, max_limit=8)
    lock = threading.Lock()
    inside, peak, errors = [0], [0], list[BaseException]()

    def visit(dice: Random) -> None:
        with lock:
            inside[0] += 1
            peak[0] = max(peak[0], inside[0])
        time.sleep(0)
        with lock:
            inside[0] -= 1
        if dice.random() < 0.2:
            raise TimeoutError

    def hammer(seed: int) -> None:
        dice = Random(seed)
        try:
            for _ in range(300):
                with suppress(BulkheadFull, TimeoutError):
                    limit.call_sync(visit, dice)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,), daemon=True) for seed in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert peak[0] <= 8
    assert limit.in_flight == 0
    assert 1 <= limit.limit <= 8
    permits = [limit.acquire() for _ in range(limit.limit)]
    assert limit.full
    assert len(permits) == limit.limit
