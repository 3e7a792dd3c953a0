"""The Dashboard's tables, described once: for the migrations and for whoever reads the code."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_NOW = sa.func.clock_timestamp()

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.Text, nullable=False, unique=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False, server_default="user"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
    # When a write was made without asking the queue for older ones: those must not undo it when they are drained.
    sa.Column("unordered_at", sa.DateTime(timezone=True)),
    sa.Index("ix_users_page", "created_at", "id"),
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
    sa.Column("settled_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    # Settled in the order of time: a block range index finds the old ones at almost no cost per insert.
    sa.Index("ix_operations_settled_at", "settled_at", postgresql_using="brin"),
)

# Sessions that were logged out, by the hash of their id, until they would have ended anyway (row D2).
ended_sessions = sa.Table(
    "ended_sessions",
    metadata,
    sa.Column("id_hash", sa.Text, primary_key=True),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False, index=True),
)

# What the WebRTC service holds, as last seen here: for the time without it (row D4).
rooms = sa.Table(
    "rooms",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("max_participants", sa.Integer, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("deleted_at", sa.DateTime(timezone=True)),
    sa.Index("ix_rooms_owner", "owner_id", sa.text("created_at DESC"), "id"),
)

# Call history, from the events of the WebRTC service.
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("room_id", sa.Text, nullable=False),
    sa.Column("room_name", sa.Text, nullable=False, server_default=""),
    sa.Column("owner_id", sa.Text, nullable=False, server_default=""),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    # [{"user_id", "display_name", "joined_at", "left_at", "quality"}]
    sa.Column("participants", postgresql.JSONB, nullable=False, server_default="[]"),
    sa.Column("quality", postgresql.JSONB),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("same_as", sa.Text),  # the id of the call that this one turned out to be: it is nobody's any more
)

# Whose history a call belongs to.
call_members = sa.Table(
    "call_members",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_call_members_page", "user_id", sa.text("started_at DESC"), "call_id"),
)

# Reports: asked for, being made (by whoever holds the lease), done or failed.
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("parameters", postgresql.JSONB, nullable=False, server_default="{}"),
    sa.Column("status", sa.Text, nullable=False, server_default="queued"),
    sa.Column("progress", sa.Float, nullable=False, server_default="0"),
    sa.Column("state", postgresql.JSONB),  # what has been worked out so far, so that another instance can go on
    sa.Column("result", postgresql.JSONB),
    sa.Column("error", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease_until", sa.DateTime(timezone=True)),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Index("ix_reports_owner", "owner_id", "created_at"),
    sa.Index("ix_reports_open", "created_at", postgresql_where=sa.text("status IN ('queued', 'running')")),
)

# What each zone's price was made of when it was last known in real time.
pricing_zones = sa.Table(
    "pricing_zones",
    metadata,
    sa.Column("zone", sa.Text, primary_key=True),
    sa.Column("base_fare", sa.Numeric(10, 2), nullable=False),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("active", sa.Integer, nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
)
