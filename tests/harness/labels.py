"""Whether one answer tells the truth about where it comes from."""

from __future__ import annotations

from tests.harness.history import Event
from tests.harness.routes import COPIES, REDIS, ROUTES

LATE = 0.6
"""Seconds: the shortest limit of a call, Redis's."""
TEXT = 0.6
"""Seconds that a streamed text itself may take, at the pace of the soak."""
SILENT = "text-only"
_LABELS = ("x-fallback-used", "x-circuit-state", "x-retry-after")


def mislabelled(event: Event, broken: frozenset[str], away: frozenset[str]) -> str:
    """What is wrong with the answer's labels, or nothing. ``broken``: components that may have been away while it was
    made; ``away``: those that certainly were."""
    if event.status is not None and event.status < 400 and not event.degraded:
        return _healthy(event, away) or _late(event, broken)
    return _contradiction(event) or _incomplete(event) or _unfounded(event, broken)


def _healthy(event: Event, away: frozenset[str]) -> str:
    """An answer without a label: none of its parts, nothing from a fallback, and nothing it needs is away."""
    route = ROUTES[event.kind]
    if half := [name for name in _LABELS if name in event.headers]:
        return f"not degraded, and yet {', '.join(half)}"
    unmade = any(event.body.get(name) is False for name in ("translated", "spoken"))
    if event.body.get("stale") or event.body.get("queued") is not None or unmade:
        return "served by a fallback without a label"
    shown = route.shows | ({REDIS} if route.person and event.kind != "login" and not route.stream else set())
    if missing := shown & away:
        return f"{', '.join(sorted(missing))} away, and the answer does not say so"
    return ""


def _late(event: Event, broken: frozenset[str]) -> str:
    """The end of a stream tells what the headers, which had been sent, could not say any more."""
    if not event.body.get("degraded"):
        return ""
    if not event.body.get("fallbacks"):
        return "degraded at its end, which does not say what served"
    late = event.end - event.start >= LATE + TEXT
    return (
        ""
        if late or broken & ROUTES[event.kind].affected
        else "degraded at its end while nothing that it needs was wrong"
    )


def _contradiction(event: Event) -> str:
    """Header and body say the same: a copy is marked in both, a queued write as well; the end of a stream says what its
    beginning said; a text without audio is one that nobody could speak."""
    used = {name.strip() for name in event.headers.get("x-fallback-used", "").split(",")}
    if event.body.get("queued") and not event.degraded:
        return "queued without a label"
    if ROUTES[event.kind].copy and event.status == 200 and bool(event.body.get("stale")) != bool(used & COPIES):
        return "header and body disagree on whether it is stale"
    if event.degraded and event.body.get("ended") == "end" and not event.body.get("degraded"):
        return "degraded at its beginning, and not at its end"
    if "spoken" in event.body and (SILENT in used) == event.body["spoken"]:
        return "header and body disagree on whether it was spoken"
    return ""


def _incomplete(event: Event) -> str:
    wanted: list[str] = []
    if event.degraded:
        wanted += ["x-fallback-used", "x-circuit-state"]
    if event.body.get("stale"):
        wanted += ["age", "as_of"]
    if event.status in (429, 503):
        wanted += ["retry-after", "x-retry-after", "error", "message"]
    if event.status == 429 and event.body.get("error") == "CIRCUIT_OPEN":
        wanted += ["x-circuit-state"]
    if event.body.get("queued"):
        wanted += ["operation_id", "status_url"]
    if event.status == 202 and event.kind == "write":
        wanted += ["preference-applied"]
    missing = [name for name in wanted if event.headers.get(name, event.body.get(name)) in (None, "")]
    return f"without {', '.join(missing)}" if missing else ""


def _unfounded(event: Event, broken: frozenset[str]) -> str:
    if broken & ROUTES[event.kind].affected:
        return ""
    if not ROUTES[event.kind].promised(broken):
        return ""  # the emergency mode's own refusal
    if event.seconds >= LATE and event.headers.get("x-circuit-state") == "closed":
        return ""  # a part was late though nobody had broken it: the machine had no time for it
    return "degraded while nothing that it needs was wrong"
