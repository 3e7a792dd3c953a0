"""How long to wait before trying again: pure functions of the attempt and of chance.

The wait grows exponentially up to a cap, and jitter spreads callers that failed together, so that they do not come back
together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015, which also names "full", "equal" and
"decorrelated").
"""

import math
from random import Random
from typing import Final, Literal, get_args

from resilience.ambient import RANDOM

Jitter = Literal["none", "full", "equal", "proportional", "decorrelated"]
_JITTERS: Final = get_args(Jitter)


def exponential(attempt: int, base: float, factor: float, cap: float) -> float:
    """`base * factor ** (attempt - 1)`, at most `cap`, for failed attempt `attempt` (from 1). Never overflows."""
    if base == 0:
        return 0.0
    try:
        return min(cap, base * float(factor) ** (attempt - 1))
    except OverflowError:
        return cap


class Backoff:
    """The wait after each failed attempt. Times in seconds; stateless, so one serves any number of callers.

    With the bound b = min(cap, base * factor ** (attempt - 1)) the wait is

        none            b
        full            even from 0 to b
        equal           even from b / 2 to b
        proportional    even from b * (1 - share) to b * (1 + share), but never above `cap`
        decorrelated    even from `base` to three times the previous wait, at most `cap`; `factor` plays no part

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("base", "cap", "factor", "jitter", "share")

    def __init__(
        self,
        base: float = 0.05,
        *,
        factor: float = 2.0,
        cap: float = 5.0,
        jitter: Jitter = "full",
        share: float = 0.1,
    ) -> None:
        for name, value in (("base", base), ("factor", factor), ("cap", cap)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value!r}")
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {share!r}")
        if jitter not in _JITTERS:
            raise ValueError(f"jitter must be one of {', '.join(_JITTERS)}, not {jitter!r}")
        self.base = float(base)
        self.factor = float(factor)
        self.cap = float(cap)
        self.jitter = jitter
        self.share = float(share)

    def __repr__(self) -> str:
        extra = f", share={self.share:g}" if self.jitter == "proportional" else ""
        return f"Backoff({self.base:g}, factor={self.factor:g}, cap={self.cap:g}, jitter={self.jitter!r}{extra})"

    def bound(self, attempt: int) -> float:
        """The wait after failed attempt number `attempt` (from 1) before jitter."""
        return exponential(attempt, self.base, self.factor, self.cap)

    def wait(self, attempt: int, random: Random = RANDOM, previous: float = 0.0) -> float:
        """Seconds to wait after failed attempt number `attempt`. `previous` is the wait before it, 0 at the first."""
        if self.jitter == "decorrelated":
            return min(self.cap, random.uniform(self.base, 3 * max(self.base, previous)))
        bound = self.bound(attempt)
        if self.jitter == "none":
            return bound
        if self.jitter == "full":
            return random.uniform(0.0, bound)
        if self.jitter == "equal":
            return bound / 2 + random.uniform(0.0, bound / 2)
        highest = min(self.cap, bound * (1 + self.share))
        return min(highest, random.uniform(bound * (1 - self.share), highest))


def check_attempts(attempts: int) -> None:
    """Raises ValueError unless `attempts` is at least 1."""
    if not attempts >= 1:
        raise ValueError(f"attempts must be at least 1, not {attempts!r}")
