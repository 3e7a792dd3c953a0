"""The breaker against a model: any sequence of calls, results, waits, probes, changed settings and interventions."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from resilience import CircuitBreaker, CircuitBreakerOpen, CircuitState, FakeClock, Permit, Transition

OUTCOMES = st.sampled_from(["success", "failure", "told", "neutral"])
TOLD = 7.0
WINDOW_SECONDS = 10.0


def growing(attempt: int) -> float:
    return 2.0 * 3.0**attempt


@dataclass
class Model:
    """The rules once more, written for clarity: running trials are a set of tickets, a window is a list, recounted."""

    rules: dict[str, Any]
    now: float
    state: str = "closed"
    held: bool = False
    shadow: bool = False
    epoch: int = 0
    streak: int = 0
    openings: int = 0
    until: float = 0.0
    told_until: float = 0.0
    invited: bool = False
    trials: set[int] = field(default_factory=set)
    last_trial: float = 0.0
    good: int = 0
    bad: int = 0
    seen: list[tuple[float, bool, bool]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)

    # -- what the settings come to

    @property
    def verdicts(self) -> int:
        given: int | None = self.rules["half_open_trials"]
        usual: int = max(self.rules["half_open_max_calls"], self.rules["success_threshold"])
        return usual if given is None else given

    @property
    def minimum(self) -> int:
        return min(int(self.rules["minimum_calls"]), int(self.rules["window"] or 10**9))

    def open_seconds(self, attempt: int) -> float:
        wait = self.rules["recovery_timeout"]
        return float(wait(attempt) if callable(wait) else wait)

    def recount(self) -> tuple[int, int, int]:
        latest = self.seen
        if self.rules["window"]:
            latest = self.seen[-self.rules["window"] :]
        elif self.rules["window_seconds"]:
            latest = [one for one in self.seen if int(one[0]) > int(self.now) - WINDOW_SECONDS]
        return len(latest), sum(failed for _, failed, _ in latest), sum(slow for _, _, slow in latest)

    # -- states

    def go(self, state: str, *, held: bool = False, shadow: bool = False) -> None:
        if state != self.state:
            self.told.append((self.state, state))
        self.state, self.held, self.shadow, self.epoch = state, held, shadow, self.epoch + 1
        self.trials, self.good, self.bad, self.invited = set(), 0, 0, False
        self.until = self.told_until = self.now
        if state == "closed":
            self.streak = self.openings = 0
            self.seen = []

    def trip(self, asked: float) -> None:
        wait = max(self.open_seconds(0 if self.shadow else self.openings), asked)
        if not self.shadow:
            openings = self.openings + 1
            self.go("open")
            self.openings, self.until, self.told_until = openings, self.now + wait, self.now + asked
        elif self.now >= self.until:
            self.told.append(("closed", "closed"))
            self.until = self.now + wait

    def tick(self) -> None:
        if self.held:
            return
        if self.state == "open" and (self.now >= self.until or (self.invited and self.now >= self.told_until)):
            self.go("half_open")
        limit = self.rules["max_half_open"]
        if self.state == "half_open" and limit and self.trials and self.now >= self.last_trial + limit:
            self.trip(0.0)

    def ask(self, ticket: int) -> bool:
        self.tick()
        if self.state != "half_open":
            return self.state == "closed"
        missing = max(1, self.verdicts - self.good - self.bad)
        if len(self.trials) >= min(self.rules["half_open_max_calls"], missing):
            return False
        self.trials.add(ticket)
        self.last_trial = self.now
        return True

    def report(self, ticket: int, epoch: int, began: float, outcome: str) -> None:
        if epoch != self.epoch or self.held:
            return
        self.trials.discard(ticket)
        if outcome == "neutral":
            return
        failed = outcome != "success"
        limit = self.rules["slow_call_seconds"]
        slow = limit is not None and self.now - began > limit
        asked = TOLD if outcome == "told" else 0.0
        self.streak = self.streak + 1 if failed else self.streak if self.state == "half_open" else 0
        if self.state == "half_open":
            self.settle_trial(failed or slow, asked)
        else:
            self.settle_call(began, failed, slow, asked)

    def settle_trial(self, bad: bool, asked: float) -> None:
        self.good, self.bad = self.good + (not bad), self.bad + bad
        given = self.rules["half_open_trials"]
        if bad and self.bad > (0 if given is None else given - self.rules["success_threshold"]):
            self.trip(asked)
        elif not bad and self.good >= self.rules["success_threshold"]:
            self.go("closed")

    def settle_call(self, began: float, failed: bool, slow: bool, asked: float) -> None:
        self.seen.append((began, failed, slow))
        calls, failures, slows = self.recount()
        threshold, failure_rate, slow_rate = (
            self.rules[name] for name in ("failure_threshold", "failure_rate", "slow_rate")
        )
        known = calls >= self.minimum
        if (
            (failed and asked and self.rules["trip_on_retry_after"])
            or (failed and threshold is not None and self.streak >= threshold)
            or (known and failures and failure_rate is not None and failures >= failure_rate * calls)
            or (known and slows and slow_rate is not None and slows >= slow_rate * calls)
        ):
            self.trip(asked)


@dataclass(frozen=True)
class Call:
    permit: Permit
    ticket: int
    epoch: int
    began: float


WATCHED: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"window": st.integers(1, 6), "failure_rate": st.sampled_from([0.25, 0.5, 1.0])}),
    st.fixed_dictionaries({"window_seconds": st.just(WINDOW_SECONDS), "failure_rate": st.sampled_from([0.5, 1.0])}),
    st.fixed_dictionaries(
        {
            "window": st.integers(2, 6),
            "slow_call_seconds": st.sampled_from([0.5, 1.0]),
            "slow_rate": st.sampled_from([0.5, 1.0]),
            "failure_rate": st.sampled_from([None, 0.75]),
        }
    ),
    st.fixed_dictionaries(
        {"window_seconds": st.just(WINDOW_SECONDS), "slow_call_seconds": st.just(1.0), "slow_rate": st.just(0.5)}
    ),
)
USUAL: dict[str, Any] = {
    "failure_threshold": None,
    "window": None,
    "window_seconds": None,
    "failure_rate": None,
    "slow_call_seconds": None,
    "slow_rate": None,
}


class BreakerMachine(RuleBasedStateMachine):
    calls: Bundle[Call] = Bundle("calls")

    @initialize(
        watched=WATCHED,
        threshold=st.one_of(st.none(), st.integers(1, 4)),
        rest=st.fixed_dictionaries(
            {
                "recovery_timeout": st.sampled_from([1.0, 5.0, growing]),
                "success_threshold": st.integers(1, 3),
                "half_open_max_calls": st.integers(1, 3),
                "half_open_trials": st.one_of(st.none(), st.integers(3, 5)),
                "max_half_open": st.sampled_from([None, 2.0]),
                "minimum_calls": st.integers(1, 4),
                "trip_on_retry_after": st.booleans(),
            }
        ),
    )
    def begin(self, watched: dict[str, Any], threshold: int | None, rest: dict[str, Any]) -> None:
        if not watched:
            threshold = threshold or 2
        rules = {**USUAL, **watched, **rest, "failure_threshold": threshold}
        self.clock = FakeClock(start=0.0)
        self.breaker = CircuitBreaker(clock=self.clock, **rules)
        self.model = Model(rules, now=0.0)
        self.tickets = 0
        self.events: list[Transition] = []
        self.breaker.subscribe(self.events.append)

    @rule(target=calls)
    def acquire(self) -> MultipleResults[Call]:
        self.tickets += 1
        if self.model.ask(self.tickets):
            return multiple(Call(self.breaker.acquire(), self.tickets, self.model.epoch, self.model.now))
        with pytest.raises(CircuitBreakerOpen) as caught:
            self.breaker.acquire()
        assert caught.value.held is self.model.held
        assert (caught.value.retry_after is None) is self.model.held
        return multiple()

    @rule()
    def check(self) -> None:
        self.model.tick()
        free = self.model.ask(-1)
        self.model.trials.discard(-1)
        if free:
            self.breaker.check()
        else:
            with pytest.raises(CircuitBreakerOpen):
                self.breaker.check()

    @rule(call=consumes(calls), outcome=OUTCOMES, again=OUTCOMES)
    def settle(self, call: Call, outcome: str, again: str) -> None:
        self.model.report(call.ticket, call.epoch, call.began, outcome)
        for how in (outcome, again):  # the second time it is settled already, and must not count
            if how == "told":
                call.permit.failure(ValueError(), TOLD)
            else:
                getattr(call.permit, how)()

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0]), wall=st.sampled_from([0.0, 3600.0, -3600.0]))
    def wait(self, seconds: float, wall: float) -> None:
        self.clock.move(seconds)
        self.clock.jump_wall(wall)
        self.model.now += seconds

    @rule(stale=st.booleans())
    def probe(self, stale: bool) -> None:
        self.breaker.probe_succeeded(self.breaker.generation - stale)
        if not stale and self.model.state == "open" and not self.model.held:
            self.model.invited = True

    @rule(what=st.sampled_from(["force_open", "force_closed", "reset", "shadow"]))
    def intervene(self, what: str) -> None:
        getattr(self.breaker, what)()
        held = what in ("force_open", "force_closed")
        self.model.go("open" if what == "force_open" else "closed", held=held, shadow=what == "shadow")

    @rule()
    def half_open(self) -> None:
        if self.model.state == "closed":
            with pytest.raises(ValueError, match="closed"):
                self.breaker.force_half_open()
            return
        self.breaker.force_half_open()
        if self.model.state == "open":
            self.model.go("half_open")

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def open_for(self, seconds: float) -> None:
        self.breaker.open_for(seconds)
        model, until = self.model, self.model.now + seconds
        if model.held:
            return
        if model.state == "open":
            model.until, model.told_until = max(model.until, until), max(model.told_until, until)
        elif model.shadow:
            model.trip(seconds)
        else:
            openings = model.openings
            model.go("open")
            model.openings, model.until, model.told_until = openings, until, until

    @rule(
        change=st.one_of(
            st.fixed_dictionaries({"failure_threshold": st.integers(1, 4)}),
            st.fixed_dictionaries({"recovery_timeout": st.sampled_from([1.0, 5.0, growing])}),
            st.fixed_dictionaries({"success_threshold": st.integers(1, 3)}),
            st.fixed_dictionaries({"half_open_max_calls": st.integers(1, 3)}),
            st.fixed_dictionaries({"minimum_calls": st.integers(1, 4)}),
            st.fixed_dictionaries({"max_half_open": st.sampled_from([None, 2.0])}),
            st.fixed_dictionaries({"window": st.integers(1, 8)}),
        )
    )
    def configure(self, change: dict[str, Any]) -> None:
        model = self.model
        if "window" in change:
            if not model.rules["window"]:
                return
            model.seen = model.seen[-model.rules["window"] :]
        self.breaker.configure(**change)
        model.rules.update(change)
        if "window" in change:
            model.seen = model.seen[-model.rules["window"] :]

    @invariant()
    def agrees(self) -> None:
        snapshot, model = self.breaker.snapshot(), self.model
        assert (snapshot.state.value, snapshot.held, snapshot.shadow) == (model.state, model.held, model.shadow)
        assert snapshot.failures == model.streak
        if snapshot.state is CircuitState.OPEN and not snapshot.held:
            left = (model.told_until if model.invited else model.until) - model.now
            assert snapshot.retry_after == max(0.0, left)
        if model.rules["window"] or model.rules["window_seconds"]:
            calls, failures, slows = model.recount()
            assert snapshot.calls == calls
            if calls >= model.minimum:
                assert snapshot.failure_rate == failures / calls
                assert snapshot.slow_rate == slows / calls
            else:
                assert (snapshot.failure_rate, snapshot.slow_rate) == (None, None)

    @invariant()
    def events_form_a_chain(self) -> None:
        assert [(event.old.value, event.new.value) for event in self.events] == self.model.told
        moved = [event for event in self.events if event.old is not event.new]
        states = [CircuitState.CLOSED, *(event.new for event in moved)]
        assert [event.old for event in moved] == states[:-1]
        assert states[-1] is self.breaker.state

    @invariant()
    def every_call_is_accounted_for(self) -> None:
        counts = self.breaker.counts
        assert counts.started == sum(counts[1:6])
        assert min(counts) >= 0

    @invariant()
    def nothing_waits(self) -> None:
        assert self.clock.pending == 0


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(stateful_step_count=50, deadline=None)
