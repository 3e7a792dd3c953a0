"""What runs in the benchmark's own environment: measures the rows that it is told to and prints JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import sys
import time
import warnings
from typing import Any

from benchmarks.resilience.extras import BREAKERS, QUICK_BREAKERS, memory_row, threads_row
from benchmarks.resilience.libraries import LIBRARIES, OURS
from benchmarks.resilience.probes import PROBES
from benchmarks.resilience.rows import OTHER_ROWS, ROWS
from benchmarks.resilience.timing import measure_row

ROUNDS = 70
QUICK_ROUNDS = 15
THREAD_ROUNDS = 11
QUICK_THREAD_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--row", action="append", default=[], choices=[*ROWS, *OTHER_ROWS])
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    found = {name: _row(name, quick=arguments.quick) for name in arguments.row}
    json.dump({"rows": found, **_contents()}, sys.stdout)


def _row(name: str, *, quick: bool) -> list[dict[str, Any]]:
    begun = time.perf_counter()
    if name == "memory":
        rows = asyncio.run(memory_row(QUICK_BREAKERS if quick else BREAKERS))
    elif name == "threads":
        rows = threads_row(QUICK_THREAD_ROUNDS if quick else THREAD_ROUNDS, _say)
    else:
        cells = asyncio.run(measure_row(name, QUICK_ROUNDS if quick else ROUNDS, _say))
        rows = [cell.as_json() for cell in cells]
    _say(f"{name}: {len(rows)} forms, {time.perf_counter() - begun:.1f} s")
    return rows


def _contents() -> dict[str, Any]:
    """What there is to measure, for the process that has no peers."""
    alone = {name: kind for name, kind in LIBRARIES.items() if not kind.composed and kind.imports != "asyncio"}
    return {
        "ours": OURS,
        "python": platform.python_version(),
        "notes": {name: kind.notes for name, kind in LIBRARIES.items() if kind.notes},
        "floors": {name: sorted(kind.floors) for name, kind in LIBRARIES.items()},
        "imports": {name: kind.statement() for name, kind in alone.items()},
        "whole": {f"{OURS}, everything": f"from {LIBRARIES[OURS].imports} import *"},
        "composed": [name for name, kind in LIBRARIES.items() if kind.composed],
        "probes": [
            (name, probe) for name, kind in LIBRARIES.items() for probe, (needs, _) in PROBES.items() if kind.has(needs)
        ],
        "probe_texts": {probe: (run.__doc__ or "") for probe, (_, run) in PROBES.items()},
    }


def _say(line: str) -> None:
    """To whoever watches; the results go to stdout."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
