"""Encoded frames from one publisher to many subscribers: bounded, and nobody waits for anybody.

A feed with no outlets drops what comes. An outlet that is not emptied (a loop that is behind) drops until the next
keyframe: a picture decoded without the one before it is rubbish, and the browser cannot know, since sequence numbers
are made anew for each subscriber.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from webrtc.outbound.sfu.frames import Frame

Kind = Literal["audio", "video"]
CLOCK_RATE: dict[Kind, int] = {"audio": 48_000, "video": 90_000}  # Hz, of RTP timestamps (RFC 7587, RFC 7741)
RTP_TIME = 0xFFFFFFFF

# A keyframe costs the publisher, and so everybody, several times a normal frame's bits. Who has just begun to watch
# gets one soon; who reports losses again and again does not make it the usual frame.
ASK_AGAIN = 1.0  # s
ASK_AGAIN_URGENT = 0.3  # s, for somebody who sees nothing yet

MAX_FRAMES = 64  # waiting in one outlet: 2 s of video, 1.3 s of audio
MAX_BYTES = 1 << 20


@dataclass(slots=True)
class Counts:
    """What the metrics show; written on the SFU's loop, read by anybody."""

    received: int = 0
    """Frames from publishers."""
    frames: int = 0
    """Sent to subscribers."""
    octets: int = 0
    """Media bytes sent to subscribers."""
    keyframe_requests: int = 0
    """Sent to publishers."""
    dropped: int = 0
    """Frames that an outlet had no room for."""
    tracks: int = 0
    subscribers: int = 0


@dataclass(eq=False, slots=True)
class Feed:
    """One published track."""

    owner: str
    """The participant who publishes it."""
    kind: Kind
    ask_publisher: Callable[[], None]
    """Sends one PLI (RFC 4585 section 6.3.1)."""
    clock: Callable[[], float]
    counts: Counts
    outlets: set["Outlet"] = field(default_factory=set)
    _asked_at: float = float("-inf")
    _due: float = float("inf")

    def deliver(self, frame: Frame) -> None:
        """A frame for all who watch."""
        self.counts.received += 1
        for outlet in self.outlets:
            outlet.offer(frame)
        self._ask_if_due()

    def want_keyframe(self, *, urgent: bool = False) -> None:
        """Somebody cannot decode. Asks now or, if that was done just before, with a frame that comes later."""
        wait = ASK_AGAIN_URGENT if urgent else ASK_AGAIN
        self._due = min(self._due, self._asked_at + wait)
        self._ask_if_due()

    def _ask_if_due(self) -> None:
        if self._due > (now := self.clock()):
            return
        self._asked_at, self._due = now, float("inf")
        self.counts.keyframe_requests += 1
        self.ask_publisher()


class Outlet:
    """A subscriber's end: what its sender takes frames from. May change its feed, as an m-line changes its track."""

    def __init__(self, kind: Kind, clock: Callable[[], float], counts: Counts) -> None:
        self._kind = kind
        self._clock = clock
        self._counts = counts
        self.feed: Feed | None = None
        self._open = False
        self._need_key = True
        self._frames: deque[tuple[Frame, int]] = deque()
        self._bytes = 0
        self._shift: int | None = None  # from the feed's RTP time to the outlet's
        self._last = (0, 0.0)  # the last RTP time, and when
        self._waiter: asyncio.Future[None] | None = None

    def connect(self, feed: Feed) -> None:
        """Takes frames from this feed from now on (from when its sender takes the first one)."""
        self.disconnect()
        self.feed = feed
        self._shift = None
        if self._open:
            self._join(feed)

    def _join(self, feed: Feed) -> None:
        feed.outlets.add(self)
        self._need_key = self._kind == "video"
        if self._need_key:
            feed.want_keyframe(urgent=True)

    def disconnect(self) -> None:
        """Takes no more frames."""
        if self.feed is not None:
            self.feed.outlets.discard(self)
            self.feed = None
        self._clear()

    def close(self) -> None:
        """For good."""
        self.disconnect()
        self._open = False

    def lost(self) -> None:
        """The subscriber reports that it cannot decode (PLI or FIR)."""
        if self.feed is not None:
            self.feed.want_keyframe()

    def offer(self, frame: Frame) -> None:
        """A frame of the feed."""
        if self._need_key and not frame.key:
            if self.feed is not None:
                self.feed.want_keyframe(urgent=True)
            return
        self._need_key = False
        if len(self._frames) >= MAX_FRAMES or self._bytes + frame.size > MAX_BYTES:
            self._overflow()
            return
        self._frames.append((frame, self._retime(frame.timestamp)))
        self._bytes += frame.size
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _overflow(self) -> None:
        self._counts.dropped += len(self._frames) + 1
        self._clear()
        self._need_key = self._kind == "video"

    def _clear(self) -> None:
        self._frames.clear()
        self._bytes = 0

    def _retime(self, timestamp: int) -> int:
        """RTP time that goes on evenly when the feed changes; begins at 0."""
        last, last_at = self._last
        now = self._clock()
        if self._shift is None:
            passed = int((now - last_at) * CLOCK_RATE[self._kind]) if last_at else 0
            self._shift = last + passed - timestamp
        time = (timestamp + self._shift) & RTP_TIME
        self._last = (time, now)
        return time

    async def next(self) -> tuple[Frame, int]:
        """The next frame and its RTP time; waits for one. The first call opens the outlet: the sender is connected."""
        if not self._open:
            self._open = True
            if self.feed is not None:
                self._join(self.feed)
        while not self._frames:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame, time = self._frames.popleft()
        self._bytes -= frame.size
        self._counts.frames += 1
        self._counts.octets += frame.size
        return frame, time
