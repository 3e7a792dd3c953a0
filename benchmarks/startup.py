"""From ``auralink up`` (which is what ``make up`` runs) to ready: the whole platform, as a newcomer starts it."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time

from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target
from devstack.process import kill_tree
from devstack.progress import READY_LIMIT, READY_MARK

STOP_LIMIT = 45.0  # s: the services' drain, then the servers


async def startup(options: Options) -> Report:
    """Time from the command to all services ready: on an empty state directory, and on one with data."""
    cold_starts, warm_starts = (1, 1) if options.quick else (3, 2)
    cold: list[float] = []
    warm: list[float] = []
    for number in range(cold_starts):
        options.say(f"round {number + 1} of {cold_starts}: one cold start, {warm_starts} warm")
        with tempfile.TemporaryDirectory(prefix="auralink-bench-", ignore_cleanup_errors=True) as folder:
            cold.append(await _start_and_stop(folder))
            warm += [await _start_and_stop(folder) for _ in range(warm_starts)]
    return Report(
        [
            Figure("cold start (first, makes the databases)", cold, "s"),
            Figure("warm start (on existing data)", warm, "s", Target("at most", 8.0)),
        ]
    )


async def _start_and_stop(folder: str) -> float:
    """Seconds to ready. Stopping it again is not measured."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devstack", "up", "--state-dir", folder, "--port-base", "auto"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert process.stdout
        await _ready(process.stdout)
        seconds = time.monotonic() - begun
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_LIMIT):
            await process.communicate()
    finally:
        if process.returncode is None:
            kill_tree(process.pid)
            await process.wait()
    return seconds


async def _ready(output: asyncio.StreamReader) -> None:
    said = b""
    async with asyncio.timeout(READY_LIMIT + 15):
        while READY_MARK.encode() not in said:
            line = await output.readline()
            if not line:
                raise BenchmarkError(f"the platform did not start:\n{said.decode(errors='replace')}")
            said += line
