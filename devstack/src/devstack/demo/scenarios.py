"""What the tour shows, as data: a new row of the matrix is a new entry here."""

from __future__ import annotations

from dataclasses import dataclass

from ai_core import degradation as ai_core
from devstack.components.providers import CHAIN
from devstack.demo import promises
from devstack.demo.faults import FAULTS, Fault
from devstack.demo.promises import Check, does_not_notice, is_kept, is_refused, is_served, is_served_by
from webrtc import degradation as webrtc


@dataclass(frozen=True)
class Scenario:
    """One fault on one dependency, or on several at once. ``row``: the label in the matrix; ``dependency``: the
    component's name; ``kinds``: what the user does meanwhile, ``reads``: which of them shows the final state;
    ``besides``: what else is gone; ``service``: who is used and asked for its health; ``circuits``: the names on its
    health page, when they are not the components'."""

    row: str
    dependency: str
    fault: Fault
    seconds: float  # how long it lasts
    kinds: tuple[str, ...]
    checks: tuple[Check, ...]
    besides: tuple[str, ...] = ()
    service: str = "dashboard"
    reads: str = "read"
    circuits: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[str, ...]:
        """All components that are broken."""
        return (self.dependency, *self.besides)

    @property
    def guards(self) -> tuple[str, ...]:
        """The circuits that have to be closed again."""
        return self.circuits or self.broken

    @property
    def fault_name(self) -> str:
        """For people."""
        return FAULTS[self.fault] + (f", {' and '.join(self.besides)} as well" if self.besides else "")


EVERY = (
    promises.every_call_is_answered_in_time,
    promises.no_internal_error,
    promises.a_healthy_answer_says_nothing,
    promises.recovers_in_time,
)
ALWAYS = (*EVERY, is_served("read"))
NOTICED = (*EVERY, promises.its_circuit_opens)
LAST = promises.the_last_accepted_wins("write")
QUEUED = (is_kept("write"), promises.queued_writes_are_applied, LAST)
DIRECT = (is_served("write"), LAST)

D1 = (*ALWAYS, *QUEUED, is_served_by("read", "postgres-standby", "redis-cache"))
D2 = (*ALWAYS, *DIRECT, is_served_by("read", "memory-sessions"))
D3 = (
    *ALWAYS,
    *DIRECT,
    is_refused("chat", "AI temporarily unavailable"),
    is_served("translate"),
    is_served_by("translate", "original-text"),
    is_served("note", 201),
    promises.queued_writes_are_applied,
    does_not_notice("read", "write", "room"),
)
D4 = (
    *ALWAYS,
    *DIRECT,
    is_refused("ticket", "Video calling temporarily unavailable"),
    is_served("room"),
    is_served_by("room", "rooms-database"),
    does_not_notice("read", "write"),
)
D5 = (*ALWAYS, *DIRECT, does_not_notice("read", "write", "room"))
D6 = (*ALWAYS, *QUEUED, is_served_by("read", "redis-cache", "memory-cache"))

LAST_NAME = promises.the_last_accepted_wins("rename")
A1 = (
    *NOTICED,
    is_kept("rename"),
    promises.queued_writes_are_applied,
    LAST_NAME,
    is_served("agent"),
    is_served_by("agent", ai_core.REDIS_CACHE, ai_core.MEMORY_CACHE),
    is_served("chat"),
    is_served_by("chat", ai_core.REDIS_QUEUE),
)
A2 = (
    *NOTICED,
    LAST_NAME,
    is_refused("chat", ai_core.PROVIDERS.user_text),
    is_served("translate"),
    is_served_by("translate", ai_core.ORIGINAL_TEXT),
    does_not_notice("agent", "rename"),
)
A3 = (*NOTICED, LAST_NAME, does_not_notice("agent", "rename", "chat"))
A4 = (*NOTICED, is_served("find"), is_served_by("find", ai_core.LOCAL_EMBEDDING), does_not_notice("agent"))
A5 = (*NOTICED, is_served("voice"), is_served_by("voice", ai_core.TEXT_ONLY), does_not_notice("agent"))
# The database is late for a search that waits for the lock of the drop: that is row A1.
_BY_WORDS = is_served_by("find", ai_core.FULL_TEXT, ai_core.REDIS_CACHE)
A6 = (*NOTICED, is_served("find"), _BY_WORDS, does_not_notice("agent"))
W1 = (*NOTICED, is_served("room"), is_served_by("room", webrtc.MEMORY_ROOMS), is_served("ticket"))
W2 = (*NOTICED, is_served("ticket"), is_served_by("ticket", webrtc.STUN_ONLY), does_not_notice("room"))
W3 = (*NOTICED, does_not_notice("room", "ticket"))

_ACCOUNT = ("read", "write")
_AI = (*_ACCOUNT, "room", "chat", "translate", "note")
_VIDEO = (*_ACCOUNT, "room", "ticket")
_AGENT = ("agent", "rename", "chat")
_LINKS = tuple(link for links in CHAIN.values() for link in links)
_VOICES = ("elevenlabs", ai_core.OPENAI_SPEECH)


def _ai_core(
    row: str,
    dependency: str,
    fault: Fault,
    seconds: float,
    kinds: tuple[str, ...],
    checks: tuple[Check, ...],
    *circuits: str,
) -> Scenario:
    """A scenario at AI Core's own door."""
    return Scenario(row, dependency, fault, seconds, kinds, checks, service="ai-core", reads="agent", circuits=circuits)


def _webrtc(row: str, dependency: str, fault: Fault, seconds: float, checks: tuple[Check, ...]) -> Scenario:
    """A scenario at WebRTC's own door."""
    return Scenario(row, dependency, fault, seconds, ("room", "ticket"), checks, service="webrtc", reads="room")


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("D1", "postgres", "kill", 5.0, _ACCOUNT, D1),
    Scenario("D1", "postgres", "freeze", 5.0, _ACCOUNT, D1),
    Scenario("D2", "redis", "kill", 4.0, _ACCOUNT, D2),
    Scenario("D2", "redis", "freeze", 4.0, _ACCOUNT, D2),
    Scenario("D3", "ai-core", "kill", 5.0, _AI, D3),
    Scenario("D3", "ai-core", "freeze", 6.0, _AI, D3),
    Scenario("D4", "webrtc", "kill", 5.0, _VIDEO, D4),
    Scenario("D4", "webrtc", "freeze", 6.0, _VIDEO, D4),
    Scenario("D5", "kafka", "kill", 5.0, (*_ACCOUNT, "room"), D5),
    Scenario("D5", "kafka", "freeze", 5.0, (*_ACCOUNT, "room"), D5),
    Scenario("D6", "standby", "kill", 5.0, _ACCOUNT, D6, besides=("postgres",)),
    Scenario("D6", "standby", "freeze", 6.0, _ACCOUNT, D6, besides=("postgres",)),
    _ai_core("A1", "postgres", "kill", 4.0, _AGENT, A1),
    _ai_core("A1", "postgres", "freeze", 5.0, _AGENT, A1),
    _ai_core("A2", "providers", "kill", 3.0, ("agent", "rename", "chat", "translate"), A2, *_LINKS),
    _ai_core("A2", "providers", "freeze", 5.0, ("agent", "rename", "chat", "translate"), A2, *_LINKS),
    _ai_core("A3", "redis", "kill", 3.0, _AGENT, A3),
    _ai_core("A3", "redis", "freeze", 3.0, _AGENT, A3),
    _ai_core("A4", "providers", "kill", 3.0, ("agent", "find"), A4, "embeddings"),
    _ai_core("A4", "providers", "freeze", 4.0, ("agent", "find"), A4, "embeddings"),
    _ai_core("A5", "providers", "kill", 3.0, ("agent", "voice"), A5, *_VOICES),
    _ai_core("A5", "providers", "freeze", 5.0, ("agent", "voice"), A5, *_VOICES),
    _ai_core("A6", "pgvector", "drop", 3.0, ("agent", "find"), A6, "vectors"),
    _webrtc("W1", "redis", "kill", 4.0, W1),
    _webrtc("W1", "redis", "freeze", 4.0, W1),
    _webrtc("W2", "turn", "kill", 4.0, W2),
    _webrtc("W2", "turn", "freeze", 6.0, W2),
    _webrtc("W3", "postgres", "kill", 5.0, W3),
    _webrtc("W3", "postgres", "freeze", 8.0, W3),
)
