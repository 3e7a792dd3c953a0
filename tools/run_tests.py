"""The whole test suite, in lanes at the same time: most tests on the platform wait for what they have broken.

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
SAYS_WHAT_FAILED = (b"FAILED ", b"ERROR ")  # how pytest's short summary begins a line


@dataclass(frozen=True)
class Group:
    """Files and folders that run one after the other in one pytest."""

    name: str
    paths: tuple[str, ...]
    nice: int = LEAST_NICE


def lanes() -> list[list[Group]]:
    """Groups that run one after the other, in each lane. Every test of the workspace is in exactly one group."""
    rows = ("rows_under_load", "d5_event_stream", "d6_standby")
    chaos = tuple(f"tests/chaos/test_{name}.py" for name in rows)
    last = ("tests/soak", "tests/chaos/test_pairs.py")  # everything broken at once: when the other lanes are through
    assistant = (*_files("chaos", "test_a*.py"), *_files("e2e", "test_gateway*.py"))
    others = (*_files("e2e", "test_*.py"), *_files("chaos", "test_*.py"))
    services = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "services").iterdir() if path.name != "webrtc")
    taken = {"chaos", "contract", "e2e", "soak"}
    rest = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if _has_tests(path, taken))
    return [
        [Group("rows", (*chaos, *last))],
        [Group("platform", tuple(path for path in others if path not in chaos + last + assistant))],
        [Group("library", ("libs", *rest, "tests/contract"), MOST_NICE)],
        [Group("services", (*services, "devstack"), MOST_NICE)],
        [Group("webrtc", ("services/webrtc",), MOST_NICE), Group("assistant", assistant)],
    ]


def _files(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / folder).glob(pattern))


def _has_tests(path: Path, taken: set[str]) -> bool:
    return path.is_dir() and path.name not in taken and any(path.glob("test_*.py"))


async def run(group: Group, failures: list[str]) -> None:
    """Pass the group's lines on with its name before them, and add what failed in it to ``failures``, a line each."""
    begun = time.monotonic()
    known = len(failures)
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", str(group.nice), sys.executable, "-m", "pytest", "-q", "--durations=5", *group.paths),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**22,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        sys.stdout.write(f"{group.name:<9} | {line.decode(errors='replace')}")
        sys.stdout.flush()
        if line.startswith(SAYS_WHAT_FAILED):
            failures.append(f"{group.name:<9} | {line.decode(errors='replace').rstrip()}")
    status = await process.wait()
    if status and len(failures) == known:
        failures.append(f"{group.name:<9} | pytest ended with status {status}")
    print(f"{group.name:<9} | exit status {status} after {time.monotonic() - begun:.0f} s", flush=True)


async def run_all() -> int:
    """0 when every group passed. What failed is said once more at the end, where the last lines of a log show it."""
    failures: list[str] = []
    await asyncio.gather(*(run_lane(lane, failures) for lane in lanes()))
    if failures:
        print("", f"failed: {len(failures)}", *failures, sep="\n", flush=True)
    return FAILED if failures else 0


async def run_lane(lane: Sequence[Group], failures: list[str]) -> None:
    """One group after the other; what comes after one that failed runs nevertheless."""
    for group in lane:
        await run(group, failures)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if arguments:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    return asyncio.run(run_all())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
