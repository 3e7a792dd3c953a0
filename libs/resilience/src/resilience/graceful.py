"""Graceful degradation in one call: the short names, thin doors onto the breaker, the retry and the timeout.

    gd = get_graceful_degradation()
    result = await gd.execute_with_fallback(primary, fallback, operation_name="prices")

What each of them does is written there; here is only how they are put together:

    circuit of the operation → retry of what may pass → timeout of each attempt → primary;   else the fallback

The circuit counts one result per call, not one per attempt. Errors are judged by the one table (`classify.py`): what
the caller caused is never retried, and an *answer* of the dependency (not found, conflict ...) is raised untouched,
since a fallback would hide it. A sync function runs in a thread, so that it can be timed and blocks nobody; one that is
over time cannot be stopped and runs on.
"""

import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

from resilience.backoff import Backoff
from resilience.breaker import CircuitBreaker
from resilience.circuit import OPEN, CircuitState
from resilience.classify import ERRORS, Category
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.events import Events
from resilience.executor import BulkheadExecutor
from resilience.fallback import Fallback
from resilience.forms import is_async, is_awaitable
from resilience.policy import Policy
from resilience.registry import BreakerRegistry
from resilience.retry import Retry
from resilience.timeout import Timeout

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[[], Any]

THRESHOLD_VARIABLE: Final = "CIRCUIT_BREAKER_FAILURE_THRESHOLD"
RECOVERY_VARIABLE: Final = "CIRCUIT_BREAKER_RECOVERY_TIMEOUT_SECS"
MAX_THREADS: Final = 32
"""Sync functions that may run at once."""
MAX_OPERATIONS: Final = 10_000


class GracefulDegradation:
    """Operations by name, each with its circuit. Safe between threads and event loops; usually one per process.

    Args:
        failure_threshold: consecutive failed calls that open an operation's circuit; by default the environment's
            `CIRCUIT_BREAKER_FAILURE_THRESHOLD`, or 5.
        recovery_timeout: seconds until the next trial, which closes it again if it succeeds; by default the
            environment's `CIRCUIT_BREAKER_RECOVERY_TIMEOUT_SECS`, or 300.
        clock: gives time and timers.
        events: told of attempts, retries and fallbacks.

    Raises:
        ValueError: a setting is out of range; the text names it, or the variable.
    """

    def __init__(
        self,
        *,
        failure_threshold: int | None = None,
        recovery_timeout: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if failure_threshold is None:
            failure_threshold = _from_environment(THRESHOLD_VARIABLE, int, 5)
        if recovery_timeout is None:
            recovery_timeout = _from_environment(RECOVERY_VARIABLE, float, 300.0)
        self.failure_threshold: int = failure_threshold
        self.recovery_timeout: float = recovery_timeout
        self._clock = clock
        self._events = events
        self._breakers = BreakerRegistry(self._breaker, max_breakers=MAX_OPERATIONS, clock=clock)
        self._attempts = functools.lru_cache(maxsize=256)(self._make_attempts)
        self._threads = BulkheadExecutor("graceful degradation", max_workers=MAX_THREADS)
        self._breaker("")  # bad settings are found here, not at the first call

    @overload
    async def execute_with_fallback(
        self,
        primary: Callable[[], Awaitable[T]],
        fallback: Operation | None = None,
        timeout_secs: float = ...,
        max_retries: int = ...,
        operation_name: str = ...,
    ) -> T: ...
    @overload
    async def execute_with_fallback(
        self,
        primary: Callable[[], T],
        fallback: Operation | None = None,
        timeout_secs: float = ...,
        max_retries: int = ...,
        operation_name: str = ...,
    ) -> T: ...
    async def execute_with_fallback(
        self,
        primary: Operation,
        fallback: Operation | None = None,
        timeout_secs: float = 60.0,
        max_retries: int = 2,
        operation_name: str = "operation",
    ) -> Any:
        """What `primary` gives, or else `fallback`. Both take no arguments, and may be sync or async.

        A failure that may pass, or of unknown kind, is tried again up to `max_retries` times, after 1, 2, 4 ... s;
        `timeout_secs` applies to each attempt. While the operation's circuit is open, the fallback serves at once.

        Raises:
            CircuitBreakerOpen: the circuit is open and there is no fallback.
            CallTimeout: the last attempt took too long, and there is no fallback (or it failed too).
            Exception: the last attempt's own error, likewise; or the dependency's answer, with or without a fallback.
        """
        attempts = self._attempts(timeout_secs, max_retries, operation_name)
        work = functools.partial(self.breaker(operation_name).call, attempts.call, self._off_loop(primary))
        if fallback is None:
            return await work()
        return await self._fallback(self._off_loop(fallback), operation_name).call(work)

    def execute_sync(
        self,
        primary: Callable[[], T],
        fallback: Callable[[], T] | None = None,
        timeout_secs: float = 60.0,
        max_retries: int = 2,
        operation_name: str = "operation",
    ) -> T:
        """`execute_with_fallback` for code without an event loop. Raises what that raises."""
        attempts = self._attempts(timeout_secs, max_retries, operation_name)
        work = functools.partial(self.breaker(operation_name).call_sync, attempts.call_sync, primary)
        serve = (
            work if fallback is None else functools.partial(self._fallback(fallback, operation_name).call_sync, work)
        )
        return cast(T, serve())

    def get_circuit_status(self, operation_name: str) -> dict[str, Any]:
        """The circuit of an operation: `status` ("open", "closed" or "half_open"), `failures` in a row, and more.

        An open circuit whose time is over is shown as half-open: the next call is the trial. One that was never used is
        closed.
        """
        breaker = self._breakers.peek(operation_name) or self._breaker(operation_name)
        now = breaker.snapshot()
        due = now.state is OPEN and now.retry_after == 0
        return {
            "status": (CircuitState.HALF_OPEN if due else now.state).value,
            "failures": now.failures,
            "failure_threshold": self.failure_threshold,
            "recovery_timeout_secs": self.recovery_timeout,
            "retry_after_secs": now.retry_after,
            "last_error": now.last_error,
            "state_secs": now.state_seconds,
        }

    def get_all_circuit_statuses(self) -> dict[str, dict[str, Any]]:
        """`get_circuit_status` of every operation that was used."""
        return {name: self.get_circuit_status(name) for name, _ in self._breakers.items()}

    def breaker(self, operation_name: str) -> CircuitBreaker:
        """The circuit breaker of an operation, to be held, reset or listened to."""
        return self._breakers.get(operation_name)

    def with_fallback(
        self,
        fallback_fn: Callable[..., Any],
        timeout_secs: float = 60.0,
        max_retries: int = 2,
        operation_name: str | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Decorates a function, async or sync: its calls go through `execute_with_fallback` or `execute_sync`.

        `fallback_fn` is given the call's arguments if it takes them, else none. The circuit is named after the function
        unless `operation_name` is given.
        """
        return _decorator(lambda: self, fallback_fn, timeout_secs, max_retries, operation_name)

    def _breaker(self, name: str) -> CircuitBreaker:
        return CircuitBreaker(
            name,
            failure_threshold=self.failure_threshold,
            recovery_timeout=self.recovery_timeout,
            success_threshold=1,
            clock=self._clock,
        )

    def _make_attempts(self, timeout_secs: float, max_retries: int, name: str) -> Policy:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise ValueError(f"max_retries must be a whole number of at least 0, not {max_retries!r}")
        if not timeout_secs > 0:
            raise ValueError(f"timeout_secs must be positive, not {timeout_secs!r}")
        retry = Retry(
            name,
            attempts=max_retries + 1,
            backoff=Backoff(1.0, cap=60.0, jitter="none"),
            retry_on=may_pass,
            clock=self._clock,
            events=self._events,
        )
        return Policy(name, timeout=timeout_secs, retry=retry, clock=self._clock, events=self._events)

    def _fallback(self, func: Callable[[], Any], name: str) -> Fallback:
        return Fallback(lambda _failure: func(), name=name, events=self._events)

    def _off_loop(self, func: Operation) -> Callable[[], Awaitable[Any]]:
        """`func` as an async function: a sync one runs in a thread."""
        if is_async(func):
            return func
        return functools.partial(_in_thread, self._threads, func)


_shared: GracefulDegradation | None = None
_shared_lock = threading.Lock()


def get_graceful_degradation() -> GracefulDegradation:
    """The process's own `GracefulDegradation`, made at the first call, when it reads the environment."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = GracefulDegradation()
        return _shared


def with_fallback(
    fallback_fn: Callable[..., Any],
    timeout_secs: float = 60.0,
    max_retries: int = 2,
    operation_name: str | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`GracefulDegradation.with_fallback` of the process's own one."""

    return _decorator(get_graceful_degradation, fallback_fn, timeout_secs, max_retries, operation_name)


def _decorator(
    of: Callable[[], GracefulDegradation],
    fallback_fn: Callable[..., Any],
    timeout_secs: float,
    max_retries: int,
    operation_name: str | None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    def decorate(func: Callable[P, T]) -> Callable[P, T]:
        name = operation_name or f"{func.__module__}.{func.__qualname__}"

        @functools.wraps(func)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            primary, stand_in = functools.partial(func, *args, **kwargs), _fitting(fallback_fn, args, kwargs)
            return await of().execute_with_fallback(primary, stand_in, timeout_secs, max_retries, name)

        @functools.wraps(func)
        def guarded_sync(*args: P.args, **kwargs: P.kwargs) -> Any:
            primary, stand_in = functools.partial(func, *args, **kwargs), _fitting(fallback_fn, args, kwargs)
            return of().execute_sync(primary, stand_in, timeout_secs, max_retries, name)

        return cast(Callable[P, T], guarded if is_async(func) else guarded_sync)

    return decorate


def retry_on_transient(max_retries: int = 3, backoff: float = 1.0, *, clock: Clock = SYSTEM_CLOCK) -> Retry:
    """A decorator, for sync and async functions, that tries again what the table of errors calls transient.

    It waits `backoff` seconds, then twice as long, and so on, up to `max_retries` times; then the last error is raised.
    """
    cap = backoff * 2.0 ** min(max_retries, 64)
    return Retry(attempts=max_retries + 1, backoff=Backoff(backoff, cap=cap, jitter="none"), clock=clock)


async def retry_with_backoff(
    func: Callable[..., Any],
    max_retries: int = 5,
    base_wait: float = 1.0,
    max_wait: float = 60.0,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> Any:
    """Call `func`, sync or async, until it succeeds: up to `max_retries` times more, unless the caller is to blame.

    The waits are `base_wait`, twice that and so on up to `max_wait`, give or take 10 %.

    Raises:
        Exception: the last attempt's error.
    """
    backoff = Backoff(base_wait, cap=max_wait, jitter="proportional", share=0.1)
    return await Retry(attempts=max_retries + 1, backoff=backoff, retry_on=may_pass, clock=clock).call(func)


@overload
async def get_with_timeout_and_fallback(
    primary: Callable[[], Awaitable[T]], fallback: Operation | T, timeout: float = ..., *, clock: Clock = ...
) -> T: ...
@overload
async def get_with_timeout_and_fallback(
    primary: Callable[[], T], fallback: Operation | T, timeout: float = ..., *, clock: Clock = ...
) -> T: ...
async def get_with_timeout_and_fallback(
    primary: Operation, fallback: Any, timeout: float = 5.0, *, clock: Clock = SYSTEM_CLOCK
) -> Any:
    """What `primary` gives within `timeout` seconds, or else `fallback`: a function, sync or async, or a plain value.

    Raises:
        Exception: the fallback's error is noted on the primary's, which is raised; or the dependency's answer.
    """
    threads = get_graceful_degradation()
    stand_in = threads._off_loop(fallback) if callable(fallback) else None

    def serve(_failure: BaseException) -> Any:
        return fallback if stand_in is None else stand_in()

    timed = Timeout(timeout, clock=clock)
    return await Fallback(serve, name="fallback").call(timed.call, threads._off_loop(primary))


def may_pass(error: Exception) -> bool:
    """Whether trying again may help: the caller is not to blame."""
    return ERRORS.category(error) is not Category.CLIENT


async def _in_thread(threads: BulkheadExecutor, func: Callable[[], Any]) -> Any:
    (result,) = await threads.execute(lambda: (func(),))  # in a tuple, as it may be a coroutine that a lambda has made
    return await result if is_awaitable(result) else result


def _fitting(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """`func` with the arguments, if it takes them."""
    try:
        inspect.signature(func).bind(*args, **kwargs)
    except TypeError:
        return func
    except ValueError:  # no signature to be had: a builtin
        pass
    return functools.partial(func, *args, **kwargs)


def _from_environment(variable: str, kind: Callable[[str], Any], default: Any) -> Any:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a positive number, not {text!r}") from None
    if not value > 0:
        raise ValueError(f"{variable} must be a positive number, not {text!r}")
    return value
