"""How well each dependency is, found out by asking it: healthy, degraded when slow, failed when there is no answer.

The circuits say what traffic has met; this says how a dependency is without any traffic, and how slow. Every check has
a hard limit and a task of its own, so a frozen dependency delays neither the others nor the next round. What is
kept of an error is its type: a text may hold addresses or secrets.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from random import Random
from typing import Any, ClassVar, Final, NamedTuple

from resilience.ambient import RANDOM
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, hard_timeout, without_deadline
from resilience.events import Events

CHECK_EVERY: Final = 10.0
"""Seconds between two checks of a dependency."""
SMOOTHING: Final = 0.3
"""The weight of the newest latency in the smoothed one: an exponentially weighted moving average."""
MAX_ABANDONED: Final = 3
"""Checks of one dependency that may still be cleaning up after their limit; past these it counts as failed unasked."""


class Health(StrEnum):
    """How well a dependency is; from the best to the worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"


HEALTHS: Final = tuple(Health)
_RANK: Final = {health: rank for rank, health in enumerate(HEALTHS)}


class Thresholds:
    """When a dependency is degraded, and when it has failed. The usual ones: `REDIS`, `DATABASE`, `STREAM`, `API`.

    Args:
        slow: seconds; an answer that takes longer makes it degraded, as does a greater lag. Exactly this is healthy.
        limit: seconds after which a check is given up, and has failed.
        failures_to_fail: checks in a row that must be that bad before the dependency is said to be worse.
        successes_to_heal: checks in a row that must be that good before it is said to be better.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("failures_to_fail", "limit", "slow", "successes_to_heal")

    REDIS: ClassVar["Thresholds"]
    DATABASE: ClassVar["Thresholds"]
    STREAM: ClassVar["Thresholds"]
    API: ClassVar["Thresholds"]

    def __init__(
        self, slow: float, *, limit: float = 5.0, failures_to_fail: int = 1, successes_to_heal: int = 1
    ) -> None:
        for name, value in (("slow", slow), ("limit", limit)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
        for name, count in (("failures_to_fail", failures_to_fail), ("successes_to_heal", successes_to_heal)):
            if not count >= 1:
                raise ValueError(f"{name} must be at least 1, not {count!r}")
        self.slow = slow
        self.limit = limit
        self.failures_to_fail = failures_to_fail
        self.successes_to_heal = successes_to_heal


Thresholds.REDIS = Thresholds(0.1)
Thresholds.DATABASE = Thresholds(0.5)
Thresholds.STREAM = Thresholds(30.0)  # its lag
Thresholds.API = Thresholds(1.0)


class HealthChanged(NamedTuple):
    """A dependency is better or worse than before; `old` is `None` at the first check. `latency` in seconds."""

    dependency: str
    old: Health | None
    new: Health
    latency: float


class HealthReport(NamedTuple):
    """A dependency at one moment. Times in seconds; `None` is what is not known yet."""

    name: str
    health: Health | None
    state_seconds: float  # for how long it has been so
    latency: float | None  # of the latest check that was answered
    smoothed: float | None  # the same, averaged over the latest ones
    lag: float | None  # as last reported, for what is judged by its lag
    last_error: str | None  # the type's name; None when the latest check was answered
    checks: int
    failures: int  # failed checks in a row
    checked_at: float | None  # Unix time, for people


class HealthPoint(NamedTuple):
    """One check of the past: when (Unix time), what it showed by itself, its latency in seconds, the error's type."""

    at: float
    health: Health
    latency: float
    error: str | None


# -- the rules


def judge(answered: bool, seconds: float, thresholds: Thresholds) -> Health:
    """What one check shows; `seconds` is its latency or, for what is judged by it, the lag."""
    if not answered:
        return Health.FAILED
    return Health.HEALTHY if seconds <= thresholds.slow else Health.DEGRADED


class Streaks(NamedTuple):
    """What has been shown in a row, and what is believed for it. Tuples run from the best health to the worst."""

    health: Health | None = None
    worse: tuple[int, ...] = (0, 0, 0)  # checks in a row that showed this or worse
    better: tuple[int, ...] = (0, 0, 0)  # that showed this or better


def step(state: Streaks, shown: Health, thresholds: Thresholds) -> Streaks:
    """After a check that showed `shown`. The first one is believed at once."""
    rank = _RANK[shown]
    worse = tuple(count + 1 if at <= rank else 0 for at, count in enumerate(state.worse))
    better = tuple(count + 1 if at >= rank else 0 for at, count in enumerate(state.better))
    health = shown if state.health is None else _believed(state.health, worse, better, thresholds)
    return Streaks(health, worse, better)


def _believed(health: Health, worse: tuple[int, ...], better: tuple[int, ...], thresholds: Thresholds) -> Health:
    rank = _RANK[health]
    for at in range(len(HEALTHS) - 1, rank, -1):
        if worse[at] >= thresholds.failures_to_fail:
            return HEALTHS[at]
    for at in range(rank):
        if better[at] >= thresholds.successes_to_heal:
            return HEALTHS[at]
    return health


# -- a bounded call of other people's code


async def tried(
    make: Callable[[], Awaitable[Any]], limit: float, *, name: str, clock: Clock, abandoned: AbandonedTasks
) -> tuple[Any, BaseException | None]:
    """What `make()` brings within `limit` seconds, and what went wrong, whatever that is.

    Raises only what is not the dependency's doing: our own cancellation, `KeyboardInterrupt` and `SystemExit`.
    """
    try:
        value, error = await hard_timeout(_captured(make), limit, name=name, clock=clock, abandoned=abandoned)
    except Exception as failure:  # noqa: BLE001 - out of time, or too many that never ended
        return None, failure
    return value, error


async def _captured(make: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    try:
        return await make(), None
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return None, error  # a driver that cancels itself has failed
    except BaseException as error:  # noqa: BLE001 - a panic of an extension is no Exception, and a failure all the same
        return None, error


# -- the shell


class _Shared:
    """A check under way, and how many wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.waiters = 0


class _Watched:
    """One dependency."""

    __slots__ = (
        *("abandoned", "by_lag", "check", "checked_at", "checks", "error", "every", "failures", "history", "lag"),
        *("latency", "loop", "name", "running", "since", "smoothed", "streaks", "thresholds"),
    )

    def __init__(
        self, name: str, check: Callable[[], Awaitable[object]], thresholds: Thresholds, every: float, history: int
    ) -> None:
        self.name = name
        self.check = check
        self.thresholds = thresholds
        self.every = every
        self.by_lag = False
        self.abandoned = AbandonedTasks(MAX_ABANDONED)
        self.history: deque[HealthPoint] = deque(maxlen=history)
        self.streaks = Streaks()
        self.since = 0.0
        self.checks = self.failures = 0
        self.latency: float | None = None
        self.smoothed: float | None = None
        self.lag: float | None = None
        self.error: str | None = None
        self.checked_at: float | None = None
        self.loop: asyncio.Task[None] | None = None
        self.running: _Shared | None = None


class HealthMonitor:
    """Checks the dependencies of one service: `add` them, `run` it, read `snapshot`. Belongs to one event loop.

    Args:
        interval: seconds from one check of a dependency to the next, give or take the share `jitter`, so that instances
            do not check in step.
        history: checks that are remembered per dependency.
        events: told of every `HealthChanged`.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    def __init__(
        self,
        *,
        interval: float = CHECK_EVERY,
        jitter: float = 0.1,
        history: int = 60,
        random: Random | None = None,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if not 0 < interval < math.inf:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a share from 0 up to 1, not {jitter!r}")
        if not history >= 0:
            raise ValueError(f"history must be at least 0, not {history!r}")
        self._interval = interval
        self._jitter = jitter
        self._history = history
        self._random = RANDOM if random is None else random
        self._clock = clock
        self._events = events
        self._watched: dict[str, _Watched] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- what is watched

    def add(
        self,
        name: str,
        check: Callable[[], Awaitable[object]],
        thresholds: Thresholds = Thresholds.API,
        *,
        lag: bool = False,
        interval: float | None = None,
    ) -> None:
        """Watch a dependency from now on, also while running.

        Args:
            name: unique, and shown.
            check: asks it; raises when it is not well.
            thresholds: what counts as slow and as failed.
            lag: judge by the seconds that `check` returns (how far a consumer is behind), not by its latency.
            interval: seconds between checks, if other than the monitor's.

        Raises:
            ValueError: the name is taken, or `interval` is not positive.
        """
        if name in self._watched:
            raise ValueError(f"name {name!r} is watched already")
        every = self._interval if interval is None else interval
        if not 0 < every < math.inf:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        watched = _Watched(name, check, thresholds, every, self._history)
        watched.by_lag = lag
        watched.since = self._clock.monotonic()
        self._watched[name] = watched
        if self._group is not None:
            self._start(self._group, watched)

    def remove(self, name: str) -> bool:
        """Watch it no more; whether it was watched."""
        watched = self._watched.pop(name, None)
        if watched is None:
            return False
        if watched.loop is not None:
            watched.loop.cancel()
        return True

    # -- checking

    async def run(self) -> None:
        """Check everything at its intervals until cancelled.

        Raises:
            RuntimeError: it runs already.
        """
        if self._group is not None:
            raise RuntimeError("this health monitor runs already")
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for watched in list(self._watched.values()):
                    self._start(group, watched)
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    async def check_now(self, name: str) -> HealthReport:
        """Check a dependency now, or wait for the check that is under way; takes no longer than its limit.

        Raises:
            KeyError: it is not watched.
        """
        watched = self._watched[name]
        await self._checked(watched)
        return self._report(watched)

    # -- watching

    def report(self, name: str) -> HealthReport:
        """A dependency as last seen. Raises KeyError when it is not watched."""
        return self._report(self._watched[name])

    def snapshot(self) -> dict[str, HealthReport]:
        """Every dependency as last seen."""
        return {name: self._report(watched) for name, watched in list(self._watched.items())}

    def as_json(self) -> dict[str, dict[str, object]]:
        """The same as plain data, for a health page."""
        return {name: _plain(report) for name, report in self.snapshot().items()}

    def history(self, name: str) -> list[HealthPoint]:
        """The latest checks of a dependency, oldest first. Raises KeyError when it is not watched."""
        return list(self._watched[name].history)

    @property
    def worst(self) -> Health:
        """The health of the worst dependency; healthy when nothing is known."""
        known = (watched.streaks.health for watched in list(self._watched.values()))
        return max((health for health in known if health is not None), key=_RANK.__getitem__, default=Health.HEALTHY)

    # -- inside

    def _start(self, group: asyncio.TaskGroup, watched: _Watched) -> None:
        with without_deadline():  # whoever adds a dependency may be in a hurry; its watch is not
            watched.loop = group.create_task(self._watch(watched), name=f"health {watched.name}")

    async def _watch(self, watched: _Watched) -> None:
        await self._clock.sleep(watched.every * self._random.uniform(0, self._jitter))
        while True:
            due = self._clock.monotonic() + watched.every * self._random.uniform(1 - self._jitter, 1 + self._jitter)
            await self._checked(watched)
            await self._clock.sleep(max(0.0, due - self._clock.monotonic()))

    async def _checked(self, watched: _Watched) -> None:
        """One check, shared by all who want it at the same time; it ends when the last of them has gone."""
        running = watched.running
        if running is None or running.task.done() or running.task.get_loop() is not asyncio.get_running_loop():
            with without_deadline():
                task = asyncio.get_running_loop().create_task(self._check(watched), name=f"check {watched.name}")
            running = watched.running = _Shared(task)
        running.waiters += 1
        try:
            await asyncio.wait((running.task,))
        finally:
            running.waiters -= 1
            if not (running.waiters or running.task.done()):
                running.task.cancel()
                await asyncio.wait((running.task,))
        if not running.task.cancelled():
            running.task.result()

    async def _check(self, watched: _Watched) -> None:
        began = self._clock.monotonic()
        value, error = await tried(
            watched.check,
            watched.thresholds.limit,
            name=watched.name,
            clock=self._clock,
            abandoned=watched.abandoned,
        )
        now = self._clock.monotonic()
        lag: float | None = None
        if watched.by_lag and error is None:
            lag, error = _seconds(value)
        self._record(watched, now - began, lag, error, now)

    def _record(
        self, watched: _Watched, latency: float, lag: float | None, error: BaseException | None, now: float
    ) -> None:
        shown = judge(error is None, latency if lag is None else lag, watched.thresholds)
        watched.checks += 1
        watched.failures = 0 if error is None else watched.failures + 1
        watched.error = None if error is None else type(error).__name__
        watched.checked_at = self._clock.time()
        watched.history.append(HealthPoint(watched.checked_at, shown, latency, watched.error))
        if error is None:
            smoothed = latency if watched.smoothed is None else watched.smoothed
            watched.latency, watched.lag = latency, lag
            watched.smoothed = smoothed + SMOOTHING * (latency - smoothed)
        old, watched.streaks = watched.streaks.health, step(watched.streaks, shown, watched.thresholds)
        new = watched.streaks.health
        if new is not None and new is not old:
            watched.since = now
            if self._events and self._watched.get(watched.name) is watched:
                self._events.emit(HealthChanged(watched.name, old, new, latency))

    def _report(self, watched: _Watched) -> HealthReport:
        return HealthReport(
            name=watched.name,
            health=watched.streaks.health,
            state_seconds=self._clock.monotonic() - watched.since,
            latency=watched.latency,
            smoothed=watched.smoothed,
            lag=watched.lag,
            last_error=watched.error,
            checks=watched.checks,
            failures=watched.failures,
            checked_at=watched.checked_at,
        )


def _seconds(value: object) -> tuple[float | None, BaseException | None]:
    """A lag as reported; below zero (two machines' clocks) it is none. What is no number is a failed check."""
    if isinstance(value, int | float) and math.isfinite(value):
        return max(0.0, float(value)), None
    return None, TypeError()


def _plain(report: HealthReport) -> dict[str, object]:
    return {
        "status": "unknown" if report.health is None else report.health.value,
        "state_seconds": round(report.state_seconds, 1),
        "latency_ms": _milliseconds(report.latency),
        "smoothed_ms": _milliseconds(report.smoothed),
        "lag_s": report.lag,
        "last_error": report.last_error,
        "checks": report.checks,
        "failures": report.failures,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
