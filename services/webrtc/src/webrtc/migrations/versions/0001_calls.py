"""The history of calls."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("room_id", sa.Text, nullable=False),
        sa.Column("room_name", sa.Text, nullable=False),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("updated_at", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    )
    op.create_index("calls_by_room", "calls", ["room_id", "started_at"])
    op.create_index("calls_going_on", "calls", ["updated_at"], postgresql_where=sa.text("ended_at IS NULL"))
    op.create_table(
        "call_participants",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("joined_at", _TIME, nullable=False),
        sa.Column("rejoined_at", _TIME, nullable=False),
        sa.Column("left_at", _TIME),
        sa.Column("quality", JSONB),
    )
    op.create_index("call_participants_by_user", "call_participants", ["user_id", "call_id"])
    op.create_table(
        "call_aliases",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("call_id", sa.Text, nullable=False),
    )
    op.create_index("call_aliases_by_call", "call_aliases", ["call_id"])


def downgrade() -> None:
    op.drop_table("call_aliases")
    op.drop_table("call_participants")
    op.drop_table("calls")
