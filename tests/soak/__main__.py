"""``python -m tests.soak``: exit status 0 when every promise was kept, 1 when one was broken."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import aiohttp

from devstack.stack import Stack
from devstack.topology import Topology
from tests.harness.people import people
from tests.harness.platform import Platform
from tests.harness.routes import promises
from tests.harness.run import under_load
from tests.soak.nemesis import episodes
from tests.soak.soak import Soak
from tests.soak.verdict import judge, table, usage

PEOPLE = 24
SPARED = frozenset({"dashboard", "dashboard-2"})
"""Never broken: the load itself goes to these."""


def main() -> int:
    """The command."""
    given = _parse()
    if given.promises:
        print(promises())
        return 0
    folder = Path(given.out or tempfile.mkdtemp(prefix="auralink-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"seed {given.seed}, {given.minutes:g} minutes, {given.rate:g} requests a second; recorded in {folder}")
    return asyncio.run(_soak(given.seed, given.minutes * 60, given.rate, folder))


async def _soak(seed: int, seconds: float, rate: float, folder: Path) -> int:
    async with _platform() as platform:
        async with under_load(platform, await people(platform, PEOPLE), folder, rate=rate, seed=seed) as run:
            soak = Soak(run, _say)
            components = [name for name in platform.stack.units if name not in SPARED]
            await soak.through(episodes(seed, components), seconds)
        events = run.events()
        verdict = judge(events, run.before, await run.after(), soak.past)
        (folder / "nemesis.json").write_text(json.dumps([asdict(one) for one in soak.past], indent=1))
        (folder / "violations.txt").write_text("\n".join(map(str, verdict.violations)))
        if not verdict.kept:
            shutil.copytree(platform.stack.state.logs, folder / "logs", dirs_exist_ok=True)
    print(f"\n{usage(events)}\n\n{table(verdict)}\n\nseed {seed}; history and faults are in {folder}")
    return 0 if verdict.kept else 1


@asynccontextmanager
async def _platform() -> AsyncIterator[Platform]:
    with tempfile.TemporaryDirectory(prefix="auralink-soak-stack-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # noqa: ASYNC240  (at once; PostgreSQL may run as another user)
        async with (
            Stack(folder, Topology(dashboards=2, standby=True), port_base=None, say=_say) as stack,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            platform = Platform(stack, session)
            await platform.healthy(30)
            yield platform


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: any")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--out", default="", help="folder for the history and the faults; default: a new one")
    parser.add_argument("--promises", action="store_true", help="only print which requests are promised an answer when")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
