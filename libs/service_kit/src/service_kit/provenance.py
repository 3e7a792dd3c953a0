"""How degradation looks on the wire: HTTP headers and gRPC trailing metadata, and back.

Both carry the same four names (docs: the contract). gRPC additionally carries one `x-degradation` entry per
degradation, `row|fallback|circuit|seconds`, so that the row survives the hop and the next service can pass it on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from resilience.outcome import Degradation

Metadata = Sequence[tuple[str, str | bytes]]

_SEVERITY = {"open": 2, "half-open": 1, "closed": 0}
_ENTRY = "x-degradation"
_MAX_ENTRIES = 16


def whole_seconds(retry_after: float | None) -> int:
    """Retry-After as the protocol wants it: whole seconds, rounded up, at least 1 (RFC 9110 section 10.2.3)."""
    return max(1, math.ceil(retry_after or 0))


def fields(degradations: Sequence[Degradation]) -> list[tuple[str, str]]:
    """The degradation fields of an answer, as lower-case names and values; none for a healthy answer."""
    if not degradations:
        return []
    circuit = max((one.circuit for one in degradations), key=lambda state: _SEVERITY.get(state, 0))
    found = [
        ("x-degraded-mode", "true"),
        ("x-fallback-used", ", ".join(dict.fromkeys(one.fallback for one in degradations))),
        ("x-circuit-state", circuit),
    ]
    waits = [one.retry_after for one in degradations if one.retry_after is not None]
    if waits:
        found.append(("x-retry-after", str(whole_seconds(max(waits)))))
    return found


def to_metadata(degradations: Sequence[Degradation]) -> list[tuple[str, str]]:
    """Trailing metadata of a degraded gRPC answer; empty for a healthy one."""
    entries = [(_ENTRY, _entry(one)) for one in degradations[:_MAX_ENTRIES]]
    return [*fields(degradations), *entries]


def from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[Degradation, ...]:
    """The degradations that trailing metadata tells of; entries that cannot be read are left out."""
    texts = [(key, value if isinstance(value, str) else value.decode("ascii", "replace")) for key, value in metadata]
    entries = [_parsed(value) for key, value in texts if key == _ENTRY][:_MAX_ENTRIES]
    found = tuple(one for one in entries if one is not None)
    return found or _from_fields(dict(texts))


def _entry(one: Degradation) -> str:
    wait = "" if one.retry_after is None else f"{one.retry_after:.3f}"
    return f"{one.row}|{one.fallback}|{one.circuit}|{wait}"


def _parsed(entry: str) -> Degradation | None:
    parts = entry.split("|")
    if len(parts) != 4 or parts[2] not in _SEVERITY:
        return None
    return Degradation(parts[0], parts[1], parts[2], _seconds(parts[3]))


def _from_fields(metadata: dict[str, str]) -> tuple[Degradation, ...]:
    """From a peer that sends only the four public names."""
    if metadata.get("x-degraded-mode") != "true":
        return ()
    circuit = metadata.get("x-circuit-state", "closed")
    wait = _seconds(metadata.get("x-retry-after", ""))
    names = [name.strip() for name in metadata.get("x-fallback-used", "").split(",") if name.strip()]
    return tuple(Degradation("", name, circuit, wait) for name in names[:_MAX_ENTRIES])


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
