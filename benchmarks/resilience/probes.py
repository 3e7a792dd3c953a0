"""The correctness probes: what a breaker, a retry or a timeout does where libraries are known to go wrong.

Each runs in a process of its own, because a deadlock is a result too: `python -m benchmarks.resilience.probes LIBRARY
PROBE` prints one line of JSON, `[passed or null, what was seen]`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import json
import logging
import threading
import time
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.resilience.extras import counted, failing_calls, in_threads
from benchmarks.resilience.libraries import LIBRARIES
from benchmarks.resilience.libraries.base import Library, breaker_for_threads, resolved
from benchmarks.resilience.rig import AFTER_OPEN, TRIP_LIMIT, Job, NeverOpens, Rig, fail, ok, set_wall_clock

TURN = 0.03
"""Seconds in which everything that can run has run."""
CALLERS = 100
HOUR = 3600.0
JITTERED = 8
"""Retries of which the one that waits the least counts."""
REJECTIONS = 10_000
FLAT_BYTES = 20_000

Verdict = tuple[bool | None, str]


class Busy(ConnectionError):
    """A failure that says when to come back, in the ways in which libraries look for it."""

    retry_after = 1.0
    response = SimpleNamespace(headers={"Retry-After": "1"}, status_code=503)


class Gone(BaseException):
    """Not an Exception: what ends a call from outside."""


async def race(library: Library) -> Verdict:
    """100 callers at half-open: how many get through before there is any verdict"""
    rig = await Rig.of(library)
    await rig.half_open()
    begun, verdict = 0, asyncio.Event()

    async def trial() -> None:
        nonlocal begun
        begun += 1
        await verdict.wait()

    callers = [asyncio.create_task(rig.call(trial)) for _ in range(CALLERS)]
    await asyncio.sleep(TURN * 3)
    through = begun
    verdict.set()
    await asyncio.gather(*callers)
    return through < CALLERS // 2, str(through)


async def clock(library: Library) -> Verdict:
    """Wall clock set back, or forward, by an hour while open: still opens for trials on time"""
    rig = await Rig.of(library)
    await rig.open()
    set_wall_clock(-HOUR)
    await asyncio.sleep(AFTER_OPEN)
    if await rig.call(ok) == "rejected":
        return False, "shut for an hour"
    rig = await Rig.of(library, seconds=60.0)
    await rig.open()
    set_wall_clock(HOUR)
    return (True, "on time") if await rig.call(ok) == "rejected" else (False, "opens early")


async def _late(rig: Rig, ending: Job) -> tuple[str, str]:
    """What a call from before the trip does to a good trial: the state right after it, and what comes of the next."""
    late, trial = asyncio.Event(), asyncio.Event()

    async def old() -> None:
        await late.wait()
        await ending()

    async def good() -> None:
        await trial.wait()

    straggler = asyncio.create_task(rig.call(old))
    await asyncio.sleep(TURN)
    await rig.half_open()
    trying = asyncio.create_task(rig.call(good))
    await asyncio.sleep(TURN)
    late.set()
    await straggler
    state = rig.state
    trial.set()
    await trying
    return state, await rig.call(ok)


async def late_failure(library: Library) -> Verdict:
    """A failure of a call from before the trip, during a good trial, reopens"""
    state, then = await _late(await Rig.of(library), fail)
    return (False, "reopens") if state == "open" or then == "rejected" else (True, "ignored")


async def late_success(library: Library) -> Verdict:
    """A success of a call from before the trip, during a trial, closes, or counts as a trial"""
    rig = await Rig.of(library)
    await rig.half_open()
    needed = await _trials(rig)
    rig = await Rig.of(library)
    state, _ = await _late(rig, ok)
    if state == "closed":
        return False, "closes"
    return (True, "ignored") if 2 + await _trials(rig) >= needed else (False, "counts")


async def _trials(rig: Rig) -> int:
    """Successful calls until it is closed."""
    for count in range(TRIP_LIMIT):
        if rig.state == "closed":
            return count
        await rig.call(ok)
    return TRIP_LIMIT


async def _lost_trial(rig: Rig) -> Verdict:
    if rig.state == "closed":
        return False, "closes"
    state = rig.state
    await asyncio.sleep(AFTER_OPEN * 2)
    if await rig.call(ok) == "rejected":
        return False, "strands"
    return True, "reopens" if state == "open" else "released"


async def cancelled(library: Library) -> Verdict:
    """A trial is cancelled by its caller: strands, or closes"""
    rig = await Rig.of(library)
    await rig.half_open()
    trial = asyncio.create_task(rig.call(lambda: asyncio.sleep(HOUR)))
    await asyncio.sleep(TURN)
    trial.cancel()
    await asyncio.wait([trial])
    return await _lost_trial(rig)


async def base_exception(library: Library) -> Verdict:
    """A trial dies of a BaseException: strands, or closes"""
    rig = await Rig.of(library)
    await rig.half_open()

    async def dies() -> None:
        raise Gone

    await asyncio.create_task(rig.call(dies))
    return await _lost_trial(rig)


def _listens(library: Library) -> bool:
    return "listener" in inspect.signature(library.breaker).parameters


async def raising_listener(library: Library) -> Verdict:
    """A listener raises: the breaker still opens"""
    if not _listens(library):
        return None, "no listener"

    def raises() -> None:
        raise RuntimeError("listener")

    rig = await Rig.of(library, listener=raises)
    try:
        await rig.open()
    except NeverOpens:
        return False, "never opens"
    await asyncio.sleep(AFTER_OPEN)
    for _ in range(TRIP_LIMIT):
        if await rig.call(ok) == "rejected":
            return False, "never closes"
        if rig.state == "closed":
            return True, "opens, closes"
    return False, "never closes"


async def reentrant_listener(library: Library) -> Verdict:
    """A listener reads the state and makes a call: no deadlock"""
    if not _listens(library):
        return None, "no listener"
    told = blocked = 0
    rigs: list[Rig] = []

    def calls_back() -> None:
        nonlocal told, blocked
        told += 1
        if told == 1:
            _ = rigs[0].state
            call: Any = rigs[0].form.call(ok)
            try:
                call.send(None)
            except (StopIteration, Exception):  # noqa: BLE001
                return
            blocked = 1
            call.close()

    rigs.append(await Rig.of(library, listener=calls_back))
    try:
        await rigs[0].open()
    except NeverOpens:
        return False, "never opens"
    return (False, "deadlock") if blocked else (bool(told), "fine" if told else "not told")


async def breaker_retry_after(library: Library) -> Verdict:
    """A failure with Retry-After keeps the breaker open for as long"""
    rig = await Rig.of(library)

    async def busy() -> None:
        raise Busy

    await rig.open(busy)
    await asyncio.sleep(AFTER_OPEN)
    kept = await rig.call(ok) == "rejected"
    return kept, "honoured" if kept else "ignored"


async def retry_after(library: Library) -> Verdict:
    """A failure with Retry-After makes the retry wait as long, without code of the user's"""
    waited = min(await asyncio.gather(*(_waited(library) for _ in range(JITTERED))))
    if waited >= Busy.retry_after * 0.95:
        return True, "honoured"
    return False, "cut short" if waited >= Busy.retry_after / 3 else "ignored"


async def _waited(library: Library) -> float:
    """Seconds between the attempts of a retry whose first attempt says when to come back."""
    calls: list[float] = []

    async def busy() -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise Busy

    await library.waits(busy).call()  # type: ignore[attr-defined]
    return calls[1] - calls[0]


async def timeout_error(library: Library) -> Verdict:
    """The error of a timeout is a TimeoutError"""

    async def hangs() -> None:
        await asyncio.sleep(HOUR)

    form = (await resolved(library.timeout(hangs, 0.02)))[0]  # type: ignore[attr-defined]
    try:
        await form.call()
    except Exception as error:  # noqa: BLE001
        return isinstance(error, TimeoutError), type(error).__name__
    return False, "no error"


async def threads(library: Library) -> Verdict:
    """Eight threads at once: failures are counted exactly, and it opens exactly once"""
    passed, text = await counted(library)
    if passed is False or not _listens(library):
        return passed, text
    changes: list[int] = []
    lock = threading.Lock()

    def changed() -> None:
        with lock:
            changes.append(1)

    breaker = await resolved(breaker_for_threads(library, seconds=HOUR, listener=changed))
    work = failing_calls(library, breaker)
    try:
        in_threads(lambda: work(200))
    except Exception as error:  # noqa: BLE001
        return False, f"breaks: {type(error).__name__}"
    once = len(changes) == 1
    return once, text if once else f"opens {len(changes)} ×"


async def rejections(library: Library) -> Verdict:
    """10,000 rejections leave memory and the depth of tracebacks flat"""
    rig = await Rig.of(library, seconds=HOUR)
    await rig.open()
    for _ in range(REJECTIONS // 10):
        await rig.call(ok)
    before = await _depth(rig)
    tracemalloc.start()
    for _ in range(100):
        await rig.call(ok)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    for _ in range(REJECTIONS):
        await rig.call(ok)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - size
    tracemalloc.stop()
    after = await _depth(rig)
    flat = grown < FLAT_BYTES and after == before
    return flat, "flat" if flat else f"+{grown / 1e6:.1f} MB, depth {before} to {after}"


async def _depth(rig: Rig) -> int:
    try:
        await rig.form.call(ok)
    except Exception as error:  # noqa: BLE001
        depth, frame = 0, error.__traceback__
        while frame:
            depth, frame = depth + 1, frame.tb_next
        return depth
    return 0


PROBES: dict[str, tuple[str, Callable[[Library], Awaitable[Verdict]]]] = {
    "race": ("forms", race),
    "clock": ("forms", clock),
    "late failure": ("forms", late_failure),
    "late success": ("forms", late_success),
    "cancelled": ("forms", cancelled),
    "dies": ("forms", base_exception),
    "raising": ("forms", raising_listener),
    "re-entrant": ("forms", reentrant_listener),
    "Retry-After, breaker": ("forms", breaker_retry_after),
    "Retry-After, retry": ("waits", retry_after),
    "timeout": ("timeout", timeout_error),
    "threads": ("forms", threads),
    "rejections": ("forms", rejections),
}
"""By name: what the library must have, and the probe."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("probe", choices=PROBES)
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    _, probe = PROBES[arguments.probe]
    try:
        verdict = asyncio.run(_run(probe, LIBRARIES[arguments.library]))
    except (AttributeError, TypeError, ImportError) as error:
        verdict = (None, f"{type(error).__name__}: {error}")
    except NeverOpens:
        verdict = (False, "never opens")
    print(json.dumps(verdict), flush=True)


async def _run(probe: Callable[[Library], Awaitable[Verdict]], kind: type[Library]) -> Verdict:
    return await probe(kind())


if __name__ == "__main__":
    main()
