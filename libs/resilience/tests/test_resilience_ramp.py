"""The ramp's rules: every short story, and properties of long ones."""

import math
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.ramp import DRAIN, LEAST, LIVE, REVALIDATE, Ramp

KINDS = (LIVE, DRAIN, REVALIDATE)


def ramp(**changes: float) -> Ramp:
    """A small ramp: one unit a second, from 2 to 6."""
    settings: dict[str, float] = {"start": 2, "full": 6, "seconds": 4.0, "longest": 12.0, "slow_seconds": 1.0}
    return Ramp(0.0, **{**settings, **changes})  # type: ignore[arg-type]


def good(machine: Ramp, until: float, *, every: float = 0.1, start: float = 0.0) -> float:
    """Good answers until then, or until the ramp is over; the moment of the last."""
    now = start
    while now < until and not machine.over(now):
        now += every
        machine.outcome(True, now, now)
    return now


# -- the budget


def test_good_answers_fill_the_budget_in_the_time_given() -> None:
    machine = ramp()
    assert machine.left(0.0) == 4.0
    good(machine, 2.0)
    assert machine.budget == pytest.approx(4.0, abs=0.1)
    assert machine.left(2.0) == pytest.approx(2.0, abs=0.1)
    assert good(machine, 100.0, start=2.0) == pytest.approx(4.0, abs=0.2)
    assert machine.over(4.2) == "full"
    assert machine.left(4.2) == 0.0


def test_silence_proves_nothing() -> None:
    machine = ramp()
    machine.outcome(True, 3.9, 3.9)
    assert machine.budget == 2.4  # a tenth of the ramp at once
    assert machine.over(11.9) is None
    assert machine.over(12.0) == "time"


def test_failures_halve_the_budget_and_what_began_before_does_not_count() -> None:
    machine = ramp()
    now = good(machine, 3.0)
    assert [machine.outcome(False, now, now) for _ in range(3)] == [False, False, True]
    assert machine.budget == pytest.approx(2.5, abs=0.1)
    for _ in range(20):
        assert not machine.outcome(False, now, now + 1.0)
    before = machine.budget
    machine.outcome(True, now, now + 1.0)
    assert machine.budget == before
    assert machine.outcome(True, now + 0.5, now + 1.0) is False
    assert machine.budget > before


def test_what_began_before_the_ramp_does_not_count() -> None:
    machine = ramp()
    for _ in range(10):
        machine.outcome(False, -0.1, 0.1)
    assert machine.strain == 0


def test_slow_answers_count_half_and_exactly_at_the_limit_is_not_slow() -> None:
    machine = ramp()
    now = good(machine, 3.0) + 2.0
    assert not machine.outcome(True, now - 1.0, now)
    assert machine.strain == 0
    assert not machine.outcome(True, now - 1.1, now, timed=False)
    assert machine.strain == 0
    assert [machine.outcome(True, now - 1.1, now) for _ in range(6)] == [False] * 5 + [True]


def test_under_strain_the_budget_stands_still_until_the_strain_is_gone() -> None:
    machine = ramp()
    machine.outcome(False, 0.1, 0.1)
    machine.outcome(True, 0.2, 0.2)
    assert machine.budget > 2.0  # strain 9
    machine.outcome(False, 0.3, 0.3)
    before = machine.budget
    for number in range(9):
        machine.outcome(True, 0.4 + number / 100, 0.4 + number / 100)
    assert machine.budget == before
    machine.outcome(True, 0.5, 0.5)
    assert machine.budget > before


def test_one_failure_in_eleven_does_not_stop_it() -> None:
    machine = ramp(start=2, full=20, seconds=10.0, longest=50.0)
    now = 0.0
    while machine.over(now) is None:
        for number in range(11):
            now += 0.01
            assert not machine.outcome(number != 5, now, now)
    assert machine.over(now) == "full"
    assert now < 12.0


def test_past_half_of_where_it_fell_it_grows_slowly() -> None:
    machine = ramp(careful_from=4.0, careful=5.0, longest=100.0)
    assert machine.left(0.0) == pytest.approx(2.0 + 10.0)
    assert good(machine, 2.0) == pytest.approx(2.0)
    assert machine.budget == pytest.approx(4.0, abs=0.1)
    assert good(machine, 100.0, start=2.0) == pytest.approx(12.0, abs=0.5)


@given(st.lists(st.tuples(st.sampled_from(["ok", "slow", "fail"]), st.floats(0.001, 0.4)), max_size=300))
def test_the_budget_only_falls_for_a_reason_and_ends_in_bounded_time(answers: list[tuple[str, float]]) -> None:
    machine, now, bad_since_cut = ramp(), 0.0, 0
    for kind, passed in answers:
        now += passed
        before = machine.budget
        cut = machine.outcome(kind != "fail", now - (1.5 if kind == "slow" else 0.0), now)
        assert LEAST <= machine.budget <= machine.full
        bad_since_cut += kind != "ok"
        if cut:
            assert machine.budget == max(LEAST, before / 2)
            assert bad_since_cut >= 3
            bad_since_cut = 0
        else:
            assert machine.budget >= before
            assert kind == "ok" or machine.budget == before
    if all(kind == "ok" for kind, _ in answers) and now >= 4.0:
        assert machine.over(now) == "full"
    assert machine.over(12.0) is not None


# -- the shares


@given(limit=st.integers(2, 1_000), live=st.floats(0.01, 1.0), drain=st.floats(0.0, 1.0))
def test_live_and_drain_always_own_something(limit: int, live: float, drain: float) -> None:
    machine = Ramp(
        0.0, start=limit, full=limit, seconds=1.0, longest=1.0, live_share=live, drain_share=drain * (1 - live)
    )
    assert machine.own[LIVE] >= 1
    assert machine.own[DRAIN] >= 1
    assert sum(machine.own) <= limit
    assert abs(machine.own[LIVE] - live * limit) < 2


def test_what_live_traffic_does_not_need_is_lent() -> None:
    machine = ramp(start=10, full=20)
    assert machine.own == (6, 2, 0)
    for _ in range(3):
        assert machine.admit(DRAIN, 1, 0.0)
    assert not machine.admit(DRAIN, 1, 0.0)  # at first live traffic is taken to be there
    assert machine.admit(LIVE, 1, 0.5)
    machine.release(LIVE, 1)
    machine.roll(1.5)  # peak of the window before: 6, as assumed
    assert not machine.admit(DRAIN, 1, 1.5)
    machine.roll(2.5)  # nobody has asked since
    assert machine.admit(DRAIN, 1, 2.5)
    machine.roll(5.0)
    while machine.admit(DRAIN, 1, 5.0):
        pass
    assert machine.used[DRAIN] == 10


def test_demand_is_what_was_asked_for_in_this_window_and_the_one_before() -> None:
    machine = ramp(start=10, full=20)
    assert [machine.demand(kind) for kind in KINDS] == [6, 0, 0]
    assert (machine.wanted, machine.used, machine.admitted, machine.refused) == ([0] * 3, [0] * 3, [0] * 3, [0] * 3)
    machine.roll(2.0)
    assert [machine.demand(kind) for kind in KINDS] == [0, 0, 0]
    for kind in reversed(KINDS):
        assert machine.admit(kind, 1, 2.0)
        machine.refuse(kind, 2)
        machine.refuse(kind, 2)
        assert machine.demand(kind) == 5
        machine.release(kind, 1)
    machine.roll(2.9)
    assert [machine.demand(kind) for kind in KINDS] == [5, 5, 5]
    machine.roll(3.0)
    for kind in KINDS:
        machine.refuse(kind, 6)
        assert machine.demand(kind) == 6
    machine.roll(4.0)
    assert [machine.demand(kind) for kind in KINDS] == [6, 6, 6]
    machine.roll(5.0)
    assert [machine.demand(kind) for kind in KINDS] == [0, 0, 0]
    machine.wanted[DRAIN] = 3
    assert machine.demand(DRAIN) == 3


def test_a_loan_comes_back_as_work_ends() -> None:
    machine = ramp(start=10, full=20)
    machine.roll(5.0)
    assert machine.admit(REVALIDATE, 1, 5.0)
    for _ in range(9):
        assert machine.admit(DRAIN, 1, 5.0)
    for _ in range(3):
        assert not machine.admit(LIVE, 1, 5.1)
        machine.refuse(LIVE, 1)
    machine.release(DRAIN, 1)
    assert not machine.admit(DRAIN, 1, 5.2)
    assert not machine.admit(REVALIDATE, 1, 5.2)
    assert machine.admit(LIVE, 1, 5.2)


def test_one_place_more_than_live_traffic_needs_is_kept_for_it() -> None:
    machine = ramp(start=10, full=20)
    machine.roll(5.0)
    assert machine.admit(LIVE, 1, 5.0)
    while machine.admit(DRAIN, 1, 5.0):
        pass
    assert machine.used == [1, 8, 0]


def test_live_traffic_borrows_all_but_what_the_drain_waits_for() -> None:
    machine = ramp(start=10, full=20)
    for _ in range(10):
        assert machine.admit(LIVE, 1, 0.0)
    machine.wanted[DRAIN] = 5
    machine.release(LIVE, 1)
    assert not machine.admit(LIVE, 1, 0.1)
    assert machine.fits(DRAIN, 1)
    machine.release(LIVE, 2)
    assert machine.admit(LIVE, 1, 0.1)  # the drain's own are two


def test_revalidation_takes_what_is_left() -> None:
    machine = ramp(start=10, full=20)
    machine.roll(5.0)
    assert machine.admit(LIVE, 1, 5.0)
    machine.wanted[DRAIN] = 3
    while machine.admit(REVALIDATE, 1, 5.0):
        pass
    assert machine.used == [1, 0, 5]  # one is kept for live traffic to come, and three for the drain that waits


def test_a_cost_above_the_share_counts_as_the_share() -> None:
    machine = ramp(start=10, full=20)
    assert machine.admit(DRAIN, 100, 0.0) == 2
    assert machine.admit(LIVE, 100, 0.0) == 6
    assert machine.charge(REVALIDATE, 100) == 10


# -- every short story


class Story:
    """A ramp, and what runs."""

    def __init__(self) -> None:
        self.machine = ramp()
        self.now = 0.0
        self.running: tuple[tuple[int, int], ...] = ()

    def copy(self) -> "Story":
        new = Story.__new__(Story)
        new.now, new.running = self.now, self.running
        new.machine = Ramp.__new__(Ramp)
        for slot in Ramp.__slots__:
            value = getattr(self.machine, slot)
            setattr(new.machine, slot, list(value) if isinstance(value, list) else value)
        return new

    def key(self) -> tuple[object, ...]:
        machine, now = self.machine, self.now
        return (
            *(self.running, tuple(machine.wanted), machine.budget, machine.strain),
            *(min(now - machine._grown_at, machine._step), now > machine._cut_at, now >= 12.0),
            *(min(now - machine._window_at, 2.0), tuple(machine._before), tuple(machine._peak)),
            tuple(machine._refused),
        )

    def unmet(self, kind: int, *, own: bool) -> int:
        machine = self.machine
        demand = machine.demand(kind)
        return max(0, (min(demand, machine.own[kind]) if own else demand) - machine.used[kind])


def admit(kind: int, cost: int, story: Story) -> None:
    machine = story.machine
    machine.roll(story.now)
    others = [other for other in KINDS if other != kind]
    room = machine.limit - sum(machine.used)
    used, own = machine.used[kind], machine.own[kind]
    idle = not any(machine.demand(other) for other in others)
    kept = sum(story.unmet(other, own=True) for other in others)
    more_important = sum(story.unmet(other, own=False) for other in others if other < kind)
    units = machine.admit(kind, cost, story.now)
    if units:
        assert units <= min(cost, room)  # in use never goes above the budget by an admission
        assert used + units <= own or room - units >= kept  # nobody is lent what another's share is needed for
        assert used + units <= own or room - units >= more_important  # and who comes first is served first
        story.running = tuple(sorted((*story.running, (kind, units))))
        return
    units = machine.charge(kind, cost)
    assert room < units or used + units > own  # the kind's own share is its own
    assert room < units or not idle  # and what nobody needs is anybody's
    machine.refuse(kind, units)


def release(kind: int, story: Story) -> None:
    mine = [one for one in story.running if one[0] == kind]
    if mine:
        running = list(story.running)
        running.remove(mine[0])
        story.running = tuple(running)
        story.machine.release(*mine[0])


def want(story: Story) -> None:
    if not story.machine.wanted[DRAIN]:
        story.machine.wanted[DRAIN] = story.machine.charge(DRAIN, 2)


def grant(story: Story) -> None:
    units = story.machine.charge(DRAIN, 2)
    if story.machine.wanted[DRAIN] and story.machine.fits(DRAIN, units):
        story.machine.wanted[DRAIN] = 0
        story.machine.take(DRAIN, units)
        story.running = tuple(sorted((*story.running, (DRAIN, units))))


def outcome(how: str, story: Story) -> None:
    before = story.machine.budget
    cut = story.machine.outcome(how != "fail", story.now - (2.0 if how == "slow" else 0.0), story.now)
    assert (story.machine.budget < before) <= cut
    assert not cut or how != "ok"


def tick(seconds: float, story: Story) -> None:
    story.now += seconds


STEPS: list[Callable[[Story], None]] = [
    *(partial(admit, kind, cost) for kind, cost in [(LIVE, 1), (LIVE, 3), (DRAIN, 1), (DRAIN, 2), (REVALIDATE, 1)]),
    *(partial(release, kind) for kind in KINDS),
    *(want, grant),
    *(partial(outcome, how) for how in ("ok", "slow", "fail")),
    *(partial(tick, seconds) for seconds in (0.25, 2.5)),
]


def check(story: Story) -> None:
    machine = story.machine
    assert machine.used == [sum(units for kind, units in story.running if kind == one) for one in KINDS]
    assert LEAST <= machine.limit <= machine.full
    assert sum(machine.own) <= machine.limit
    for kind in (LIVE, DRAIN):  # no deadlock: whoever may wait fits as soon as enough has ended
        assert machine.charge(kind, 100) == machine.own[kind] >= 1
        if not story.running:
            assert machine.fits(kind, machine.charge(kind, 100))
    if story.now >= 12.0:
        assert machine.over(story.now)


def test_every_short_story_keeps_the_rules() -> None:
    """All sequences of five events; those that have led to the same state are continued once."""
    stories = {Story().key(): Story()}
    for _ in range(5):
        following: dict[tuple[object, ...], Story] = {}
        for story in stories.values():
            for act in STEPS:
                new = story.copy()
                act(new)
                check(new)
                following[new.key()] = new
        stories = following
    assert len(stories) > 1_000


@given(st.lists(st.sampled_from(STEPS), max_size=80))
def test_long_stories_keep_the_rules_too(steps: list[Callable[[Story], None]]) -> None:
    story = Story()
    for act in steps:
        act(story)
        check(story)


@given(
    live=st.integers(1, 40),
    drain=st.integers(1, 10),
    hold=st.floats(0.05, 0.5),
    full=st.integers(4, 40),
)
def test_under_any_steady_load_both_get_their_share_and_the_ramp_ends(
    live: int, drain: int, hold: float, full: int
) -> None:
    """So many of each at every moment, each of which takes as long: what ends is asked for again."""
    machine = Ramp(0.0, start=2, full=full, seconds=10.0, longest=50.0)
    now, ends = 0.0, list[tuple[float, int]]()
    while machine.over(now) is None:
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            machine.release(end[1], 1)
            machine.outcome(True, end[0] - hold, now)
        machine.roll(now)
        machine.wanted[DRAIN] = drain - machine.used[DRAIN]
        for kind, want in ((LIVE, live), (DRAIN, drain)):
            while machine.used[kind] < want and machine.admit(kind, 1, now):
                ends.append((now + hold, kind))
                machine.wanted[DRAIN] = drain - machine.used[DRAIN]
        assert sum(machine.used) <= machine.limit
        if now > 1.0:  # the first loans are back
            assert machine.used[DRAIN] >= min(drain, machine.own[DRAIN], machine.limit - machine.used[LIVE])
            assert machine.used[LIVE] >= min(live, machine.own[LIVE]) - 1
        now += hold / 2
    assert machine.over(now) == "full"
    assert now <= 10.0 + 2 * hold + 0.1


def test_nothing_is_left_when_it_is_full_from_the_start() -> None:
    machine = ramp(start=6)
    assert machine.over(0.0) == "full"
    assert machine.left(0.0) == 0.0
    assert math.isfinite(machine.budget)
