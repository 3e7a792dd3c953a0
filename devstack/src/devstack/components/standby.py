"""A streaming standby of the embedded PostgreSQL: it follows the primary's WAL and answers reads.

It is made with ``pg_basebackup`` and follows through a replication slot, so that the WAL it has missed while it was
dead is still there, up to ``max_slot_wal_keep_size``. Whichever of the two dies and comes back, the standby's WAL
receiver finds the primary by itself. When it can no longer follow (WAL gone, another cluster in the primary's place)
its next start makes a fresh copy.
"""

from __future__ import annotations

import secrets
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import asyncpg

from devstack.components.postgres import USER, Postgres
from devstack.errors import ComponentError
from devstack.state import StateDir

SLOT = "standby"
LIMIT = 2.0  # s for one question to the primary
UNREACHABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
MISSING = (
    "the standby is a copy of postgres, which does not accept work: start that one first, then "
    "`auralink chaos heal standby`"
)
CONTROL = Path("global", "pg_control")

SETTINGS = {
    "hot_standby": "on",
    "primary_slot_name": SLOT,
    "max_standby_streaming_delay": "5s",
    "wal_receiver_timeout": "5s",
    "wal_retrieve_retry_interval": "500ms",
}


class Standby(Postgres):
    """``primary`` is the server to follow, directly: faults on the services' edges do not touch the replication."""

    name = "standby"
    needs = ("postgres",)

    def __init__(self, port: int, primary: Postgres, password: str) -> None:
        home = replace(primary.home, data=primary.home.data.with_name("standby"))
        super().__init__(port, password, home)
        self._primary = primary

    def settings(self) -> dict[str, str]:
        return {**super().settings(), **SETTINGS, "primary_conninfo": self._conninfo}

    @property
    def _passfile(self) -> Path:
        return self.home.data.with_name("standby.pgpass")

    @property
    def _conninfo(self) -> str:
        """How it finds the primary; the password is in a file of mode 0600."""
        place = f"host=127.0.0.1 port={self._primary.port} user={USER} application_name={self.name}"
        passfile = str(self._passfile).replace("\\", r"\\").replace("'", r"\'")
        return f"{place} passfile='{passfile}' connect_timeout=3"

    async def prepare(self, state: StateDir) -> None:
        """A fresh copy when there is none or it cannot follow; without the primary an existing copy starts as it is.

        Raises:
            ComponentError: there is no copy yet, and no primary to make one of, or it refuses.
        """
        await self._backends_gone()
        self._private_file(self._passfile.name, f"127.0.0.1:*:*:{USER}:{self._password}\n")
        try:
            primary = await asyncpg.connect(self._primary.url_at(self._primary.port, "postgres"), timeout=LIMIT)
        except UNREACHABLE:
            if not self._copied():
                raise ComponentError(MISSING) from None
            return
        try:
            if not await self._can_follow(primary):
                await self._copy(state, primary)
        except UNREACHABLE as error:
            raise ComponentError(f"postgres refuses to be followed: {type(error).__name__}: {error}") from None
        finally:
            primary.terminate()

    def _copied(self) -> bool:
        return (self.home.data / "PG_VERSION").exists()

    async def _can_follow(self, primary: asyncpg.Connection) -> bool:
        """Whether our copy is of this very cluster, and the WAL that it needs is still kept for it."""
        if not self._copied():
            return False
        cluster = await primary.fetchval("SELECT system_identifier FROM pg_control_system()", timeout=LIMIT)
        kept = await primary.fetchval(
            "SELECT restart_lsn IS NOT NULL AND wal_status <> 'lost' FROM pg_replication_slots WHERE slot_name = $1",
            SLOT,
            timeout=LIMIT,
        )
        return bool(kept) and self._system_identifier() == int(cluster) % 2**64

    def _system_identifier(self) -> int | None:
        """The first field of the control file (``ControlFileData`` in PostgreSQL's catalog/pg_control.h)."""
        try:
            return int(struct.unpack("=Q", (self.home.data / CONTROL).read_bytes()[:8])[0])
        except (OSError, struct.error):
            return None

    async def _copy(self, state: StateDir, primary: asyncpg.Connection) -> None:
        """Gets its name last, so a half-made copy is never used."""
        for leftover in self.home.data.parent.glob(f"{self.home.data.name}-draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(self.home.data, ignore_errors=True)
        await self._fresh_slot(primary)
        draft = self.home.data.with_name(f"{self.home.data.name}-draft-{secrets.token_hex(4)}")
        options = ["--checkpoint=fast", "--wal-method=stream", f"--slot={SLOT}", f"--dbname={self._conninfo}"]
        await self._run(state, self._program("pg_basebackup", f"--pgdata={draft}", *options))
        # Not written by pg_basebackup's own option, which would put the password into the configuration.
        (draft / "standby.signal").touch()
        draft.rename(self.home.data)

    async def _fresh_slot(self, primary: asyncpg.Connection) -> None:
        drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1"
        await primary.fetch(drop, SLOT, timeout=LIMIT)
        await primary.fetch("SELECT pg_create_physical_replication_slot($1, true)", SLOT, timeout=LIMIT)
