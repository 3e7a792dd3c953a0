"""A run of the load generator, and the outages that are made meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

from tests.harness import load
from tests.harness.checker import Database, Outage, Violation, check
from tests.harness.client import Account
from tests.harness.history import Event, read
from tests.harness.people import ready
from tests.harness.platform import Platform, eventually
from tests.harness.routes import STANDBY

ROOT = Path(__file__).parents[2]
RECOVERY = 5.0  # s from the last component accepting connections to circuits closed and queue empty
MODE = 8.0  # s more until the mode is normal again
OPENING = 20.0  # s until a circuit that is in use has opened; five batches for a frozen broker take ten
_SHOWN = 15


class Run:
    """One generator process and what is known about its time."""

    def __init__(self, platform: Platform, accounts: Sequence[Account], before: Database, out: Path) -> None:
        self.platform = platform
        self.accounts = accounts
        self.before = before
        self.out = out
        self.outages: list[Outage] = []
        self.recoveries: list[float] = []

    @asynccontextmanager
    async def outage(self, fault: str, component: str = "postgres") -> AsyncIterator[None]:
        """One component is broken, and all instances know it, for the time of the body; then it is mended, and how
        long recovery took is noted (s)."""
        async with self.outages_of({component: fault}):
            yield

    @asynccontextmanager
    async def outages_of(self, faults: Mapping[str, str]) -> AsyncIterator[None]:
        """The same for several components at once: component -> fault."""
        stack = self.platform.stack
        start = time.monotonic()
        await asyncio.gather(*(getattr(stack, fault)(component) for component, fault in faults.items()))
        noticed = {component: await self._noticed(component, faults) for component in faults}
        yield
        healing = time.monotonic()
        healed = await asyncio.gather(*(stack.heal(component) for component in faults))
        assert all(one.accepts for one in healed), healed
        accepting = time.monotonic()
        for component in faults:
            await self._closed(component)
        await self.platform.drained()
        self.recoveries.append(time.monotonic() - accepting)
        await self._normal()
        over = time.monotonic()
        self.outages += [Outage(start, noticed[one], healing, over, one) for one in faults]

    async def _noticed(self, component: str, faults: Mapping[str, str]) -> float:
        """When all circuits of the Dashboards to it are open; nobody asks a standby while the primary is well, or
        anybody while a nearer circuit is open, so those may never be."""
        if component == STANDBY:
            return math.inf
        dashboards = self.platform.dashboards

        async def opened() -> bool:
            found = await self.platform.circuits(component, dashboards)
            return all(one != "closed" for one in found)

        await eventually(opened, f"circuits of {component} are open, while {dict(faults)}", OPENING)
        return time.monotonic()

    async def _closed(self, component: str) -> None:
        async def closed() -> bool:
            return set(await self.platform.circuits(component)) <= {"closed"}

        await eventually(closed, f"circuits of {component} are closed")

    async def _normal(self) -> None:
        async def normal() -> bool:
            return set((await self.platform.modes()).values()) == {"normal"}

        await eventually(normal, "the mode is normal", MODE)

    def events(self) -> list[Event]:
        """The history; complete once the generator has ended."""
        return read(self.out)

    async def violations(self) -> Sequence[Violation]:
        """All promises that the run broke."""
        return check(self.events(), self.before, await self.after(), self.outages)

    async def after(self) -> Database:
        """What is in the database now, and which rooms there are."""
        after = await self.platform.database()
        return replace(after, made={**after.made, "new_room": await self.platform.rooms(self.accounts)})


@asynccontextmanager
async def under_load(
    platform: Platform, accounts: Sequence[Account], folder: Path, *, rate: float = 50.0, seed: int = 1
) -> AsyncIterator[Run]:
    """Load from another process for the time of the body, on everything that the Dashboard has."""
    equipped = await ready(platform, accounts)
    run = Run(platform, equipped, await platform.database(), folder / "history.jsonl")
    async with _generator(run, await platform.kinds(), rate, seed) as process:
        yield run
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(20):
            assert await process.wait() == 0


@asynccontextmanager
async def _generator(
    run: Run, kinds: Sequence[str], rate: float, seed: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    given = run.out.with_name("accounts.json")
    given.write_text(json.dumps([asdict(account) for account in run.accounts]))
    targets = [part for name, url in run.platform.targets.items() for part in ("--target", f"{name}={url}")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", load.__name__, *targets, "--accounts", str(given), "--out", str(run.out),
        "--rate", str(rate), "--seed", str(seed), "--kinds", ",".join(kinds),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).decode().strip() == load.READY
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def report(violations: Sequence[Violation]) -> str:
    """How many violations there are of each sort, and one example of it."""
    sorts: dict[tuple[str, str, str], list[Violation]] = {}
    for one in violations:
        sorts.setdefault((one.rule, one.problem, one.event.kind if one.event else ""), []).append(one)
    lines = [f"{len(same)} × {same[0]}" for same in sorted(sorts.values(), key=len, reverse=True)[:_SHOWN]]
    more = [f"and {len(sorts) - _SHOWN} more sorts"] if len(sorts) > _SHOWN else []
    return "\n".join([f"{len(violations)} violations", *lines, *more])
