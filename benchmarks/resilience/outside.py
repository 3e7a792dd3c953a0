"""What needs a process per sample: import times, and the probes, which may deadlock."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError, Say, turns
from benchmarks.resilience.environment import LIBRARY, Environment

PROBE_LIMIT = 15.0
"""Seconds for one probe; the longest takes about 3. Past them it is a deadlock."""
AT_ONCE = 2

IMPORT = """
import asyncio, time
begun = time.process_time()
{statement}
print(time.process_time() - begun)
"""


def import_row(where: Environment, libraries: dict[str, str], ours: str, rounds: int, say: Say) -> list[dict[str, Any]]:
    """Milliseconds of CPU to import what somebody uses who uses all that is measured, asyncio being there already."""
    samples: dict[str, list[float]] = {name: [] for name in libraries}
    for number in range(rounds + 1):  # the first one compiles
        for name in turns(list(samples), number):
            path = (LIBRARY,) if name.startswith(ours) else (Path("/nonexistent"),)
            try:
                found = where.run("-c", IMPORT.format(statement=libraries[name]), path=path)
            except BenchmarkError:
                say(f"import: {name}: left out")
                del samples[name]
            else:
                samples[name].append(float(found) * 1000)
    say(f"import: {len(samples)} libraries")
    return [{"library": name, "form": "", "samples": found[1:]} for name, found in samples.items()]


def probes(
    where: Environment, wanted: list[tuple[str, str]], say: Say
) -> dict[tuple[str, str], tuple[bool | None, str]]:
    """Verdicts by library and probe, `AT_ONCE` at a time."""

    def one(pair: tuple[str, str]) -> tuple[bool | None, str]:
        try:
            said = where.run("-m", "benchmarks.resilience.probes", *pair, limit=PROBE_LIMIT)
        except subprocess.TimeoutExpired:
            return False, "deadlock"
        except BenchmarkError as error:
            return False, str(error)
        passed, text = json.loads(said.splitlines()[-1])
        if passed is not True:
            say(f"{pair[0]}: {pair[1]}: {text}")
        return passed, text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))
