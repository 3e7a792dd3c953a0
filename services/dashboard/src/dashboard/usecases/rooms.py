"""Rooms: made, deleted and joined through WebRTC alone, and readable without it as last seen here (row D4)."""

from __future__ import annotations

from collections.abc import Callable

from dashboard.model import Page, Room, RoomTicket, RoomUnknown
from dashboard.ports import Announce, RoomProjection, Rooms, silent
from resilience import Clock, Served

Joined = Callable[[str, str, str], None]
"""Told of a zone, a user and a room when the user got a ticket: demand. Neither waits nor raises."""


def unnoticed(_zone: str, _user_id: str, _room_id: str) -> None:
    """Takes no note of demand."""


class RoomDirectory:
    """Each method acts for ``user_id``, whom WebRTC knows by the token of the current request.

    What WebRTC says is noted in ``projection``, which serves reads in its place; what was served by the projection is
    no news to it.
    """

    def __init__(
        self,
        rooms: Rooms,
        projection: RoomProjection,
        clock: Clock,
        *,
        announce: Announce = silent,
        joined: Joined = unnoticed,
    ) -> None:
        self._rooms = rooms
        self._projection = projection
        self._clock = clock
        self.announce = announce
        self.joined = joined

    async def create(self, user_id: str, name: str, max_participants: int) -> Served[Room]:
        """A new room."""
        served = await self._rooms.create(name, max_participants)
        room = served.value
        self._projection.created(room)
        self.announce("room.created", f"room:{room.id}", {"owner_id": user_id, "room_id": room.id, "name": room.name})
        return served

    async def get(self, room_id: str) -> Served[Room]:
        """A room, for whoever knows its id. Raises RoomUnknown."""
        since = self._clock.time()
        try:
            served = await self._rooms.get(room_id, *self._projection.room(room_id))
        except RoomUnknown as error:
            if not error.by:
                self._projection.missing(room_id)
            raise
        if served.as_of is None:
            self._projection.seen(served.value, since)
        return served

    async def page(self, user_id: str, limit: int, cursor: str | None) -> Served[Page[Room]]:
        """The user's own rooms, newest first. Raises CursorInvalid."""
        since = self._clock.time()
        served = await self._rooms.page(limit, cursor, *self._projection.page(user_id, limit, cursor))
        if not served.degraded:  # a WebRTC that is degraded itself may not know of all
            self._projection.listed(user_id, cursor, served.value, since)
        return served

    async def delete(self, user_id: str, room_id: str) -> Served[None]:
        """Deletes an own room. Raises RoomUnknown."""
        try:
            served = await self._rooms.delete(room_id)
        except RoomUnknown:
            self._projection.missing(room_id)
            raise
        self._projection.deleted(room_id, user_id)
        self.announce("room.deleted", f"room:{room_id}", {"owner_id": user_id, "room_id": room_id})
        return served

    async def ticket(self, user_id: str, room_id: str, zone: str, name: str = "") -> Served[RoomTicket]:
        """What the user, called ``name`` there, needs to join a room, as asked for from a zone. Raises RoomUnknown."""
        served = await self._rooms.ticket(room_id, name)
        self.joined(zone, user_id, room_id)
        return served
