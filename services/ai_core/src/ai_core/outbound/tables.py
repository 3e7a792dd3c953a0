"""The tables of AI Core's database, as the statements see them; the migrations make them.

A conversation is one row whose turns are a JSON array: it is always read and written whole, it is short, and trimming
it to the newest turns is part of the statement that appends. The words of a memory are those of the ``simple``
configuration, which belongs to no language: memories come in any.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TSVECTOR, UUID

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
    # When a change was made without asking the queue for older ones: those must not undo it when they are drained.
    sa.Column("unordered_at", _TIME),
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
    # Of one that was deleted without asking the queue: what was said before must not bring it back.
    sa.Column("deleted_at", _TIME),
    sa.Index("conversations_by_time", "agent_id", "updated_at", "id"),
)

# The fence of the write queue: ids of operations that were applied or buried, kept for a day.
operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("entity", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False, server_default=""),
    sa.Column("error", sa.Text),  # null: applied; otherwise why it was buried
    sa.Column("settled_at", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    # Settled in the order of time: a block range index finds the old ones at almost no cost per insert.
    sa.Index("operations_settled_at", "settled_at", postgresql_using="brin"),
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
    sa.Column("embedding_model", sa.Text, nullable=False, server_default=""),
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

memory_vectors = sa.Table(
    "memory_vectors",
    metadata,
    sa.Column("memory_id", _ID, sa.ForeignKey("memories.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("embedding", ARRAY(REAL), nullable=False),
    sa.Index("memory_vectors_by_owner", "owner_id", "model"),
)

memory_embeddings_due = sa.Table(
    "memory_embeddings_due",
    metadata,
    sa.Column("memory_id", _ID, sa.ForeignKey("memories.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Index("memory_embeddings_due_in_order", "model", "created_at", "memory_id"),
    sa.Index("memory_embeddings_due_by_owner", "owner_id", "model"),
)
