"""``python -m benchmarks.resilience``: the peers and ours side by side; ``--probes``: what they do wrong."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from typing import Any

from benchmarks.measure import BenchmarkError
from benchmarks.resilience import outside
from benchmarks.resilience.environment import Environment, base_python, environment
from benchmarks.resilience.rows import OTHER_ROWS, ROWS
from benchmarks.resilience.tables import as_text, probes_as_text

IMPORT_ROUNDS = 7
QUICK_IMPORT_ROUNDS = 2
Found = dict[str, Any]


def main() -> int:
    """0: everything was measured, whatever it was; 1: something failed."""
    arguments = _parse()
    if arguments.list:
        for name, title in {**{name: row.title for name, row in ROWS.items()}, **OTHER_ROWS}.items():
            print(f"{name:<15} {title}")
        return 0
    try:
        where = environment(arguments.python or base_python(), _say)
        found = _probed(where, arguments) if arguments.probes else _measured(where, arguments)
    except BenchmarkError as error:
        _say(f"error: {error}")
        return 1
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(probes_as_text(found) if arguments.probes else as_text(found))
    return 0


def _parse() -> argparse.Namespace:
    rows = [*ROWS, *OTHER_ROWS]
    parser = argparse.ArgumentParser(prog="benchmarks.resilience", description="resilience against its Python peers.")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--only", action="append", choices=rows, metavar="ROW", help="measure this one (repeatable)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; rough numbers")
    parser.add_argument("--json", action="store_true", help="print JSON with every round instead of the tables")
    parser.add_argument("--probes", action="store_true", help="not the speed: the correctness probes")
    parser.add_argument("--library", action="append", metavar="NAME", help="with --probes: this library (repeatable)")
    parser.add_argument("--python", metavar="PATH", help="another interpreter")
    return parser.parse_args()


def _measured(where: Environment, arguments: argparse.Namespace) -> Found:
    names = arguments.only or [*ROWS, *OTHER_ROWS]
    quick = ["--quick"] if arguments.quick else []
    wanted = [option for name in names if name != "import" for option in ("--row", name)]
    found: Found = json.loads(where.run("-m", "benchmarks.resilience.worker", *quick, *wanted))
    if "import" in names:
        rounds = QUICK_IMPORT_ROUNDS if arguments.quick else IMPORT_ROUNDS
        statements = {**found["imports"], **found["whole"]}
        found["rows"]["import"] = outside.import_row(where, statements, found["ours"], rounds, _say)
    return {"about": _about(found), "quick": arguments.quick, **found}


def _probed(where: Environment, arguments: argparse.Namespace) -> Found:
    found: Found = json.loads(where.run("-m", "benchmarks.resilience.worker"))
    wanted = [pair for pair in map(tuple, found["probes"]) if not arguments.library or pair[0] in arguments.library]
    verdicts = outside.probes(where, wanted, _say)
    found["verdicts"] = [[*pair, *verdict] for pair, verdict in verdicts.items()]
    return {"about": _about(found), **found}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _about(found: Found) -> dict[str, str]:
    """What the numbers belong to."""
    machine = f"{os.cpu_count()} × {platform.machine()}, {platform.system()}"
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": machine, "python": found["python"]}


if __name__ == "__main__":
    sys.exit(main())
