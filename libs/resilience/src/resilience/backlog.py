"""The rules of the event buffer: what to send next, and what to drop. A state machine without clock, lock or stream."""

from collections import deque
from typing import Any, Literal, NamedTuple

DropReason = Literal["overflow", "expired", "refused"]


class BufferedEvent(NamedTuple):
    """An event that waits: since `at` (monotonic seconds), refused `tries` times when it was sent alone."""

    id: str
    value: Any
    at: float
    tries: int = 0


class DeadEvent(NamedTuple):
    """An event that the stream refused for good, and its last error."""

    event: BufferedEvent
    error: Exception


class EventsSent(NamedTuple):
    """The stream has taken `count` events."""

    name: str
    count: int  # type: ignore[assignment]  # hides the method of tuples


class EventsDropped(NamedTuple):
    """`count` events will never be sent: there were newer ones (`overflow`), they were too old, or refused for good."""

    name: str
    reason: DropReason
    count: int  # type: ignore[assignment]  # hides the method of tuples


class BufferStats(NamedTuple):
    """Sizes of now and counts since the start; `oldest_age` in seconds, 0 when empty."""

    depth: int
    oldest_age: float
    sent: int
    overflow: int
    expired: int
    dead: int


class Backlog:
    """The events that wait, in order. One batch is taken at a time, and then settled by `sent`, `back` or `refused`.

    A refused batch is searched for the event that is to blame by halving it: `_suspects` says how many events from the
    front it must be among. Found, it is set aside, and tried again alone until it has been refused `tries` times.
    """

    __slots__ = ("_aside", "_flying", "_queue", "_suspects", "batch", "max_age", "max_events", "tries")

    def __init__(self, max_events: int, max_age: float, batch: int, tries: int) -> None:
        self.max_events = max_events
        self.max_age = max_age
        self.batch = batch
        self.tries = tries
        self._queue: deque[BufferedEvent] = deque()
        self._aside: list[tuple[float, BufferedEvent]] = []  # refused alone, and when it is to be tried again
        self._flying: tuple[BufferedEvent, ...] = ()
        self._suspects = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._aside) + len(self._flying)

    @property
    def waiting(self) -> int:
        """Events that wait for their first turn."""
        return len(self._queue)

    @property
    def oldest(self) -> float | None:
        """Since when the oldest event waits."""
        heads = [*self._flying[:1], *(event for _, event in self._aside)]
        if self._queue:
            heads.append(self._queue[0])
        return min((event.at for event in heads), default=None)

    def put(self, event: BufferedEvent) -> BufferedEvent | None:
        """Add it; returns the one that had to go for it: the oldest, or itself if all others are being sent."""
        gone = None
        if len(self) >= self.max_events:
            if self._aside:
                gone = self._aside.pop(0)[1]
            elif self._queue:
                gone = self._shift()
            else:
                return event
        self._queue.append(event)
        return gone

    def expire(self, now: float) -> list[BufferedEvent]:
        """Drop those that have waited for more than `max_age`; what is being sent is left to its fate."""
        gone: list[BufferedEvent] = []
        while self._queue and now - self._queue[0].at > self.max_age:
            gone.append(self._shift())
        if self._aside:
            gone += [event for _, event in self._aside if now - event.at > self.max_age]
            self._aside = [waiting for waiting in self._aside if now - waiting[1].at <= self.max_age]
        return gone

    def ready(self, now: float) -> int:
        """How many events the next batch would have."""
        if self._flying:
            return 0
        due = self.due
        if due is not None and due <= now:
            return 1
        return min(len(self._queue), self._suspects // 2 or 1 if self._suspects else self.batch)

    @property
    def due(self) -> float | None:
        """When an event that was set aside is to be tried again."""
        return min((due for due, _ in self._aside), default=None)

    def take(self, now: float, limit: int) -> tuple[BufferedEvent, ...]:
        """The next batch, of at most `limit` events."""
        count = min(self.ready(now), limit)
        if not count:
            return ()
        due = self.due
        if due is not None and due <= now:
            at = next(place for place, waiting in enumerate(self._aside) if waiting[0] == due)
            self._flying = (self._aside.pop(at)[1],)
        else:
            self._flying = tuple(self._queue.popleft() for _ in range(count))
        return self._flying

    def sent(self) -> int:
        """The batch was taken by the stream; returns how many events it had."""
        count = len(self._flying)
        if not self._retrying:
            self._suspects = max(0, self._suspects - count)
        self._flying = ()
        return count

    def back(self, now: float) -> None:
        """The batch was not judged: it takes its place again, with nothing counted against it."""
        if self._retrying:
            self._aside.insert(0, (now, self._flying[0]))
        else:
            self._queue.extendleft(reversed(self._flying))
        self._flying = ()

    def refused(self, again_at: float) -> BufferedEvent | None:
        """The stream refused the batch. Returns the event that is dead by that, if one is.

        More than one event go back, to be sent in halves. A single one is set aside until `again_at`.
        """
        if len(self._flying) > 1:
            self._suspects = len(self._flying)
            self._queue.extendleft(reversed(self._flying))
            self._flying = ()
            return None
        if not self._retrying:
            self._suspects = 0  # found; whether the others are good, a whole batch will show
        event = self._flying[0]._replace(tries=self._flying[0].tries + 1)
        self._flying = ()
        if event.tries >= self.tries:
            return event
        self._aside.append((again_at, event))
        return None

    @property
    def _retrying(self) -> bool:
        return bool(self._flying) and self._flying[0].tries > 0

    def _shift(self) -> BufferedEvent:
        self._suspects = max(0, self._suspects - 1)
        return self._queue.popleft()
