"""The circuit breaker: after repeated failures, stop calling a dependency that is down, and find out when it is back.

A thin shell around the pure machine in `circuit.py`: it reads the clock, hands out permits, and tells listeners.
Safe to share between threads and event loops: each step is taken under one lock, which is never held while anybody
else's code runs. Three steps of the usual cases do without it, as it would double their cost: see `Circuit.door`.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import lru_cache
from types import CoroutineType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar, overload

from resilience.circuit import CLOSED, HALF_OPEN, OPEN, RULES, Change, Circuit, CircuitSettings
from resilience.circuit import CircuitState as CircuitState
from resilience.classify import ERRORS
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.errors import CircuitBreakerOpen, CircuitHeldOpen, ResilienceError
from resilience.forms import Guard, is_awaitable
from resilience.retry_after import retry_after_of

T = TypeVar("T")


class Verdict(StrEnum):
    """What an exception says about the dependency."""

    FAILURE = "failure"  # it is not working
    NEUTRAL = "neutral"  # nothing is known: the call was cancelled
    SUCCESS = "success"  # it works and has answered: not found, conflict, not allowed, ...


Classify = Callable[[BaseException], Verdict]

FAILURE: Final = Verdict.FAILURE
NEUTRAL: Final = Verdict.NEUTRAL
SUCCESS: Final = Verdict.SUCCESS


def default_classify(error: BaseException) -> Verdict:
    """A failure, unless by the table of errors the dependency has answered; cancellation and exits are neutral."""
    if not isinstance(error, Exception):
        return NEUTRAL
    return SUCCESS if ERRORS.is_answer(error) else FAILURE


def classify_by(
    *,
    neutral: tuple[type[BaseException], ...] = (),
    answers: tuple[type[BaseException], ...] = (),
    failures: tuple[type[BaseException], ...] = (),
    otherwise: Verdict = FAILURE,
) -> Classify:
    """Verdicts by type. Where several match, `neutral` wins over `answers`, and `answers` over `failures`."""

    def classify(error: BaseException) -> Verdict:
        if isinstance(error, neutral):
            return NEUTRAL
        if isinstance(error, answers):
            return SUCCESS
        return FAILURE if isinstance(error, failures) else otherwise

    return classify


class Transition(NamedTuple):
    """A change of state, as told to listeners, with what the old state had counted.

    `failures` are consecutive ones; `calls`, `failed` and `slow` those of the window (0 without one). `old` and `new`
    are the same when a circuit in shadow tells that it would have opened.
    """

    name: str
    old: CircuitState
    new: CircuitState
    reason: str
    failures: int
    calls: int = 0
    failed: int = 0
    slow: int = 0


Listener = Callable[[Transition], None]


class BreakerSnapshot(NamedTuple):
    """A breaker at one moment. Times in seconds; `last_error` is the type only, as a text may hold secrets.

    The rates are shares from 0 to 1, and `None` while the window has fewer than the minimum of calls: unknown.
    """

    name: str
    state: CircuitState
    failures: int
    state_seconds: float
    retry_after: float | None
    last_error: str | None
    held: bool
    shadow: bool = False
    calls: int = 0
    failure_rate: float | None = None
    slow_rate: float | None = None


class Counts(NamedTuple):
    """Calls so far. `started` = succeeded + failed + neutral + stale + in_flight, at every moment."""

    started: int
    succeeded: int
    failed: int
    neutral: int
    stale: int
    in_flight: int
    rejected: int


class Permit:
    """The right to make one call. Settle it exactly once; later settlements, and stale ones, are ignored.

    As a context manager (`with` or `async with`) it settles by how the block ends.
    """

    __slots__ = ("_began", "_breaker", "_generation")

    def __init__(self, breaker: "CircuitBreaker", generation: int, began: float) -> None:
        self._breaker: CircuitBreaker | None = breaker
        self._generation = generation
        self._began = began

    def success(self) -> None:
        """The dependency answered."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._succeeded(self._generation, self._began)

    def failure(self, error: BaseException | None = None, retry_after: float | None = None) -> None:
        """The dependency did not answer, or answered that it is broken, for `retry_after` seconds if it said so."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._failed(self._generation, self._began, error, retry_after)

    def neutral(self) -> None:
        """The call ended without saying anything about the dependency."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._neutral(self._generation)

    def settle(self, error: BaseException, verdict: Verdict | None = None) -> None:
        """The call raised `error`; what that means is the breaker's classification, unless a verdict is given."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._settled(self._generation, self._began, verdict or breaker.verdict(error), error)

    def returned(self, result: object) -> None:
        """The call returned `result`; whether that is a success is the breaker's classification."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._returned(self._generation, self._began, result)

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.success()
        else:
            self.settle(error)

    async def __aenter__(self) -> "Permit":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class _CarefulPermit(Permit):
    """A permit that settles itself when its holder loses it: a trial's place must not be lost with it."""

    __slots__ = ()

    def __del__(self) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            # The collector may run in the middle of anything, so the breaker's lock cannot be taken here.
            breaker._lost.append(self._generation)


class BreakerSettings:
    """All that breakers which are alike share: the circuit's rules, and how endings are judged."""

    __slots__ = (
        "circuit",
        "classify",
        "clock",
        "failure_result",
        "judged",
        "monotonic",
        "slow_after",
        "timed",
        "watched",
    )

    def __init__(
        self,
        circuit: CircuitSettings,
        classify: Classify,
        failure_result: Callable[[Any], bool] | None,
        clock: Clock,
    ) -> None:
        self.circuit = circuit
        self.classify = classify
        self.failure_result = failure_result
        self.clock = clock
        self.monotonic = clock.monotonic
        self.judged = failure_result is not None
        self.timed = circuit.timed
        self.watched = self.timed or self.judged
        self.slow_after = math.inf if circuit.slow_call_seconds is None else circuit.slow_call_seconds


@lru_cache(maxsize=256, typed=True)
def _shared(
    classify: Classify, failure_result: Callable[[Any], bool] | None, clock: Clock, *rules: Any
) -> BreakerSettings:
    return BreakerSettings(CircuitSettings(**dict(zip(RULES, rules, strict=True))), classify, failure_result, clock)


_NONE_LOST: Final[list[int]] = []
_UNTIMED: Final = math.inf
"""When a call began that nobody times: one that is under way when `configure` begins to is neither slow nor old."""


class CircuitBreaker(Guard):
    """Opens when the dependency fails, rejects at once while open, and finds out by a few trials when it is back.

    Use it as `await breaker.call(fn, *args)`, `breaker.call_sync(fn, *args)`, `@breaker`, `with breaker.acquire():`
    (also `async with`), or in two steps: `permit = breaker.acquire()`, then `permit.success()` or `.failure(error)`.

    Args:
        name: used in errors, events and snapshots.
        failure_threshold: consecutive failures that open the circuit; 5, or none when a rate is watched.
        recovery_timeout: seconds from opening to the first trial; at exactly this time the trial is admitted. Or a
            function of the number of openings in a row (from 0; 0 again after a close), such as `growing(30, cap=600)`.
        success_threshold: successful trials that close it again.
        half_open_max_calls: trials that may run at the same time.
        half_open_trials: trials that get a verdict. Left out, the first failed trial opens the circuit again; given, it
            opens once `success_threshold` successes of so many trials are out of reach.
        max_half_open: seconds after which a trial that has not reported is taken for lost and the circuit
            opens again; `None` waits for ever, which is right when every call has a timeout.
        window: watch rates over the latest so many calls (100 when a rate is given without a window) ...
        window_seconds: ... or over so many seconds.
        failure_rate: share of failures in the window that opens the circuit, from just above 0 up to 1 (0.5).
        slow_call_seconds: a call that takes longer is slow, whether or not it succeeds.
        slow_rate: share of slow calls in the window that opens the circuit. A trial that is slow counts as failed.
        minimum_calls: calls in the window before a rate is known; capped at `window`.
        honour_retry_after: an error's `retry_after` (seconds) keeps the circuit open for at least that long.
        trip_on_retry_after: and opens it at once.
        classify: the verdict on an exception; never asked about cancellation, which is always neutral.
        failure_result: true for a result that is a failure; the caller gets the result all the same.
        clock: only its monotonic time is used.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_bad",
        "_circuit",
        "_listening",
        "_lock",
        "_lost",
        "_ok",
        "_rejected",
        "_settings",
        "_stale",
        "_started",
        "_unjudged",
        "name",
    )

    def __init__(
        self,
        name: str = "default",
        *,
        failure_threshold: int | None = None,
        recovery_timeout: float | Callable[[int], float] = 60.0,
        success_threshold: int = 2,
        half_open_max_calls: int = 1,
        half_open_trials: int | None = None,
        max_half_open: float | None = None,
        window: int | None = None,
        window_seconds: float | None = None,
        failure_rate: float | None = None,
        slow_call_seconds: float | None = None,
        slow_rate: float | None = None,
        minimum_calls: int = 10,
        honour_retry_after: bool = True,
        trip_on_retry_after: bool = False,
        classify: Classify = default_classify,
        failure_result: Callable[[Any], bool] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self._settings = settings = _shared(
            classify,
            failure_result,
            clock,  # type: ignore[arg-type]  # every object that is a clock can be hashed
            failure_threshold,
            recovery_timeout,
            success_threshold,
            half_open_max_calls,
            half_open_trials,
            max_half_open,
            window,
            window_seconds,
            failure_rate,
            slow_call_seconds,
            slow_rate,
            minimum_calls,
            honour_retry_after,
            trip_on_retry_after,
        )
        self._circuit = Circuit(settings.circuit, clock.monotonic())
        self._lock = threading.Lock()
        self._listening: _Listening | None = None
        self._lost: list[int] = _NONE_LOST
        self._started = self._ok = self._bad = self._unjudged = self._stale = self._rejected = 0

    # -- calls

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, if the circuit allows it, and record what came of it.

        Raises:
            CircuitBreakerOpen: the call was not made.
            BaseException: whatever `func` raises, unchanged.
        """
        circuit, settings = self._circuit, self._settings
        door = circuit.door
        if door < 0:
            left = circuit.shut_until - settings.monotonic()
            if left > 0:
                self._rejected += 1
                if circuit.held:
                    raise CircuitHeldOpen(self.name, None, circuit.last_error)
                raise CircuitBreakerOpen(self.name, left, circuit.last_error)
            return await self._try(func, args, kwargs)
        self._started += 1
        watched = settings.watched
        began = settings.monotonic() if watched else _UNTIMED
        try:
            result = func(*args, **kwargs) if kwargs else func(*args) if args else func()  # cheaper than unpacking
            if type(result) is CoroutineType or is_awaitable(result):
                result = await result
        except BaseException as error:
            self._settled(door, began if settings.timed else _UNTIMED, self.verdict(error), error)
            raise
        if watched and (settings.judged or settings.monotonic() - began > settings.slow_after):
            self._returned(door, began if settings.timed else _UNTIMED, result)
            return result
        # From here to a return nothing is called: see `Circuit.door`.
        if door == circuit.door and not circuit.failures:
            window = circuit.window
            if window is None:
                self._ok += 1
                return result
            if window.full and not window.ring[window.at]:  # a success takes the place of a success
                at = window.at + 1
                window.at = 0 if at == window.size else at
                self._ok += 1
                return result
        self._succeeded(door, began)
        return result

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`call` for a sync `func`, without an event loop."""
        circuit, settings = self._circuit, self._settings
        generation = circuit.door
        if generation < 0:
            generation, began = self._enter()
        else:
            self._started += 1
            began = settings.monotonic() if settings.timed else _UNTIMED
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._settled(generation, began, self.verdict(error), error)
            raise
        self._returned(generation, began, result)
        return result

    def acquire(self) -> Permit:
        """A permit for one call.

        Raises:
            CircuitBreakerOpen: the call must not be made.
        """
        circuit, settings = self._circuit, self._settings
        door = circuit.door
        if door < 0:
            generation, began = self._enter()
            return (_CarefulPermit if circuit.state is HALF_OPEN else Permit)(self, generation, began)
        self._started += 1
        return Permit(self, door, settings.monotonic() if settings.timed else _UNTIMED)

    def check(self) -> None:
        """Raise what `acquire` would raise, without taking a permit: for callers that would queue for something first.

        Raises:
            CircuitBreakerOpen: a call would be rejected now.
        """
        if self._circuit.door < 0:
            self._admit(take=False)

    def verdict(self, error: BaseException) -> Verdict:
        """What `error` says about the dependency. A classifier that raises must not hide the error: failure."""
        if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
            return NEUTRAL
        try:
            return self._settings.classify(error)
        except Exception:  # noqa: BLE001
            return FAILURE

    def is_failure(self, result: object) -> bool:
        """Whether `result`, though returned, is a failure. A predicate that raises must not hide it: failure."""
        judge = self._settings.failure_result
        if judge is None:
            return False
        try:
            return judge(result)
        except Exception:  # noqa: BLE001
            return True

    def probe_succeeded(self, generation: int | None = None) -> None:
        """A health probe found the dependency well: if open, the next call may be the trial now.

        `generation` is the value read before the probe began; a probe that began before the last state change is
        old news and is ignored.
        """
        circuit = self._circuit
        with self._lock:
            if generation in (None, circuit.generation):
                circuit.probed()

    # -- by hand

    def force_open(self) -> None:
        """Reject every call until `reset` or `force_closed`."""
        self._by_hand(lambda circuit, now: circuit.hold(OPEN, now))

    def force_closed(self) -> None:
        """Admit every call and let none of them change anything, until `reset` or `force_open`."""
        self._by_hand(lambda circuit, now: circuit.hold(CLOSED, now))

    def force_half_open(self) -> None:
        """Let trials through now. Raises ValueError when the circuit is closed."""
        self._by_hand(lambda circuit, now: circuit.half_open(now))

    def shadow(self) -> None:
        """Count and tell as usual, but never reject, until `reset`: to try settings out on live traffic."""
        self._by_hand(lambda circuit, now: circuit.watch(now))

    def open_for(self, seconds: float) -> None:
        """Open now for at least `seconds`: the dependency, or its operator, said when it will be back."""
        self._by_hand(lambda circuit, now: circuit.open_for(now, seconds))

    def reset(self) -> None:
        """Closed and nothing counted, as new; also ends a hold or shadow. Calls still running no longer count."""
        self._by_hand(lambda circuit, now: circuit.reset(now))

    def configure(self, **changes: Any) -> None:
        """Change settings (by the names of the constructor's) while in use; what has been counted and the state stay.

        Thresholds are applied to the next outcome, open times to the next opening.

        Raises:
            TypeError: no such setting.
            ValueError: out of range; nothing has changed.
        """
        old = self._settings
        shell = {name: changes.pop(name, getattr(old, name)) for name in ("classify", "failure_result")}
        settings = BreakerSettings(old.circuit.changed(**changes), clock=old.clock, **shell)
        with self._lock:
            self._settings = settings
            self._circuit.configure(settings.circuit)

    # -- watching

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
    def settings(self) -> CircuitSettings:
        """The rules in force."""
        return self._settings.circuit

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with it: closed, nothing counted against the dependency, nobody inside."""
        circuit, now = self._circuit, self._settings.monotonic()
        with self._lock:
            calm = circuit.state is CLOSED and not circuit.held and not circuit.shadow and not circuit.failures
            inside = self._started - self._ok - self._bad - self._unjudged - self._stale
            window = circuit.window
            if window is not None:
                window.advance(now)
            return calm and not inside and (window is None or not (window.failures or window.slow))

    @property
    def counts(self) -> Counts:
        """Calls so far, by outcome."""
        self._find_lost()
        with self._lock:
            started, rejected = self._started, self._rejected
            ended = (self._ok, self._bad, self._unjudged, self._stale)
        return Counts(started, *ended, started - sum(ended), rejected)

    @property
    def listener_errors(self) -> int:
        """Exceptions raised by listeners, which were otherwise ignored."""
        return 0 if self._listening is None else self._listening.errors

    def snapshot(self) -> BreakerSnapshot:
        """Everything a health page shows, at this moment."""
        circuit, now = self._circuit, self._settings.monotonic()
        with self._lock:
            if circuit.window is not None:
                circuit.window.advance(now)
            calls, failure_rate, slow_rate = circuit.rates()
            return BreakerSnapshot(
                name=self.name,
                state=circuit.state,
                failures=circuit.failures,
                state_seconds=now - circuit.since,
                retry_after=circuit.retry_after(now),
                last_error=_name_of(circuit.last_error),
                held=circuit.held,
                shadow=circuit.shadow,
                calls=calls,
                failure_rate=failure_rate,
                slow_rate=slow_rate,
            )

    def retry_after(self) -> float | None:
        """Seconds until a trial may happen; `None` when closed or held."""
        with self._lock:
            return self._circuit.retry_after(self._settings.monotonic())

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every transition, in order; returns a function that ends it.

        A listener that raises changes nothing (`listener_errors` counts it); one that changes the state causes
        further transitions, told after the current one. With several threads, one of them tells all.
        """
        with self._lock:
            if self._listening is None:
                self._listening = _Listening()
            self._listening.listeners = (*self._listening.listeners, listener)
        return lambda: self._unsubscribe(listener)

    def _unsubscribe(self, listener: Listener) -> None:
        with self._lock:
            if self._listening is not None:
                others = (other for other in self._listening.listeners if other is not listener)
                self._listening.listeners = tuple(others)

    # -- results

    def _settled(self, generation: int, began: float, verdict: Verdict, error: BaseException) -> None:
        if verdict is FAILURE:
            self._failed(generation, began, error, retry_after_of(error, clock=self._settings.clock))
        elif verdict is SUCCESS:
            self._succeeded(generation, began)
        else:
            self._neutral(generation)

    def _returned(self, generation: int, began: float, result: object) -> None:
        if self._settings.judged and self.is_failure(result):
            self._failed(generation, began, None, None)
        else:
            self._succeeded(generation, began)

    def _succeeded(self, generation: int, began: float) -> None:
        circuit, settings = self._circuit, self._settings
        timed = settings.timed
        now = settings.monotonic() if timed else 0.0
        # The same short way as in `call`, for everybody else.
        if generation == circuit.door and not circuit.failures and now - began <= settings.slow_after:
            window = circuit.window
            if window is None:
                self._ok += 1
                return
            if window.full and not window.ring[window.at]:
                at = window.at + 1
                window.at = 0 if at == window.size else at
                self._ok += 1
                return
        if not timed:
            now = settings.monotonic()
        with self._lock:
            if generation != circuit.generation:
                self._stale += 1
                return
            self._ok += 1
            change = circuit.success(now, began)
            if change is None:
                return
            self._note(change)
        self._tell()

    def _failed(self, generation: int, began: float, error: BaseException | None, retry_after: float | None) -> None:
        circuit, now = self._circuit, self._settings.monotonic()
        with self._lock:
            if generation != circuit.generation:
                self._stale += 1
                return
            self._bad += 1
            change = circuit.failure(now, began, error, retry_after)
            if change is None:
                return
            self._note(change)
        self._tell()

    def _neutral(self, generation: int) -> None:
        circuit = self._circuit
        with self._lock:
            if generation != circuit.generation:
                self._stale += 1
                return
            self._unjudged += 1
            circuit.neutral()

    def _find_lost(self) -> None:
        """Takes back the places of trials whose permits were lost."""
        while self._lost:
            try:
                generation = self._lost.pop()
            except IndexError:  # another thread was faster
                return
            self._neutral(generation)

    # -- inside

    async def _try(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`call` when the door is not open: rejected, or a trial."""
        permit = self.acquire()
        try:
            result = func(*args, **kwargs)
            if is_awaitable(result):
                result = await result
        except BaseException as error:
            permit.settle(error)
            raise
        permit.returned(result)
        return result

    def _enter(self) -> tuple[int, float]:
        """Admits a call: its generation, and when it began. Raises CircuitBreakerOpen."""
        generation = self._admit(take=True)
        return generation, self._settings.monotonic()

    def _admit(self, *, take: bool) -> int:
        """The generation of an admitted call. Raises CircuitBreakerOpen."""
        circuit, now = self._circuit, self._settings.monotonic()
        if self._lost:
            self._find_lost()
        with self._lock:
            change = circuit.tick(now)
            if change is not None:
                self._note(change)
            admitted = circuit.admit(now) if take else circuit.has_room()
            generation = circuit.generation
            if not admitted:
                self._rejected += 1
            elif take:
                self._started += 1
                if circuit.state is HALF_OPEN and self._lost is _NONE_LOST:
                    self._lost = []
        if change is not None:
            self._tell()
        if not admitted:
            raise self._rejection(now)
        return generation

    def _rejection(self, now: float) -> CircuitBreakerOpen:
        """A fresh exception each time: re-raising one object would grow its traceback with every rejection."""
        circuit = self._circuit
        if circuit.held:
            return CircuitHeldOpen(self.name, None, circuit.last_error)
        return CircuitBreakerOpen(self.name, circuit.retry_after(now), circuit.last_error)

    def _by_hand(self, change_it: Callable[[Circuit, float], Change | None]) -> None:
        now = self._settings.monotonic()
        with self._lock:
            change = change_it(self._circuit, now)
            if change is not None:
                self._note(change)
        if change is not None:
            self._tell()

    def _note(self, change: Change) -> None:
        """Under the lock: puts the change in line for the listeners."""
        if self._listening is not None:
            self._listening.waiting.append(Transition(self.name, *change))

    def _tell(self) -> None:
        """Without the lock: tells what is in line, unless somebody is at it, who will then find it there."""
        listening = self._listening
        if listening is None:
            return
        while True:
            with self._lock:
                if listening.telling or not listening.waiting:
                    return
                listening.telling = True
                transition, listeners = listening.waiting.popleft(), listening.listeners
            try:
                listening.tell(transition, listeners)
            finally:
                listening.telling = False


class _Listening:
    """Who listens, and what they have not heard yet."""

    __slots__ = ("errors", "listeners", "telling", "waiting")

    def __init__(self) -> None:
        self.errors = 0
        self.listeners: tuple[Listener, ...] = ()
        self.telling = False
        self.waiting: deque[Transition] = deque()

    def tell(self, transition: Transition, listeners: tuple[Listener, ...]) -> None:
        for listener in listeners:
            try:
                listener(transition)
            except Exception:  # noqa: BLE001
                self.errors += 1


def _name_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    name = type(error).__name__
    # Our own texts hold row names and limits only; a driver's text may hold addresses or values.
    return f"{name}: {error}" if isinstance(error, ResilienceError) else name
