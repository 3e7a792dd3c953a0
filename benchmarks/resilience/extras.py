"""The rows that are not calls on an event loop: a breaker under eight threads, and the memory of idle breakers."""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import Say, turns
from benchmarks.resilience.libraries import LIBRARIES
from benchmarks.resilience.libraries.base import NEVER, Library, breaker_for_threads, resolved
from benchmarks.resilience.rows import Unavailable

THREADS = 8
CALLS = 1000
FAILING_CALLS = 1000
BREAKERS = 10_000
QUICK_BREAKERS = 2_000
SWITCH_SECONDS = 1e-5
"""How often threads change places while counts are checked: 500 times as often as usual."""


def done(call: Any) -> Any:
    """The result of a coroutine that never waits, without an event loop.

    Raises:
        RuntimeError: it does wait.
    """
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    call.close()
    raise RuntimeError("it waits")


def in_threads(work: Callable[[], None]) -> None:
    """Run `work` in all threads at once; the first error of any is raised."""
    barrier = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run() -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def threads_row(rounds: int, say: Say) -> list[dict[str, Any]]:
    """Microseconds of CPU per call of a sync function above the bare one, all threads at the same breaker."""
    contestants: dict[str, Callable[[], Any]] = {"bare": lambda: None}
    for name, kind in LIBRARIES.items():
        if kind.has("sync"):
            try:
                library = kind()
                contestants[name] = library.sync(breaker_for_threads(library), lambda: None)  # type: ignore[attr-defined]
                contestants[name]()
            except Exception as error:  # noqa: BLE001
                contestants.pop(name, None)
                say(f"threads: {name}: left out: {type(error).__name__}: {error}")
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in turns(list(contestants), number):
            samples[name].append(_cpu(contestants[name]))
    bare = samples.pop("bare")
    return [{"library": name, "form": "", "samples": _above(found, bare)} for name, found in samples.items()]


def _cpu(function: Callable[[], Any]) -> float:
    def work() -> None:
        for _ in range(CALLS):
            function()

    begun = time.process_time()
    in_threads(work)
    return (time.process_time() - begun) / (THREADS * CALLS) * 1e6


def _above(found: Sequence[float], bare: Sequence[float]) -> list[float]:
    return [sample - floor for sample, floor in zip(found, bare, strict=True)]


async def counted(library: Library) -> tuple[bool | None, str]:
    """Whether a breaker has counted every failure that eight threads had at the same time."""
    if not hasattr(library, "failures"):
        return None, "no counter"
    breaker = await resolved(breaker_for_threads(library, threshold=NEVER))
    work = failing_calls(library, breaker)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        in_threads(lambda: work(FAILING_CALLS))
    except Exception as error:  # noqa: BLE001
        return False, f"breaks: {type(error).__name__}"
    finally:
        sys.setswitchinterval(before)
    found, expected = library.failures(breaker), THREADS * FAILING_CALLS
    return found == expected, "exact" if found == expected else f"{found} of {expected}"


def failing_calls(library: Library, breaker: Any) -> Callable[[int], None]:
    """A function that makes so many failing calls; an error other than the function's own and a rejection is raised."""

    def fail(*_args: Any) -> None:
        raise Unavailable

    async def fail_async(*_args: Any) -> None:
        raise Unavailable

    if hasattr(library, "sync"):
        call = library.sync(breaker, fail)
    else:
        form = library.forms(breaker, fail_async)[0]

        def call() -> None:
            done(form.call())

    def work(count: int) -> None:
        for _ in range(count):
            try:
                call()
            except (RuntimeError, AttributeError):
                raise
            except Exception:  # noqa: BLE001
                pass

    return work


async def memory_row(count: int = BREAKERS) -> list[dict[str, Any]]:
    """Bytes per breaker: many of them, as tracemalloc counts them; their names are not counted."""
    names = [f"dependency-{number}" for number in range(count)]
    rows = []
    for library_name, kind in LIBRARIES.items():
        if not kind.has("idle"):
            continue
        library = kind()
        for number in range(10):
            await resolved(library.idle(f"warm-{number}"))
        kept: list[Any] = [None] * count
        gc.collect()
        tracemalloc.start()
        for index, name in enumerate(names):
            kept[index] = await resolved(library.idle(name))
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        rows.append({"library": library_name, "form": "", "samples": [size]})
    return rows
