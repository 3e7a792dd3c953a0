"""Reports in PostgreSQL, so that they survive whoever makes them.

A claim is a lease and a number: each claim of a report counts ``attempts`` up, and what is written under an older
number changes nothing. So two instances never both write a result, whatever their clocks say and however late one is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import date
from typing import Any

import orjson

from dashboard.model import Claim, Report, ReportUnknown
from dashboard.outbound.postgres import Database
from dashboard.outbound.reading import number, text, whole

STATUSES = ("queued", "running", "done", "failed")

_COLUMNS = """id, owner_id, kind, parameters, status, progress, result, error, attempts,
    extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM updated_at)::float8 AS updated_at"""
_LEASE = "clock_timestamp() + make_interval(secs => {})"
# Unfinished ones are the last to go.
_CREATE = f"""WITH surplus AS (DELETE FROM reports WHERE id IN (SELECT id FROM reports WHERE owner_id = $2 AND id <> $1
        ORDER BY status IN ('queued', 'running') DESC, created_at DESC, id OFFSET $7))
    INSERT INTO reports (id, owner_id, kind, parameters, status, attempts, lease_until)
    VALUES ($1, $2, $3, $4, $5, CASE WHEN $6::float8 IS NULL THEN 0 ELSE 1 END, {_LEASE.format("$6")})
    ON CONFLICT (id) DO NOTHING"""  # noqa: S608 - constants only
_GET = f"SELECT {_COLUMNS} FROM reports WHERE id = $1 AND owner_id = $2"  # noqa: S608
_CLAIM = f"""UPDATE reports SET status = 'running', attempts = attempts + 1, updated_at = clock_timestamp(),
        lease_until = {_LEASE.format("$1::float8")}
    WHERE id = (SELECT id FROM reports WHERE status IN ('queued', 'running')
            AND (status = 'queued' OR coalesce(lease_until, '-infinity') < clock_timestamp())
        ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING {_COLUMNS}, state"""  # noqa: S608
_HELD = "WHERE id = $1 AND attempts = $2 AND status = 'running' RETURNING id"
_SAVE = f"""UPDATE reports SET state = $3, progress = $4, updated_at = clock_timestamp(),
    lease_until = {_LEASE.format("$5::float8")} {_HELD}"""  # noqa: S608
_FINISH = f"""UPDATE reports SET status = $3, result = $4, error = $5, state = NULL, lease_until = NULL,
    progress = CASE WHEN $3 = 'done' THEN 1 ELSE progress END, updated_at = clock_timestamp() {_HELD}"""  # noqa: S608


class PostgresReports:
    """See the port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, report: Report, *, lease: float | None, keep: int) -> None:
        """See the port."""
        parameters = _json({"first": report.first, "last": report.last})
        given = (report.id, report.owner_id, report.kind, parameters, report.status, lease, keep - 1)
        await self._database.fetch(_CREATE, *given)

    async def get(self, report_id: str, owner_id: str) -> Report:
        """See the port."""
        row = await self._database.fetchrow(_GET, report_id, owner_id)
        if row is None:
            raise ReportUnknown
        return _report(dict(row))

    async def claim(self, lease: float) -> Claim | None:
        """See the port."""
        row = await self._database.fetchrow(_CLAIM, lease)
        if row is None:
            return None
        report, state = _report(dict(row)), _object(row["state"])
        days, next_day = state.get("days"), text(state.get("next_day"))
        usable = isinstance(days, list) and all(isinstance(one, dict) for one in days) and _is_day(next_day)
        return Claim(report, whole(row["attempts"]), days if usable else [], next_day if usable else report.first)  # type: ignore[arg-type]

    async def save(
        self, claim: Claim, days: list[dict[str, Any]], next_day: str, progress: float, lease: float
    ) -> bool:
        """See the port."""
        state = _json({"days": days, "next_day": next_day})
        return await self._held(_SAVE, claim, state, progress, lease)

    async def finish(self, claim: Claim, *, result: dict[str, Any] | None = None, error: str | None = None) -> bool:
        """See the port."""
        return await self._held(_FINISH, claim, "failed" if error else "done", result and _json(result), error)

    async def _held(self, statement: str, claim: Claim, *given: Any) -> bool:
        return await self._database.fetchrow(statement, claim.report.id, claim.attempt, *given) is not None


def report_of(fields: Any) -> Report | None:
    """From a row or a copy; None when nobody can tell which it is, or whose."""
    if not isinstance(fields, Mapping):
        return None
    report_id, owner_id = text(fields.get("id")), text(fields.get("owner_id"))
    if not report_id or not owner_id:
        return None
    status, created = text(fields.get("status")), number(fields.get("created_at"))
    return Report(
        id=report_id,
        owner_id=owner_id,
        kind=text(fields.get("kind")),
        first=text(fields.get("first")),
        last=text(fields.get("last")),
        status=status if status in STATUSES else "queued",
        progress=min(1.0, max(0.0, number(fields.get("progress")))),
        created_at=created,
        updated_at=number(fields.get("updated_at"), created),
        result=_object(fields.get("result")) or None,
        error=text(fields.get("error")) or None,
    )


def report_version(report: Report) -> int:
    """How far it is, by no clock: several instances write copies of it."""
    ended = report.status in ("done", "failed")
    return int(report.progress * 1e6) + (10_000_000 if ended else report.status == "running")


def _report(row: Mapping[str, Any]) -> Report:
    parameters = _object(row["parameters"])
    found = report_of({**row, "first": parameters.get("first"), "last": parameters.get("last")})
    if found is None:
        raise ReportUnknown
    return found


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, as text (from the database) or read already (from a copy)."""
    if isinstance(value, str):
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(value)
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _is_day(value: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(date.fromisoformat(value))
    return False
