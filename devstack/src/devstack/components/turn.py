"""coturn, where the Debian package is installed: relays media for those who cannot reach each other."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import struct
from pathlib import Path

from devstack.components.base import Component
from devstack.errors import ComponentError
from devstack.process import Command
from devstack.state import StateDir

PROGRAM = "turnserver"
MISSING = "coturn is not installed (on Debian: apt install coturn): no TURN, row W2 in its fallback"

# For loopback alone: peers there are refused otherwise, and a server on a network must refuse them.
CONFIG = """\
listening-ip=127.0.0.1
relay-ip=127.0.0.1
listening-port={port}
min-port=49152
max-port=65535
realm=auralink
use-auth-secret
static-auth-secret={secret}
fingerprint
no-tls
no-dtls
no-cli
allow-loopback-peers
no-multicast-peers
userdb={data}/turndb
pidfile={data}/turn.pid
log-file=stdout
"""

COOKIE = 0x2112A442  # RFC 8489, section 5
BINDING = struct.Struct(">HHI12s")
BINDING_REQUEST, BINDING_SUCCESS = 0x0001, 0x0101


class Turn(Component):
    """One server, over UDP and TCP on the same port. The secret is in a file of mode 0600, not on the command line."""

    name = "turn"

    def __init__(self, port: int, secret: str, data: Path) -> None:
        self.port = port
        self.secret = secret
        self._data = data
        self._config = data / "turnserver.conf"

    @property
    def url(self) -> str:
        return f"turn:127.0.0.1:{self.port}"

    async def prepare(self, state: StateDir) -> None:  # noqa: ARG002
        if shutil.which(PROGRAM) is None:
            raise ComponentError(MISSING)
        self._data.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(port=self.port, secret=self.secret, data=self._data))

    def command(self) -> Command:
        return Command([shutil.which(PROGRAM) or PROGRAM, "-c", str(self._config)], cwd=self._data)

    async def accepts(self) -> bool:
        """A STUN binding: enough for a server that was started or thawed a moment ago."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(0.5):
                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Answer(answer), remote_addr=("127.0.0.1", self.port)
                )
                try:
                    transport.sendto(BINDING.pack(BINDING_REQUEST, 0, COOKIE, secrets.token_bytes(12)))
                    return (await answer)[:2] == BINDING_SUCCESS.to_bytes(2)
                finally:
                    transport.close()
        except OSError:
            return False


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002 - asyncio's interface
        if not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


def installed() -> bool:
    """Whether there is a server to start."""
    return shutil.which(PROGRAM) is not None
