"""Call history in PostgreSQL, and the copies of each user's first page of it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from dashboard.model import Call, CallUnknown, CursorInvalid, Page, Participant
from dashboard.outbound import reading
from dashboard.outbound.postgres import Database
from resilience import Rung
from service_kit.copies import CopyStore

_COLUMNS = """c.id, c.room_id, c.room_name, c.owner_id, extract(epoch FROM c.started_at)::float8 AS started_at,
    extract(epoch FROM c.ended_at)::float8 AS ended_at, c.participants, c.quality,
    extract(epoch FROM c.updated_at)::float8 AS updated_at, c.same_as"""
_PAGE = f"""SELECT {_COLUMNS}, extract(epoch FROM m.started_at)::float8 AS place
    FROM call_members m JOIN calls c ON c.id = m.call_id
    WHERE m.user_id = $1 AND ($2::timestamptz IS NULL OR (m.started_at, m.call_id) < ($2, $3))
    ORDER BY m.started_at DESC, m.call_id DESC LIMIT $4"""  # noqa: S608 - constants only
_GET = f"""SELECT {_COLUMNS} FROM call_members m JOIN calls c ON c.id = m.call_id
    WHERE m.user_id = $1 AND m.call_id = $2"""  # noqa: S608
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_CURRENT = f"SELECT {_COLUMNS} FROM calls c WHERE c.id = $1"  # noqa: S608
_PUT = """INSERT INTO calls (id, room_id, room_name, owner_id, started_at, ended_at, participants, quality)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET room_id = excluded.room_id,
        room_name = excluded.room_name, owner_id = excluded.owner_id, started_at = excluded.started_at,
        ended_at = excluded.ended_at, participants = excluded.participants, quality = excluded.quality,
        updated_at = clock_timestamp()"""
_MEMBERS = """INSERT INTO call_members AS m (user_id, call_id, started_at)
    SELECT user_id, $2, $3 FROM unnest($1::text[]) AS user_id
    ON CONFLICT (user_id, call_id) DO UPDATE SET started_at = excluded.started_at
    WHERE m.started_at <> excluded.started_at"""

_FORWARD = """INSERT INTO calls (id, room_id, started_at, same_as) VALUES ($1, '', 'epoch', $2)
    ON CONFLICT (id) DO UPDATE SET same_as = excluded.same_as, participants = '[]', updated_at = clock_timestamp()"""
_LEAVE = "DELETE FROM call_members WHERE call_id = $1"


class PostgresCalls:
    """See the port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, user_id: str, limit: int, cursor: str | None) -> Page[Call]:
        """The user's calls, newest first. Raises CursorInvalid."""
        after, after_id = _place_of(cursor)
        rows = await self._database.fetch(_PAGE, user_id, after, after_id, limit + 1)
        calls, unreadable = reading.items(map(dict, rows[:limit]), call_of)
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(calls, _cursor(last["place"], last["id"]) if last else None, unreadable)

    async def get(self, user_id: str, call_id: str) -> Call:
        """Raises CallUnknown, also when the user took no part."""
        row = await self._database.fetchrow(_GET, user_id, call_id)
        call = call_of(dict(row)) if row is not None else None
        if call is None:
            raise CallUnknown
        return call

    async def change(self, call_id: str, merge: Callable[[Call | None], Call]) -> None:
        """See the port. What changes nothing writes nothing."""
        async with self._database.transaction() as connection:
            current_id, current = await _locked(connection, call_id)
            await _put(connection, current, replace(merge(current), id=current_id))

    async def join(self, old_id: str, new_id: str, merge: Callable[[Call | None, Call | None], Call]) -> None:
        """See the port. Locks are taken from the old call to the new one, as a change of the old call does."""
        async with self._database.transaction() as connection:
            known_as, old = await _locked(connection, old_id)
            current_id, current = await _locked(connection, new_id)
            if known_as != current_id:
                await _put(connection, current, replace(merge(old, current), id=current_id))
                await connection.execute(_FORWARD, known_as, current_id)
                await connection.execute(_LEAVE, known_as)


async def _locked(connection: Any, call_id: str) -> tuple[str, Call | None]:
    """The call, or what it has become part of, which nobody else changes until the transaction ends."""
    while True:
        await connection.execute(_LOCK, f"call:{call_id}")
        row = await connection.fetchrow(_CURRENT, call_id)
        if row is None or row["same_as"] is None:
            return call_id, call_of(dict(row)) if row is not None else None
        call_id = row["same_as"]


async def _put(connection: Any, current: Call | None, call: Call) -> None:
    if call != current:
        await connection.execute(_PUT, *_values(call))
        members = sorted({participant.user_id for participant in call.participants})
        await connection.execute(_MEMBERS, members, call.id, _stamp(call.started_at))


class CopiesOfCalls:
    """See the port: one copy per user, so that nobody is served another's."""

    def __init__(self, store: CopyStore) -> None:
        self._store = store

    def keep(self, user_id: str, page: Page[Call]) -> None:
        """See the port."""
        old = self._store.local(_key(user_id))
        known = _page_of(old.value) if old else None
        length = len(page.items)
        if page.next_cursor and known and len(known.items) > length and known.items[:length] == page.items:
            return  # a shorter stretch of the same list
        version = max((call.updated_at for call in page.items), default=0.0)
        self._store.keep(_key(user_id), {"items": page.items, "more": page.next_cursor is not None}, int(version * 1e6))

    def page(self, user_id: str, limit: int) -> tuple[Rung[Page[Call]], ...]:
        """See the port."""
        return self._store.rungs(_key(user_id), lambda value: _cut(_page_of(value), limit))

    def call(self, user_id: str, call_id: str) -> tuple[Rung[Call], ...]:
        """See the port."""

        def one(value: Any) -> Call | None:
            page = _page_of(value)
            return next((call for call in page.items if call.id == call_id), None) if page else None

        return self._store.rungs(_key(user_id), one)


def call_of(fields: Mapping[str, Any]) -> Call | None:
    """A call from a row or a copy; None when it has no id. Participants of whom nothing is known are left out."""
    if not (call_id := reading.text(fields["id"])):
        return None
    found = [participant_of(one) for one in reading.sequence(fields.get("participants"))]
    quality = dict(reading.mapping(fields.get("quality")))
    return Call(
        id=call_id,
        room_id=reading.text(fields.get("room_id")),
        room_name=reading.text(fields.get("room_name")),
        owner_id=reading.text(fields.get("owner_id")),
        started_at=reading.moment(fields.get("started_at")),
        ended_at=_moment(fields.get("ended_at")),
        participants=tuple(one for one in found if one is not None),
        quality=quality or None,
        updated_at=reading.moment(fields.get("updated_at")),
    )


def participant_of(value: Any) -> Participant | None:
    """A participant from the plain data of a row; None when nobody can tell who."""
    fields = value if isinstance(value, Mapping) else {}
    if not (user_id := reading.text(fields.get("user_id"))):
        return None
    return Participant(
        user_id,
        reading.text(fields.get("display_name")),
        joined_at=_moment(fields.get("joined_at")),
        rejoined_at=_moment(fields.get("rejoined_at")),
        left_at=_moment(fields.get("left_at")),
        quality=dict(reading.mapping(fields.get("quality"))) or None,
    )


def _page_of(value: Any) -> Page[Call] | None:
    fields = value if isinstance(value, Mapping) else {}
    if not isinstance(rows := fields.get("items"), list):
        return None
    calls, _ = reading.items(rows, call_of)
    return Page(calls, _cursor(calls[-1].started_at, calls[-1].id) if calls and fields.get("more") else None)


def _cut(page: Page[Call] | None, limit: int) -> Page[Call] | None:
    if page is None or len(page.items) <= limit:
        return page
    last = page.items[limit - 1]
    return Page(page.items[:limit], _cursor(last.started_at, last.id))


def _moment(value: Any) -> float | None:
    """Unix seconds; None when there are none."""
    found = reading.moment(value, default=-1.0)
    return found if found >= 0 else None


def _values(call: Call) -> tuple[Any, ...]:
    participants = orjson.dumps([asdict(one) for one in call.participants]).decode()
    quality = None if call.quality is None else orjson.dumps(call.quality).decode()
    ended = None if call.ended_at is None else _stamp(call.ended_at)
    started = _stamp(call.started_at)
    return call.id, call.room_id, call.room_name, call.owner_id, started, ended, participants, quality


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _cursor(started_at: float, call_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([started_at, call_id]).encode()).decode()


def _place_of(cursor: str | None) -> tuple[datetime | None, str]:
    if not cursor:
        return None, ""
    try:
        started_at, call_id = json.loads(base64.urlsafe_b64decode(cursor))
        call_id.encode()
        if "\x00" in call_id:
            raise CursorInvalid
        return _stamp(float(started_at)), call_id
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise CursorInvalid from error


def _key(user_id: str) -> str:
    return f"calls:{user_id}"
