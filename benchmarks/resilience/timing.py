"""Microseconds per call above a bare `await noop()`: short slices in turn, many rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import BenchmarkError, Say, turns
from benchmarks.resilience.libraries import LIBRARIES, OURS
from benchmarks.resilience.libraries.base import Forms, Library, resolved
from benchmarks.resilience.rows import REFERENCE, ROWS, Cell, Row, Unavailable, noop
from benchmarks.resilience.shapes import DECORATED, Form, Loop, fresh

SLICE_NS = 2_000_000
MAX_COUNT = 20_000
TRIES = 3
BARE = "bare"
OPEN_SECONDS = 3600.0
TRIP_LIMIT = 1000
"""Failures after which a breaker that still admits calls is taken not to open at all."""


@dataclass
class Entry:
    """Somebody's turn within a round."""

    library: str
    form: str
    loop: Loop
    target: Any
    argument: Any
    reference: bool = False
    count: int = 0

    async def slice(self) -> float:
        """Nanoseconds per call over one slice."""
        return await self.loop(self.target, self.argument, self.count) / self.count

    async def calibrate(self) -> None:
        self.count = 100
        await self.slice()
        per_call = await self.slice()
        self.count = max(20, min(MAX_COUNT, int(SLICE_NS / max(per_call, 1.0))))


async def measure_row(name: str, rounds: int, say: Say) -> list[Cell]:
    """All forms of all libraries that have what the row measures."""
    row = ROWS[name]
    entries = await _entries(name, row, say)
    if name == "policy":
        entries += [_as_reference(entry) for entry in await _entries(REFERENCE, ROWS[REFERENCE], say)]
    bare = _bare(row)
    contestants = [bare, *entries]
    for entry in contestants:
        await entry.calibrate()
    samples = await _rounds(contestants, rounds)
    return [
        Cell(entry.library, entry.form, _above(samples[index], samples[0]), entry.reference)
        for index, entry in enumerate(contestants)
        if index
    ]


def _bare(row: Row) -> Entry:
    """What is subtracted: the function by itself, or caught where it fails."""
    form = Form(DECORATED, row.function if row.catches else noop)
    return _entry(BARE, form, rejected=row.catches)


async def _rounds(contestants: Sequence[Entry], rounds: int) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in contestants]
    order = [str(index) for index in range(len(contestants))]
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(rounds):
            for index in map(int, turns(order, number * 5)):
                samples[index].append(await contestants[index].slice())
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def _above(samples: Iterable[float], bare: Iterable[float]) -> tuple[float, ...]:
    return tuple((sample - floor) / 1000 for sample, floor in zip(samples, bare, strict=True))


def _as_reference(entry: Entry) -> Entry:
    entry.reference = True
    return entry


async def _entries(name: str, row: Row, say: Say) -> list[Entry]:
    found: list[Entry] = []
    for library_name, kind in LIBRARIES.items():
        if not kind.has(row.method):
            continue
        try:
            library = kind()
            await _check(library, row)
            forms = await _forms(library, row, row.function)
        except Exception as error:  # noqa: BLE001
            where = "not there yet" if library_name == OURS else "left out"
            say(f"{name}: {library_name}: {where}: {type(error).__name__}: {error}")
            continue
        rejected = name == "open"
        found += [
            _entry(library_name, form, rejected=rejected) for form in forms if form.shape.rejected or not rejected
        ]
    return found


def _entry(library: str, form: Form, *, rejected: bool) -> Entry:
    loop = form.shape.rejected if rejected else form.shape.loop
    assert loop
    return Entry(library, form.name, fresh(loop), form.target, form.argument)


async def _forms(library: Library, row: Row, function: Callable[..., Any]) -> Forms:
    if row.method == "open":
        return await tripped(library, function)
    forms: Forms = await resolved(getattr(library, row.method)(function))
    if row.method == "cache":
        for form in forms:
            await form.shape.loop(form.target, form.argument, 1)
    return forms


async def tripped(library: Library, function: Callable[..., Any]) -> Forms:
    """Forms through a breaker that has opened, and stays so.

    Raises:
        BenchmarkError: it does not open.
    """
    down = True

    async def dependency() -> Any:
        if down:
            raise Unavailable
        return await function()

    breaker = await resolved(library.breaker(seconds=OPEN_SECONDS))
    forms = library.forms(breaker, dependency)
    for _ in range(TRIP_LIMIT):
        try:
            await forms[0].call()
        except Unavailable:
            continue
        except Exception:  # noqa: BLE001
            if library.state(breaker) == "open":
                down = False
                return forms
    raise BenchmarkError(f"{library.name} does not open")


async def _check(library: Library, row: Row) -> None:
    """Each form must let its calls through to the function, or must not: else its speed means nothing.

    Raises:
        BenchmarkError: it does something else.
    """
    calls = 0

    async def counted(name: str = "") -> str:
        nonlocal calls
        calls += 1
        if row.function.__name__ == "fails":
            raise Unavailable
        return name

    for form in await _forms(library, row, counted):
        calls = 0
        loop = form.shape.rejected if row.method == "open" else form.shape.loop
        if loop:
            await loop(form.target, form.argument, TRIES)
            if calls != (TRIES if row.reaches else 0):
                raise BenchmarkError(f"{form.name}: {TRIES} calls reached the function {calls} times")
