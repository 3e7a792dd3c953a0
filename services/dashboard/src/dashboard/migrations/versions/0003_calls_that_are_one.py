"""Calls that turned out to be another one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("calls", sa.Column("same_as", sa.Text))


def downgrade() -> None:
    op.drop_column("calls", "same_as")
