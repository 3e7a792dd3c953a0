"""Breakers by key (one per host, tenant, operation ...), made when first asked for and forgotten when idle."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from resilience.breaker import CircuitBreaker
from resilience.circuit import CLOSED
from resilience.clock import SYSTEM_CLOCK, Clock

_LOOKS = 4
"""Entries looked at for eviction each time one is added: more than one, so that idle ones cannot pile up."""


class BreakerRegistry:
    """At most `max_breakers` breakers. Safe between threads. Ask for a breaker at each use instead of keeping it.

    One that has not been asked for in `max_idle` seconds, and would lose nothing (closed, no failures, nobody inside),
    is forgotten. When there are too many, the least recently used goes that is closed; only where none is, an open
    one, since forgetting it closes it (`evicted_open` counts that).

    Args:
        make: gives the breaker for a key; must not ask the registry.
        max_breakers: bound on the number.
        max_idle: seconds.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    def __init__(
        self,
        make: Callable[[str], CircuitBreaker] = CircuitBreaker,
        *,
        max_breakers: int = 10_000,
        max_idle: float = 3600.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if max_breakers < 1:
            raise ValueError(f"max_breakers must be at least 1, not {max_breakers!r}")
        if not max_idle > 0:
            raise ValueError(f"max_idle must be a positive number of seconds, not {max_idle!r}")
        self.max_breakers = max_breakers
        self.max_idle = max_idle
        self.evicted_open = 0
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._breakers: OrderedDict[str, tuple[CircuitBreaker, float]] = OrderedDict()  # least recently used first

    def get(self, key: str) -> CircuitBreaker:
        """The breaker of `key`."""
        now = self._clock.monotonic()
        with self._lock:
            found = self._breakers.get(key)
            if found is None:
                self._forget_idle(now)
                breaker = self._make(key)
                if len(self._breakers) >= self.max_breakers:
                    self._make_room()
            else:
                breaker = found[0]
            self._breakers[key] = (breaker, now)
            self._breakers.move_to_end(key)
            return breaker

    def peek(self, key: str) -> CircuitBreaker | None:
        """The breaker of `key` if there is one; does not count as use."""
        with self._lock:
            found = self._breakers.get(key)
        return None if found is None else found[0]

    def remove(self, key: str) -> bool:
        """Forget the breaker of `key`; whether there was one."""
        with self._lock:
            return self._breakers.pop(key, None) is not None

    def items(self) -> list[tuple[str, CircuitBreaker]]:
        """Every key and its breaker, least recently used first."""
        with self._lock:
            return [(key, breaker) for key, (breaker, _) in self._breakers.items()]

    def __len__(self) -> int:
        return len(self._breakers)

    def __contains__(self, key: str) -> bool:
        return key in self._breakers

    def __iter__(self) -> Iterator[CircuitBreaker]:
        return iter([breaker for _, breaker in self.items()])

    def _forget_idle(self, now: float) -> None:
        oldest = [key for key, _ in zip(self._breakers, range(_LOOKS), strict=False)]
        for key in oldest:
            breaker, used = self._breakers[key]
            if now - used < self.max_idle:
                return
            if breaker.idle:
                del self._breakers[key]
            else:  # looked at again after all others
                self._breakers.move_to_end(key)

    def _make_room(self) -> None:
        for key, (breaker, _) in self._breakers.items():
            if breaker.state is CLOSED and not breaker.held:
                del self._breakers[key]
                return
        self._breakers.popitem(last=False)
        self.evicted_open += 1
