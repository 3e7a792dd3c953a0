"""The tables of the WebRTC service's database, as the statements see them; the migrations make them."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData()

_TIME = sa.TIMESTAMP(timezone=True)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("room_id", sa.Text, nullable=False),
    sa.Column("room_name", sa.Text, nullable=False),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("started_at", _TIME, nullable=False),
    sa.Column("ended_at", _TIME),
    sa.Column("updated_at", _TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Index("calls_by_room", "room_id", "started_at"),
    sa.Index("calls_going_on", "updated_at", postgresql_where=sa.text("ended_at IS NULL")),
)

# One row for each participant's id: whoever is there twice, or comes back later, has several.
call_participants = sa.Table(
    "call_participants",
    metadata,
    sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("joined_at", _TIME, nullable=False),
    sa.Column("rejoined_at", _TIME, nullable=False),  # the latest time of joining
    sa.Column("left_at", _TIME),
    sa.Column("quality", JSONB),
    sa.Index("call_participants_by_user", "user_id", "call_id"),
)

# Calls that turned out to be another one, which began earlier on another instance: reports under the old id may still
# be on their way.
call_aliases = sa.Table(
    "call_aliases",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Index("call_aliases_by_call", "call_id"),
)
