"""At most so many calls in so much time: the generic cell rate algorithm (GCRA, ITU-T I.371, annex A).

All that is kept is the *theoretical arrival time* (TAT): when the next cell would come if all came evenly, one per
`emission interval` T. A cell may come earlier by the *burst tolerance* τ, and each one that does moves the TAT on by T.
Seen as a bucket, TAT − now is how full it is: it leaks evenly, each cell pours in T, and what would make it higher than
τ + T is turned away. A token bucket of `burst` tokens is the same thing upside down: its tokens are the room left,
(τ + T − level) / T, so that τ = (burst − 1) · T, and T = per / rate is what one token takes to come back. Unlike a
counter per window there is no edge at which twice the burst gets through, and nothing has to be refilled.

Levels are kept instead of moments: they are small numbers, so that sums do not drift however long the process runs.
Only monotonic time is read; the wall clock may be set as it likes.
"""

import math
from typing import Final, NamedTuple

_MOST: Final = 999_999_999_999_999  # as great as a structured field's integer may be (RFC 9651, section 3.3.1)


class Decision(NamedTuple):
    """What a limiter said; true if the call may be made.

    `retry_after`: seconds until it would be allowed, 0 if it is, `None` if it never will be (it costs more than the
    burst). `free`: cost that may be taken now, with the part that is on its way. `reset_after`: seconds until the whole
    burst is there again. `degraded`: a shared limiter could not ask its store.
    """

    allowed: bool
    retry_after: float | None
    free: float
    reset_after: float
    degraded: bool = False

    @property
    def remaining(self) -> int:
        """Calls of cost 1 that may be made at once now."""
        return int(self.free)

    def __bool__(self) -> bool:
        return self.allowed


def gcra(
    tat: float,
    now: float,
    emission_interval: float,
    burst_tolerance: float,
    cost: float = 1,
    slack: float = 0,
) -> tuple[Decision, float]:
    """Whether a call of `cost` cells conforms at `now`, and the TAT after it (unchanged if it does not).

    The virtual scheduling form of ITU-T I.371 with its constant cell replaced by `cost` of them. Times in seconds of
    any one clock; what comes too early by `slack` seconds or less is in time.
    """
    room = emission_interval + burst_tolerance
    level = max(tat - now, 0)
    need = cost * emission_interval
    filled = level + need
    if filled <= room + slack:
        return Decision(True, 0.0, (room + slack - filled) / emission_interval, filled), now + filled
    retry_after = filled - room if need <= room + slack else None
    return Decision(False, retry_after, max(room + slack - level, 0) / emission_interval, level), tat


class Quota:
    """`burst` calls at once, and one more every `interval` seconds; not to be changed.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("burst", "interval", "slack", "tolerance")

    def __init__(self, rate: float, per: float = 1.0, burst: int | None = None) -> None:
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be finite and positive, not {rate!r}")
        if not 0 < per < math.inf:
            raise ValueError(f"per must be a positive number of seconds, not {per!r}")
        if burst is not None and not 1 <= burst <= _MOST:
            raise ValueError(f"burst must be at least 1 and at most {_MOST}, not {burst!r}")
        self.burst = min(max(1, int(rate)), _MOST) if burst is None else int(burst)
        self.interval = per / rate
        if not 0 < self.interval < math.inf:
            raise ValueError(f"rate and per are too far apart: {rate!r} in {per!r} seconds")
        self.tolerance = (self.burst - 1) * self.interval
        # Whoever waits for exactly `retry_after` must not miss it by the rounding of a float: moments closer than a
        # nanosecond are one. Nobody gains by it, as it does not add up.
        self.slack = min(1e-9, self.interval / 1000)

    def check(self, cost: float) -> None:
        """Raises ValueError unless `cost` is positive."""
        if not cost > 0:
            raise ValueError(f"cost must be positive, not {cost!r}")


def rate_limit_headers(name: str, quota: Quota, decision: Decision, partition: bytes | None = None) -> dict[str, str]:
    """The header fields that tell an HTTP client of its limit: `RateLimit-Policy` and `RateLimit` (structured fields of
    draft-ietf-httpapi-ratelimit-headers-11), and `Retry-After` with a rejection that will pass.

    The draft's `t` is how long no more than `r` can be used: until one more is there, or after a rejection until it
    would be allowed, as `Retry-After` must not be earlier. Its windows are whole seconds, so `q` is what flows in the
    whole seconds that a burst needs to come back. What is not known (`degraded`) is not said.

    Args:
        name: of the policy.
        quota: the limiter's.
        decision: the limiter's.
        partition: the draft's `pk`: what the caller's share is called. It is sent, so it must be no secret.
    """
    window = max(1, math.ceil(quota.burst * quota.interval - 1e-6))
    item = f'"{_text(name)}"'
    tail = "" if partition is None else f";pk=:{_base64(partition)}:"
    amount = max(quota.burst, int(window / quota.interval + 1e-6))
    headers = {"RateLimit-Policy": f"{item};q={min(amount, _MOST)};w={min(window, _MOST)}{tail}"}
    if decision.degraded:
        return headers
    wait = decision.retry_after or (1 - decision.free % 1) * quota.interval
    seconds = min(max(1, math.ceil(wait - 1e-6)), _MOST)
    headers["RateLimit"] = f"{item};r={decision.remaining};t={seconds}{tail}"
    if decision.retry_after:
        headers["Retry-After"] = str(seconds)
    return headers


def _text(name: str) -> str:
    """The inside of a structured field's string: printable ASCII (RFC 9651, section 3.3.3)."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in name)
    return printable.replace("\\", "\\\\").replace('"', '\\"')


def _base64(value: bytes) -> str:
    from base64 import b64encode

    return b64encode(value).decode()
