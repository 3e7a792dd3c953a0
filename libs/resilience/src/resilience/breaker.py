"""The circuit breaker: after repeated failures, stop calling a dependency that is down, and find out when it is back.

A thin shell around the pure machine in `circuit.py`: it reads the clock, hands out permits, and tells listeners.
No method awaits between reading and changing the state, so on one event loop every step is atomic. Not
meant to be shared between threads.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar, overload

from resilience.circuit import Change, Circuit
from resilience.circuit import CircuitState as CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import CircuitBreakerOpen, ResilienceError

T = TypeVar("T")


class Verdict(StrEnum):
    """What an exception says about the dependency."""

    FAILURE = "failure"  # it is not working
    NEUTRAL = "neutral"  # nothing is known: the call was cancelled
    SUCCESS = "success"  # it works and has answered: not found, conflict, not allowed, ...


Classify = Callable[[BaseException], Verdict]


def default_classify(error: BaseException) -> Verdict:
    """Every `Exception` is a failure; cancellation and interpreter exits are neutral."""
    return Verdict.FAILURE if isinstance(error, Exception) else Verdict.NEUTRAL


class Transition(NamedTuple):
    """A change of state, as told to listeners. `failures` is what the old state had counted."""

    name: str
    old: CircuitState
    new: CircuitState
    reason: str
    failures: int


Listener = Callable[[Transition], None]


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker at one moment. Times in seconds; `last_error` is the type only, as a text may hold secrets."""

    name: str
    state: CircuitState
    failures: int
    state_seconds: float
    retry_after: float | None
    last_error: str | None
    held: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls so far. `started` = succeeded + failed + neutral + stale + those still running."""

    started: int
    succeeded: int
    failed: int
    neutral: int
    stale: int
    rejected: int


class Permit:
    """The right to make one call. Settle it exactly once; later settlements, and stale ones, are ignored."""

    __slots__ = ("_breaker", "_generation")

    def __init__(self, breaker: "CircuitBreaker", generation: int) -> None:
        self._breaker: CircuitBreaker | None = breaker
        self._generation = generation

    def success(self) -> None:
        """The dependency answered."""
        breaker = self._breaker
        if breaker is not None:
            self._breaker = None
            breaker._succeeded(self._generation)

    def failure(self, error: BaseException | None = None) -> None:
        """The dependency did not answer, or answered that it is broken."""
        breaker = self._breaker
        if breaker is not None:
            self._breaker = None
            breaker._failed(self._generation, error)

    def neutral(self) -> None:
        """The call ended without saying anything about the dependency."""
        breaker = self._breaker
        if breaker is not None:
            self._breaker = None
            breaker._neutral(self._generation)


class _TrialPermit(Permit):
    """A half-open trial's permit: if its holder loses it, the place must not be lost with it."""

    __slots__ = ()

    def __del__(self) -> None:
        self.neutral()


class CircuitBreaker:
    """Opens after `failure_threshold` consecutive failures; after `recovery_timeout` seconds lets trials through.

    Args:
        name: used in errors, events and snapshots.
        failure_threshold: consecutive failures that open the circuit.
        recovery_timeout: seconds from opening to the first trial; at exactly this time the trial is admitted.
        success_threshold: successful trials that close it again.
        half_open_max_calls: trials that may run at the same time.
        max_half_open: seconds after which a trial that has not reported is taken for lost and the circuit
            reopens; `None` waits for ever, which is right when every call has a timeout.
        classify: the verdict on an exception; never asked about cancellation, which is always neutral.
        clock: only its monotonic time is used.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        success_threshold: int = 2,
        half_open_max_calls: int = 1,
        max_half_open: float | None = None,
        classify: Classify = default_classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self._clock = clock
        self._classify = classify
        self._circuit = Circuit(
            clock.monotonic(),
            failure_threshold=failure_threshold,
            recovery_timeout=recovery_timeout,
            success_threshold=success_threshold,
            half_open_max_calls=half_open_max_calls,
            max_half_open=max_half_open,
        )
        self.listener_errors = 0
        self._listeners: tuple[Listener, ...] = ()
        self._undelivered: deque[Transition] = deque()
        self._delivering = False
        self._started = self._ok = self._bad = self._unjudged = self._stale = self._rejected = 0

    @property
    def state(self) -> CircuitState:
        """The current state. An open circuit becomes half-open when a call is admitted as the trial, not before."""
        return self._circuit.state

    @property
    def held(self) -> bool:
        """Whether an operator holds the state."""
        return self._circuit.held

    @property
    def generation(self) -> int:
        """Changes with every state change and intervention; results carry it, to be recognised when stale."""
        return self._circuit.generation

    @property
    def failure_threshold(self) -> int:
        """Consecutive failures that open the circuit."""
        return self._circuit.failure_threshold

    @property
    def recovery_timeout(self) -> float:
        """Seconds from opening to the first trial."""
        return self._circuit.recovery_timeout

    # -- calls

    def acquire(self) -> Permit:
        """A permit for one call.

        Raises:
            CircuitBreakerOpen: the call must not be made.
        """
        circuit = self._circuit
        if circuit.state is CircuitState.CLOSED:
            self._started += 1
            return Permit(self, circuit.generation)
        return self._acquire_trial()

    def check(self) -> None:
        """Raise what `acquire` would raise, without taking a permit: for callers that would queue for something first.

        Raises:
            CircuitBreakerOpen: the call would not be admitted now.
        """
        circuit = self._circuit
        if circuit.state is not CircuitState.CLOSED:
            self._apply(circuit.tick(self._clock.monotonic()))
            if not circuit.has_room():
                raise self._rejection()

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, if the circuit allows it, and record what came of it.

        Raises:
            CircuitBreakerOpen: the call was not made.
            BaseException: whatever `func` raises, unchanged.
        """
        permit = self.acquire()
        try:
            result = func(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        except BaseException as error:
            self.settle(permit, error)
            raise
        permit.success()
        return result

    def verdict(self, error: BaseException) -> Verdict:
        """What `error` says about the dependency. A classifier that raises must not hide the error: failure."""
        if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
            return Verdict.NEUTRAL
        try:
            return self._classify(error)
        except Exception:  # noqa: BLE001
            return Verdict.FAILURE

    def settle(self, permit: Permit, error: BaseException) -> Verdict:
        """Settle `permit` for a call that raised `error`, and return the verdict."""
        verdict = self.verdict(error)
        if verdict is Verdict.FAILURE:
            permit.failure(error)
        elif verdict is Verdict.SUCCESS:
            permit.success()
        else:
            permit.neutral()
        return verdict

    def probe_succeeded(self, generation: int | None = None) -> None:
        """A health probe found the dependency well: if open, the next call may be the trial now.

        `generation` is the value read before the probe began; a probe that began before the last state change is
        old news and is ignored.
        """
        circuit = self._circuit
        if generation is not None and generation != circuit.generation:
            return
        if circuit.state is CircuitState.OPEN:  # a hold ignores it, and forgets it when it ends
            circuit.early = True

    # -- by hand

    def force_open(self) -> None:
        """Reject every call until `reset` or `force_closed`."""
        self._apply(self._circuit.hold(CircuitState.OPEN, self._clock.monotonic()))

    def force_closed(self) -> None:
        """Admit every call and record nothing until `reset` or `force_open`."""
        self._apply(self._circuit.hold(CircuitState.CLOSED, self._clock.monotonic()))

    def reset(self) -> None:
        """Closed and nothing counted, as new; also ends a hold. Calls still running no longer count."""
        self._apply(self._circuit.reset(self._clock.monotonic()))

    # -- watching

    def snapshot(self) -> BreakerSnapshot:
        """Everything a health page shows, at this moment."""
        circuit, now = self._circuit, self._clock.monotonic()
        return BreakerSnapshot(
            name=self.name,
            state=circuit.state,
            failures=circuit.failures,
            state_seconds=now - circuit.since,
            retry_after=circuit.retry_after(now),
            last_error=_name_of(circuit.last_error),
            held=circuit.held,
        )

    def retry_after(self) -> float | None:
        """Seconds until a trial may happen; `None` when closed or held."""
        return self._circuit.retry_after(self._clock.monotonic())

    @property
    def counts(self) -> Counts:
        """Calls so far, by outcome."""
        return Counts(self._started, self._ok, self._bad, self._unjudged, self._stale, self._rejected)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every transition, in order; returns a function that ends it.

        A listener that raises changes nothing (`listener_errors` counts it); one that changes the state causes
        further transitions, told after the current one.
        """
        self._listeners = (*self._listeners, listener)
        return lambda: self._unsubscribe(listener)

    def _unsubscribe(self, listener: Listener) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)

    # -- for permits

    def _succeeded(self, generation: int) -> None:
        circuit = self._circuit
        if generation != circuit.generation:
            self._stale += 1
            return
        self._ok += 1
        if circuit.failures or circuit.state is not CircuitState.CLOSED:
            self._apply(circuit.success(self._clock.monotonic()))

    def _failed(self, generation: int, error: BaseException | None) -> None:
        circuit = self._circuit
        if generation != circuit.generation:
            self._stale += 1
            return
        self._bad += 1
        self._apply(circuit.failure(self._clock.monotonic(), error))

    def _neutral(self, generation: int) -> None:
        circuit = self._circuit
        if generation != circuit.generation:
            self._stale += 1
            return
        self._unjudged += 1
        circuit.neutral()

    # -- inside

    def _acquire_trial(self) -> Permit:
        circuit, now = self._circuit, self._clock.monotonic()
        self._apply(circuit.tick(now))
        if not circuit.admit(now):
            raise self._rejection()
        self._started += 1
        trial = circuit.state is CircuitState.HALF_OPEN
        return (_TrialPermit if trial else Permit)(self, circuit.generation)

    def _rejection(self) -> CircuitBreakerOpen:
        self._rejected += 1
        circuit = self._circuit
        # A fresh exception each time: re-raising one object would grow its traceback with every rejection.
        return CircuitBreakerOpen(self.name, self.retry_after(), circuit.last_error, circuit.held)

    def _apply(self, change: Change | None) -> None:
        if change is None:
            return
        self._undelivered.append(Transition(self.name, *change))
        if not self._delivering:
            self._deliver()

    def _deliver(self) -> None:
        self._delivering = True
        try:
            while self._undelivered:
                transition = self._undelivered.popleft()
                for listener in self._listeners:
                    self._tell(listener, transition)
        finally:
            self._delivering = False

    def _tell(self, listener: Listener, transition: Transition) -> None:
        try:
            listener(transition)
        except Exception:  # noqa: BLE001
            self.listener_errors += 1


def _name_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    name = type(error).__name__
    # Our own texts hold row names and limits only; a driver's text may hold addresses or values.
    return f"{name}: {error}" if isinstance(error, ResilienceError) else name
