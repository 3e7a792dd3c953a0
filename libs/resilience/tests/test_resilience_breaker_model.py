"""The breaker against a model: any sequence of calls, results, waits, probes and interventions."""

from dataclasses import dataclass, field

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

OUTCOMES = st.sampled_from(["success", "failure", "neutral"])


@dataclass
class Model:
    """The rules once more, written for clarity: running trials are a set of tickets, not a counter."""

    threshold: int
    open_time: float
    needed: int
    at_once: int
    now: float
    state: str = "closed"
    epoch: int = 0
    streak: int = 0
    opened_at: float = 0.0
    invited: bool = False
    held: bool = False
    trials: set[int] = field(default_factory=set)
    good: int = 0

    def go(self, state: str, *, held: bool = False) -> None:
        self.state, self.held, self.epoch = state, held, self.epoch + 1
        self.trials, self.good, self.invited = set(), 0, False
        if state == "open":
            self.opened_at = self.now
        if state == "closed":
            self.streak = 0

    def ask(self, ticket: int) -> bool:
        due = self.invited or self.now >= self.opened_at + self.open_time
        if self.state == "open" and not self.held and due:
            self.go("half_open")
        if self.state != "half_open":
            return self.state == "closed"
        if len(self.trials) >= self.at_once or len(self.trials) + self.good >= max(self.at_once, self.needed):
            return False
        self.trials.add(ticket)
        return True

    def report(self, ticket: int, epoch: int, outcome: str) -> None:
        if epoch != self.epoch or self.held:
            return
        self.trials.discard(ticket)
        if outcome == "failure":
            self.streak += 1
            if self.state == "half_open" or self.streak >= self.threshold:
                self.go("open")
        elif outcome == "success":
            self.good += 1
            if self.state == "half_open" and self.good >= self.needed:
                self.go("closed")
            elif self.state == "closed":
                self.streak = 0


@dataclass(frozen=True)
class Call:
    permit: Permit
    ticket: int
    epoch: int


class BreakerMachine(RuleBasedStateMachine):
    calls: Bundle[Call] = Bundle("calls")

    @initialize(
        threshold=st.integers(1, 4),
        open_time=st.sampled_from([1.0, 5.0]),
        needed=st.integers(1, 3),
        at_once=st.integers(1, 3),
    )
    def begin(self, threshold: int, open_time: float, needed: int, at_once: int) -> None:
        self.clock = FakeClock(start=0.0)
        self.breaker = CircuitBreaker(
            failure_threshold=threshold,
            recovery_timeout=open_time,
            success_threshold=needed,
            half_open_max_calls=at_once,
            clock=self.clock,
        )
        self.model = Model(threshold, open_time, needed, at_once, now=0.0)
        self.tickets = 0
        self.events: list[Transition] = []
        self.breaker.subscribe(self.events.append)

    @rule(target=calls)
    def acquire(self) -> MultipleResults[Call]:
        self.tickets += 1
        if self.model.ask(self.tickets):
            return multiple(Call(self.breaker.acquire(), self.tickets, self.model.epoch))
        with pytest.raises(CircuitBreakerOpen) as caught:
            self.breaker.acquire()
        assert caught.value.held is self.model.held
        assert (caught.value.retry_after is None) is self.model.held
        return multiple()

    @rule(call=consumes(calls), outcome=OUTCOMES, again=OUTCOMES)
    def settle(self, call: Call, outcome: str, again: str) -> None:
        self.model.report(call.ticket, call.epoch, outcome)
        getattr(call.permit, outcome)()
        getattr(call.permit, again)()  # settled already: must not count

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

    @rule(what=st.sampled_from(["force_open", "force_closed", "reset"]))
    def intervene(self, what: str) -> None:
        getattr(self.breaker, what)()
        self.model.go("open" if what == "force_open" else "closed", held=what != "reset")

    @invariant()
    def agrees(self) -> None:
        snapshot = self.breaker.snapshot()
        assert (snapshot.state.value, snapshot.held) == (self.model.state, self.model.held)
        assert snapshot.failures == self.model.streak
        if snapshot.state is CircuitState.OPEN and not snapshot.held:
            left = 0.0 if self.model.invited else max(0.0, self.model.opened_at + self.model.open_time - self.model.now)
            assert snapshot.retry_after == left

    @invariant()
    def events_form_a_chain(self) -> None:
        states = [CircuitState.CLOSED, *(event.new for event in self.events)]
        assert [event.old for event in self.events] == states[:-1]
        assert states[-1] is self.breaker.state
        assert all(event.old is not event.new for event in self.events)

    @invariant()
    def nothing_waits(self) -> None:
        assert self.clock.pending == 0


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
