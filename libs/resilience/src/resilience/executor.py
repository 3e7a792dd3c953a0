"""Blocking work in a few threads of its own, so that slow reports cannot take the threads that everything else needs.

Admission is the bulkhead's: so many at once, so many in the queue, first come, first served. The threads are daemons of
our own, because those of `concurrent.futures` are joined when the interpreter exits: one hung call would hang the exit
of the whole process.

A thread cannot be killed. A call whose caller has gone, after a timeout or a cancellation, runs on; until it ends it
keeps its slot and counts as `abandoned`. So calls that hang end in a full bulkhead, not in ever more threads.
"""

import functools
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from threading import TIMEOUT_MAX, Lock, RLock, Thread
from types import CoroutineType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from resilience.bulkhead import Bulkhead, TaskWaiter, ThreadWaiter, Waiter, too_late
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import current_deadline
from resilience.errors import BulkheadFull, CallTimeout
from resilience.events import Events
from resilience.forms import is_async

P = ParamSpec("P")
T = TypeVar("T")

_OWN: Final[Any] = object()  # "the executor's own timeout", as `None` means none
_CLOSING_SECONDS: Final = 5.0


class _Job:
    """One call: `done` and `abandoned` change under the crew's lock."""

    __slots__ = ("abandoned", "call", "context", "done", "error", "result", "waiter")

    def __init__(self, call: Callable[[], Any], waiter: Waiter) -> None:
        self.call = call
        self.context: Context = copy_context()
        self.waiter = waiter
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = self.abandoned = False

    def run(self) -> None:
        try:
            self.result = self.context.run(self.call)
            if type(self.result) is CoroutineType:
                self.result.close()
                raise async_error(self.call)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self.error = error

    def outcome(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # the error's traceback refers to this frame: break the cycle


class _Worker:
    """A thread's seat: a job is laid into it, and then the gate opens."""

    __slots__ = ("gate", "job")

    def __init__(self, job: _Job) -> None:
        self.job: _Job | None = job
        self.gate = Lock()
        self.gate.acquire()


class _Crew:
    """The threads and what they share; they know nothing of the executor, so that one that is forgotten goes away.

    There is no thread without a job while a job has none: as a slot of the bulkhead is only given back by a thread that
    has said that it is idle, there are never more threads than slots.
    """

    __slots__ = ("abandoned", "bulkhead", "closed", "closers", "idle", "lock", "started", "threads")

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.lock = RLock()  # taken twice by a thread that happens to collect a forgotten executor
        self.idle: list[_Worker] = []
        self.threads = self.started = self.abandoned = 0
        self.closed = False
        self.closers: set[Waiter] = set()

    # -- on the caller's side

    def start(self, job: _Job) -> None:
        """Give `job`, which has a slot, to a thread. If that is impossible, the slot is given back."""
        with self.lock:
            closed, worker = self.closed, None
            if not closed and self.idle:
                worker = self.idle.pop()  # the latest: the others can stay asleep
                worker.job = job
                worker.gate.release()
            elif not closed:
                self.threads += 1
                self.started += 1
        if closed:
            self.bulkhead.release()
            raise closed_error(self.bulkhead.name)
        if worker is None:
            self._start_thread(_Worker(job))

    def _start_thread(self, worker: _Worker) -> None:
        name = f"{self.bulkhead.name}-{self.started}"
        try:
            Thread(target=self.work, args=(worker,), name=name, daemon=True).start()
        except BaseException:  # the system has no more threads
            self._end()
            self.bulkhead.release()
            raise

    def abandon(self, job: _Job) -> bool:
        """Nobody waits for `job` any more; false if it has ended (or was abandoned before)."""
        with self.lock:
            if job.done or job.abandoned:
                return False
            job.abandoned = True
            self.abandoned += 1
            return True

    def expire(self, job: _Job) -> None:
        """The caller's time is over, unless the outcome is on its way."""
        if self.abandon(job):
            job.waiter.wake()

    def close(self, closer: Waiter | None) -> bool:
        """Let nobody in, and send the threads home. Whether all are gone; else `closer` is woken when they are."""
        self.bulkhead.max_waiting = 0  # first, that nobody queues any more after those who do were told
        with self.lock:
            self.closed = True
            idle, self.idle = self.idle, []
            for worker in idle:
                worker.gate.release()
            if closer is not None and self.threads:
                self.closers.add(closer)
            gone = not self.threads
        self.bulkhead.refuse_waiting()
        return gone

    def forget(self, closer: Waiter) -> None:
        """It waits no more for the threads to end."""
        with self.lock:
            self.closers.discard(closer)

    # -- in the threads

    def work(self, worker: _Worker) -> None:
        while self._do(worker):
            worker.gate.acquire()
        self._end()

    def _do(self, worker: _Worker) -> bool:
        """Do the job that was laid before `worker`; false if there is none or will be none."""
        job, worker.job = worker.job, None
        if job is None:
            return False
        if not job.abandoned:
            job.run()
        with self.lock:
            job.done = True
            self.abandoned -= job.abandoned
            stays = not self.closed
            if stays:
                self.idle.append(worker)
        self.bulkhead.release()  # before the caller hears of it: it may want to call again
        job.waiter.wake()
        return stays

    def _end(self) -> None:
        with self.lock:
            self.threads -= 1
            closers = () if self.threads else tuple(self.closers)
        for closer in closers:
            closer.wake()


class BulkheadExecutor:
    """At most `max_workers` blocking calls at once, in threads of their own; safe between threads and event loops.

    Use it as `await executor.execute(fn, *args)`, `executor.call_sync(fn, *args)` from sync code, or `@executor`, which
    makes a blocking function async. `close` it when done, or use it as `async with` or `with`.

    Threads are started when needed and kept. They do not hold up the exit of the interpreter: what shall not be cut
    off then is waited for by `close`.

    Args:
        name: used in errors, events and the names of the threads.
        max_workers: calls that run at once.
        max_waiting: callers that may queue; past it they are rejected.
        timeout: seconds for a call, the wait for a thread included, where the call gives none. The caller's deadline
            can shorten it. The call itself runs on, as no thread can be killed: see `abandoned`.
        events: told of every caller turned away (`BulkheadRejected`).
        clock: gives time and timers; a thread that waits, in `call_sync` or `close`, does so in real time.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("_clock", "_crew", "name", "timeout")

    def __init__(
        self,
        name: str,
        max_workers: int = 3,
        *,
        max_waiting: int = 100,
        timeout: float | None = None,
        events: Events | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be positive, not {timeout!r}")
        self.name = name
        self.timeout = timeout
        self._clock = clock
        self._crew = _Crew(Bulkhead(name, max_workers, max_waiting, events=events, clock=clock))

    # -- calls

    async def execute(self, func: Callable[..., T], /, *args: Any, timeout: float | None = _OWN, **kwargs: Any) -> T:
        """Call the blocking `func` in a thread, in a copy of the caller's context, and wait for it.

        When the caller is cancelled, a call that is still queued is withdrawn, and one that runs is abandoned.
        `timeout` is not passed on; give a function that wants one of its own with `functools.partial`.

        Raises:
            BulkheadFull: not called; all threads are busy and the queue is full.
            CallTimeout: no answer in time (`not_sent` is true if the call was not begun).
            TypeError: `func` is async.
            RuntimeError: the executor is closed.
            BaseException: whatever `func` raises, unchanged.
        """
        limit, began = self._limit(func, timeout), self._clock.monotonic()
        crew = self._crew
        try:
            await crew.bulkhead.acquire(limit)
        except BulkheadFull:
            if crew.closed:
                raise closed_error(self.name) from None
            raise
        left = self._left(limit, began)
        waiter = TaskWaiter()
        job = _Job(functools.partial(func, *args, **kwargs), waiter)
        crew.start(job)
        timer = None
        try:
            if left is not None:
                timer = self._clock.call_later(left, crew.expire, job)
            await waiter.future
        except BaseException:
            crew.abandon(job)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if job.abandoned:
            raise CallTimeout(self.name, limit or 0.0)
        result: T = job.outcome()
        return result

    def call_sync(self, func: Callable[..., T], /, *args: Any, timeout: float | None = _OWN, **kwargs: Any) -> T:
        """`execute` for sync code: blocks the thread. Raises the same.

        On a thread that runs an event loop it does not queue: it is rejected when all threads are busy.
        """
        limit, began = self._limit(func, timeout), self._clock.monotonic()
        crew = self._crew
        try:
            crew.bulkhead.acquire_sync(limit)
        except BulkheadFull:
            if crew.closed:
                raise closed_error(self.name) from None
            raise
        left = self._left(limit, began)
        waiter = ThreadWaiter()
        job = _Job(functools.partial(func, *args, **kwargs), waiter)
        crew.start(job)
        try:
            if not waiter.gate.acquire(timeout=-1 if left is None else min(left, TIMEOUT_MAX)):
                crew.abandon(job)
        except BaseException:
            crew.abandon(job)
            raise
        if job.abandoned:
            raise CallTimeout(self.name, limit or 0.0)
        result: T = job.outcome()
        return result

    def __call__(self, func: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Decorate the blocking `func`: it becomes an async function that runs it in a thread.

        Raises:
            TypeError: `func` is async.
        """
        if is_async(func):
            raise async_error(func)

        @functools.wraps(func)
        async def in_thread(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.execute(functools.partial(func, *args, **kwargs))

        return in_thread

    # -- the end

    def close(self, timeout: float = _CLOSING_SECONDS) -> bool:
        """Accept no more calls, turn away those that queue, and wait for those that run, at most `timeout` seconds.

        Returns whether all have ended. Those that have not run on, unless the interpreter exits, and end their threads.
        """
        closer = ThreadWaiter()
        try:
            return self._crew.close(closer) or closer.gate.acquire(timeout=min(timeout, TIMEOUT_MAX))
        finally:
            self._crew.forget(closer)

    async def aclose(self, timeout: float = _CLOSING_SECONDS) -> bool:
        """`close` without blocking the event loop."""
        crew, closer = self._crew, TaskWaiter()
        try:
            if crew.close(closer):
                return True
            timer = self._clock.call_later(timeout, closer.wake)
            try:
                await closer.future
            finally:
                timer.cancel()
            return not crew.threads
        finally:
            crew.forget(closer)

    def __del__(self) -> None:
        crew: _Crew | None = getattr(self, "_crew", None)  # there is none if the settings were bad
        if crew is not None:
            crew.close(None)

    def __enter__(self) -> "BulkheadExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> "BulkheadExecutor":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- watching

    @property
    def max_workers(self) -> int:
        """Calls that run at once."""
        return self._crew.bulkhead.limit

    @property
    def active(self) -> int:
        """Calls that hold a thread, abandoned ones included."""
        return self._crew.bulkhead.active

    @property
    def waiting(self) -> int:
        """Callers queueing."""
        return self._crew.bulkhead.waiting

    @property
    def abandoned(self) -> int:
        """Calls that nobody waits for any more and that have not ended."""
        return self._crew.abandoned

    @property
    def closed(self) -> bool:
        """Whether no more calls are accepted."""
        return self._crew.closed

    # -- inside

    def _limit(self, func: Callable[..., Any], timeout: float | None) -> float | None:
        """The seconds that a call of `func` may take. Raises what forbids it."""
        if is_async(func):
            raise async_error(func)
        if self._crew.closed:
            raise closed_error(self.name)
        limit = self.timeout if timeout is _OWN else timeout
        deadline = current_deadline()
        if deadline is None:
            return limit
        left = deadline.at - self._clock.monotonic()
        return left if limit is None else min(limit, left)

    def _left(self, limit: float | None, began: float) -> float | None:
        """What is left of `limit` now that the call has a slot; nothing gives it back."""
        if limit is None:
            return None
        left = limit - (self._clock.monotonic() - began)
        if left > 0:
            return left
        self._crew.bulkhead.release()
        raise too_late(self.name, limit)


def closed_error(name: str) -> RuntimeError:
    return RuntimeError(f"executor {name!r} is closed")


def async_error(func: Callable[..., Any]) -> TypeError:
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", repr(func))
    return TypeError(f"{name} is async: await it instead of running it in a thread, or bound it with a Bulkhead")
