"""How long a provider wants to be left alone, from the headers of its answer; seconds, None when it does not say.

Sources: RFC 9110, section 10.2.3 (``Retry-After``); OpenAI, "Rate limits in headers"; Anthropic, "Rate limits: response
headers".
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_OPENAI = ("requests", "tokens")
_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")
_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)", re.ASCII)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """What a refusal asks for: milliseconds, seconds, a date (``now``: unix seconds), or the limits' own reset."""
    milliseconds = _positive(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("Retry-After", "").strip()
    asked = _positive(value)
    if asked is None:
        asked = _until(value, now)
    return asked if asked is not None else exhausted(headers, now)


def exhausted(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the last of the limits of which nothing remains is reset."""
    resets = [seconds for seconds in _resets(headers, now) if seconds is not None]
    return max(resets, default=None)


def _resets(headers: Mapping[str, str], now: float) -> Iterator[float | None]:
    for kind in _OPENAI:
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
            yield _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
    for kind in _ANTHROPIC:
        if headers.get(f"anthropic-ratelimit-{kind}-remaining") == "0":
            yield _until(headers.get(f"anthropic-ratelimit-{kind}-reset", ""), now)


def _positive(number: str) -> float | None:
    try:
        seconds = float(number)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _duration(text: str) -> float | None:
    """A duration as Go writes it, for example 6m0s or 20ms, or plain seconds."""
    if not text or _PART.sub("", text):
        return _positive(text)
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)) or None


def _until(moment: str, now: float) -> float | None:
    """Seconds until a date of HTTP's or RFC 3339's form, if it is still to come."""
    seconds = _unix(moment) - now
    return seconds if seconds > 0 else None


def _unix(moment: str) -> float:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = read(moment)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return 0.0
