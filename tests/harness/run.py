"""A run of the load generator, and the outages that are made meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from tests.harness import load
from tests.harness.checker import Database, Outage, Violation, check
from tests.harness.client import Account
from tests.harness.history import Event, read
from tests.harness.platform import Platform

ROOT = Path(__file__).parents[2]
RECOVERY = 5.0  # s from the database accepting connections to circuits closed and queue empty
_SHOWN = 12


class Run:
    """One generator process and what is known about its time."""

    def __init__(self, platform: Platform, before: Database, out: Path) -> None:
        self.platform = platform
        self.before = before
        self.out = out
        self.outages: list[Outage] = []
        self.recoveries: list[float] = []

    @asynccontextmanager
    async def outage(self, fault: str) -> AsyncIterator[None]:
        """PostgreSQL is broken, and all instances know it, for the time of the body; then it is mended, and how long
        recovery took is noted (s)."""
        start = time.monotonic()
        await getattr(self.platform.stack, fault)("postgres")
        await self.platform.in_state("postgres", "open")
        noticed = time.monotonic()
        yield
        healing = time.monotonic()
        healed = await self.platform.stack.heal("postgres")
        assert healed.accepts
        accepting = time.monotonic()
        await self.platform.in_state("postgres", "closed")
        await self.platform.drained()
        over = time.monotonic()
        self.outages.append(Outage(start, noticed, healing, over))
        self.recoveries.append(over - accepting)

    def events(self) -> list[Event]:
        """The history; complete once the generator has ended."""
        return read(self.out)

    async def violations(self) -> Sequence[Violation]:
        """All promises that the run broke."""
        return check(self.events(), self.before, await self.platform.database(), self.outages)


@asynccontextmanager
async def under_load(
    platform: Platform, accounts: Sequence[Account], folder: Path, *, rate: float = 50.0
) -> AsyncIterator[Run]:
    """Load from another process for the time of the body."""
    given, out = folder / "accounts.json", folder / "history.jsonl"
    given.write_text(json.dumps([asdict(account) for account in accounts]))
    targets = [part for name, url in platform.targets.items() for part in ("--target", f"{name}={url}")]
    run = Run(platform, await platform.database(), out)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", load.__name__, *targets,
        "--accounts", str(given), "--out", str(out), "--rate", str(rate),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).decode().strip() == load.READY
        yield run
        process.stdin.close()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def report(violations: Sequence[Violation]) -> str:
    """A few violations in words, and how many there are."""
    lines = [str(violation) for violation in violations[:_SHOWN]]
    return "\n".join([f"{len(violations)} violations", *lines])
