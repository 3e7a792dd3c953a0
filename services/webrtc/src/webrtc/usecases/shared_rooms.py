"""Rooms in Redis for all instances, and in this instance's memory while Redis is away (row W1, webrtc.redis).

Which of the two serves is decided call by call, never at the start. What was changed in memory shows at once, and also
while Redis is back and has not been told yet.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from resilience import MISSING, RowPolicy, Rung, Served
from resilience.fallback import Missing
from webrtc.degradation import MEMORY_ROOMS
from webrtc.model import Room, RoomUnknown, TooManyRooms
from webrtc.ports import RoomStore
from webrtc.usecases.memory_rooms import MemoryRooms

T = TypeVar("T")

_ANSWERS = (RoomUnknown, TooManyRooms)
AT_ONCE = 8
"""Changes told to Redis side by side; fewer than there are connections."""


class MergingStore(RoomStore, Protocol):
    """A store that takes what was made and deleted without it. Both may be repeated."""

    async def restore(self, room: Room) -> bool:
        """Has the room from now on, unless it was deleted by anybody; whether it has it."""
        ...


class SharedRooms:
    """``elsewhere`` says whether other instances, and not this one, had participants in a room when last seen."""

    def __init__(self, store: MergingStore, memory: MemoryRooms, policy: RowPolicy) -> None:
        self._store = store
        self._memory = memory
        self._policy = policy
        self.elsewhere: Callable[[str], bool] = lambda _: False

    async def create(self, room: Room) -> Served[None]:
        """A new room. Raises TooManyRooms, StoreUnavailable."""
        served = await self._serve(lambda: self._store.create(room), lambda: self._memory.create(room))
        if not served.degraded:
            self._memory.note(room)
        return served

    async def get(self, room_id: str) -> Served[Room]:
        """Raises RoomUnknown, StoreUnavailable: Redis is away and the room not known here."""
        if self._memory.is_gone(room_id):
            raise RoomUnknown
        return await self._serve(lambda: self._read(room_id), lambda: self._copy(room_id))

    async def page(self, owner_id: str, limit: int, after: str) -> Served[list[Room]]:
        """At most ``limit`` of the owner's rooms after a place, newest first; the known ones while Redis is away."""
        return await self._serve(
            lambda: self._read_page(owner_id, limit, after), lambda: self._memory.page(owner_id, limit, after)
        )

    async def delete(self, room: Room) -> Served[None]:
        """Deletes a room. While Redis is away only where no other instance alone holds it: StoreUnavailable."""
        served = await self._serve(lambda: self._store.delete(room), lambda: self._delete_here(room))
        if not served.degraded:
            self._memory.settled(room)
            self._memory.forget(room.id)
        return served

    async def merge(self) -> None:
        """Tells Redis what was changed without it; what is done is not done again when it fails in between."""
        for change, rooms in ((self._tell_gone, self._memory.gone), (self._tell_made, self._memory.made)):
            for first in range(0, len(rooms), AT_ONCE):
                await asyncio.gather(*map(change, rooms[first : first + AT_ONCE]))

    async def restore(self, room: Room) -> None:
        """Redis has lost a room that is in use."""
        await self._policy.call(self._store.restore, room)

    async def _tell_gone(self, room: Room) -> None:
        await self._policy.call(self._store.delete, room)
        self._memory.settled(room)

    async def _tell_made(self, room: Room) -> None:
        kept = await self._policy.call(self._store.restore, room)
        self._memory.settled(room)
        if not kept:
            self._memory.forget(room.id)

    async def _serve(
        self, ask: Callable[[], Awaitable[T]], remember: Callable[[], Awaitable[T | Missing]]
    ) -> Served[T]:
        return await self._policy.serve(ask, Rung(MEMORY_ROOMS, lambda _: remember(), _ANSWERS))

    async def _read(self, room_id: str) -> Room:
        try:
            room = await self._store.get(room_id)
        except RoomUnknown:
            if (made := self._memory.is_made(room_id)) is not None:
                return made
            self._memory.forget(room_id)
            raise
        self._memory.note(room)
        return room

    async def _copy(self, room_id: str) -> Room | Missing:
        return self._memory.find(room_id) or MISSING

    async def _read_page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        hidden = sum(room.owner_id == owner_id for room in self._memory.gone)
        found = await self._store.page(owner_id, limit + hidden, after)
        for room in found:
            self._memory.note(room)
        made = [room for room in self._memory.made if room.owner_id == owner_id and (not after or room.place < after)]
        if not made and not hidden:
            return found
        kept = {room.id: room for room in (*found, *made) if not self._memory.is_gone(room.id)}
        return sorted(kept.values(), key=lambda room: room.place, reverse=True)[:limit]

    async def _delete_here(self, room: Room) -> Missing | None:
        if self.elsewhere(room.id):
            return MISSING
        await self._memory.delete(room)
        return None
