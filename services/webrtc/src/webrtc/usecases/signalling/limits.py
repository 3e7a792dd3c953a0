"""How much one participant may ask for, as plain machines that are told the time (monotonic seconds)."""

from dataclasses import dataclass

RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the signalling; seconds, bytes and messages."""

    message_rate: float = 50.0
    message_burst: float = 200.0
    flooding_seconds: float = 3.0
    malformed: int = 10
    join_rate: float = 200.0
    join_burst: float = 1_000.0
    connections: int = 5_000
    heartbeat: float = 10.0
    silence: float = 25.0
    away_after: float = 3.0
    resume: float = 30.0
    outbox_messages: int = 256
    outbox_bytes: int = 262_144
    buffer_bytes: int = 1_048_576
    paused_seconds: float = 5.0
    open_seconds: float = 3.0
    p2p_participants: int = 2


class TokenBucket:
    """``rate`` a second on average, ``burst`` at once."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed now."""
        tokens = self._tokens + (now - self._at) * self._rate
        self._at = now
        if tokens > self._burst:
            tokens = self._burst
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


class Flood:
    """Says when a participant that went over its rate keeps doing so.

    An episode ends when a whole second passes without a message over the rate.
    """

    __slots__ = ("_last", "_since", "_told")

    def __init__(self) -> None:
        self._since = self._last = self._told = float("-inf")

    def over(self, now: float, patience: float) -> tuple[bool, bool]:
        """After a refused message: whether to say so (once a second), and whether it went on for too long."""
        if now - self._last > RETRY_AFTER:
            self._since = now
        self._last = now
        tell = now - self._told >= RETRY_AFTER
        if tell:
            self._told = now
        return tell, now - self._since >= patience
