"""The Dashboard's projection of WebRTC's rooms in PostgreSQL, for the time without WebRTC (row D4).

Of two things known of one room the later one holds, whoever wrote first: a room seen in an answer that began before it
was deleted stays deleted. Tombstones are kept for a day, far longer than any answer is under way.

A place in a list and its cursor are written as WebRTC writes them, so that a cursor given by one is good for the other.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dashboard.degradation import ROOMS_DATABASE
from dashboard.model import CursorInvalid, Room, RoomUnknown
from dashboard.outbound.postgres import Database
from dashboard.outbound.reading import moment, number, text, whole

Place = tuple[int, str]

_PLACE = re.compile(r"([0-9]{16}):([A-Za-z0-9_-]{1,100})")

_COLUMNS = """r.id, r.owner_id, r.name, r.max_participants, extract(epoch FROM r.created_at)::float8 AS created_at"""
_GET = f"""SELECT {_COLUMNS}, extract(epoch FROM r.seen_at)::float8 AS seen_at, r.deleted_at IS NOT NULL AS gone
    FROM rooms r WHERE r.id = $1"""  # noqa: S608 - constants only
# The ids are compared by their bytes, as WebRTC compares them, whatever the database's collation.
_PAGE = f"""SELECT known.*, page.* FROM
    (SELECT extract(epoch FROM max(greatest(seen_at, deleted_at)))::float8 AS latest,
        (SELECT extract(epoch FROM created_at)::float8 FROM users WHERE id = $5) AS registered
        FROM rooms WHERE owner_id = $1) known
    LEFT JOIN LATERAL (SELECT {_COLUMNS} FROM rooms r WHERE r.owner_id = $1 AND r.deleted_at IS NULL
        AND ($2::timestamptz IS NULL OR (r.created_at, r.id COLLATE "C") < ($2, $3::text COLLATE "C"))
        ORDER BY r.created_at DESC, r.id COLLATE "C" DESC LIMIT $4) page ON true"""  # noqa: S608
_SEEN = """INSERT INTO rooms AS r (id, owner_id, name, max_participants, created_at, seen_at)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::timestamptz[])
    ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, name = excluded.name, deleted_at = NULL,
        max_participants = excluded.max_participants, created_at = excluded.created_at, seen_at = excluded.seen_at
    WHERE excluded.seen_at > greatest(r.deleted_at, r.seen_at) AND (r.deleted_at IS NOT NULL OR
        (r.owner_id, r.name, r.max_participants, r.created_at) IS DISTINCT FROM
        (excluded.owner_id, excluded.name, excluded.max_participants, excluded.created_at))"""
_GONE = """INSERT INTO rooms AS r (id, owner_id, name, max_participants, created_at, seen_at, deleted_at)
    SELECT id, owner_id, '', 0, moment, moment, moment
    FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS gone (id, owner_id, moment)
    ON CONFLICT (id) DO UPDATE SET deleted_at = excluded.deleted_at
    WHERE r.deleted_at IS NULL AND r.seen_at <= excluded.deleted_at"""
_LISTED = """UPDATE rooms SET deleted_at = $2 WHERE owner_id = $1 AND deleted_at IS NULL AND seen_at < $2
    AND id <> ALL($3::text[])
    AND ($4::timestamptz IS NULL OR (created_at, id COLLATE "C") < ($4, $5::text COLLATE "C"))
    AND ($6::timestamptz IS NULL OR (created_at, id COLLATE "C") > ($6, $7::text COLLATE "C"))"""
_PRUNE = "DELETE FROM rooms WHERE deleted_at < clock_timestamp() - interval '1 day'"


class Sighting(NamedTuple):
    """A room as it was at a moment (unix seconds); ``gone``: known to be deleted, and of the room only whose it was."""

    room: Room
    moment: float
    gone: bool = False


class Listing(NamedTuple):
    """At a moment the owner had these rooms and no others between two places (None: no end on that side)."""

    owner_id: str
    ids: tuple[str, ...]
    moment: float
    below: Place | None
    above: Place | None


class Known(NamedTuple):
    """What the projection says of an owner's list; ``latest``: the newest moment it knows of, None when of nothing.

    ``registered``: when the owner's account was made, and had no rooms; 0 for an unknown one.
    """

    rooms: list[Room]
    latest: float | None
    registered: float = 0.0


class PostgresRooms:
    """The projection's rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, room_id: str) -> tuple[Room, float] | None:
        """A room and when it was seen like that; None when it never was. Raises RoomUnknown: it is deleted."""
        row = await self._database.fetchrow(_GET, room_id)
        if row is None:
            return None
        if row["gone"]:
            raise RoomUnknown(ROOMS_DATABASE)
        room = room_of(dict(row))
        return (room, number(row["seen_at"])) if room else None

    async def page(self, owner_id: str, limit: int, after: Place | None) -> Known:
        """At most ``limit`` of the owner's rooms after a place, newest first."""
        rows = await self._database.fetch(_PAGE, owner_id, *_split(after), limit, _account(owner_id))
        found = [room_of(dict(row)) for row in rows if row["id"] is not None]
        return Known([room for room in found if room is not None], rows[0]["latest"], moment(rows[0]["registered"]))

    async def record(self, news: Sequence[Sighting | Listing]) -> None:
        """Takes note of all; what is known already or outdated changes no row."""
        # In one order, so that two instances never wait for each other's rows.
        sightings = sorted((one for one in news if isinstance(one, Sighting)), key=lambda one: one.room.id)
        async with self._database.transaction() as connection:
            if seen := [one for one in sightings if not one.gone]:
                await connection.execute(_SEEN, *_seen_columns(seen))
            if gone := [one for one in sightings if one.gone]:
                columns = [(one.room.id, one.room.owner_id, _stamp(one.moment)) for one in gone]
                await connection.execute(_GONE, *map(list, zip(*columns, strict=True)))
            for one in news:
                if isinstance(one, Listing):
                    ends = (*_split(one.below), *_split(one.above))
                    await connection.execute(_LISTED, one.owner_id, _stamp(one.moment), list(one.ids), *ends)

    async def prune(self) -> None:
        """Drops old tombstones."""
        await self._database.fetch(_PRUNE)


def room_of(fields: Mapping[str, Any]) -> Room | None:
    """A room from a row or a copy; None when nobody can tell which or whose it is."""
    room_id, owner_id = text(fields.get("id")), text(fields.get("owner_id"))
    if not room_id or not owner_id:
        return None
    name, most = text(fields.get("name")), max(0, whole(fields.get("max_participants")))
    return Room(room_id, name, most, owner_id, moment(fields.get("created_at")))


def cursor_after(room: Room) -> str:
    """The cursor of the place right after a room."""
    microseconds, room_id = room.place
    return base64.urlsafe_b64encode(f"{microseconds:016d}:{room_id}".encode()).decode()


def place_of(cursor: str | None) -> Place | None:
    """The place that a cursor names; None for the beginning. Raises CursorInvalid."""
    if not cursor:
        return None
    try:
        found = _PLACE.fullmatch(base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii"))
    except (UnicodeError, binascii.Error):
        found = None
    if found is None:
        raise CursorInvalid
    return int(found[1]), found[2]


def _account(owner_id: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(owner_id)
    except ValueError:
        return None


def _split(place: Place | None) -> tuple[datetime | None, str]:
    return (None, "") if place is None else (_stamp(place[0] / 1e6), place[1])


def _seen_columns(seen: list[Sighting]) -> list[list[Any]]:
    rows = [
        (room.id, room.owner_id, room.name, room.max_participants, _stamp(room.created_at), _stamp(at))
        for room, at, _ in seen
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
