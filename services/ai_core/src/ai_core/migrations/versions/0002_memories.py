"""Memories, their words for full-text search, and their idempotency keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR, UUID

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=False)


def upgrade() -> None:
    op.create_table(
        "memories",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("tags", ARRAY(sa.Text), nullable=False),
        sa.Column("embedding", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("words", TSVECTOR, sa.Computed("to_tsvector('simple', text)", persisted=True)),
    )
    op.create_index("memories_by_owner", "memories", ["owner_id", "created_at", "id"])
    op.create_index("memories_by_word", "memories", ["words"], postgresql_using="gin")
    op.create_table(
        "memory_creations",
        sa.Column("owner_id", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("memory_id", _ID, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("memory_creations")
    op.drop_table("memories")
