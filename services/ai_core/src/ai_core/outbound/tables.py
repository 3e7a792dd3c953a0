"""The tables of AI Core's database, as the statements see them; the migrations make them.

A conversation is one row whose turns are a JSON array: it is always read and written whole, it is short, and trimming
it to the newest turns is part of the statement that appends. The words of a memory are those of the ``simple``
configuration, which belongs to no language: memories come in any.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

metadata = sa.MetaData()

_TIME = sa.TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=False)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("system_prompt", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
    sa.Index("agents_by_owner", "owner_id", "created_at", "id"),
)

agent_creations = sa.Table(
    "agent_creations",
    metadata,
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("agent_id", _ID, key="made_id", nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("agent_id", _ID, sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", _ID, primary_key=True),
    sa.Column("turns", JSONB, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
)

memories = sa.Table(
    "memories",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("tags", ARRAY(sa.Text), nullable=False),
    sa.Column("embedding", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("words", TSVECTOR, sa.Computed("to_tsvector('simple', text)", persisted=True)),
    sa.Index("memories_by_owner", "owner_id", "created_at", "id"),
    sa.Index("memories_by_word", "words", postgresql_using="gin"),
)

memory_creations = sa.Table(
    "memory_creations",
    metadata,
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("memory_id", _ID, key="made_id", nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)
