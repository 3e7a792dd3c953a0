"""A dependency that does what a test tells it to: answer, fail, be slow, or accept a call and never answer."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from resilience.clock import SYSTEM_CLOCK, Clock

Outcome = Literal["running", "ok", "error", "cancelled"]


class _Sign:
    """A step of a script that is not an answer."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


OK: Final = _Sign("OK")
"""Script step: the usual answer."""
HANG: Final = _Sign("HANG")
"""Script step: the call is accepted and not answered, until `thaw` or `heal`."""


class _Slow(NamedTuple):
    seconds: float
    then: object


def slow(seconds: float, then: object = OK) -> _Slow:
    """Script step: take so many seconds of the clock, then do `then`: an answer, an error, `OK` or `HANG`.

    Raises:
        ValueError: `seconds` is negative.
    """
    if not seconds >= 0:
        raise ValueError(f"seconds must not be negative, not {seconds!r}")
    return _Slow(seconds, then)


class Call:
    """One call, as the dependency saw it. Times are monotonic seconds of its clock; `ended` is `None` while it runs."""

    __slots__ = ("args", "began", "ended", "error", "kwargs", "outcome")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], began: float) -> None:
        self.args = args
        self.kwargs = kwargs
        self.began = began
        self.ended: float | None = None
        self.outcome: Outcome = "running"
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"<Call ({', '.join(shown)}) {self.outcome}{'' if self.error is None else f' {self.error!r}'}>"


class FlakyDependency:
    """A fake of whatever your code depends on: `await dependency(...)`, or `dependency.call_sync(...)`.

    Calls take the steps of the script, one each: an exception (or a type of one) is raised, `slow(seconds, then)` takes
    time, `HANG` accepts and never answers, `OK` gives the usual answer, and anything else is itself the answer. After
    the script every call gets the usual answer, until `fail`, `slow`, `freeze` or `script` say otherwise. Safe
    between threads and event loops.

    Args:
        script: the steps.
        answer: the usual one; a function is called with the call's arguments.
        clock: times the slow steps and the log.
        name: used in texts.
        max_hang: seconds (real ones) after which a hanging `call_sync` gives up with a `TimeoutError`, so that a
            forgotten thread ends. An async call hangs until cancelled.
    """

    MAX_CALLS = 10_000
    """Calls that the log holds; of more, the latest."""

    def __init__(
        self,
        *script: object,
        answer: object = "ok",
        clock: Clock = SYSTEM_CLOCK,
        name: str = "dependency",
        max_hang: float = 30.0,
    ) -> None:
        self.name = name
        self.answer = answer
        self.calls: deque[Call] = deque(maxlen=self.MAX_CALLS)
        """The log, oldest first."""
        self.in_flight = 0
        self.max_in_flight = 0
        """The most calls that ever ran at once."""
        self.frozen = False
        self._clock = clock
        self._max_hang = max_hang
        self._lock = threading.Lock()
        self._script: deque[object] = deque(script)
        self._usual: object = OK
        self._hanging: dict[object, Callable[[], object]] = {}  # what answers each call that hangs

    # -- calls

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the script says.

        Raises:
            BaseException: the error that it says.
        """
        call, step = self._begin(args, kwargs)
        try:
            while isinstance(step, _Slow):
                await self._clock.sleep(step.seconds)
                step = step.then
            await self._hang(step)
            result = self._act(step, args, kwargs)
        except BaseException as error:
            self._end(call, error)
            raise
        self._end(call)
        return result

    def call_sync(self, *args: Any, **kwargs: Any) -> Any:
        """The same from sync code; what is slow blocks the clock, and what hangs blocks the thread.

        Raises:
            BaseException: the error that the script says.
            TimeoutError: nobody thawed it within `max_hang` seconds.
        """
        call, step = self._begin(args, kwargs)
        try:
            while isinstance(step, _Slow):
                self._clock.block(step.seconds)
                step = step.then
            self._hang_sync(step)
            result = self._act(step, args, kwargs)
        except BaseException as error:
            self._end(call, error)
            raise
        self._end(call)
        return result

    # -- what it is told

    def script(self, *steps: object) -> None:
        """Further steps, to be taken after those that are left."""
        with self._lock:
            self._script.extend(steps)

    def fail(self, error: BaseException | type[BaseException]) -> None:
        """Raise `error` from every call from now on. What is left of the script is dropped, as by `slow` and `heal`."""
        if not (isinstance(error, BaseException) or (isinstance(error, type) and issubclass(error, BaseException))):
            raise TypeError(f"error must be an exception, not {error!r}")
        self._become(error)

    def slow(self, seconds: float) -> None:
        """Take so many seconds for every call from now on. Raises ValueError when negative."""
        self._become(slow(seconds))

    def freeze(self) -> None:
        """Accept calls and answer none, not even those under way, until `thaw` or `heal`."""
        with self._lock:
            self.frozen = True

    def thaw(self) -> None:
        """Answer again, also the calls that hang: each as it would have been answered."""
        with self._lock:
            self.frozen = False
            hanging, self._hanging = self._hanging, {}
        for wake in hanging.values():
            wake()

    def heal(self) -> None:
        """Be well: the usual answer to every call, at once."""
        self._become(OK)
        self.thaw()

    def __repr__(self) -> str:
        frozen = ", frozen" if self.frozen else ""
        count = f"{len(self.calls)} calls, {self.in_flight} in flight (at most {self.max_in_flight})"
        return f"<FlakyDependency {self.name!r}: {count}{frozen}>"

    # -- inside

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, object]:
        call = Call(args, kwargs, self._clock.monotonic())
        with self._lock:
            self.calls.append(call)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            return call, self._script.popleft() if self._script else self._usual

    def _end(self, call: Call, error: BaseException | None = None) -> None:
        with self._lock:
            self.in_flight -= 1
            call.ended = self._clock.monotonic()
            call.error = error
            cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            call.outcome = "ok" if error is None else "cancelled" if cancelled else "error"

    def _act(self, step: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(step, BaseException):
            raise step.with_traceback(None)  # the same object again and again must not grow its traceback
        if isinstance(step, type) and issubclass(step, BaseException):
            raise step(f"{self.name} was told to fail")
        if step is OK or step is HANG:
            return self.answer(*args, **kwargs) if callable(self.answer) else self.answer
        return step

    async def _hang(self, step: object) -> None:
        """Wait while frozen, or once if that is the step."""
        loop, hangs = asyncio.get_running_loop(), step is HANG
        while True:
            waiter = loop.create_future()
            if not self._park(waiter, partial(_wake, loop, waiter), hangs):
                return
            try:
                await waiter
            finally:
                self._hanging.pop(waiter, None)
            hangs = False

    def _hang_sync(self, step: object) -> None:
        hangs = step is HANG
        while True:
            thawed = threading.Event()
            if not self._park(thawed, thawed.set, hangs):
                return
            try:
                if not thawed.wait(self._max_hang):
                    raise TimeoutError(f"{self.name} was frozen, and nobody thawed it within {self._max_hang:g} s")
            finally:
                self._hanging.pop(thawed, None)
            hangs = False

    def _park(self, key: object, wake: Callable[[], object], hangs: bool) -> bool:
        """Whether there is a reason to hang; if so, `thaw` will call `wake`."""
        with self._lock:
            if not hangs and not self.frozen:
                return False
            self._hanging[key] = wake
            return True

    def _become(self, usual: object) -> None:
        with self._lock:
            self._script.clear()
            self._usual = usual


def _wake(loop: asyncio.AbstractEventLoop, waiter: "asyncio.Future[None]") -> None:
    try:
        loop.call_soon_threadsafe(_settle, waiter)
    except RuntimeError:  # its loop is closed, and nobody waits any more
        return


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
