"""Rooms as this instance has seen them, and what it has changed while Redis was away (row W1, webrtc.redis).

Three parts: copies of rooms that are in Redis (bounded, the least used go first), rooms made here that Redis does not
know yet, and rooms deleted here that Redis still has. The last two are never evicted; when they are full, changes are
refused. A room never is in two parts, and what was deleted here stays deleted, whatever a slow reader brings.
"""

from collections import OrderedDict
from collections.abc import Iterator

from webrtc.model import ROOMS_PER_OWNER, Room, RoomUnknown, TooManyRooms
from webrtc.ports import StoreUnavailable

COPIES = 10_000
CHANGES = 10_000


class MemoryRooms:
    """Keeps ``ports.RoomStore``, for this process alone."""

    def __init__(self, copies: int = COPIES, changes: int = CHANGES) -> None:
        self._copies: OrderedDict[str, Room] = OrderedDict()
        self._made: dict[str, Room] = {}
        self._gone: dict[str, Room] = {}
        self._most_copies = copies
        self._most_changes = changes

    # -- what Redis says

    def note(self, room: Room) -> None:
        """Redis has this room."""
        if room.id in self._gone or room.id in self._made:
            return
        self._copies[room.id] = room
        self._copies.move_to_end(room.id)
        if len(self._copies) > self._most_copies:
            self._copies.popitem(last=False)

    def forget(self, room_id: str) -> None:
        """Redis does not have it any more."""
        self._copies.pop(room_id, None)

    # -- while Redis is away

    async def create(self, room: Room) -> None:
        """Keeps a new room until Redis can have it. Raises TooManyRooms, StoreUnavailable (full)."""
        if len(self._made) >= self._most_changes:
            raise StoreUnavailable("too many rooms wait for Redis")
        if sum(one.owner_id == room.owner_id for one in self._all()) >= ROOMS_PER_OWNER:
            raise TooManyRooms
        self._made[room.id] = room

    async def get(self, room_id: str) -> Room:
        """Raises RoomUnknown: not known here."""
        found = self.find(room_id)
        if found is None:
            raise RoomUnknown
        return found

    def find(self, room_id: str) -> Room | None:
        """The room if it is known here and not deleted."""
        if room_id in self._copies:
            self._copies.move_to_end(room_id)
        return self._made.get(room_id) or self._copies.get(room_id)

    async def page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        """The owner's rooms that are known here."""
        own = [room for room in self._all() if room.owner_id == owner_id and (not after or room.place < after)]
        return sorted(own, key=lambda room: room.place, reverse=True)[:limit]

    async def delete(self, room: Room) -> None:
        """Deletes, and remembers to delete it in Redis. Raises StoreUnavailable (full)."""
        if self._made.pop(room.id, None) is None and len(self._gone) >= self._most_changes:
            raise StoreUnavailable("too many deletions wait for Redis")
        self._copies.pop(room.id, None)
        self._gone[room.id] = room  # also one made here: half of a merge may have put it into Redis

    # -- what Redis has to be told

    @property
    def made(self) -> list[Room]:
        """Rooms that Redis does not have yet."""
        return list(self._made.values())

    @property
    def gone(self) -> list[Room]:
        """Rooms that Redis still has, perhaps."""
        return list(self._gone.values())

    def is_made(self, room_id: str) -> Room | None:
        """The room if it was made here and Redis does not know it yet."""
        return self._made.get(room_id)

    def is_gone(self, room_id: str) -> bool:
        """Whether it was deleted here and Redis does not know that yet."""
        return room_id in self._gone

    def settled(self, room: Room) -> None:
        """Redis was told of the room or of its deletion."""
        self._gone.pop(room.id, None)
        if self._made.pop(room.id, None) is not None:
            self.note(room)

    def _all(self) -> Iterator[Room]:
        yield from self._made.values()
        yield from self._copies.values()
