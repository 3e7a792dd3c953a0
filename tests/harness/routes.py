"""What the load uses, and what the matrix promises for it: the one table that load, checker and soak share.

A row of the table is a kind of request. ``needs``: components whose outage may show in its answer, by a label or an
error; anything else that shows is a lie. ``shows``: components whose outage every good answer has to admit. ``fails``:
the outages that may take the answer away; each is a set of components that are all gone at once. Everywhere else the
matrix promises something useful, and an error is a broken promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

POSTGRES, STANDBY, REDIS, KAFKA = "postgres", "standby", "redis", "kafka"
AI_CORE, WEBRTC, PROVIDERS = "ai-core", "webrtc", "providers"
EVERYTHING = f"{POSTGRES} {STANDBY} {REDIS} {KAFKA} {AI_CORE} {WEBRTC} {PROVIDERS}"

ROWS = {"D1": POSTGRES, "D2": REDIS, "D3": AI_CORE, "D4": WEBRTC, "D5": KAFKA, "D6": STANDBY}
"""The Dashboard's rows and the component of each."""
LABELS = {
    POSTGRES: ("D1", "A1", "W3"),
    REDIS: ("D2", "A3", "W1"),
    AI_CORE: ("D3",),
    WEBRTC: ("D4",),
    KAFKA: ("D5",),
    "turn": ("W2",),
    STANDBY: ("D6",),
    PROVIDERS: ("A2", "A5"),
}
"""Rows of all services whose circuits guard a component."""

COPIES = frozenset({"redis-cache", "memory-cache", "postgres-standby", "rooms-database"})
"""Fallbacks that serve what may be outdated."""

MEMORY_ROOMS = "memory-rooms"
"""Rooms in the memory of a WebRTC that has lost its Redis."""

SHOWS_AFTER = {REDIS: 1.0}
"""Seconds from the opening of the circuits until good answers admit it: a session that Redis has just confirmed is not
asked for again at once."""

Content = Mapping[str, Any] | None
Outages = tuple[frozenset[str], ...]


def _any(*sets: str) -> Outages:
    """Outages as text: ``a+b`` is both at once."""
    return tuple(frozenset(one.split("+")) for one in sets)


EMERGENCY = _any("postgres+webrtc", "postgres+redis")
"""Two P0 rows at once, or one whose fallback is gone too: reads, logins and own accounts are left, nothing else."""


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of request. ``path`` may name ``{user}``, ``{room}``, ``{agent}`` and ``{operation}``; ``share`` is its
    part of the load; ``body`` makes what is sent from a name that nothing else uses."""

    method: str
    path: str
    share: int
    needs: frozenset[str] = frozenset()
    shows: frozenset[str] = frozenset()
    fails: Outages = ()
    good: tuple[int, ...] = (200,)
    body: Callable[[str], Content] = lambda _: None
    copy: bool = False
    """A copy says ``stale`` and ``as_of`` at the top of its body."""
    person: bool = True
    """Needs a session, and so shows when Redis is gone."""
    essential: bool = False
    """A write that is accepted in emergency mode as well; reads always are."""
    stream: bool = False
    """Server-sent events: only the beginning is waited for."""
    pieces: bool = False
    """An answer as server-sent events, read to the end: the last one says whether it is whole."""

    @property
    def affected(self) -> frozenset[str]:
        """Components that may show in the answer."""
        return self.needs | ({REDIS} if self.person else set())

    def promised(self, broken: frozenset[str]) -> bool:
        """Whether something useful is promised while these components are broken."""
        refused = EMERGENCY if self.stream or not (self.essential or self.method == "GET") else ()
        return not any(outage <= broken for outage in (*self.fails, *refused))


def _route(method: str, path: str, share: int, needs: str = "", **fields: Any) -> Route:
    given = {name: frozenset(value.split()) for name, value in fields.items() if name == "shows"}
    return Route(method, path, share, frozenset(needs.split()), **{**fields, **given})


_ROOMS = _any("webrtc", "redis")

ROUTES: Mapping[str, Route] = {
    # Accounts: rows D1, D2, D6.
    "read": _route("GET", "/users/{user}", 24, "postgres", shows="postgres redis", copy=True),
    "me": _route("GET", "/auth/me", 4, "postgres", shows="postgres redis", copy=True),
    "write": _route(
        "PATCH",
        "/users/{user}",
        18,
        "postgres",
        shows="postgres redis",
        fails=_any("postgres+redis"),
        good=(200, 202, 503),
        body=lambda name: {"display_name": name},
        copy=True,
        essential=True,
    ),
    "operation": _route("GET", "/operations/{operation}", 5, "postgres", fails=_any("postgres+redis"), essential=True),
    "login": _route(
        "POST", "/auth/login", 1, "postgres", shows="postgres", fails=_any("postgres+redis"), essential=True
    ),
    "health": Route("GET", "/health/ready", 4, person=False),
    # Rooms: row D4, and W1 behind it.
    "room": _route("GET", "/rooms/{room}", 5, "webrtc postgres", shows="webrtc", copy=True),
    "rooms": _route("GET", "/rooms", 4, "webrtc postgres", shows="webrtc", copy=True),
    "token": _route("POST", "/rooms/{room}/token", 3, "webrtc postgres", fails=_ROOMS),
    "new_room": _route(
        "POST",
        "/rooms",
        1,
        "webrtc postgres",
        fails=_any("webrtc"),
        good=(201,),
        body=lambda name: {"name": name},
    ),
    "calls": _route("GET", "/calls", 3, "postgres webrtc", copy=True),
    # AI: row D3, and A1 and A2 behind it.
    "agent": _route(
        "GET",
        "/agents/{agent}",
        3,
        "ai-core postgres",
        shows="ai-core postgres",
        fails=_any("postgres+redis"),
        copy=True,
    ),
    "agents": _route(
        "GET", "/agents", 3, "ai-core postgres", shows="ai-core postgres", fails=_any("postgres+redis"), copy=True
    ),
    "new_agent": _route(
        "POST",
        "/agents",
        1,
        "ai-core postgres",
        shows="ai-core postgres",
        fails=_any("postgres+redis", "ai-core+redis"),
        good=(201, 202),
        body=lambda name: {"name": name},
    ),
    "chat": _route(
        "POST",
        "/agents/{agent}/chat",
        2,
        "ai-core postgres providers",
        shows="postgres",
        fails=_any("ai-core", "providers", "postgres+redis"),
        body=lambda name: {"message": f"Say {name}"},
    ),
    "chat_stream": _route(
        "POST",
        "/agents/{agent}/chat",
        2,
        "ai-core postgres providers",
        shows="postgres",
        fails=_any("ai-core", "providers", "postgres+redis"),
        body=lambda name: {"message": f"Tell {name}"},
        pieces=True,
    ),
    "speech": _route(
        "POST", "/speech", 2, "ai-core providers", shows="ai-core", body=lambda name: {"text": f"Speak {name}"}
    ),
    "translate": _route(
        "POST",
        "/translate",
        2,
        "ai-core postgres providers",
        shows="ai-core",
        body=lambda name: {"text": f"Text {name}", "target_language": "fr"},
    ),
    "new_memory": _route(
        "POST",
        "/memories",
        1,
        "ai-core postgres providers",
        shows="ai-core postgres",
        fails=_any("postgres+redis", "ai-core+redis"),
        good=(201, 202),
        body=lambda name: {"text": name},
    ),
    "memories": _route(
        "GET", "/memories", 2, "ai-core postgres", shows="ai-core postgres", fails=_any("postgres+redis"), copy=True
    ),
    "search": _route(
        "GET", "/memories/search?q=note", 1, "ai-core postgres providers", fails=_any("ai-core", "postgres")
    ),
    # Answers made of parts, or with defaults.
    # In degraded mode, whatever the reason, the home page leaves out what is expensive, and says so.
    "home": _route("GET", "/dashboard", 4, EVERYTHING),
    "pricing": _route("GET", "/pricing/eu", 3, "postgres"),
    "analytics": _route("GET", "/analytics/users/{user}", 2, "postgres"),
    "events": _route("GET", "/events", 1, "postgres kafka", stream=True),
}

READABLE = frozenset(
    kind for kind, route in ROUTES.items() if route.method == "GET" and not route.stream and kind != "health"
)
"""Kinds that count for the error rate of readable routes."""


def template(kind: str) -> str:
    """The route as the OpenAPI document names it, up to the names of parameters."""
    path = ROUTES[kind].path.partition("?")[0]
    return path if path.startswith("/health") else f"/api/v1{path}"


def promises() -> str:
    """For people: for every kind of request, when it may go without a useful answer."""
    lines = []
    for kind, route in ROUTES.items():
        singles = [frozenset({part}) for part in EVERYTHING.split()]
        candidates = [*singles, *(a | b for a in singles for b in singles if a != b)]
        lost = [outage for outage in dict.fromkeys(candidates) if not route.promised(outage)]
        least = [outage for outage in lost if not any(other < outage for other in lost)]
        text = ", or ".join(" and ".join(sorted(outage)) for outage in least)
        lines.append(f"{kind:<11} {'useful, except without ' + text if text else 'always useful'}")
    return "\n".join(lines)
