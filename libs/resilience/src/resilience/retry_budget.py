"""A budget of retries shared by all callers of one dependency, so that retries cannot multiply the load on an ill one.

The rule is that of Finagle's `RetryBudget` (Twitter, 2016): every request pays in a fraction of a retry, every retry
takes out a whole one, both count for about `ttl` seconds, and a reserve lets callers with little traffic retry too. So
in any window of nine tenths of `ttl` there are at most `ratio` times the requests plus `min_per_second * ttl` retries.
"""

import math
from itertools import count
from threading import Lock
from typing import Final

from resilience.clock import SYSTEM_CLOCK, Clock

_SLOTS: Final = 10  # the window moves in steps of a tenth of `ttl`
_RETRY: Final = 1_000_000  # one retry in integer units: sums of tenths must be exact


class RetryBudget:
    """Safe between threads; its size does not depend on the traffic.

    Args:
        name: for whoever watches it.
        ratio: retries that each request pays in; 0.1 allows one retry per ten requests.
        min_per_second: retries per second that are always allowed.
        ttl: seconds for which requests and retries count.
        clock: only its monotonic time is used.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = (
        "_lock",
        "_monotonic",
        "_paid",
        "_pay",
        "_reads",
        "_refused",
        "_reserve",
        "_slot_end",
        "_slots",
        "_step",
        "_tick",
        "_withdrawn",
        "name",
    )

    def __init__(
        self,
        name: str = "",
        *,
        ratio: float = 0.1,
        min_per_second: float = 1.0,
        ttl: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0 <= ratio <= 1_000:
            raise ValueError(f"ratio must be between 0 and 1000, not {ratio!r}")
        if not 0 <= min_per_second < math.inf:
            raise ValueError(f"min_per_second must be finite and not negative, not {min_per_second!r}")
        if not 0 < ttl < math.inf:
            raise ValueError(f"ttl must be finite and positive, not {ttl!r}")
        self.name = name
        self._monotonic = clock.monotonic
        self._lock = Lock()
        self._pay = round(ratio * _RETRY)
        self._reserve = round(min_per_second * ttl * _RETRY)
        self._step = ttl / _SLOTS
        self._slot_end = clock.monotonic() + self._step
        self._slots = [0] * _SLOTS  # paid in less taken out, the current slot first
        # A request only advances a counter, which is atomic without the lock. Reading it advances it too: `_reads`.
        self._tick = count(1).__next__
        self._reads = self._paid = self._withdrawn = self._refused = 0

    def deposit(self) -> None:
        """A request is being made; call it once per request, not per attempt."""
        if self._monotonic() >= self._slot_end:
            with self._lock:
                self._settle()
        self._tick()

    def withdraw(self) -> bool:
        """Whether one retry may be made now; if so it is taken out of the budget, and if not nothing is."""
        with self._lock:
            self._settle()
            if self._reserve + sum(self._slots) < _RETRY:
                self._refused += 1
                return False
            self._slots[0] -= _RETRY
            self._withdrawn += 1
            return True

    @property
    def balance(self) -> int:
        """Retries that could be made now."""
        with self._lock:
            self._settle()
            return max(0, (self._reserve + sum(self._slots)) // _RETRY)

    @property
    def deposited(self) -> int:
        """Requests so far."""
        with self._lock:
            self._settle()
            return self._paid

    @property
    def withdrawn(self) -> int:
        """Retries allowed so far."""
        return self._withdrawn

    @property
    def refused(self) -> int:
        """Retries refused so far."""
        return self._refused

    def _settle(self) -> None:
        """Book the requests counted since the last time, and drop what is too old. With the lock held."""
        self._reads += 1
        paid = self._tick() - self._reads
        self._slots[0] += (paid - self._paid) * self._pay
        self._paid = paid
        late = self._monotonic() - self._slot_end
        if late >= 0:
            passed = int(late / self._step) + 1
            self._slot_end += passed * self._step
            self._slots = ([0] * min(passed, _SLOTS) + self._slots)[:_SLOTS]
