"""Runs scenarios on a stack of its own, so that nobody's data is touched, and tells what happens as it happens."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devstack.demo.faults import DROP, Platform, inflict, mend
from devstack.demo.load import CALL_LIMIT, Call, User, session
from devstack.demo.promises import RECOVERY_LIMIT, Observed
from devstack.demo.scenarios import Scenario

HEALTHY_SECONDS = 1.0
RECOVERY_WAIT = 30.0  # s after which recovery is given up
POLL = 0.05  # s

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """A scenario's outcome; ``broken``: the promises that were not kept."""

    scenario: Scenario
    observed: Observed
    broken: tuple[str, ...]


async def tour(stack: Platform, scenarios: Sequence[Scenario], say: Say) -> list[Result]:
    """All scenarios, one after the other; those left out that would break what this platform does not run, such as the
    simulated providers where there are real ones."""
    shown = [one for one in scenarios if one.fault == DROP or set(one.broken) <= set(stack.units)]
    if left := sorted({one.row for one in scenarios if one not in shown}):
        say(f"not shown, since there is nothing of ours to break: {', '.join(left)}")
    return [await run(stack, scenario, say) for scenario in shown]


async def run(stack: Platform, scenario: Scenario, say: Say) -> Result:
    """One scenario: healthy, broken, healed, judged."""
    say(
        f"\n{scenario.row}: {scenario.dependency} is {scenario.fault_name} for {scenario.seconds:g} s, under light load"
    )
    async with session() as client:
        user = User(client, stack.url(scenario.service), stack.url("dashboard"), scenario.kinds)
        await user.register()
        await user.settle_in()
        working = asyncio.create_task(user.work())
        try:
            noticed, recovery = await _phases(stack, scenario, user, say)
        finally:
            user.leaving.set()
            await asyncio.wait([working], timeout=CALL_LIMIT + 5)
            working.cancel()
        observed = await _judgeable(user, noticed, recovery, scenario.reads)
    broken = tuple(text for check in scenario.checks if (text := check(observed)))
    for text in broken:
        say(f"  NOT AS PROMISED: {text}")
    return Result(scenario, observed, broken)


async def _phases(stack: Platform, scenario: Scenario, user: User, say: Say) -> tuple[bool, float | None]:
    """Whether the circuits were open when the fault ended, and the seconds of recovery."""
    await asyncio.sleep(HEALTHY_SECONDS)
    say(_told("healthy", user))
    user.phase = "broken"
    await asyncio.gather(*(inflict(stack, scenario.fault, name) for name in scenario.broken))
    try:
        await asyncio.sleep(scenario.seconds)
        noticed = "closed" not in (await _seen(scenario, user))[0]
        say(_told("broken", user))
    finally:
        user.phase = "healed"
        healed = await asyncio.gather(*(mend(stack, scenario.fault, name) for name in scenario.broken))
    for one in healed:
        say(f"  healed:  {one.component} accepts again after {one.seconds:.1f} s")
    recovery = await _recovered(scenario, user)
    say(
        f"  recovery: {'not within' if recovery is None else ''} {recovery or RECOVERY_WAIT:.1f} s until the circuit "
        "is closed and the queue is empty"
    )
    user.phase = "recovered"
    await asyncio.sleep(HEALTHY_SECONDS / 2)
    say(_told("recovered", user))
    return noticed, recovery


async def _recovered(scenario: Scenario, user: User) -> float | None:
    """Seconds until circuit and queue are as if nothing had been; ``None`` after ``RECOVERY_WAIT``."""
    begun = time.monotonic()
    while (spent := time.monotonic() - begun) < RECOVERY_WAIT:
        circuits, waiting = await _seen(scenario, user)
        if circuits == {"closed"} and not waiting:
            return spent
        await asyncio.sleep(POLL)
    return None


async def _seen(scenario: Scenario, user: User) -> tuple[set[str], int]:
    """The states of the circuits on the service's health page, and how many writes wait."""
    page = await user.health()
    waiting = sum(queue.get("depth") or 0 for queue in page.get("queues", {}).values())
    return {page["dependencies"][name]["circuit"] for name in scenario.guards}, waiting


async def _judgeable(user: User, noticed: bool, recovery: float | None, reads: str) -> Observed:
    """Adds what can only be asked at the end: the final state, and what became of each queued write."""
    queued = [call.operation for call in user.calls if call.queued and call.operation]
    operations = {operation: await user.operation(operation) for operation in queued}
    await user.call(reads)
    *calls, final = user.calls
    return Observed(tuple(calls), recovery, final.name, noticed, operations)


def _told(phase: str, user: User) -> str:
    """What callers saw in a phase, one line per kind of call."""
    lines = [
        _summary(phase, kind, [c for c in user.calls if (c.phase, c.kind) == (phase, kind)]) for kind in user.kinds
    ]
    return "\n".join(lines)


def _summary(phase: str, kind: str, calls: Sequence[Call]) -> str:
    if not calls:
        return f"  {phase:<9} {kind}s: none"
    answers = Counter(_answer(call) for call in calls)
    listed = ", ".join(f"{count} × {answer}" for answer, count in answers.most_common())
    times = [call.seconds * 1000 for call in calls]
    return f"  {phase:<9} {kind}s: {listed}; median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms"


def _answer(call: Call) -> str:
    status = str(call.status) if call.status else f"no answer ({call.error})"
    return " ".join(
        filter(None, (status, "queued" if call.queued else "", f"from {call.fallback}" if call.fallback else ""))
    )


def verdict(result: Result) -> str:
    """One cell of the closing table."""
    return "as promised" if not result.broken else "; ".join(result.broken)


def recovery_text(result: Result) -> str:
    seconds = result.observed.recovery
    return f"not within {RECOVERY_LIMIT:g} s" if seconds is None else f"{seconds:.1f} s"
