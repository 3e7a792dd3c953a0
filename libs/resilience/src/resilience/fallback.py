"""The fallback ladder: what serves instead, tried in order, and named in the answer.

A rung is given the failure that led to it, may have a limit of its own (a fallback that everybody needs at once must
not become the next outage), and ends in one of four ways, each told as an event: `success`, `failure`, `missing` (it
works, but has nothing to serve) or `rejected` (its own limit was reached).
"""

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from types import CoroutineType
from typing import Any, Final, Generic, Literal, TypeVar, overload

from resilience.bulkhead import Bulkhead
from resilience.classify import ERRORS
from resilience.errors import BulkheadFull, RateLimited
from resilience.events import Events, FallbackUsed
from resilience.forms import Guard, is_awaitable
from resilience.outcome import Degradation, Served
from resilience.timeout import Timeout

T = TypeVar("T")

RungOutcome = Literal["success", "failure", "missing", "rejected"]


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""What a rung returns when it works but has nothing to serve, such as an empty cache."""


class Rung(Generic[T]):
    """One step of the ladder.

    Args:
        name: as it is shown to callers.
        call: given the failure that led here, returns a value, a `Served` (to say how old it is), or `MISSING`. Async;
            a sync one does as well, and has to for sync code.
        answers: errors that it raises as its answer to the caller, such as "not found" or "not yours": they end the
            descent. Any other error means that the rung itself failed, and the next one is tried.
        limit: how many may use it at once; past that it rejects, and the next one is tried.
        timeout: seconds, or a `Timeout`.
    """

    __slots__ = ("answers", "call", "limit", "name", "timeout")

    @overload
    def __init__(
        self,
        name: str,
        call: Callable[[BaseException], Awaitable[Served[T] | T | Missing]],
        answers: tuple[type[Exception], ...] = ...,
        *,
        limit: int | Bulkhead | None = ...,
        timeout: float | Timeout | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        call: Callable[[BaseException], Served[T] | T | Missing],
        answers: tuple[type[Exception], ...] = ...,
        *,
        limit: int | Bulkhead | None = ...,
        timeout: float | Timeout | None = ...,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        call: Callable[[BaseException], Any],
        answers: tuple[type[Exception], ...] = (),
        *,
        limit: int | Bulkhead | None = None,
        timeout: float | Timeout | None = None,
    ) -> None:
        self.name = name
        self.call = call
        self.answers = answers
        self.limit = Bulkhead(name, limit, 0) if isinstance(limit, int) else limit
        self.timeout = Timeout(timeout, name=name) if isinstance(timeout, int | float) else timeout

    async def serve(self, failure: BaseException) -> Served[T] | T | Missing:
        """What it serves.

        Raises:
            BulkheadFull, RateLimited: rejected.
            CallTimeout: too slow.
            Exception: its answer, or its failure.
        """
        value: T | Missing = await (
            self._timed(failure) if self.limit is None else self.limit.call(self._timed, failure)
        )
        return value

    def serve_sync(self, failure: BaseException) -> Served[T] | T | Missing:
        """`serve` for sync code. Raises TypeError as well: the rung is async."""
        limit = self.limit
        value: T = self._timed_sync(failure) if limit is None else limit.call_sync(self._timed_sync, failure)
        return value

    def _timed_sync(self, failure: BaseException) -> Any:
        value = self.call(failure) if self.timeout is None else self.timeout.call_sync(self.call, failure)
        if is_awaitable(value):
            getattr(value, "close", lambda: None)()
            raise TypeError(f"fallback {self.name} is async and cannot serve sync code")
        return value

    async def _timed(self, failure: BaseException) -> Any:
        if self.timeout is not None:
            return await self.timeout.call(self.call, failure)
        value: Any = self.call(failure)
        return await value if is_awaitable(value) else value


async def descend(
    failure: Exception,
    rungs: Sequence[Rung[T]],
    *,
    degradation: Callable[[str], Degradation],
    tried: Callable[[str, RungOutcome], None] = lambda _name, _outcome: None,
) -> Served[T]:
    """What the first rung that has something serves, marked with `degradation(name)`.

    `tried` is told the outcome of every rung that was tried.

    Raises:
        Exception: `failure` itself, with a note per rung, when none could serve.
    """
    for rung in rungs:
        try:
            value = await rung.serve(failure)
        except Exception as error:
            if isinstance(error, rung.answers):
                tried(rung.name, "success")
                raise
            tried(rung.name, _failed(rung, error, failure))
            continue
        if value is not MISSING:
            tried(rung.name, "success")
            return _marked(value, degradation(rung.name))
        tried(rung.name, _missing(rung, failure))
    try:
        raise failure
    finally:
        del failure  # it refers to this frame by its traceback: break the cycle


def descend_sync(
    failure: Exception,
    rungs: Sequence[Rung[T]],
    *,
    degradation: Callable[[str], Degradation],
    tried: Callable[[str, RungOutcome], None] = lambda _name, _outcome: None,
) -> Served[T]:
    """`descend` without an event loop; an async rung fails."""
    for rung in rungs:
        try:
            value = rung.serve_sync(failure)
        except Exception as error:
            if isinstance(error, rung.answers):
                tried(rung.name, "success")
                raise
            tried(rung.name, _failed(rung, error, failure))
            continue
        if value is not MISSING:
            tried(rung.name, "success")
            return _marked(value, degradation(rung.name))
        tried(rung.name, _missing(rung, failure))
    try:
        raise failure
    finally:
        del failure


def _marked(value: Served[T] | T, by: Degradation) -> Served[T]:
    served = value if isinstance(value, Served) else Served(value)
    return served.also(by)


def _failed(rung: Rung[Any], error: Exception, failure: Exception) -> RungOutcome:
    rejected = isinstance(error, BulkheadFull | RateLimited)
    # The type only: a driver's text may hold an address or a value.
    failure.add_note(f"fallback {rung.name} {'rejected' if rejected else 'failed'}: {type(error).__name__}")
    return "rejected" if rejected else "failure"


def _missing(rung: Rung[Any], failure: Exception) -> RungOutcome:
    failure.add_note(f"fallback {rung.name} had nothing to serve")
    return "missing"


class Fallback(Guard):
    """What serves when a call fails: `await fallback.call(fn, *args)` gives a bare value, `serve` one that says so.

    An error by which the dependency has answered (`ErrorTable.is_answer`: not found, invalid, ...) is raised untouched.

    Args:
        rungs: functions of the failure, sync or async, or `Rung`s; tried in order.
        name: used in events and degradations.
        handles: which errors are served (a predicate that raises means no); by default all that are no answers.
        events: told the outcome of each rung.
    """

    __slots__ = ("_events", "_quick", "handles", "name", "rungs")

    def __init__(
        self,
        *rungs: Rung[Any] | Callable[[BaseException], Any],
        name: str = "",
        handles: Callable[[Exception], bool] | None = None,
        events: Events | None = None,
    ) -> None:
        if not rungs:
            raise ValueError("a fallback needs at least one rung")
        self.name = name
        self.rungs = tuple(rung if isinstance(rung, Rung) else Rung(_name_of(rung), rung) for rung in rungs)
        self.handles = _no_answer if handles is None else _careful(handles)
        self._events = events
        first = self.rungs[0]
        # The usual case, a plain function, is called without any detour.
        self._quick = first.call if first.limit is None and first.timeout is None and not first.answers else None

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The value of `func`, sync or async, or of the first rung that has one.

        Raises:
            Exception: the original failure, with a note per rung, when no rung could serve.
        """
        try:
            result = func(*args, **kwargs) if kwargs else func(*args) if args else func()  # cheaper than unpacking
            if type(result) is CoroutineType:
                return await result
            return await result if is_awaitable(result) else result
        except Exception as failure:
            if not self.handles(failure):
                raise
            quick, rungs = self._quick, self.rungs
            if quick is not None and not self._events:
                try:
                    value: Any = quick(failure)
                    if type(value) is CoroutineType or is_awaitable(value):
                        value = await value
                except Exception as error:  # noqa: BLE001 - noted, and the next rung is tried
                    _failed(rungs[0], error, failure)
                else:
                    if value is not MISSING:
                        return value.value if isinstance(value, Served) else value
                    _missing(rungs[0], failure)
                rungs = rungs[1:]
            return (await self._descend(failure, rungs)).value

    async def serve(self, func: Callable[..., Awaitable[Served[T] | T]], /, *args: Any, **kwargs: Any) -> Served[T]:
        """As `call`, with where the value came from: `degraded` is true when a rung served it.

        Raises:
            Exception: the original failure, with a note per rung, when no rung could serve.
        """
        try:
            result: Any = func(*args, **kwargs)
            if is_awaitable(result):
                result = await result
        except Exception as failure:
            if not self.handles(failure):
                raise
            return await self._descend(failure, self.rungs)
        return result if isinstance(result, Served) else Served(result)

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for sync code; async rungs are passed over as failed.

        Raises:
            Exception: the original failure, with a note per rung, when no rung could serve.
        """
        try:
            return func(*args, **kwargs)
        except Exception as failure:
            if not self.handles(failure):
                raise
            value: T = self.recover_sync(failure)
            return value

    async def recover(self, failure: Exception) -> Any:
        """The value of the first rung that has one, for a failure that `handles` has accepted.

        Raises:
            Exception: `failure`, with a note per rung, when no rung could serve.
        """
        try:
            return (await self._descend(failure, self.rungs)).value
        finally:
            del failure  # as in `descend`

    def recover_sync(self, failure: Exception) -> Any:
        """`recover` for sync code."""
        try:
            return descend_sync(failure, self.rungs, degradation=self._degradation, tried=self._tried).value
        finally:
            del failure

    async def _descend(self, failure: Exception, rungs: tuple[Rung[Any], ...]) -> Served[Any]:
        try:
            return await descend(failure, rungs, degradation=self._degradation, tried=self._tried)
        finally:
            del failure

    def _degradation(self, rung: str) -> Degradation:
        return Degradation(self.name, rung, "closed")

    def _tried(self, rung: str, outcome: RungOutcome) -> None:
        if self._events:
            self._events.emit(FallbackUsed(self.name, rung, outcome))


def _careful(handles: Callable[[Exception], bool]) -> Callable[[Exception], bool]:
    """The failure at hand matters, not the predicate's."""

    def asked(error: Exception) -> bool:
        try:
            return bool(handles(error))
        except Exception:  # noqa: BLE001
            return False

    return asked


def _no_answer(error: Exception) -> bool:
    return not ERRORS.is_answer(error)


def _name_of(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", type(func).__name__)
