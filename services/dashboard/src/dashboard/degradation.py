"""What the Dashboard promises while a dependency is gone: its rows of the degradation matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resilience import Mode, Priority, Row

POSTGRES_STANDBY = "postgres-standby"
REDIS_CACHE = "redis-cache"
MEMORY_CACHE = "memory-cache"
REDIS_QUEUE = "redis-queue"
ROOMS_DATABASE = "rooms-database"
MEMORY_SESSIONS = "memory-sessions"
ORIGINAL_TEXT = "original-text"
TEXT_ONLY = "text-only"
EVENT_BUFFER = "event-buffer"
SAFE_DEFAULTS = "safe-defaults"
PARTIAL_ANSWER = "partial-answer"
DATABASE_PRICE = "database-price"
STALE_PRICE = "stale-price"
DEFAULT_PRICE = "default-price"

QUEUED_TEXT = "Service temporarily unavailable. Your change is saved and will be applied."
QUEUED_AGENT_TEXT = "AI temporarily unavailable. Your agent is saved and will be created."

POSTGRES = Row(
    id="dashboard.postgres",
    label="D1",
    service="dashboard",
    dependency="postgres",
    title="PostgreSQL",
    priority=Priority.P0,
    impact="critical",
    max_failures=5,
    open_seconds=60,
    call_timeout=1.0,
    fallbacks=(POSTGRES_STANDBY, REDIS_CACHE, MEMORY_CACHE, SAFE_DEFAULTS, REDIS_QUEUE),
    promise="Reads are answered by the standby when there is one, then from the Redis copy, then the process's own, "
    "marked stale and showing the reader's own queued writes as pending; a user's numbers fall to safe defaults; "
    "writes are queued and answered 503 with queued: true, or 202 when asked for.",
    recovery="A probe finds the database within about a second of its return; the queue is drained in order per "
    "entity, then the copies are refreshed.",
    data_loss="low (queued)",
    user_text="Data may be outdated",
)

REDIS = Row(
    id="dashboard.redis",
    label="D2",
    service="dashboard",
    dependency="redis",
    title="Redis",
    priority=Priority.P1,
    impact="medium",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.6,
    fallbacks=(MEMORY_SESSIONS, DATABASE_PRICE, STALE_PRICE, DEFAULT_PRICE),
    promise="Sessions this instance has seen in the last 5 minutes stay valid; logged-out ones stay logged out, on the "
    "other instances too, as PostgreSQL knows them; a new login lives on this instance only; rate limits are off; "
    "prices come from the database, then from memory, then the usual fare; writes go to the database.",
    recovery="Sessions made or ended meanwhile are written to Redis when it is back, and never over newer ones.",
    data_loss="medium (per instance)",
    user_text="You may have to log in again",
)

AI_CORE = Row(
    id="dashboard.ai_core",
    label="D3",
    service="dashboard",
    dependency="ai-core",
    title="AI Core",
    priority=Priority.P2,
    impact="low",
    max_failures=5,
    open_seconds=60,
    call_timeout=1.8,
    fallbacks=(ORIGINAL_TEXT, REDIS_QUEUE, TEXT_ONLY, REDIS_CACHE, MEMORY_CACHE),
    promise="Chat answers 503 and the time to retry; a translation is the original text, speech the text alone; new "
    "agents and memories are queued (202, 201) and shown as pending; agents and memories that were read before are "
    "served from a copy. Accounts and rooms are untouched.",
    recovery="The channel finds a restarted AI Core within about a second; the queue is drained as soon as the circuit "
    "closes, in order per owner, each creation once.",
    data_loss="none",
    user_text="AI temporarily unavailable",
)

WEBRTC = Row(
    id="dashboard.webrtc",
    label="D4",
    service="dashboard",
    dependency="webrtc",
    title="WebRTC signalling",
    priority=Priority.P0,
    impact="high",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.9,
    fallbacks=(ROOMS_DATABASE, REDIS_CACHE, MEMORY_CACHE),
    promise="Rooms cannot be made, deleted or joined: an error at once and the time to retry. Rooms and call history "
    "stay readable: rooms as the Dashboard last saw them, from its database, else from a copy, marked stale. Accounts "
    "and agents are untouched.",
    recovery="The channel finds a restarted WebRTC service within about a second; the next look at a room corrects "
    "what is kept of it.",
    data_loss="none",
    user_text="Video calling temporarily unavailable",
)

EVENT_STREAM = Row(
    id="dashboard.event_stream",
    label="D5",
    service="dashboard",
    dependency="kafka",
    title="event stream (Kafka)",
    priority=Priority.P2,
    impact="low",
    max_failures=5,
    open_seconds=30,
    call_timeout=2.0,
    fallbacks=(EVENT_BUFFER,),
    promise="Nobody notices: events wait in this process, 10,000 of them for 5 minutes at most; each instance's live "
    "page shows its own events only.",
    recovery="A probe finds the broker within about a second of its return; what waited is sent in order, in batches "
    "of 100. An event that is refused 5 times goes to the dead letters.",
    data_loss="medium (bounded buffer)",
    user_text="Live updates may be incomplete",
)

STANDBY = Row(
    id="dashboard.standby",
    label="D6",
    service="dashboard",
    dependency="standby",
    title="PostgreSQL standby",
    priority=Priority.P1,
    impact="medium",
    max_failures=3,
    open_seconds=30,
    call_timeout=1.0,
    fallbacks=(REDIS_CACHE, MEMORY_CACHE),
    promise="Noticed only while PostgreSQL is away as well: reads then fall to the copies of row D1. Without a "
    "configured standby this row does not exist.",
    recovery="A probe finds the standby within about a second of its return.",
    data_loss="none",
    user_text="Data may be outdated",
)


@dataclass(frozen=True, slots=True)
class Effects:
    """What a mode changes (matrix, "Modes")."""

    copies_live: float
    """By how much longer copies in memory are kept."""
    optional_parts: bool
    """Whether expensive optional parts of answers are worked out."""
    live_updates: bool
    essential_only: bool
    """Whether only essential endpoints answer."""


EFFECTS: Mapping[Mode, Effects] = {
    Mode.NORMAL: Effects(copies_live=1, optional_parts=True, live_updates=True, essential_only=False),
    Mode.DEGRADED: Effects(copies_live=4, optional_parts=False, live_updates=True, essential_only=False),
    Mode.EMERGENCY: Effects(copies_live=12, optional_parts=False, live_updates=False, essential_only=True),
}

ROWS: tuple[Row, ...] = (POSTGRES, REDIS, AI_CORE, WEBRTC, EVENT_STREAM, STANDBY)
