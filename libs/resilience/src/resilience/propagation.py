"""A deadline on its way to another service, over HTTP and over gRPC.

What travels is the time that is left, not a moment: the other side's clock is another one. Writing always rounds down,
so that no hop gives more time than its caller has. What cannot be read is no deadline (`None`): a garbled header from a
stranger must not fail a request. The receiver opens a scope with it:

    seconds = from_header(request.headers.get(DEADLINE_HEADER, ""))
    with deadline_scope(limit if seconds is None else min(limit, seconds)): ...
"""

import math
from typing import Final

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import Deadline

DEADLINE_HEADER: Final = "X-Request-Timeout-Ms"
"""The HTTP header: whole milliseconds that the caller will still wait."""
GRPC_TIMEOUT: Final = "grpc-timeout"
"""The gRPC header; gRPC libraries write and read it themselves, this is for proxies and gateways."""

_HEADER_DIGITS: Final = 10  # about 115 days
_GRPC_DIGITS: Final = 8
_GRPC_MAX: Final = 10**_GRPC_DIGITS - 1
# Units per second as a fraction, the finest first.
_GRPC_UNITS: Final = {
    "n": (10**9, 1),
    "u": (10**6, 1),
    "m": (10**3, 1),
    "S": (1, 1),
    "M": (1, 60),
    "H": (1, 3_600),
}


def to_header(deadline: Deadline, clock: Clock = SYSTEM_CLOCK) -> str:
    """The value of `DEADLINE_HEADER`: milliseconds left, rounded down; "0" once it has passed."""
    return str(_floor(deadline.remaining(clock), 1_000, 1, 10**_HEADER_DIGITS - 1))


def from_header(text: str) -> float | None:
    """Seconds left according to a `DEADLINE_HEADER`; `None` if it is not 1 to 10 digits."""
    text = text.strip()
    return int(text) / 1_000 if _is_digits(text, _HEADER_DIGITS) else None


def to_grpc_timeout(seconds: float) -> str:
    """`seconds` as a `grpc-timeout` (gRPC over HTTP/2: at most 8 digits and a unit), rounded down.

    It takes the finest unit in which the number fits, so at most a hundred-millionth is lost below 27 hours. No time
    left gives "0n", more than 8 digits of hours give the longest that can be written.

    Raises:
        ValueError: `seconds` is not a number.
    """
    for unit, (times, per) in _GRPC_UNITS.items():
        value = _floor(seconds, times, per, _GRPC_MAX + 1)
        if value <= _GRPC_MAX:
            return f"{value}{unit}"
    return f"{_GRPC_MAX}H"


def from_grpc_timeout(text: str) -> float | None:
    """Seconds according to a `grpc-timeout`; `None` if it is not 1 to 8 digits and one of the units H M S m u n."""
    text = text.strip()
    unit = _GRPC_UNITS.get(text[-1:])
    if unit is None or not _is_digits(text[:-1], _GRPC_DIGITS):
        return None
    times, per = unit
    return int(text[:-1]) * per / times


def _floor(seconds: float, times: int, per: int, most: int) -> int:
    """`seconds * times / per`, rounded down exactly: a float product could round up. Between 0 and `most`."""
    if seconds <= 0:
        return 0
    if seconds == math.inf:
        return most
    numerator, denominator = float(seconds).as_integer_ratio()
    return min(most, numerator * times // (denominator * per))


def _is_digits(text: str, most: int) -> bool:
    return len(text) <= most and text.isascii() and text.isdigit()
