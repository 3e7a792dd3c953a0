"""What browsers are told as it happens: changes of circuits, mode, queue, rooms and accounts, bounded everywhere.

Each stream has a short queue; a reader that is too slow to empty it is dropped and comes back with the id of the last
event it has seen, from which on it is told again what the backlog still holds. An event that arrives twice, from this
instance and again from the event stream, is told once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from dashboard.model import LiveUpdatesOff, TooManyStreams

MAX_STREAMS = 1000
BACKLOG = 500
QUEUE = 256
MAX_SEEN = 10_000


class LiveEvent(NamedTuple):
    """``kind``: circuit, mode, queue, room, user, call or agent. ``audience``: ids of the users it is meant for; None:
    everybody."""

    id: str
    kind: str
    data: Mapping[str, Any]
    audience: frozenset[str] | None = None

    def is_for(self, user_id: str) -> bool:
        """Whether the user may see it."""
        return self.audience is None or user_id in self.audience


class Stream:
    """One reader. Ends when it is dropped or closed."""

    def __init__(self, feed: LiveFeed, user_id: str) -> None:
        self._feed = feed
        self.user_id = user_id
        self._waiting: deque[LiveEvent] = deque()
        self._wake = asyncio.Event()
        self.ended = False

    def offer(self, event: LiveEvent) -> None:
        """Takes an event; drops the stream when its reader does not keep up."""
        if len(self._waiting) >= QUEUE:
            self.end()
            return
        self._waiting.append(event)
        self._wake.set()

    async def next(self, timeout: float) -> LiveEvent | None:
        """The next event; None after ``timeout`` seconds without one. Raises StopAsyncIteration at the end."""
        if not self._waiting and not self.ended:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return None
        if self._waiting:
            return self._waiting.popleft()
        raise StopAsyncIteration

    def end(self) -> None:
        """No more events; the ones that wait are still given."""
        self.ended = True
        self._feed.leave(self)
        self._wake.set()


class LiveFeed:
    """All streams of this instance."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self._backlog: deque[LiveEvent] = deque(maxlen=BACKLOG)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.is_on = True

    def __len__(self) -> int:
        return len(self._streams)

    def publish(self, event: LiveEvent) -> None:
        """Tells everybody whom it concerns; never waits."""
        if event.id in self._seen:
            return
        self._seen[event.id] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        self._backlog.append(event)
        for stream in list(self._streams):
            if event.is_for(stream.user_id):
                stream.offer(event)

    def open(self, user_id: str, last_id: str | None = None) -> Stream:
        """A stream for the user, beginning after the event ``last_id`` when that is still known.

        Raises TooManyStreams, LiveUpdatesOff.
        """
        if not self.is_on:
            raise LiveUpdatesOff
        if len(self._streams) >= MAX_STREAMS:
            raise TooManyStreams
        stream = Stream(self, user_id)
        for event in self._after(last_id):
            if event.is_for(user_id):
                stream.offer(event)
        if not stream.ended:
            self._streams.add(stream)
        return stream

    def switch(self, on: bool) -> None:
        """Live updates on or off; off ends every stream after what it has been told."""
        self.is_on = on
        if not on:
            for stream in list(self._streams):
                stream.end()

    def leave(self, stream: Stream) -> None:
        """The reader is gone."""
        self._streams.discard(stream)

    def _after(self, last_id: str | None) -> list[LiveEvent]:
        if last_id is None:
            return []
        ids = [event.id for event in self._backlog]
        found = ids.index(last_id) + 1 if last_id in ids else len(ids)
        return list(self._backlog)[max(found, len(ids) - QUEUE) :]
