"""Copies of rooms and of each owner's list of them, for the time without WebRTC and the database (rows D4 and D1).

A list belongs to its owner, whose id is part of its key; a room may be read by whoever knows its id, as in WebRTC
itself. A deleted room leaves a copy that says so, or an answer that was under way would bring the room back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from dashboard.degradation import MEMORY_CACHE, REDIS_CACHE
from dashboard.model import CursorInvalid, Page, Room, RoomUnknown
from dashboard.outbound.reading import mapping, moment
from dashboard.outbound.rooms import Sighting, cursor_after, place_of, room_of
from resilience import MISSING, Missing, Rung, Served, current_deadline, deadline_scope
from service_kit.copies import Copy, CopyStore

T = TypeVar("T")

COPIED_ROOMS = 100
"""Rooms in the copy of a list: as many as a page can have."""

ANSWERS = (RoomUnknown, CursorInvalid)
"""What a step of a ladder says of a room or a cursor rather than of itself."""


class RoomList(NamedTuple):
    """The newest of an owner's rooms as of a moment (unix seconds); ``complete``: there are no others."""

    rooms: list[Room]
    complete: bool
    as_of: float


class RoomCopies:
    """``is_gone`` tells rooms that are known to be deleted, whatever a copy says."""

    def __init__(self, store: CopyStore, is_gone: Callable[[str], bool]) -> None:
        self._store = store
        self._is_gone = is_gone

    def keep(self, sighting: Sighting) -> None:
        """Takes note of a room, or that it is deleted."""
        value = {"gone": True} if sighting.gone else {"room": sighting.room, "as_of": sighting.moment}
        self._store.keep(_room(sighting.room.id), value, _version(sighting.moment))

    def keep_list(self, owner_id: str, found: RoomList, since: float | None = None) -> None:
        """Takes note of the beginning of a list, as it is ``since`` a moment (its ``as_of`` when None)."""
        rooms = sorted(found.rooms, key=lambda room: room.place, reverse=True)
        old = _list_of(self._store.local(_list(owner_id)))
        if not found.complete and old and len(old.rooms) > len(rooms) and old.rooms[: len(rooms)] == rooms:
            return  # a shorter stretch of the same list
        complete = found.complete and len(rooms) <= COPIED_ROOMS
        kept = {"rooms": rooms[:COPIED_ROOMS], "complete": complete, "as_of": found.as_of}
        self._store.keep(_list(owner_id), kept, _version(found.as_of if since is None else since))

    async def change_list(self, owner_id: str, changes: Mapping[str, Sighting]) -> None:
        """Brings rooms made and deleted (by id) into the copy, which says how old the rest of it is."""
        latest = max(change.moment for change in changes.values())
        old = _list_of(await self._store.any(_list(owner_id)))
        made = [change.room for change in changes.values() if not change.gone]
        if old is not None:
            rooms = [room for room in old.rooms if room.id not in changes]
            self.keep_list(owner_id, old._replace(rooms=[*rooms, *made]), latest)
        elif made:
            self.keep_list(owner_id, RoomList(made, complete=False, as_of=latest))

    def room(self, room_id: str) -> tuple[Rung[Room], Rung[Room]]:
        """The steps of a ladder that read a room. They raise RoomUnknown."""

        def read(copy: Copy | None, by: str) -> Served[Room] | Missing:
            fields = mapping(copy.value) if copy else {}
            if fields.get("gone") or self._is_gone(room_id):
                raise RoomUnknown(by)
            room = room_of(mapping(fields.get("room")))
            return Served(room, as_of=moment(fields.get("as_of"))) if room else MISSING

        return self._rungs(_room(room_id), read)

    def page(self, owner_id: str, limit: int, cursor: str | None) -> tuple[Rung[Page[Room]], Rung[Page[Room]]]:
        """The same for a list, as far as the copy goes. They raise CursorInvalid."""

        def read(copy: Copy | None, _: str) -> Served[Page[Room]] | Missing:
            after, found = place_of(cursor), _list_of(copy)
            if found is None:
                return MISSING
            rooms = [room for room in found.rooms if not self._is_gone(room.id)]
            rooms = [room for room in rooms if after is None or room.place < after]
            if after is not None and not rooms and not found.complete:
                return MISSING
            return Served(page_of(rooms, limit, complete=found.complete), as_of=found.as_of)

        return self._rungs(_list(owner_id), read)

    def _rungs(self, key: str, read: Callable[[Copy | None, str], Served[T] | Missing]) -> tuple[Rung[T], Rung[T]]:
        async def from_redis(_: BaseException) -> Served[T] | Missing:
            with half_of_the_time():
                return read(await self._store.shared(key), REDIS_CACHE)

        async def from_memory(_: BaseException) -> Served[T] | Missing:
            return read(self._store.local(key), MEMORY_CACHE)

        return Rung(REDIS_CACHE, from_redis, ANSWERS), Rung(MEMORY_CACHE, from_memory, ANSWERS)


def page_of(rooms: list[Room], limit: int, *, complete: bool) -> Page[Room]:
    """The first of these rooms; ``complete``: none come after them."""
    items = rooms[:limit]
    more = len(rooms) > limit or not complete
    return Page(items, cursor_after(items[-1]) if more and items else None)


@contextmanager
def half_of_the_time() -> Iterator[None]:
    """A step of a ladder that is frozen as well leaves the steps after it the time to serve."""
    deadline = current_deadline()
    if deadline is None:
        yield
        return
    with deadline_scope(deadline.remaining() / 2):
        yield


def _list_of(copy: Copy | None) -> RoomList | None:
    """None for what another version of the service wrote and this one cannot read."""
    fields = mapping(copy.value) if copy else {}
    if not isinstance(rooms := fields.get("rooms"), list):
        return None
    found = [room_of(mapping(one)) for one in rooms]
    known = [room for room in found if room is not None]
    return RoomList(known, fields.get("complete") is True, moment(fields.get("as_of")))


def _room(room_id: str) -> str:
    return f"room:{room_id}"


def _list(owner_id: str) -> str:
    return f"rooms:{owner_id}"


def _version(seconds: float) -> int:
    return int(seconds * 1e6)
