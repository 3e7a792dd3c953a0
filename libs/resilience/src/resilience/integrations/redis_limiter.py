"""A rate limit shared by all instances of a service, on Redis: the algorithm of `resilience.gcra` as one script.

The key ``ratelimit:NAME:KEY`` holds the theoretical arrival time in whole microseconds of the server's clock, so that
the instances' clocks need not agree, and expires when the burst is complete again. Instances that share a name have to
have the same settings.

A limiter must not become the outage that it should prevent: when Redis is away calls are allowed (`fail_open`), or
limited per instance by `local`, and the decision says so (`degraded`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn, ParamSpec, TypeVar, overload

import redis.asyncio as redis
from redis.exceptions import RedisError

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import AbandonedTasks, current_deadline, hard_timeout
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, RateLimited, ResilienceError
from resilience.events import Events
from resilience.forms import Guard, is_async, is_awaitable
from resilience.gcra import Decision, Quota
from resilience.limiter import KeyedRateLimiter, RateLimiter, RateLimitRejected

P = ParamSpec("P")
T = TypeVar("T")
Call = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

AWAY: Final = (RedisError, OSError, CallTimeout, CircuitBreakerOpen, BulkheadFull)
"""What asking Redis raises when there is no answer to be had."""

_MICRO: Final = 1_000_000

# KEYS tat; ARGV need room patience ceiling, in microseconds -> {whether it was taken, level after it, wait}
# A server's clock that is set back must not hold everybody up: no level is taken for higher than the highest there can
# be, so that one burst has to leak out at most.
_GCRA = """
local need, room, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local level = (tonumber(redis.call('GET', KEYS[1])) or now) - now
level = math.min(math.max(level, 0), tonumber(ARGV[4]))
local wait = level + need - room
if wait > patience then return {0, level, wait} end
level = level + need
redis.call('SET', KEYS[1], string.format('%.0f', now + level), 'PX', math.ceil(level / 1000))
return {1, level, wait}
"""


class RateLimitStoreLost(NamedTuple):
    """Redis cannot be asked from now on; told once per outage. `cause` is the name of an error's type."""

    name: str
    cause: str


class RateLimitStoreBack(NamedTuple):
    """Redis can be asked again, after `seconds`."""

    name: str
    seconds: float


class RateLimiterUnavailable(ResilienceError):
    """Redis could not be asked, and the limiter was told not to allow calls then (`fail_open=False`)."""


class _Answer(NamedTuple):
    decision: Decision
    wait: float  # seconds


async def _unguarded(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


class RedisRateLimiter(Guard):
    """`rate` calls per `per` seconds, `burst` of them at once, by all instances together; one such limit per `key`.

    Use it as `await limiter.call(fn)`, `@limiter` or `async with limiter:`, or ask with `try_acquire` and `wait`.

    Args:
        client: of redis-py.
        name: of the limit, shared by the instances; used in errors and events too.
        rate: calls per `per` seconds; a million a second at most.
        per: seconds.
        burst: calls that may come at once after a pause; the whole `rate` if not given.
        max_wait: seconds that a call may wait for its turn, first come, first served over all instances.
        timeout: seconds that asking Redis takes at most, whatever it or the driver does.
        fail_open: whether calls are allowed while Redis cannot be asked.
        local: limits them then; it should have this instance's share of the rate, and no events of its own.
        call: runs each access under the policy of the Redis dependency; an open circuit there spares the `timeout`.
        max_abandoned: accesses that may still be cleaning up after their timeout before Redis is not asked any more.
        clock: of this process, for the timeout and for waiting.
        events: told of rejections (`RateLimitRejected`) and outages (`RateLimitStoreLost`, `RateLimitStoreBack`).

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_abandoned",
        "_away_since",
        "_ceiling",
        "_clock",
        "_epoch",
        "_events",
        "_guard",
        "_interval",
        "_prefix",
        "_room",
        "_script",
        "_timeout",
        "fail_open",
        "local",
        "max_wait",
        "name",
        "quota",
    )

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        rate: float,
        per: float = 1.0,
        burst: int | None = None,
        *,
        max_wait: float = 0.0,
        timeout: float = 0.1,
        fail_open: bool = True,
        local: RateLimiter | KeyedRateLimiter | None = None,
        call: Call = _unguarded,
        max_abandoned: int = 100,
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait must be finite and not negative, not {max_wait!r}")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self.quota = Quota(rate, per, burst)
        if self.quota.interval * _MICRO < 1:
            raise ValueError(f"rate must be a million a second at most, not {rate!r} in {per!r} seconds")
        self.name = name
        self.max_wait = max_wait
        self.fail_open = fail_open
        self.local = local
        self._timeout = timeout
        self._guard = call
        self._clock = clock
        self._events = events
        self._abandoned = AbandonedTasks(max_abandoned)
        # Rounded up, so that rounding never allows more; but not for the error of a float.
        self._interval = math.ceil(self.quota.interval * _MICRO - 1e-3)
        self._room = self.quota.burst * self._interval
        self._ceiling = self._room + int(max_wait * _MICRO)
        self._prefix = f"ratelimit:{name}:"
        self._script: Any = client.register_script(_GCRA)  # the stubs do not know it as async
        self._away_since: float | None = None
        self._epoch = 0

    @property
    def degraded(self) -> bool:
        """Whether Redis could not be asked the last time."""
        return self._away_since is not None

    # -- asking

    async def try_acquire(self, cost: float = 1, *, key: str = "") -> Decision:
        """Take `cost` of `key` if it is there now. `degraded` if Redis could not be asked.

        Raises:
            RateLimiterUnavailable: so it is, and `fail_open` is off.
            ValueError: `cost` is not positive.
        """
        return (await self._decide(cost, key, 0.0)).decision

    async def wait(self, cost: float = 1, *, key: str = "") -> float:
        """Take `cost` of `key` when it is there, and return the seconds waited: at most `max_wait`, and never past the
        caller's deadline. Its turn is reserved at once, so that nobody overtakes it; cancelled, it stays unused.

        Raises:
            RateLimited: at once, if its turn would come too late.
            RateLimiterUnavailable: Redis could not be asked, and `fail_open` is off.
            ValueError: `cost` is not positive.
        """
        patience, deadline = self.max_wait, current_deadline()
        if deadline is not None:
            patience = max(0.0, min(patience, deadline.remaining(self._clock)))
        decision, seconds = await self._decide(cost, key, patience)
        if not decision.allowed:
            raise RateLimited(self.name, decision.retry_after)
        if seconds > 0:
            await self._clock.sleep(seconds)
        return seconds

    def wait_sync(self, cost: float = 1) -> NoReturn:  # noqa: ARG002 - what a `Policy` asks for without an event loop
        """Not offered.

        Raises:
            TypeError: always.
        """
        raise TypeError("a rate limit on Redis needs an event loop: use `await limiter.wait()`")

    # -- around a call

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, when it is its turn. Raises what `wait` raises, and whatever `func` does."""
        await self.wait()
        result = func(*args, **kwargs)
        return await result if is_awaitable(result) else result

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG002
        """Not offered. Raises TypeError."""
        self.wait_sync()

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate the async `func`. Raises TypeError for a sync one."""
        if not is_async(func):
            self.wait_sync()
        return super().__call__(func)

    async def __aenter__(self) -> None:
        await self.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    # -- inside

    async def _decide(self, cost: float, key: str, patience: float) -> _Answer:
        self.quota.check(cost)
        need = cost * self._interval
        answer = _Answer(Decision(False, None, 0.0, 0.0), 0.0)  # more than there can ever be: nobody is asked
        if need <= self._room:
            reply = await self._ask(key, math.ceil(need), patience)
            answer = self._degraded(cost, key) if reply is None else self._read(reply)
        if self._events and not answer.decision.allowed:
            self._events.emit(RateLimitRejected(self.name, key or None, answer.decision.retry_after))
        return answer

    def _read(self, reply: list[int]) -> _Answer:
        taken, level, wait = reply
        free = max(0, self._room - level) / self._interval
        retry_after = 0.0 if taken else wait / _MICRO
        return _Answer(Decision(bool(taken), retry_after, free, level / _MICRO), max(0, wait) / _MICRO)

    def _degraded(self, cost: float, key: str) -> _Answer:
        if self.local is None:
            return _Answer(Decision(True, 0.0, 0.0, 0.0, degraded=True), 0.0)
        if isinstance(self.local, KeyedRateLimiter):
            decision = self.local.try_acquire(key, cost)
        else:
            decision = self.local.try_acquire(cost)
        return _Answer(decision._replace(degraded=True), 0.0)

    async def _ask(self, key: str, need: int, patience: float) -> list[int] | None:
        """The script's reply, or `None` if there is none."""
        epoch = self._epoch
        keys, args = [self._prefix + key], [need, self._room, int(patience * _MICRO), self._ceiling]
        try:
            reply: list[int] = await hard_timeout(
                self._guard(lambda: self._script(keys=keys, args=args)),
                self._timeout,
                name=f"rate limit {self.name}",
                clock=self._clock,
                abandoned=self._abandoned,
            )
        except AWAY as error:
            self._lost(error, epoch)
            if not self.fail_open:
                raise RateLimiterUnavailable(f"the rate limit {self.name} cannot be asked for") from error
            return None
        self._heard(epoch)
        return reply

    # An outage begins and ends with calls that were begun after the last such change: those that were under way then
    # belong to what was before, and must not make it begin or end again.

    def _lost(self, error: BaseException, epoch: int) -> None:
        if self._away_since is None and epoch == self._epoch:
            self._away_since = self._clock.monotonic()
            self._epoch += 1
            if self._events:
                self._events.emit(RateLimitStoreLost(self.name, type(error).__name__))

    def _heard(self, epoch: int) -> None:
        if self._away_since is not None and epoch == self._epoch:
            seconds = self._clock.monotonic() - self._away_since
            self._away_since = None
            self._epoch += 1
            if self._events:
                self._events.emit(RateLimitStoreBack(self.name, seconds))


__all__ = ["RateLimitStoreBack", "RateLimitStoreLost", "RateLimiterUnavailable", "RedisRateLimiter"]
