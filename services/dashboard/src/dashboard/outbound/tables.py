"""The Dashboard's tables, described once: for the migrations and for whoever reads the code."""

from __future__ import annotations

import sqlalchemy as sa

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
