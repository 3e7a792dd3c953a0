"""Rooms and the tickets to join them (row W1, webrtc.redis)."""

import uuid
from collections.abc import Callable

from resilience import Clock, Served
from webrtc.model import (
    Grants,
    IceServer,
    NotOwner,
    Page,
    Room,
    RoomUnknown,
    Ticket,
    checked_name,
    checked_page_size,
    checked_room,
    cursor_after,
    is_id,
    place_of,
)
from webrtc.ports import TokenSigner
from webrtc.usecases.ice import IceServers
from webrtc.usecases.shared_rooms import SharedRooms

TICKET_SECONDS = 3_600
"""How long a ticket lets its holder join."""


class Rooms:
    """Each method acts for ``user``. ``ws_url`` is where browsers reach the signalling."""

    def __init__(
        self,
        shared: SharedRooms,
        signer: TokenSigner,
        ice: IceServers,
        ws_url: str,
        clock: Clock,
        deleted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._shared = shared
        self._signer = signer
        self._ice = ice
        self._ws_url = ws_url
        self._clock = clock
        self._deleted = deleted

    async def create(self, user: str, name: str, max_participants: int = 0) -> Served[Room]:
        """A new room of the user's; 0 participants means the default. Raises Invalid, TooManyRooms."""
        participants = checked_room(name, max_participants)
        room = Room(str(uuid.uuid4()), name, participants, user, round(self._clock.time() * 1_000_000))
        stored = await self._shared.create(room)
        return stored.map(lambda _: room)

    async def get(self, room_id: str) -> Served[Room]:
        """A room, for whoever knows its id. Raises RoomUnknown."""
        if not is_id(room_id):
            raise RoomUnknown
        return await self._shared.get(room_id)

    async def page(self, user: str, page_size: int = 0, cursor: str = "") -> Served[Page]:
        """The user's own rooms, newest first. Raises Invalid for a size out of range or a foreign cursor."""
        size, after = checked_page_size(page_size), place_of(cursor)
        found = await self._shared.page(user, size + 1, after)
        return found.map(lambda rooms: _page(rooms, size))

    async def delete(self, user: str, room_id: str) -> Served[None]:
        """Deletes an own room, and ends what goes on in it. Raises RoomUnknown, NotOwner."""
        found = await self.owned(user, room_id)
        gone = await self._shared.delete(found.value)
        self._deleted(room_id)
        return gone

    async def owned(self, user: str, room_id: str) -> Served[Room]:
        """An own room. Raises RoomUnknown, NotOwner."""
        found = await self.get(room_id)
        if found.value.owner_id != user:
            raise NotOwner
        return found

    async def ticket(self, user: str, room_id: str, name: str = "") -> Served[Ticket]:
        """What the user needs to join a room, seen by others as ``name``. Raises RoomUnknown, Invalid."""
        shown = checked_name(name)
        found = await self.get(room_id)
        ice = self._ice.for_user(user)
        return found.map(lambda room: self._ticket(user, room, ice.value, shown)).also(*ice.degradations)

    def _ticket(self, user: str, room: Room, servers: tuple[IceServer, ...], name: str) -> Ticket:
        grants = Grants(moderate=room.owner_id == user)
        token = self._signer.sign(room.id, user, self._clock.time(), TICKET_SECONDS, name=name, grants=grants)
        return Ticket(token, self._ws_url, servers, TICKET_SECONDS)


def _page(found: list[Room], size: int) -> Page:
    items = found[:size]
    return Page(items, cursor_after(items[-1]) if len(found) > size else "")
