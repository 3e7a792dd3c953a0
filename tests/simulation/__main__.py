"""``python -m tests.simulation``: many seeds, or the timeline of one. Progress on stderr, findings on stdout."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulation.coverage import RARE, SITUATIONS, missing, table
from tests.simulation.world import Report, simulate

_PROGRESS_SECONDS = 5.0


def main() -> int:
    """0: every promise was kept; 1: one was broken."""
    arguments = _parse()
    if arguments.seed is not None:
        return _one(arguments.seed, trace=arguments.trace)
    return _many(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs, table_=arguments.counts)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many seeds (1000)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="J", help="processes (2)")
    parser.add_argument("--counts", action="store_true", help="show how often each situation was reached")
    parser.add_argument("--seed", type=int, metavar="S", help="run this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print its timeline")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    if arguments.trace and arguments.seed is None:
        parser.error("--trace is of one seed: --seed S --trace")
    return arguments


def _one(seed: int, *, trace: bool) -> int:
    report = simulate(seed, trace=trace)
    sys.stdout.writelines(f"{line}\n" for line in report.lines)
    for violation in report.violations:
        print(f"seed {seed}: {violation}")
    verdict = "broken" if report.violations else "kept"
    print(f"seed {seed}: {verdict}, {report.steps} steps, {report.seconds:.1f} s simulated, trace {report.digest}")
    return 1 if report.violations else 0


def _many(seeds: range, jobs: int, *, table_: bool) -> int:
    started = time.monotonic()
    counts: Counter[str] = Counter()
    digests = hashlib.blake2b(digest_size=16)
    broken = 0
    seconds = 0.0
    for report in _watched(_reports(seeds, jobs), len(seeds), started):
        counts.update(report.counts)
        digests.update(report.digest.encode())
        seconds += report.seconds
        if report.violations:
            broken += 1
            print(_finding(report), flush=True)
    if table_:
        print("\n".join(table(counts)))
    print(_sum(seeds, broken, seconds, time.monotonic() - started, digests.hexdigest(), counts))
    return 1 if broken else 0


def _finding(report: Report) -> str:
    more = f" (and {len(report.violations) - 1} more)" if len(report.violations) > 1 else ""
    again = f"python -m tests.simulation --seed {report.seed} --trace"
    return f"seed {report.seed}: {report.violations[0]}{more}\n    {again}"


def _sum(seeds: range, broken: int, virtual: float, real: float, digest: str, counts: Counter[str]) -> str:
    never = missing(counts, (*SITUATIONS, *RARE))
    return (
        f"{len(seeds)} seeds ({seeds.start} to {seeds.stop - 1}): {broken} broken; {virtual / 3600:.1f} h simulated in "
        f"{real:.0f} s ({real / len(seeds) * 1000:.1f} ms a seed); "
        f"{'every situation reached' if not never else 'never reached: ' + ', '.join(never)}; trace {digest}"
    )


def _reports(seeds: range, jobs: int) -> Iterator[Report]:
    """In the order of the seeds, whoever ran them."""
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(simulate, seeds, chunksize=10)


def _watched(reports: Iterable[Report], total: int, started: float) -> Iterator[Report]:
    last = started
    for done, report in enumerate(reports, 1):
        yield report
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS and done < total:
            last = now
            left = (now - started) / done * (total - done)
            print(f"{done} of {total} seeds, about {left:.0f} s left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
