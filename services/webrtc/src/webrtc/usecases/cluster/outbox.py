"""What this instance still has to tell: in order, bounded, and written in batches.

While one batch is under way the next one collects: the busier it is, the more goes into one round trip. A batch that
failed stays, and is written again with the same numbers: a short cut loses nothing, and what arrives twice is known.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from webrtc.usecases.cluster import codec
from webrtc.usecases.cluster.store import Change, Frame, Parcel

MOST_ITEMS = 20_000
MOST_BYTES = 8_388_608
PARCEL_BYTES = 32_768
BATCH = 1_000
"""Items of one batch."""
KEPT_SECONDS = 30.0
"""Messages that could not be written for longer are of no use: whoever waited has given up."""
OVERHEAD = 200
"""Bytes that an item takes beside its text, roughly."""


@dataclass(frozen=True, slots=True)
class _Message:
    instance: str
    encoded: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Sync:
    """This room has to be compared with Redis."""

    room_id: str


Item = _Message | Change | Sync


class Outbox:
    """Times are monotonic seconds. ``batch`` is under way until ``done``."""

    def __init__(self, items: int = MOST_ITEMS, limit: int = MOST_BYTES) -> None:
        self._items: deque[Item] = deque()
        self._syncs: set[str] = set()
        self._bytes = 0
        self._most = items
        self._limit = limit
        self._number = 0
        self._batch: list[Frame] = []
        self._batched: list[Item] = []

    def __len__(self) -> int:
        return len(self._items) + len(self._batched)

    def __bool__(self) -> bool:
        return bool(self._items or self._batched)

    @property
    def size(self) -> int:
        """Bytes that wait, roughly."""
        return self._bytes

    def message(self, instance: str, message: codec.Direct, now: float) -> bool:
        """For an instance; False when too much waits."""
        encoded = codec.encode(message)
        return self._add(_Message(instance, encoded, now), len(encoded))

    def change(self, change: Change) -> bool:
        """For Redis and whoever is concerned; False when too much waits."""
        return self._add(change, 0)

    def sync(self, room_id: str) -> None:
        """Compare the room with Redis, after what waits now. Bounded by the number of rooms."""
        if room_id not in self._syncs:
            self._syncs.add(room_id)
            self._items.append(Sync(room_id))

    def _add(self, item: Item, size: int) -> bool:
        size += OVERHEAD
        if len(self._items) >= self._most or self._bytes + size > self._limit:
            return False
        self._items.append(item)
        self._bytes += size
        return True

    def batch(self) -> list[Frame]:
        """The next frames, or again the last ones if they were not ``done``. Ends before a ``Sync``."""
        if not self._batched:
            self._batched = list(self._take())
            self._batch = self._frames(self._batched)
        return self._batch

    def done(self) -> None:
        """The batch is written."""
        self._batch, self._batched = [], []

    def syncs(self, most: int) -> list[str]:
        """The rooms to be compared that are first in line, if there is no batch before them; taken out."""
        rooms: list[str] = []
        while not self._batched and self._items and len(rooms) < most:
            first = self._items[0]
            if not isinstance(first, Sync):
                break
            self._items.popleft()
            self._syncs.discard(first.room_id)
            rooms.append(first.room_id)
        return rooms

    def keep_messages(self, oldest: float) -> None:
        """Forgets messages from before ``oldest``, and all changes and syncs: everything will be compared."""
        self._batched = [one for one in self._batched if isinstance(one, _Message) and one.at >= oldest]
        self._batch = [one for one in self._batch if self._batched and isinstance(one.content, Parcel)]
        messages = [one for one in self._items if isinstance(one, _Message) and one.at >= oldest]
        self._items = deque(messages)
        self._syncs.clear()
        self._bytes = sum(len(one.encoded) + OVERHEAD for one in messages)

    def _take(self) -> Iterator[_Message | Change]:
        for _ in range(BATCH):
            if not self._items or isinstance(self._items[0], Sync):
                return
            item = self._items.popleft()
            if isinstance(item, Sync):
                return
            self._bytes -= OVERHEAD + (len(item.encoded) if isinstance(item, _Message) else 0)
            yield item

    def _frames(self, items: Iterable[Item]) -> list[Frame]:
        contents: list[Change | Parcel] = []
        parcels: dict[str, _Filling] = {}
        for item in items:
            if isinstance(item, _Message):
                filling = parcels.setdefault(item.instance, _Filling())
                if filling.size + len(item.encoded) > PARCEL_BYTES and filling.messages:
                    contents.append(Parcel(item.instance, codec.pack(filling.messages)))
                    filling = parcels[item.instance] = _Filling()
                filling.add(item.encoded)
            elif isinstance(item, Change):
                contents += _flush(parcels)  # what was said before is heard before
                contents.append(item)
        contents += _flush(parcels)
        return [self._numbered(content) for content in contents]

    def _numbered(self, content: Change | Parcel) -> Frame:
        self._number += 1
        return Frame(self._number, content)

    def numbered(self, changes: Iterable[Change]) -> list[Frame]:
        """Frames for changes that are written past the line."""
        return [self._numbered(change) for change in changes]


class _Filling:
    """A parcel that is being filled."""

    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.size = 0

    def add(self, encoded: bytes) -> None:
        self.messages.append(encoded)
        self.size += len(encoded)


def _flush(parcels: dict[str, _Filling]) -> list[Parcel]:
    found = [Parcel(instance, codec.pack(filling.messages)) for instance, filling in parcels.items()]
    parcels.clear()
    return found
