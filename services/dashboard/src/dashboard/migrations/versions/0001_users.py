"""Users, and the fence of the write queue."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)
_NOW = sa.func.clock_timestamp()


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("email", sa.Text, nullable=False, unique=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False, server_default="user"),
        sa.Column("created_at", _TIME, nullable=False, server_default=_NOW),
        sa.Column("updated_at", _TIME, nullable=False, server_default=_NOW),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("unordered_at", _TIME),
        # Room in each page for the next version of its rows: a change then touches no index.
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("ix_users_page", "users", ["created_at", "id"])
    op.create_table(
        "operations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False, server_default=""),
        sa.Column("error", sa.Text),
        sa.Column("settled_at", _TIME, nullable=False, server_default=_NOW),
    )
    op.create_index("ix_operations_settled_at", "operations", ["settled_at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_table("operations")
    op.drop_table("users")
