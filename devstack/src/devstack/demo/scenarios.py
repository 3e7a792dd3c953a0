"""What the tour shows, as data: a new row of the matrix is a new entry here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from devstack.demo import promises
from devstack.demo.promises import Check, does_not_notice, is_refused, is_served, is_served_by

Fault = Literal["kill", "freeze"]
FAULTS: dict[Fault, str] = {"kill": "killed (SIGKILL)", "freeze": "frozen (SIGSTOP)"}


@dataclass(frozen=True)
class Scenario:
    """One fault on one dependency, or on several at once. ``row``: the label in the matrix; ``dependency``: its name
    on the health page, and the component's; ``kinds``: what the user does meanwhile; ``besides``: what else is gone."""

    row: str
    dependency: str
    fault: Fault
    seconds: float  # how long it lasts
    kinds: tuple[str, ...]
    checks: tuple[Check, ...]
    besides: tuple[str, ...] = ()
    service: str = "dashboard"

    @property
    def broken(self) -> tuple[str, ...]:
        """All components that are broken."""
        return (self.dependency, *self.besides)

    @property
    def fault_name(self) -> str:
        """For people."""
        return FAULTS[self.fault] + (f", {' and '.join(self.besides)} as well" if self.besides else "")


ALWAYS = (
    promises.every_call_is_answered_in_time,
    promises.no_internal_error,
    promises.a_healthy_answer_says_nothing,
    is_served("read"),
    promises.recovers_in_time,
)
QUEUED = (
    promises.writes_are_kept,
    promises.queued_writes_are_applied,
    promises.the_last_accepted_write_wins,
)
DIRECT = (is_served("write"), promises.the_last_accepted_write_wins)

D1 = (*ALWAYS, *QUEUED, is_served_by("read", "postgres-standby", "redis-cache"))
D2 = (*ALWAYS, *DIRECT, is_served_by("read", "memory-sessions"))
D3 = (
    *ALWAYS,
    *DIRECT,
    is_refused("chat", "AI temporarily unavailable"),
    is_served("translate"),
    is_served_by("translate", "original-text"),
    is_served("note", 201),
    promises.queued_writes_are_applied,
    does_not_notice("read", "write", "room"),
)
D4 = (
    *ALWAYS,
    *DIRECT,
    is_refused("ticket", "Video calling temporarily unavailable"),
    is_served("room"),
    is_served_by("room", "rooms-database"),
    does_not_notice("read", "write"),
)
D5 = (*ALWAYS, *DIRECT, does_not_notice("read", "write", "room"))
D6 = (*ALWAYS, *QUEUED, is_served_by("read", "redis-cache", "memory-cache"))

_ACCOUNT = ("read", "write")
_AI = (*_ACCOUNT, "room", "chat", "translate", "note")
_VIDEO = (*_ACCOUNT, "room", "ticket")

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("D1", "postgres", "kill", 5.0, _ACCOUNT, D1),
    Scenario("D1", "postgres", "freeze", 5.0, _ACCOUNT, D1),
    Scenario("D2", "redis", "kill", 4.0, _ACCOUNT, D2),
    Scenario("D2", "redis", "freeze", 4.0, _ACCOUNT, D2),
    Scenario("D3", "ai-core", "kill", 5.0, _AI, D3),
    Scenario("D3", "ai-core", "freeze", 6.0, _AI, D3),
    Scenario("D4", "webrtc", "kill", 5.0, _VIDEO, D4),
    Scenario("D4", "webrtc", "freeze", 6.0, _VIDEO, D4),
    Scenario("D5", "kafka", "kill", 5.0, (*_ACCOUNT, "room"), D5),
    Scenario("D5", "kafka", "freeze", 5.0, (*_ACCOUNT, "room"), D5),
    Scenario("D6", "standby", "kill", 5.0, _ACCOUNT, D6, besides=("postgres",)),
    Scenario("D6", "standby", "freeze", 6.0, _ACCOUNT, D6, besides=("postgres",)),
)
