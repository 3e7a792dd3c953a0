"""The ramp of a dependency that has just come back, as a state machine without clock, lock or I/O.

It bounds how much work runs on the dependency at once. Concurrency, not rate: an answer that is slow holds its place
longer, so the admitted rate follows what the dependency can do (Little's law). The budget begins small and
is steered by what comes of the work:

* A success lets it grow by the time since the last outcome, so that it is full after `seconds` of good answers. Silence
  proves nothing, so at most a tenth of the ramp is credited at once.
* Failures and slow answers add to a strain, successes take from it: a cumulative sum test (Page, "Continuous Inspection
  Schemes", Biometrika, 1954) that a share of failures below about one in ten never trips for long. While there is
  strain the budget stands still; at the limit it is halved. What began before the cut is no evidence
  about the budget after it, and does not count.
* What made the dependency fall over once will do so again: from half the budget at which it last did (`careful_from`)
  a ramp grows more slowly, by the factor `careful`, as TCP does past its slow start threshold.
* A ramp ends when the budget is full, and after `longest` seconds in any case: past that the circuit decides alone.

The budget is shared by kinds of work. Each has a guaranteed share, which it may always use up if there is room at all.
What it does not need is lent to the others, those of higher priority first; what it seems to need, judged by what it
asked for in the last second or two, is kept free. Nothing is preempted: a loan comes back when the work ends.
"""

import math
from typing import Final, Literal, NamedTuple

Kind = Literal["live", "drain", "revalidate"]
KINDS: Final[tuple[Kind, ...]] = ("live", "drain", "revalidate")
"""By priority. Revalidation has no guaranteed share: it takes what is left."""
LIVE, DRAIN, REVALIDATE = range(3)
INDEX: Final[dict[str, int]] = {kind: at for at, kind in enumerate(KINDS)}

LEAST: Final = 2
"""The smallest budget: one place for live traffic and one for the drain, so that neither ever starves."""
FAILED: Final = 10
"""Strain added by a failure; a success takes off 1."""
SLOW: Final = 5
CALM: Final = 10
"""From this strain on the budget does not grow."""
TOO_MUCH: Final = 30
"""At this strain the budget is halved."""
WINDOW: Final = 1.0
"""Seconds: what a kind asked for in this window and the one before it counts as its demand."""

EndReason = Literal["full", "time", "failed"]


class RampStarted(NamedTuple):
    """The dependency is back; at first it gets `budget` of `full` units of work at once, all of them in `seconds`."""

    name: str
    budget: int
    full: int
    seconds: float
    relapses: int


class RampCut(NamedTuple):
    """Failures or slow answers have halved the budget."""

    name: str
    old: int
    new: int


class RampEnded(NamedTuple):
    """Everything is admitted again: the budget is full, the time is over, or the dependency has failed once more."""

    name: str
    reason: EndReason
    seconds: float
    admitted: int
    refused: int


class Ramp:
    """One ramp, from `now` on.

    Args:
        start: the first budget, in concurrent units of work.
        full: the budget at which the ramp is over.
        seconds: how long it takes from one to the other.
        longest: how long it may take in all.
        live_share: guaranteed to live traffic, a share of the budget.
        drain_share: guaranteed to the drain; one unit at least.
        slow_seconds: an answer to live traffic that takes longer is slow; `None`: none is.
        careful_from: the budget from which it grows more slowly, ...
        careful: ... by this factor.
    """

    __slots__ = (
        *("_before", "_careful", "_careful_from", "_cut_at", "_drain_share", "_ends_at", "_grown_at", "_live_share"),
        *("_peak", "_rate", "_refused", "_slow_seconds", "_step", "_window_at", "admitted", "began", "budget", "full"),
        *("limit", "own", "refused", "strain", "used", "wanted"),
    )

    def __init__(
        self,
        now: float,
        *,
        start: int,
        full: int,
        seconds: float,
        longest: float,
        live_share: float = 0.6,
        drain_share: float = 0.2,
        slow_seconds: float | None = None,
        careful_from: float = math.inf,
        careful: float = 1.0,
    ) -> None:
        self.began = now
        self.full = full
        self.strain = 0
        self.used = [0, 0, 0]
        self.wanted = [0, 0, 0]  # what waits, in units
        self.admitted = [0, 0, 0]
        self.refused = [0, 0, 0]
        self._live_share = live_share
        self._drain_share = drain_share
        self._slow_seconds = math.inf if slow_seconds is None else slow_seconds
        self._careful_from = min(careful_from, full)
        self._careful = careful
        self._rate = (full - start) / seconds
        self._step = seconds / 10
        self._grown_at = self._window_at = now
        self._cut_at = math.nextafter(now, -math.inf)  # what began before the ramp does not count
        self._ends_at = now + longest
        self._before = [0, 0, 0]
        self._refused = [0, 0, 0]  # in this window
        self._set(start)
        # Live traffic is taken to be there, before the drain borrows its share.
        self._peak = [self.own[LIVE], 0, 0]

    # -- the budget

    def over(self, now: float) -> EndReason | None:
        """Why the ramp is over, if it is."""
        if self.budget >= self.full:
            return "full"
        return "time" if now >= self._ends_at else None

    def left(self, now: float) -> float:
        """Seconds until it will be over if all goes well."""
        if self.over(now):
            return 0.0
        slowly = self.full - max(self.budget, self._careful_from)
        freely = self.full - self.budget - slowly
        return min((freely + slowly * self._careful) / self._rate, self._ends_at - now)

    def outcome(self, ok: bool, began: float, now: float, *, timed: bool = True) -> bool:
        """A call ended now, well or not; whether the budget was cut for it. Without `timed` it cannot be slow."""
        if began <= self._cut_at:
            return False
        since, self._grown_at = now - self._grown_at, now
        if ok and not (timed and now - began > self._slow_seconds):
            self.strain = max(0, self.strain - 1)
            if self.strain < CALM:
                pace = self._rate if self.budget < self._careful_from else self._rate / self._careful
                self._set(min(self.full, self.budget + pace * min(since, self._step)))
            return False
        self.strain += SLOW if ok else FAILED
        if self.strain < TOO_MUCH:
            return False
        self._set(max(LEAST, self.budget / 2))
        self.strain = 0
        self._cut_at = now
        return True

    def _set(self, budget: float) -> None:
        self.budget = budget
        self.limit = limit = int(budget)  # units of work that may run at once now
        drain = max(1, int(limit * self._drain_share))
        self.own = (min(max(1, int(limit * self._live_share)), limit - drain), drain, 0)  # guaranteed, by kind

    # -- the shares

    def demand(self, kind: int) -> int:
        """Units that the kind has lately had use for."""
        return max(self._before[kind], self._peak[kind], self.used[kind] + self.wanted[kind])

    def charge(self, kind: int, cost: int) -> int:
        """What work of that cost is counted as: no more than the kind can ever get while all others are busy."""
        return min(cost, self.own[kind] or self.limit)

    def fits(self, kind: int, units: int) -> bool:
        """Whether there is room for `units` more of this kind."""
        live, drain, rest = self.used
        used = live + drain + rest + units
        if used > self.limit:
            return False
        if self.used[kind] + units <= self.own[kind]:
            return True
        if kind != LIVE:
            used += self._kept(LIVE, kind)
        if kind != DRAIN:
            used += self._kept(DRAIN, kind)
        return used <= self.limit

    def admit(self, kind: int, cost: int, now: float) -> int:
        """Begin work: the units it takes up until `release`, or 0 when there is no room."""
        self.roll(now)
        units = self.charge(kind, cost)
        if not self.fits(kind, units):
            return 0
        self.take(kind, units)
        return units

    def take(self, kind: int, units: int) -> None:
        """Units that fit are in use from now on."""
        self.used[kind] += units
        self.admitted[kind] += 1
        self._peak[kind] = max(self._peak[kind], self.used[kind])

    def refuse(self, kind: int, units: int) -> None:
        """Remember that there was no room for them, so that they count as demand."""
        self.refused[kind] += 1
        self._refused[kind] += units
        self._peak[kind] = max(self._peak[kind], self.used[kind] + self._refused[kind])

    def release(self, kind: int, units: int) -> None:
        """Work has ended."""
        self.used[kind] -= units

    def roll(self, now: float) -> None:
        """Forget the demand of long ago."""
        passed = now - self._window_at
        if passed < WINDOW:
            return
        self._before = self._peak if passed < 2 * WINDOW else list(self.used)
        self._peak = list(self.used)
        self._refused = [0, 0, 0]
        self._window_at = now

    def _kept(self, other: int, kind: int) -> int:
        """Units kept free for `other` when `kind` wants to borrow: all it needs if it comes first, else its own."""
        demand = self.demand(other)
        if other > kind:
            demand = min(demand, self.own[other])
        elif demand and other == LIVE:
            demand += 1  # the next one should find a place, too
        return max(0, demand - self.used[other])
