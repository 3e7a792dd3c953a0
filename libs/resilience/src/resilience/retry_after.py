"""How long a dependency asked to be left alone: `Retry-After` (RFC 9110, section 10.2.3) in both of its forms.

What comes from outside is bounded: no answer is longer than a day, and nothing in it can raise.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from resilience.classify import peek
from resilience.clock import SYSTEM_CLOCK, Clock

MAX_RETRY_AFTER: Final = 86_400.0
"""Seconds; what asks for more gets this."""

_MAX_HEADERS: Final = 200
_MAX_DATE: Final = 64  # characters; the longest of the three forms has 34
_NAMES: Final = frozenset({"retry-after", "retry-after-ms", "date"})


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds from `now` (Unix time) that the text of a `Retry-After` asks for, at most `MAX_RETRY_AFTER`.

    It is a number of seconds (a fraction is tolerated, as some services send one) or a date in one of the three forms
    of RFC 9110, section 5.6.7. A date that has passed gives 0; negative numbers and anything else give `None`.
    """
    text = value.strip()
    if _is_number(text):
        return min(float(text), MAX_RETRY_AFTER)
    moment = _moment(text)
    return None if moment is None else min(max(0.0, moment - now), MAX_RETRY_AFTER)


def retry_after_of(error: object, *, clock: Clock = SYSTEM_CLOCK) -> float | None:
    """Seconds that `error`, or an answer itself, asks to wait, or `None`; never raises.

    Looked for in this order: an attribute `retry_after` (seconds, or text as in the header), then `retry-after-ms` and
    `Retry-After` in `error.response.headers` and in `error.headers`, whatever mapping or pairs they are. A date is
    held against the `Date` of the same answer if it has one, so that no two clocks are compared; otherwise against
    `clock.time()`, the only use of the wall clock here.
    """
    try:
        wait = _seconds(peek(error, "retry_after"), clock)
        if wait is None:
            wait = _in_headers(peek(peek(error, "response"), "headers"), clock)
        return _in_headers(peek(error, "headers"), clock) if wait is None else wait
    except Exception:  # noqa: BLE001 - an error of somebody else's making must not break the handling of it
        return None


def _seconds(value: object, clock: Clock) -> float | None:
    if isinstance(value, str):
        return parse_retry_after(value, clock.time())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:  # NaN is not
        return None
    return float(min(value, MAX_RETRY_AFTER))


def _in_headers(headers: Any, clock: Clock) -> float | None:
    if headers is None:
        return None
    try:
        found = _wanted(headers)
    except Exception:  # noqa: BLE001 - no headers that we could read
        return None
    milliseconds = found.get("retry-after-ms", "").strip()
    if _is_number(milliseconds):
        return min(float(milliseconds) / 1_000, MAX_RETRY_AFTER)
    text = found.get("retry-after")
    if text is None:
        return None
    sent = _moment(found.get("date", ""))
    return parse_retry_after(text, clock.time() if sent is None else sent)


def _wanted(headers: Any) -> dict[str, str]:
    items = peek(headers, "items")
    pairs: Iterable[tuple[Any, Any]] = items() if callable(items) else headers
    found: dict[str, str] = {}
    for key, value in islice(pairs, _MAX_HEADERS):
        name = _text(key).lower()
        if name in _NAMES:
            found.setdefault(name, _text(value))
    return found


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _is_number(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit()


def _moment(text: str) -> float | None:
    """Unix time of an HTTP-date."""
    if len(text) > _MAX_DATE:
        return None
    from datetime import UTC  # both are slow to import and rarely needed
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # the asctime form names no zone; HTTP has only one
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except Exception:  # noqa: BLE001 - the parser raises more kinds than it names
        return None
