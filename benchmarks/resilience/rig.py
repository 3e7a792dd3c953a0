"""What the probes are made of: a breaker whose function does what each call asks for, and a wall clock to move."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

from benchmarks.resilience.libraries.base import Library, Listener, resolved
from benchmarks.resilience.rows import Unavailable

OPEN_SECONDS = 0.2
AFTER_OPEN = OPEN_SECONDS * 1.5
TRIP_LIMIT = 150

Job = Callable[[], Awaitable[Any]]


class NeverOpens(Exception):
    """The breaker still admits calls."""


async def ok() -> None:
    """A job that succeeds at once."""


async def fail() -> None:
    """A job that fails at once."""
    raise Unavailable


class Rig:
    """A breaker with one function behind it that does what each call's job says."""

    def __init__(self, library: Library, breaker: Any) -> None:
        self.library = library
        self.breaker = breaker
        self.form = library.forms(breaker, self._run)[0]

    @classmethod
    async def of(cls, library: Library, *, seconds: float = OPEN_SECONDS, listener: Listener | None = None) -> Rig:
        settings = {"listener": listener} if listener else {}
        return cls(library, await resolved(library.breaker(seconds=seconds, **settings)))

    @property
    def state(self) -> str:
        return self.library.state(self.breaker)

    async def call(self, job: Job) -> str:
        """passed, failed, or rejected: the job was not begun."""
        begun = False

        async def marked() -> Any:
            nonlocal begun
            begun = True
            return await job()

        try:
            await self.form.call(marked)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            return "failed" if begun else "rejected"
        return "passed"

    async def open(self, job: Job = fail) -> None:
        """Fail until calls are rejected."""
        for _ in range(TRIP_LIMIT):
            if await self.call(job) == "rejected":
                return
        raise NeverOpens

    async def half_open(self) -> None:
        """Let it open and wait until trials are due."""
        await self.open()
        await asyncio.sleep(AFTER_OPEN)

    @staticmethod
    async def _run(job: Job) -> Any:
        return await job()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def set_wall_clock(seconds: float) -> None:
    """Every module sees a wall clock that is `seconds` off; monotonic time stays as it is."""
    real_time, real_datetime = time.time, datetime

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return real_datetime.now(tz) + timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return real_datetime.utcnow() + timedelta(seconds=seconds)

    def shifted() -> float:
        return real_time() + seconds

    for module in list(sys.modules.values()):
        if module and not getattr(module, "__name__", "").startswith("benchmarks"):
            for name, value in list(vars(module).items()):
                if value is real_time:
                    setattr(module, name, shifted)
                elif value is real_datetime:
                    setattr(module, name, Shifted)
