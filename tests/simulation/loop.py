"""An event loop on virtual time: when nothing is ready it jumps to the next timer, so an hour costs only its work.

Everything that runs belongs to a `Process` (or to the world, which is none). A process can be paused: its callbacks
then wait. It can be killed: from then on nothing that it does reaches anybody. Its tasks are cancelled only so that
they leave memory in order, and must all end without time passing: what hangs then would hang a shutdown.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.text import name_of

if TYPE_CHECKING:
    _Loop = asyncio.BaseEventLoop  # has everything; what is missing here raises NotImplementedError when used
else:
    _Loop = asyncio.AbstractEventLoop

OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)
WALL = 1_700_000_000.0
"""Unix time when the virtual clock shows 0."""

_LIVELOCK = 100_000
"""So many callbacks without time passing mean that it never will."""
_ENOUGH = 3_000_000
"""So many in all mean that something repeats itself for ever."""


class Process:
    """One run of a service instance: what is born in it dies with it."""

    __slots__ = ("alive", "held", "name", "paused", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []

    @property
    def running(self) -> list[asyncio.Task[Any]]:
        """Its tasks that have not ended."""
        self.tasks = [task for task in self.tasks if not task.done()]
        return self.tasks


class Handle:
    """A callback that is ready or will be; the part of asyncio's handles that is used."""

    __slots__ = ("args", "callback", "cancelled_", "context", "owner", "when_")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context, when: float
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.when_ = when
        self.cancelled_ = False
        self.owner: Process | None = context.get(OWNER)

    def cancel(self) -> None:
        """Call it off."""
        self.cancelled_ = True

    def cancelled(self) -> bool:
        """Whether it was called off."""
        return self.cancelled_

    def when(self) -> float:
        """When it is due."""
        return self.when_


class VirtualLoop(_Loop):
    """No selector, no threads, no wall clock. With `shuffle` any of the ready callbacks may be the next one; without,
    they keep asyncio's order."""

    def __init__(self, random: Random, *, shuffle: bool = False) -> None:
        self.steps = 0
        self.failures: list[str] = []
        """What asyncio would have logged: callbacks that raised, exceptions that nobody retrieved."""
        self.tasks: list[asyncio.Task[Any]] = []
        """Those of no process."""
        self._random = random.random
        self._shuffle = shuffle
        self._now = 0.0
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context, self._now)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context, when)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        tasks = self.tasks if owner is None else owner.tasks
        if len(tasks) >= 200:
            tasks[:] = [other for other in tasks if not other.done()]
        tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    # -- running

    def run(self, until: float) -> None:
        """Do everything that is due up to the virtual time `until`."""
        asyncio._set_running_loop(self)
        try:
            while self._next(until):
                pass
        finally:
            asyncio._set_running_loop(None)
        self._now = max(self._now, until)

    def _next(self, until: float) -> bool:
        """Move to the next moment at which something is due, and do all of it; False when there is none."""
        if not self._ready and not self._wake(until):
            return False
        ready = self._ready
        steps = self.steps
        while ready:
            index = int(self._random() * len(ready)) if self._shuffle and len(ready) > 1 else 0
            handle = ready.pop(index)
            if not handle.cancelled_:
                self._call(handle)
            if self.steps - steps > _LIVELOCK or self.steps > _ENOUGH:
                raise AssertionError(f"livelock at {self._now:.3f}: {name_of(handle.callback)}")
        return True

    def _wake(self, until: float) -> bool:
        timers = self._timers
        while timers and timers[0][0] <= until:
            when, _, handle = heapq.heappop(timers)
            if not handle.cancelled_:
                self._now = max(self._now, when)
                self._ready.append(handle)
                return True
        return False

    def _call(self, handle: Handle) -> None:
        owner = handle.owner
        if owner is not None and owner.paused:
            owner.held.append(handle)
            return
        self.steps += 1
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # noqa: BLE001 - as asyncio does: told, not raised
            self.call_exception_handler({"message": f"{name_of(handle.callback)} raised", "exception": error})

    def resume(self, process: Process) -> None:
        """End a pause: what became due meanwhile is due now."""
        process.paused = False
        self._ready += process.held
        process.held.clear()

    def pending_timers(self) -> list[Handle]:
        """Timers that have not fired and were not called off."""
        return [handle for _, _, handle in self._timers if not handle.cancelled_]


class LoopClock:
    """The library's `Clock` on a virtual loop."""

    __slots__ = ("_loop", "monotonic")

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.monotonic = loop.time

    def time(self) -> float:
        return WALL + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def block(self, seconds: float) -> None:
        raise AssertionError(f"blocking for {seconds} s on the event loop")

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Any:
        return self._loop.call_later(seconds, callback, *args)
