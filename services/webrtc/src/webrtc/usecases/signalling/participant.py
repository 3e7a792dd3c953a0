"""One participant on this instance: its socket (or none for a moment), and what it was told and may have missed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from webrtc.model import Close, Grants, Member
from webrtc.ports import QualityMeter
from webrtc.usecases.signalling.limits import Flood, Limits, TokenBucket

if TYPE_CHECKING:
    from webrtc.usecases.signalling.room import RoomState


class Socket(Protocol):
    """The WebSocket, as far as the signalling needs it."""

    paused_at: float | None
    """Since when (monotonic) it takes nothing, because the other side does not read; None while it does."""

    def send(self, text: bytes) -> None:
        """Hands over one message; never waits."""
        ...

    def ping(self) -> None:
        """A WebSocket ping."""
        ...

    def close(self, code: Close, reason: str = "") -> None:
        """Says good-bye and, a moment later, ends the connection whatever the other side does."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes handed over that the other side has not taken."""
        ...


class Outbox:
    """The last messages of a participant, numbered without a gap, for the case that it comes back."""

    __slots__ = ("_bytes", "_limit", "_most", "_sent", "seq")

    def __init__(self, messages: int, limit: int) -> None:
        self.seq = 0
        self._sent: deque[bytes] = deque()
        self._most = messages
        self._limit = limit
        self._bytes = 0

    def add(self, message: bytes) -> bytes:
        """The next number, put into a server's message; the oldest are forgotten when there are too many."""
        self.seq = seq = self.seq + 1
        text = b'%b,"seq":%d}' % (message[:-1], seq)
        sent = self._sent
        sent.append(text)
        self._bytes += len(text)
        while len(sent) > self._most or self._bytes > self._limit:
            self._bytes -= len(sent.popleft())
        return text

    def acknowledge(self, seq: int) -> None:
        """Forgets what the other side has."""
        first = self.seq - len(self._sent) + 1
        for _ in range(min(seq, self.seq) - first + 1):
            self._bytes -= len(self._sent.popleft())

    def since(self, seq: int) -> list[bytes] | None:
        """The messages after ``seq``; None when they are not all there any more, or ``seq`` was never reached."""
        missed = self.seq - seq
        if not 0 <= missed <= len(self._sent):
            return None
        return list(self._sent)[len(self._sent) - missed :]

    def forget(self) -> None:
        """Nothing of the past is of use any more."""
        self._sent.clear()
        self._bytes = 0

    @property
    def kept(self) -> tuple[int, int]:
        """Messages and bytes that are held."""
        return len(self._sent), self._bytes


class Participant:
    """Made by the hub, which also keeps its rules; this class only holds together what belongs to one."""

    __slots__ = (
        "_buffer_bytes",
        "_on_slow",
        "bucket",
        "dropped_at",
        "flood",
        "grants",
        "heard_at",
        "ice_at",
        "malformed",
        "member",
        "meter",
        "outbox",
        "pinged_at",
        "room",
        "socket",
    )

    def __init__(
        self,
        member: Member,
        room: RoomState,
        grants: Grants,
        limits: Limits,
        meter: QualityMeter,
        on_slow: Callable[[Participant], None],
        now: float,
    ) -> None:
        self.member = member
        self.room = room
        self.grants = grants
        self.meter = meter
        self.socket: Socket | None = None
        self.outbox = Outbox(limits.outbox_messages, limits.outbox_bytes)
        self.bucket = TokenBucket(limits.message_rate, limits.message_burst, now)
        self.flood = Flood()
        self.malformed = 0
        self.heard_at = self.pinged_at = now
        self.dropped_at: float | None = None
        self.ice_at: float | None = None
        self._buffer_bytes = limits.buffer_bytes
        self._on_slow = on_slow

    def tell(self, message: bytes) -> None:
        """Sends a server's message, and keeps it until it is acknowledged or too old."""
        text = self.outbox.add(message)
        socket = self.socket
        if socket is None:
            return
        socket.send(text)
        if socket.paused_at is not None and socket.buffered > self._buffer_bytes:
            self._on_slow(self)

    def attach(self, socket: Socket, now: float) -> None:
        """A connection, the first or a newer one."""
        self.socket = socket
        self.heard_at = self.pinged_at = now
        self.dropped_at = None
        self.malformed = 0

    def detach(self, now: float) -> None:
        """The connection is lost; the participant is not, for a while."""
        self.socket = None
        self.dropped_at = now

    def change(self, **changes: object) -> Member:
        """The member with some fields changed, and so a newer version."""
        self.member = replace(self.member, version=self.member.version + 1, **changes)  # type: ignore[arg-type]
        return self.member
