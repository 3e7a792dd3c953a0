"""Who is in a room, for those who only look, and removing somebody (row W1, webrtc.redis)."""

from resilience import Served
from webrtc.model import Member
from webrtc.usecases.rooms import Rooms
from webrtc.usecases.signalling.hub import Hub


class Participants:
    """Each method acts for ``user`` or for whoever knows the room's id."""

    def __init__(self, rooms: Rooms, hub: Hub) -> None:
        self._rooms = rooms
        self._hub = hub

    async def of(self, room_id: str) -> Served[list[Member]]:
        """The participants, by the time of their joining. Raises RoomUnknown, RoomElsewhere."""
        found = await self._rooms.get(room_id)
        members = await self._hub.members(room_id)
        return found.map(lambda _: sorted(members, key=lambda member: (member.joined_at, member.id)))

    async def remove(self, user: str, room_id: str, member_id: str) -> Served[None]:
        """Removes a participant from an own room. Raises RoomUnknown, NotOwner, NoSuchParticipant, RoomElsewhere."""
        found = await self._rooms.owned(user, room_id)
        await self._hub.remove(room_id, member_id)
        return found.map(lambda _: None)
