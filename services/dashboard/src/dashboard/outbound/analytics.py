"""What users did, from the tables of calls and rooms: in total, and by day for reports.

Days are those of UTC. A call that has not ended counts as a call and adds no minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from dashboard.model import Analytics
from dashboard.outbound.postgres import Database
from dashboard.outbound.reading import number, text, whole

_MINUTES = "greatest(extract(epoch FROM c.ended_at - c.started_at), 0)::float8 / 60"
_ANALYTICS = f"""SELECT calls.*, rooms.*, extract(epoch FROM clock_timestamp())::float8 AS computed_at,
    extract(epoch FROM greatest(last_call, last_room))::float8 AS last_active_at
    FROM (SELECT count(*) AS calls_total, coalesce(sum({_MINUTES}), 0) AS minutes_total,
            max(coalesce(c.ended_at, c.started_at)) AS last_call
        FROM call_members m JOIN calls c ON c.id = m.call_id WHERE m.user_id = $1) calls,
    (SELECT count(*) FILTER (WHERE deleted_at IS NULL) AS rooms_total, max(created_at) AS last_room
        FROM rooms WHERE owner_id = $1) rooms"""  # noqa: S608 - constants only

_DAY = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
_PEOPLE = "CASE WHEN jsonb_typeof(c.participants) = 'array' THEN jsonb_array_length(c.participants) ELSE 0 END"
_DAYS = {
    "calls": f"""SELECT {_DAY.format("m.started_at")} AS day, count(*)::int AS calls,
        round(coalesce(sum({_MINUTES}), 0)::numeric, 1)::float8 AS minutes, sum({_PEOPLE})::int AS participants
        FROM call_members m JOIN calls c ON c.id = m.call_id
        WHERE m.user_id = $1 AND m.started_at >= $2 AND m.started_at < $3 GROUP BY 1 ORDER BY 1""",  # noqa: S608
    "activity": f"""SELECT day, sum(calls)::int AS calls, sum(rooms)::int AS rooms FROM (
        SELECT {_DAY.format("started_at")} AS day, 1 AS calls, 0 AS rooms FROM call_members
            WHERE user_id = $1 AND started_at >= $2 AND started_at < $3
        UNION ALL SELECT {_DAY.format("created_at")}, 0, 1 FROM rooms
            WHERE owner_id = $1 AND created_at >= $2 AND created_at < $3) happened
        GROUP BY 1 ORDER BY 1""",  # noqa: S608
}


class PostgresActivity:
    """See the port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def analytics(self, user_id: str) -> Analytics:
        """See the port."""
        row = await self._database.fetchrow(_ANALYTICS, user_id)
        return analytics_of({**(row or {}), "user_id": user_id}) or Analytics(user_id)

    async def days(self, kind: str, user_id: str, first: date, last: date) -> list[dict[str, Any]]:
        """See the port."""
        rows = await self._database.fetch(_DAYS[kind], user_id, _midnight(first), _midnight(last + timedelta(days=1)))
        return [dict(row) for row in rows]


def analytics_of(fields: Any) -> Analytics | None:
    """From a row or a copy; None when nobody can tell whose it is."""
    if not isinstance(fields, Mapping) or not (user_id := text(fields.get("user_id"))):
        return None
    last, computed = fields.get("last_active_at"), fields.get("computed_at")
    return Analytics(
        user_id,
        calls_total=whole(fields.get("calls_total")),
        minutes_total=round(number(fields.get("minutes_total")), 1),
        rooms_total=whole(fields.get("rooms_total")),
        last_active_at=None if last is None else number(last),
        computed_at=None if computed is None else number(computed),
    )


def analytics_version(analytics: Analytics) -> int:
    """The minute in which it was worked out."""
    return int(analytics.computed_at or 0) // 60


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
