"""Idempotency keys: each makes one thing of its owner, however often and at once it is sent, for as long as it is kept.

A key is claimed in the transaction that makes the thing, so neither is there without the other. An abandoned key is
claimed for nothing: whoever brings it later is refused.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ai_core.model import KeyReused

KEY_LIFETIME = timedelta(hours=24)
"""How long an idempotency key is remembered."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = "00000000-0000-0000-0000-000000000000"
_ABANDONED = "abandoned"


class Keys:
    """The keys of one kind of things; ``table`` has the columns owner_id, key, made_id, fingerprint and created_at."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table

    async def claim(
        self, connection: AsyncConnection, owner_id: str, key: str, made_id: str, fingerprint: str, at: float
    ) -> bool:
        """Whether the key is new; a concurrent request with the same key waits here for the other's commit."""
        columns = self._table.c
        old = columns.created_at < moment(at) - KEY_LIFETIME
        await connection.execute(self._table.delete().where(columns.owner_id == owner_id, old))
        claim = insert(self._table).values(
            owner_id=owner_id, key=key, made_id=made_id, fingerprint=fingerprint, created_at=moment(at)
        )
        claimed = await connection.execute(claim.on_conflict_do_nothing().returning(columns.made_id))
        return claimed.one_or_none() is not None

    async def made(self, connection: AsyncConnection, owner_id: str, key: str, fingerprint: str) -> str:
        """The id of what the key made. Raises KeyReused when that was another request, or the key was abandoned."""
        columns = self._table.c
        query = self._table.select().where(columns.owner_id == owner_id, columns.key == key)
        row = (await connection.execute(query)).one_or_none()
        if row is None or row.fingerprint != fingerprint:
            raise KeyReused
        made_id: str = row.made_id
        return made_id

    async def abandon(self, connection: AsyncConnection, owner_id: str, key: str, at: float) -> None:
        """No later request with this key makes anything; what it made before stays."""
        await self.claim(connection, owner_id, key, _NOTHING, _ABANDONED, at)


def moment(seconds: float) -> datetime:
    """Unix seconds as the driver wants them."""
    return moment_us(round(seconds * 1_000_000))


def moment_us(microseconds: int) -> datetime:
    """Microseconds since 1970 as the driver wants them; exact, unlike seconds as a float."""
    return _EPOCH + timedelta(microseconds=microseconds)
