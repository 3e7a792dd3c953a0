"""The fence of the write queue, and the marks of writes that were made without asking it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column("agents", sa.Column("unordered_at", _TIME))
    op.add_column("conversations", sa.Column("deleted_at", _TIME))
    op.create_index("conversations_by_time", "conversations", ["agent_id", "updated_at", "id"])
    op.create_table(
        "operations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False, server_default=""),
        sa.Column("error", sa.Text),
        sa.Column("settled_at", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    )
    op.create_index("operations_settled_at", "operations", ["settled_at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_table("operations")
    op.drop_index("conversations_by_time", "conversations")
    op.drop_column("conversations", "deleted_at")
    op.drop_column("agents", "unordered_at")
