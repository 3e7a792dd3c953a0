"""Sliding windows over the outcomes of calls: the latest N, or those of the last S seconds. Pure: no clock.

An outcome is a small number made of `FAILED` and `SLOW`; 0 is a quick success. Totals are kept as outcomes come and
go, so that reading a rate costs nothing.
"""

from typing import Final

FAILED: Final = 1
SLOW: Final = 2

BUCKETS: Final = 10
"""A time window moves on in steps of a tenth: an outcome leaves it between 0.9 and 1.0 times its length later."""


class CountWindow:
    """The latest `size` outcomes. Takes a byte per outcome, and only for those that it has seen."""

    __slots__ = ("at", "calls", "failures", "full", "ring", "size", "slow")

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0
        self.failures = 0
        self.slow = 0
        self.ring = bytearray()
        self.at = 0  # the oldest outcome's place, once the window is full
        self.full = False

    def add(self, outcome: int, _began: float = 0.0, _now: float = 0.0) -> None:
        """Take in an outcome; once the window is full, the oldest leaves."""
        ring = self.ring
        if not self.full:
            ring.append(outcome)
            self.calls += 1
            self.full = self.calls == self.size
        else:
            at = self.at
            gone = ring[at]
            ring[at] = outcome
            at += 1
            self.at = 0 if at == self.size else at
            if gone:
                self.failures -= gone & FAILED
                self.slow -= gone >> 1
        if outcome:
            self.failures += outcome & FAILED
            self.slow += outcome >> 1

    def advance(self, _now: float) -> None:
        """Time alone changes nothing here."""

    def resized(self, size: int) -> "CountWindow":
        """A window of another size with as many of the latest outcomes as it has room for."""
        other = CountWindow(size)
        for outcome in (self.ring[self.at :] + self.ring[: self.at])[-size:]:
            other.add(outcome)
        return other


class TimeWindow:
    """The outcomes of calls that *began* in the last `seconds`, in `BUCKETS` steps.

    A call is credited to the step in which it began, since that is when it met the dependency; one that took
    longer than the window is no longer news and is dropped.
    """

    __slots__ = ("_counts", "_head", "_width", "calls", "failures", "seconds", "slow")

    full = False  # of use to the count window only
    ring = bytearray()
    at = size = 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0
        self.failures = 0
        self.slow = 0
        self._width = seconds / BUCKETS
        self._head = 0  # number of the newest bucket
        self._counts = [0] * (3 * BUCKETS)  # calls, failures, slow of each

    def add(self, outcome: int, began: float, now: float) -> None:
        """Take in the outcome of a call that began at `began`, at time `now`."""
        self.advance(now)
        bucket = self._bucket(min(began, now))
        if bucket <= self._head - BUCKETS:
            return
        counts, at = self._counts, bucket % BUCKETS * 3
        counts[at] += 1
        self.calls += 1
        if outcome:
            counts[at + 1] += outcome & FAILED
            counts[at + 2] += outcome >> 1
            self.failures += outcome & FAILED
            self.slow += outcome >> 1

    def advance(self, now: float) -> None:
        """Drop what is too old at `now`."""
        bucket = self._bucket(now)
        head = self._head
        if bucket <= head:
            return
        self._head = bucket
        counts = self._counts
        for old in range(max(head + 1, bucket - BUCKETS + 1), bucket + 1):
            at = old % BUCKETS * 3
            self.calls -= counts[at]
            self.failures -= counts[at + 1]
            self.slow -= counts[at + 2]
            counts[at : at + 3] = (0, 0, 0)

    def _bucket(self, at: float) -> int:
        return int(at / self._width + 1e-9)  # what is added keeps rounding from moving an exact boundary by a bucket


Window = CountWindow | TimeWindow
