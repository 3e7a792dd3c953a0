"""Vectors of memories, and what waits to be embedded.

A vector is an array of numbers, not a column of pgvector's type, and only its index is pgvector's
(``ai_core.outbound.vector_schema``): so the tables are there, and vectors are kept, with and without the extension.
It is created here, where that is allowed and possible, so that a new database can search at once; otherwise the running
service tries again.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, REAL, UUID
from sqlalchemy.exc import DBAPIError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)
_ID = UUID(as_uuid=False)


def upgrade() -> None:
    op.add_column("memories", sa.Column("embedding_model", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "memory_vectors",
        sa.Column("memory_id", _ID, sa.ForeignKey("memories.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("embedding", ARRAY(REAL), nullable=False),
    )
    # Numbers do not compress: trying to would cost every write.
    op.execute("ALTER TABLE memory_vectors ALTER COLUMN embedding SET STORAGE EXTERNAL")
    op.create_index("memory_vectors_by_owner", "memory_vectors", ["owner_id", "model"])
    op.create_table(
        "memory_embeddings_due",
        sa.Column("memory_id", _ID, sa.ForeignKey("memories.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    )
    op.create_index("memory_embeddings_due_in_order", "memory_embeddings_due", ["model", "created_at", "memory_id"])
    op.create_index("memory_embeddings_due_by_owner", "memory_embeddings_due", ["owner_id", "model"])
    _try_extension()


def _try_extension() -> None:
    try:
        with op.get_bind().begin_nested():
            op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except DBAPIError:
        return  # missing, or not allowed: row A6


def downgrade() -> None:
    op.drop_table("memory_embeddings_due")
    op.drop_table("memory_vectors")
    op.drop_column("memories", "embedding_model")
