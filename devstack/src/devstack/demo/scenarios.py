"""What the tour shows, as data: a new row of the matrix is a new entry here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from devstack.demo import promises
from devstack.demo.promises import Check
from devstack.stack import Stack

Fault = Callable[[Stack, str], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One fault on one dependency. ``row``: the label in the matrix; ``dependency``: its name on the health page."""

    row: str
    service: str
    dependency: str
    fault_name: str
    fault: Fault
    seconds: float  # how long it lasts
    checks: tuple[Check, ...]


async def kill(stack: Stack, name: str) -> None:
    await stack.kill(name)


async def freeze(stack: Stack, name: str) -> None:
    await stack.freeze(name)


D1 = (
    promises.every_call_is_answered_in_time,
    promises.no_internal_error,
    promises.reads_are_served,
    promises.reads_tell_that_they_are_degraded,
    promises.writes_are_kept,
    promises.queued_writes_are_applied,
    promises.the_last_accepted_write_wins,
    promises.recovers_in_time,
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("D1", "dashboard", "postgres", "killed (SIGKILL)", kill, 6.0, D1),
    Scenario("D1", "dashboard", "postgres", "frozen (SIGSTOP)", freeze, 6.0, D1),
)
