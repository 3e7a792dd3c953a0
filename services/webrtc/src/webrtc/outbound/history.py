"""The history of calls in PostgreSQL, and what drains the write queue into it (row W3, webrtc.postgres).

A report is merged so that neither order nor repetition changes what comes of several: the earliest start and join, the
latest leave and end hold, and a name once known stays. So nothing has to remember which reports were here before, a
dead letter may be replayed at any time, and one that is older than the queue's time to live is applied all the same.

Writers take turns (one advisory lock for the short transaction of each): a report under the id of a call that is being
merged into another cannot slip through.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from resilience import Fate, Operation, Result
from service_kit.database import Access, is_outage
from webrtc.model import CallUnknown, PastCall, PastParticipant, QuietCall
from webrtc.ports import HistoryDisconnected, HistoryUnavailable

_ACCESS = Access(HistoryUnavailable, HistoryDisconnected)

_LOCK = 0x5733  # "W3" in ASCII: any number, the same in every instance
_TURN = sa.text("SELECT pg_advisory_xact_lock(:lock)")
_TRY_TURN = sa.text("SELECT pg_try_advisory_xact_lock(:lock)")

_NAMED = sa.text("SELECT coalesce((SELECT call_id FROM call_aliases WHERE id = :id), :id)")
_CALL = sa.text("""INSERT INTO calls AS c (id, room_id, room_name, owner_id, started_at, ended_at)
    VALUES (:id, :room_id, :room_name, :owner_id, :started_at, :ended_at)
    ON CONFLICT (id) DO UPDATE SET
        room_id = coalesce(nullif(c.room_id, ''), excluded.room_id),
        room_name = coalesce(nullif(c.room_name, ''), excluded.room_name),
        owner_id = coalesce(nullif(c.owner_id, ''), excluded.owner_id),
        started_at = least(c.started_at, excluded.started_at),
        ended_at = greatest(c.ended_at, excluded.ended_at),
        updated_at = clock_timestamp()""")
_MERGED = """ON CONFLICT (call_id, id) DO UPDATE SET
        name = coalesce(nullif(p.name, ''), excluded.name),
        joined_at = least(p.joined_at, excluded.joined_at),
        rejoined_at = greatest(p.rejoined_at, excluded.rejoined_at),
        left_at = greatest(p.left_at, excluded.left_at),
        quality = CASE WHEN excluded.quality IS NOT NULL AND (p.quality IS NULL OR excluded.left_at >= p.left_at)
            THEN excluded.quality ELSE p.quality END"""
_PARTICIPANT = sa.text(f"""INSERT INTO call_participants AS p
    (call_id, id, user_id, name, joined_at, rejoined_at, left_at, quality)
    VALUES (:call_id, :id, :user_id, :name, :joined_at, :joined_at, :left_at, CAST(:quality AS jsonb))
    {_MERGED}""")  # noqa: S608 - constants only
_MOVE = sa.text(f"""INSERT INTO call_participants AS p
    (call_id, id, user_id, name, joined_at, rejoined_at, left_at, quality)
    SELECT :call_id, id, user_id, name, joined_at, rejoined_at, left_at, quality
    FROM call_participants WHERE call_id = :old
    {_MERGED}""")  # noqa: S608
_ALIAS = sa.text("INSERT INTO call_aliases (id, call_id) VALUES (:old, :call_id) ON CONFLICT (id) DO NOTHING")
_REPOINT = sa.text("UPDATE call_aliases SET call_id = :call_id WHERE call_id = :old")
_ENDED = sa.text("SELECT started_at, ended_at FROM calls WHERE id = :old")
_FORGET = sa.text("DELETE FROM calls WHERE id = :old")

_PAGE = sa.text("""SELECT * FROM calls WHERE id IN (SELECT call_id FROM call_participants WHERE user_id = :user)
    AND (CAST(:at AS timestamptz) IS NULL OR (started_at, id) < (:at, :after))
    ORDER BY started_at DESC, id DESC LIMIT :limit""")
_GET = sa.text("""SELECT * FROM calls WHERE id = coalesce((SELECT call_id FROM call_aliases WHERE id = :id), :id)
    AND id IN (SELECT call_id FROM call_participants WHERE user_id = :user)""")
# At random, so that long calls, which are quiet too, hide no others for long.
_QUIET = sa.text("""SELECT c.*, coalesce(p.last_at, c.started_at) AS last_at, EXISTS (
        SELECT FROM calls l WHERE l.room_id = c.room_id AND l.started_at > c.started_at) AS followed
    FROM calls c LEFT JOIN LATERAL (SELECT max(greatest(rejoined_at, left_at)) AS last_at
        FROM call_participants WHERE call_id = c.id) p ON true
    WHERE c.ended_at IS NULL AND c.updated_at < clock_timestamp() - make_interval(secs => :seconds)
    ORDER BY random() LIMIT 100""")
_PARTICIPANTS = sa.text("""SELECT * FROM call_participants WHERE call_id = any(CAST(:ids AS text[]))
    ORDER BY joined_at, id""")


class PostgresHistory:
    """See ports.History."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ping(self) -> None:
        """A cheap real request."""
        async with _ACCESS.reading(self._engine) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def note(self, news: Mapping[str, object]) -> None:
        """See the port."""
        async with _ACCESS.writing(self._engine) as connection:
            await connection.execute(_TURN, {"lock": _LOCK})
            await _apply(connection, news)

    async def page(self, user_id: str, limit: int, after: tuple[float, str] | None) -> list[PastCall]:
        """See the port."""
        at, after_id = (_stamp(after[0]), after[1]) if after else (None, "")
        async with _ACCESS.reading(self._engine) as connection:
            rows = await connection.execute(_PAGE, {"user": user_id, "at": at, "after": after_id, "limit": limit})
            return await _with_participants(connection, rows.all())

    async def get(self, user_id: str, call_id: str) -> PastCall:
        """See the port."""
        async with _ACCESS.reading(self._engine) as connection:
            rows = await connection.execute(_GET, {"user": user_id, "id": call_id})
            found = await _with_participants(connection, rows.all())
        if not found:
            raise CallUnknown
        return found[0]

    async def quiet(self, seconds: float) -> list[QuietCall]:
        """See the port."""
        async with _ACCESS.reading(self._engine) as connection:
            rows = await connection.execute(_QUIET, {"seconds": seconds})
            return [
                QuietCall(
                    row.id,
                    row.room_id,
                    row.room_name,
                    row.owner_id,
                    row.started_at.timestamp(),
                    row.last_at.timestamp(),
                    row.followed,
                )
                for row in rows
            ]


class HistoryTarget:
    """See resilience.queue.Target."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def session(self) -> AsyncIterator["_Session | None"]:
        """One transaction; None when somebody else is writing."""
        async with _ACCESS.writing(self._engine) as connection:
            alone = (await connection.execute(_TRY_TURN, {"lock": _LOCK})).scalar_one()
            yield _Session(connection) if alone else None

    def is_outage(self, error: BaseException) -> bool:
        """See resilience.queue.Target."""
        return isinstance(error, HistoryUnavailable)


class _Session:
    """See resilience.queue.TargetSession."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        return [await self._one(operation) for operation in operations]

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        """Nothing needs to be remembered, as a late duplicate does no harm."""

    async def _one(self, operation: Operation) -> Result:
        try:
            async with self._connection.begin_nested():
                await _apply(self._connection, operation.payload)
        except (ValueError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and is_outage(error):
                raise
            return Result(operation, Fate.REJECTED, type(error).__name__)
        return Result(operation, Fate.APPLIED)


async def _apply(connection: AsyncConnection, news: Mapping[str, object]) -> None:
    """The statements of one report. Raises ValueError when it is none."""
    try:
        call, participant, old = _call_of(news), _participant_of(news), news.get("old")
    except (KeyError, TypeError, OverflowError, OSError) as error:
        raise ValueError("not a report about a call") from error
    call["id"] = (await connection.execute(_NAMED, {"id": call["id"]})).scalar_one()
    await connection.execute(_CALL, call)
    if participant is not None:
        await connection.execute(_PARTICIPANT, {**participant, "call_id": call["id"]})
    if old is not None and old != call["id"]:
        await _merge(connection, str(old), call)


async def _merge(connection: AsyncConnection, old: str, call: dict[str, Any]) -> None:
    """What was reported as ``old`` belongs to ``call``."""
    both = {"old": old, "call_id": call["id"]}
    await connection.execute(_ALIAS, both)
    await connection.execute(_REPOINT, both)
    if (known := (await connection.execute(_ENDED, {"old": old})).one_or_none()) is not None:
        await connection.execute(_CALL, {**call, "started_at": known.started_at, "ended_at": known.ended_at})
        await connection.execute(_MOVE, both)
        await connection.execute(_FORGET, {"old": old})


def _call_of(news: Mapping[str, Any]) -> dict[str, Any]:
    ended = news.get("ended_at")
    return {
        "id": _id(news["call"]),
        "room_id": str(news["room"]),
        "room_name": str(news["room_name"]),
        "owner_id": str(news["owner"]),
        "started_at": _stamp(news["started_at"]),
        "ended_at": None if ended is None else _stamp(ended),
    }


def _participant_of(news: Mapping[str, Any]) -> dict[str, Any] | None:
    if (one := news.get("participant")) is None:
        return None
    left, quality = one.get("left_at"), one.get("quality")
    return {
        "id": _id(one["id"]),
        "user_id": _id(one["user_id"]),
        "name": str(one["name"]),
        "joined_at": _stamp(one["joined_at"]),
        "left_at": None if left is None else _stamp(left),
        "quality": json.dumps(quality) if quality else None,
    }


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def _with_participants(connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> list[PastCall]:
    if not rows:
        return []
    found = await connection.execute(_PARTICIPANTS, {"ids": [row.id for row in rows]})
    by_call: dict[str, list[sa.Row[Any]]] = {row.id: [] for row in rows}
    for one in found:
        by_call[one.call_id].append(one)
    return [_past(row, by_call[row.id]) for row in rows]


def _past(row: sa.Row[Any], participants: Sequence[sa.Row[Any]]) -> PastCall:
    """One that somebody joined after its end was reported goes on."""
    over = row.ended_at is not None and all(one.rejoined_at <= row.ended_at for one in participants)
    ended = row.ended_at.timestamp() if over else None
    people = tuple(_past_participant(one, ended) for one in participants)
    return PastCall(row.id, row.room_id, row.room_name, row.owner_id, row.started_at.timestamp(), ended, people)


def _past_participant(row: sa.Row[Any], call_ended: float | None) -> PastParticipant:
    """Who came back after leaving is there, until the call's end at the latest."""
    here = row.left_at is None or row.rejoined_at > row.left_at
    left = call_ended if here else row.left_at.timestamp()
    quality = json.loads(row.quality) if isinstance(row.quality, str) else row.quality
    return PastParticipant(row.id, row.user_id, row.name, row.joined_at.timestamp(), left, quality)
