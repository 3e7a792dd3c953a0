"""Rooms in Redis: one key per room, and per owner a sorted set that lists the own ones.

All members of a list have the same score, so that Redis orders them by their bytes (creation time, then id): a place in
the list stays exact while rooms come and go. A room and its entry are made and removed together.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from webrtc.model import ROOMS_PER_OWNER, Room, RoomUnknown, TooManyRooms
from webrtc.ports import StoreDisconnected, StoreUnavailable

_CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[2])
return 1
"""
"""Repeating it changes nothing, as the client may send it twice when a connection breaks."""

_PAGE = """
local rooms = {}
for _, place in ipairs(redis.call('ZREVRANGEBYLEX', KEYS[1], ARGV[1], '-', 'LIMIT', 0, ARGV[2])) do
  local room = redis.call('GET', ARGV[3] .. string.sub(place, 18))
  if room then table.insert(rooms, room) end
end
return rooms
"""
"""List and rooms in one step: between two reads a room could go, and a page would look like the last one."""

_RESTORE = """
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
if redis.call('SET', KEYS[1], ARGV[1], 'NX') then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end
return 1
"""
"""A room that was made, or is in use, while Redis was away or lost its data; past the owner's bound if need be."""

_ROOM_PREFIX = "webrtc:room:"
GONE_SECONDS = 7 * 86_400
"""How long a deletion is known as such: longer than any instance may go on without Redis."""


class RedisRooms:
    """The room store."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._create = client.register_script(_CREATE)
        self._page = client.register_script(_PAGE)
        self._restore = client.register_script(_RESTORE)

    async def ping(self) -> None:
        """Raises StoreUnavailable unless Redis answers."""
        async with outages():
            await self._client.exists("webrtc:ping")

    async def create(self, room: Room) -> None:
        """Stores a new room, if its owner may have another one."""
        keys = [room_key(room.id), _owner_key(room.owner_id)]
        async with outages():
            stored = await self._create(keys, [_dump(room), room.place, ROOMS_PER_OWNER])
        if not stored:
            raise TooManyRooms

    async def get(self, room_id: str) -> Room:
        """One room."""
        async with outages():
            found = await self._client.get(room_key(room_id))
        if found is None:
            raise RoomUnknown
        return load_room(found)

    async def page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        """The owner's rooms after a place."""
        start = f"({after}" if after else "+"
        async with outages():
            found = await self._page([_owner_key(owner_id)], [start, limit, _ROOM_PREFIX])
        return [load_room(room) for room in found]

    async def delete(self, room: Room) -> None:
        """Deletes a room with its entry in the owner's list."""
        async with outages(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.delete(room_key(room.id))
            pipeline.zrem(_owner_key(room.owner_id), room.place)
            pipeline.set(gone_key(room.id), 1, ex=GONE_SECONDS)
            await pipeline.execute()

    async def restore(self, room: Room) -> bool:
        """Has the room from now on, unless it was deleted; whether it has it."""
        keys = [room_key(room.id), _owner_key(room.owner_id), gone_key(room.id)]
        async with outages():
            return bool(await self._restore(keys, [_dump(room), room.place]))


@asynccontextmanager
async def outages() -> AsyncIterator[None]:
    """The client's errors are neither OSError nor the built-in TimeoutError; their texts may hold hosts.

    uvloop refuses to write to a connection that was reset with a RuntimeError, which the client lets through.
    """
    try:
        yield
    except RuntimeError as error:
        raise StoreDisconnected(type(error).__name__) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(type(error).__name__) from error


def room_key(room_id: str) -> str:
    """Where a room's definition is."""
    return _ROOM_PREFIX + room_id


def gone_key(room_id: str) -> str:
    """What is there once a room was deleted by its owner."""
    return f"webrtc:gone:{room_id}"


def _owner_key(owner_id: str) -> str:
    return f"webrtc:rooms:{owner_id}"


def _dump(room: Room) -> str:
    members = {
        "id": room.id,
        "name": room.name,
        "max_participants": room.max_participants,
        "owner_id": room.owner_id,
        "created_us": room.created_us,
    }
    return json.dumps(members, ensure_ascii=False)


def load_room(text: bytes | str) -> Room:
    """A room's definition as it is in Redis."""
    members = json.loads(text)
    return Room(members["id"], members["name"], members["max_participants"], members["owner_id"], members["created_us"])
