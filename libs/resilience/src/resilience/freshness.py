"""What a cache may do with a value of some age, and how it tells.

Pure rules: those of HTTP caches (RFC 9111 and 5861) for the decision, RFC 9211 for the header field, and the events for
whoever counts.
"""

from math import floor, isfinite
from typing import Final, Literal, NamedTuple

Freshness = Literal["fresh", "stale-while-revalidate", "stale-if-error", "too old"]
CacheOutcome = Literal["hit", "negative-hit", "stale-while-revalidate", "stale-if-error", "refreshed", "miss"]
"""How a value was found: fresh, a remembered error, stale and fetched anew in the background, stale because the source
failed, stale and replaced by the source's answer, or not at all, so that the source was asked."""


def freshness(
    age: float, max_age: float, stale_while_revalidate: float = 0.0, stale_if_error: float = 0.0
) -> Freshness:
    """What may be done with a value of this age; everything in seconds.

    At exactly `max_age` it is stale (RFC 9111: fresh while its lifetime is greater than its age). Both windows of
    RFC 5861 begin there, and their last moment belongs to them; 0 means no such window.
    """
    if age < max_age:
        return "fresh"
    stale_for = age - max_age
    if stale_while_revalidate > 0 and stale_for <= stale_while_revalidate:
        return "stale-while-revalidate"
    if stale_if_error > 0 and stale_for <= stale_if_error:
        return "stale-if-error"
    return "too old"


class CacheServed(NamedTuple):
    """A value was served, `age` seconds old (0 when it came from the source)."""

    name: str
    outcome: CacheOutcome
    age: float


class RefreshFailed(NamedTuple):
    """A background revalidation failed; the stale value stays."""

    name: str
    error: Exception


class CacheStats(NamedTuple):
    """What a cache holds now, and how often it did what. `hits` may miss one or two when threads collide."""

    entries: int
    bytes: int
    loading: int
    hits: int
    stale: int
    loads: int
    refreshes: int
    refresh_failures: int
    evicted: int


def cache_status(
    cache: str,
    outcome: CacheOutcome,
    *,
    ttl: float | None = None,
    fwd_status: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    key: str | None = None,
) -> str:
    """One member of the header field Cache-Status (RFC 9211), such as `AuraLink; hit; ttl=12`.

    Args:
        cache: its name, as clients are to see it.
        ttl: seconds for which the answer stays fresh, negative once it is stale; rounded down, as the field has
            whole seconds.
        fwd_status: the status with which the source answered, when it was asked.
        stored: the source's answer was put into the cache.
        collapsed: the request shared the load of another one.
        key: what the cache knows the answer by; only where it gives nothing away.
    """
    parts = [_text(cache), _FOUND[outcome]]
    if fwd_status is not None and parts[1] != "hit":
        parts.append(f"fwd-status={fwd_status:d}")
    if ttl is not None and isfinite(ttl):
        parts.append(f"ttl={floor(ttl)}")
    parts += ["stored"] * stored + ["collapsed"] * collapsed
    if key is not None:
        parts.append(f"key={_quoted(key)}")
    if outcome in ("negative-hit", "stale-while-revalidate", "stale-if-error"):
        parts.append(f"detail={outcome}")
    return "; ".join(parts)


_FOUND: Final[dict[CacheOutcome, str]] = {
    "hit": "hit",
    "negative-hit": "hit",
    "stale-while-revalidate": "hit",
    "stale-if-error": "fwd=stale",
    "refreshed": "fwd=stale",
    "miss": "fwd=miss",
}


def _text(name: str) -> str:
    """A token where it can be one, otherwise a string (RFC 9651, sections 3.3.3 and 3.3.4)."""
    plain = name.isascii() and name[:1].isalpha() and name.translate({ord(mark): "" for mark in "-._"}).isalnum()
    return name if plain else _quoted(name)


def _quoted(text: str) -> str:
    """Strings are printable ASCII; anything else becomes a question mark."""
    printable = "".join(mark if " " <= mark <= "~" else "?" for mark in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
