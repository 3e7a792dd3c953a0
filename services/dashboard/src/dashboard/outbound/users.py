"""Accounts in PostgreSQL, each write recorded under its operation id in the same statement."""

from __future__ import annotations

import base64
import json
import math
import time
import uuid
from collections.abc import Iterable
from typing import Any

import asyncpg

from dashboard.model import Credentials, CursorInvalid, EmailTaken, KeyReused, Page, User, UserUnknown, WriteFailed
from dashboard.outbound import reading
from dashboard.outbound.postgres import Database
from resilience import Operation, OperationRecord, OperationStatus

COLUMNS = """u.id::text, u.email, u.display_name, u.role, extract(epoch FROM u.created_at)::float8,
    extract(epoch FROM u.updated_at)::float8, u.revision"""

_GET = f"SELECT {COLUMNS} FROM users u WHERE u.id = $1"  # noqa: S608 - constants only
_LOGIN = f"SELECT {COLUMNS}, u.password_hash FROM users u WHERE u.email = $1"  # noqa: S608
# Rows without a moment, which should not be, come last; two branches, so that each is a walk along the index.
_PAGE = f"""(SELECT {COLUMNS} FROM users u
    WHERE (u.created_at, u.id) > (to_timestamp($2::float8), $3::uuid) ORDER BY u.created_at, u.id LIMIT $1)
    UNION ALL (SELECT {COLUMNS} FROM users u WHERE u.created_at IS NULL AND u.id > $4::uuid ORDER BY u.id LIMIT $1)
    LIMIT $1"""  # noqa: S608
_FENCE = """fence AS (INSERT INTO operations (id, kind, entity, owner, fingerprint)
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING RETURNING id)"""
_CREATE = f"""WITH {_FENCE}, u AS (
    INSERT INTO users (id, email, display_name, password_hash)
    SELECT $6::uuid, $7, $8, $9 FROM fence RETURNING *) SELECT {COLUMNS} FROM u"""  # noqa: S608
# A change of nobody is refused and must leave no fence, or its repetition would pass for done.
_FENCE_OF_USER = """fence AS (INSERT INTO operations (id, kind, entity, owner, fingerprint)
    SELECT $1, $2, $3, $4, $5 FROM (SELECT FROM users WHERE id = $6::uuid FOR UPDATE) AS there
    ON CONFLICT (id) DO NOTHING RETURNING id)"""
# The caller's moment, not the statement's: a frozen one would pass for newer than what was queued meanwhile.
_UNORDERED = "unordered_at = greatest(unordered_at, to_timestamp($7::float8))"
_CHANGE = f"""WITH {_FENCE_OF_USER}, u AS (
    UPDATE users SET display_name = coalesce($8, display_name), revision = revision + 1,
        updated_at = clock_timestamp(), {_UNORDERED}
    WHERE id = $6::uuid AND EXISTS (SELECT FROM fence) RETURNING *) SELECT {COLUMNS} FROM u"""  # noqa: S608
_DELETE = f"""WITH {_FENCE} DELETE FROM users u
    WHERE id = $6::uuid AND EXISTS (SELECT FROM fence) RETURNING {COLUMNS}"""  # noqa: S608
_FENCED = "SELECT kind, entity, owner, fingerprint, error FROM operations WHERE id = $1"


_FIRST, _LAST = str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))
_FIELDS = ("id", "email", "display_name", "role", "created_at", "updated_at", "revision")


def user_of(row: Iterable[Any]) -> User:
    """Reads a row that begins with COLUMNS; the id is the primary key."""
    found = _read(row)
    if found is None:
        raise UserUnknown
    return found


def _read(row: Iterable[Any]) -> User | None:
    return reading.user(dict(zip(_FIELDS, row, strict=False)))


def _fence_of(operation: Operation) -> tuple[str, str, str, str, str]:
    return (operation.fence, operation.kind, operation.entity, operation.owner, operation.fingerprint)


def _user_id(operation: Operation) -> str:
    return operation.entity.removeprefix("user:")


class PostgresUsers:
    """See the port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str) -> User:
        """Raises UserUnknown."""
        row = await self._database.fetchrow(_GET, user_id)
        if row is None:
            raise UserUnknown
        return user_of(row)

    async def login(self, email: str) -> tuple[Credentials, User] | None:
        """See the port."""
        row = await self._database.fetchrow(_LOGIN, email)
        if row is None:
            return None
        user = user_of(row)
        return Credentials(user.id, row["password_hash"] or "", user.role), user

    async def page(self, limit: int, cursor: str | None) -> Page[User]:
        """Accounts in order of creation. Raises CursorInvalid."""
        rows = await self._database.fetch(_PAGE, limit + 1, *_decode_cursor(cursor))
        users, unreadable = reading.items(rows[:limit], _read)
        return Page(users, _encode_cursor(rows[limit - 1]) if len(rows) > limit else None, unreadable)

    async def create(self, operation: Operation) -> User:
        """Raises EmailTaken, KeyReused, WriteFailed."""
        new = operation.payload
        try:
            row = await self._database.fetchrow(
                _CREATE, *_fence_of(operation), new["id"], new["email"], new["display_name"], new["password_hash"]
            )
        except asyncpg.UniqueViolationError as error:
            raise EmailTaken from error
        if row is None:
            await self._repeated(operation)
            return await self.get(new["id"])
        return user_of(row)

    async def change(self, operation: Operation, *, unordered: bool) -> User:
        """Raises UserUnknown, KeyReused, WriteFailed."""
        user_id = _user_id(operation)
        row = await self._database.fetchrow(
            _CHANGE,
            *_fence_of(operation),
            user_id,
            time.time() if unordered else None,
            operation.payload.get("display_name"),
        )
        if row is not None:
            return user_of(row)
        await self._repeated(operation)
        return await self.get(user_id)

    async def delete(self, operation: Operation, *, unordered: bool) -> None:  # noqa: ARG002 - nothing outlives a delete
        """Deleting what is gone is no error. Raises KeyReused, WriteFailed."""
        if await self._database.fetchrow(_DELETE, *_fence_of(operation), _user_id(operation)) is None:
            await self._repeated(operation)

    async def _repeated(self, operation: Operation) -> bool:
        """True when the operation was here before.

        Raises KeyReused when it was another one under the same key, WriteFailed when it was buried.
        """
        row = await self._database.fetchrow(_FENCED, operation.fence)
        if row is None:
            return False
        if row["fingerprint"] != operation.fingerprint:
            raise KeyReused
        if row["error"] is not None:
            raise WriteFailed
        return True

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """An applied or buried operation, without its payload."""
        row = await self._database.fetchrow(_FENCED, operation_id)
        if row is None:
            return None
        operation = Operation(operation_id, row["kind"], row["entity"], row["owner"], {}, row["fingerprint"])
        if row["error"] is None:
            return OperationRecord(operation, OperationStatus.APPLIED)
        return OperationRecord(operation, OperationStatus.DEAD, row["error"])


def _encode_cursor(row: asyncpg.Record) -> str:
    return base64.urlsafe_b64encode(json.dumps([row[4], row[0] or _LAST]).encode()).decode()


def _decode_cursor(cursor: str | None) -> tuple[float, str, str]:
    """Where the two branches of a page begin: after a moment and an id, and after the id of a row without moment."""
    if not cursor:
        return -math.inf, _FIRST, _FIRST
    try:
        created_at, user_id = json.loads(base64.urlsafe_b64decode(cursor))
        after_id = str(uuid.UUID(user_id))
        if created_at is None:
            return math.inf, _LAST, after_id
        after = float(created_at)
    except (ValueError, TypeError, AttributeError) as error:
        raise CursorInvalid from error
    if math.isnan(after) or (reading.moment(after, math.nan) != after and math.isfinite(after)):
        raise CursorInvalid
    return after, after_id, _FIRST
