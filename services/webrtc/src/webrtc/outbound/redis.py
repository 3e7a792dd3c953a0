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

_ROOM_PREFIX = "webrtc:room:"


class RedisRooms:
    """The room store."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._create = client.register_script(_CREATE)
        self._page = client.register_script(_PAGE)

    async def ping(self) -> None:
        """Raises StoreUnavailable unless Redis answers."""
        async with _outages():
            await self._client.exists("webrtc:ping")

    async def create(self, room: Room) -> None:
        """Stores a new room, if its owner may have another one."""
        keys = [_room_key(room.id), _owner_key(room.owner_id)]
        async with _outages():
            stored = await self._create(keys, [_dump(room), room.place, ROOMS_PER_OWNER])
        if not stored:
            raise TooManyRooms

    async def get(self, room_id: str) -> Room:
        """One room."""
        async with _outages():
            found = await self._client.get(_room_key(room_id))
        if found is None:
            raise RoomUnknown
        return _load(found)

    async def page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        """The owner's rooms after a place."""
        start = f"({after}" if after else "+"
        async with _outages():
            found = await self._page([_owner_key(owner_id)], [start, limit, _ROOM_PREFIX])
        return [_load(room) for room in found]

    async def delete(self, room: Room) -> None:
        """Deletes a room with its entry in the owner's list."""
        async with _outages(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.delete(_room_key(room.id))
            pipeline.zrem(_owner_key(room.owner_id), room.place)
            await pipeline.execute()


@asynccontextmanager
async def _outages() -> AsyncIterator[None]:
    """The client's errors are neither OSError nor the built-in TimeoutError; their texts may hold hosts.

    uvloop refuses to write to a connection that was reset with a RuntimeError, which the client lets through.
    """
    try:
        yield
    except RuntimeError as error:
        raise StoreDisconnected(type(error).__name__) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(type(error).__name__) from error


def _room_key(room_id: str) -> str:
    return _ROOM_PREFIX + room_id


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


def _load(text: bytes | str) -> Room:
    members = json.loads(text)
    return Room(members["id"], members["name"], members["max_participants"], members["owner_id"], members["created_us"])
