"""The whole test suite, in groups at the same time: most tests on the platform wait for what they have broken.

Each group has processes, ports and directories of its own. What only computes yields the processors to those whose
answers are timed. With arguments, they are pytest's, and there is one run: ``tools/run_tests.py -k queue``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST_NICE, MOST_NICE = 0, 3
FAILED = 1


@dataclass(frozen=True)
class Group:
    """Files and folders that run one after the other in one pytest."""

    name: str
    paths: tuple[str, ...]
    nice: int = LEAST_NICE


def groups() -> list[Group]:
    """Every test of the workspace is in exactly one."""
    rows = ("rows_under_load", "d5_event_stream", "d6_standby")
    chaos = tuple(f"tests/chaos/test_{name}.py" for name in rows)
    last = ("tests/soak", "tests/chaos/test_pairs.py")  # everything broken at once: when the other groups are through
    others = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/chaos").glob("test_*.py"))
    platform = ("tests/e2e", *(path for path in others if path not in chaos + last))
    taken = {"chaos", "contract", "e2e", "soak"}
    rest = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if _has_tests(path, taken))
    return [
        Group("rows", (*chaos, *last)),
        Group("platform", platform),
        Group("library", ("libs", *rest, "tests/contract"), MOST_NICE),
        Group("services", ("services", "devstack"), MOST_NICE),
    ]


def _has_tests(path: Path, taken: set[str]) -> bool:
    return path.is_dir() and path.name not in taken and any(path.glob("test_*.py"))


async def run(group: Group) -> int:
    """The group's exit status; its lines are passed on with its name before them."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", str(group.nice), sys.executable, "-m", "pytest", "-q", "--durations=5", *group.paths),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**22,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        sys.stdout.write(f"{group.name:<8} | {line.decode(errors='replace')}")
        sys.stdout.flush()
    status = await process.wait()
    print(f"{group.name:<8} | exit status {status} after {time.monotonic() - begun:.0f} s", flush=True)
    return status


async def run_all() -> int:
    """0 when every group passed."""
    statuses = await asyncio.gather(*(run(group) for group in groups()))
    return FAILED if any(statuses) else 0


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if arguments:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    return asyncio.run(run_all())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
