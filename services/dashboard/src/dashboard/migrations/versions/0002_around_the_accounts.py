"""Ended sessions, rooms and calls as last seen, reports, prices."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLES = ("pricing_zones", "reports", "call_members", "calls", "rooms", "ended_sessions")
_NOW = "timestamptz NOT NULL DEFAULT clock_timestamp()"
_STATEMENTS = (
    """CREATE TABLE ended_sessions (
        id_hash text CONSTRAINT pk_ended_sessions PRIMARY KEY,
        until timestamptz NOT NULL)""",
    "CREATE INDEX ix_ended_sessions_until ON ended_sessions (until)",
    f"""CREATE TABLE rooms (
        id text CONSTRAINT pk_rooms PRIMARY KEY,
        owner_id text NOT NULL,
        name text NOT NULL,
        max_participants integer NOT NULL,
        created_at timestamptz NOT NULL,
        seen_at {_NOW},
        deleted_at timestamptz)""",
    "CREATE INDEX ix_rooms_owner ON rooms (owner_id, created_at DESC, id)",
    f"""CREATE TABLE calls (
        id text CONSTRAINT pk_calls PRIMARY KEY,
        room_id text NOT NULL,
        room_name text NOT NULL DEFAULT '',
        owner_id text NOT NULL DEFAULT '',
        started_at timestamptz NOT NULL,
        ended_at timestamptz,
        participants jsonb NOT NULL DEFAULT '[]',
        quality jsonb,
        updated_at {_NOW})""",
    """CREATE TABLE call_members (
        user_id text NOT NULL,
        call_id text NOT NULL CONSTRAINT fk_call_members_call_id_calls REFERENCES calls ON DELETE CASCADE,
        started_at timestamptz NOT NULL,
        CONSTRAINT pk_call_members PRIMARY KEY (user_id, call_id))""",
    "CREATE INDEX ix_call_members_page ON call_members (user_id, started_at DESC, call_id)",
    f"""CREATE TABLE reports (
        id text CONSTRAINT pk_reports PRIMARY KEY,
        owner_id text NOT NULL,
        kind text NOT NULL,
        parameters jsonb NOT NULL DEFAULT '{{}}',
        status text NOT NULL DEFAULT 'queued',
        progress float8 NOT NULL DEFAULT 0,
        state jsonb,
        result jsonb,
        error text,
        attempts integer NOT NULL DEFAULT 0,
        lease_until timestamptz,
        created_at {_NOW},
        updated_at {_NOW})""",
    "CREATE INDEX ix_reports_owner ON reports (owner_id, created_at)",
    "CREATE INDEX ix_reports_open ON reports (created_at) WHERE status IN ('queued', 'running')",
    f"""CREATE TABLE pricing_zones (
        zone text CONSTRAINT pk_pricing_zones PRIMARY KEY,
        base_fare numeric(10, 2) NOT NULL,
        capacity integer NOT NULL,
        active integer NOT NULL,
        updated_at {_NOW})""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
