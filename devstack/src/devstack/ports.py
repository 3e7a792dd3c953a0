"""Ports: which are free, who holds a busy one, and how a stack keeps its own while a component is dead.

The layout, with base ``N`` (8080 by default): HTTP at ``N`` (dashboard), ``N+1`` (ai-core), ``N+2`` (webrtc), further
Dashboard instances from ``N+3``; gRPC at the same numbers + 1000. Everything else (servers, the fault proxy's edges,
the services' own ports behind it) is on free ports, remembered in the state directory.
"""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from devstack.errors import PortBusyError

HOST = "127.0.0.1"
DEFAULT_BASE = 8080
GRPC_OFFSET = 1000
# Below the range from which the kernel takes the ports of outgoing connections (32768 and up on Linux): such a
# connection could otherwise take the port of a component that is dead at the moment.
FREE_RANGE = range(20_000, 32_000)


def holder(port: int) -> str:
    """Who listens on ``port``: ``"pid 123 (name)"``, as far as this user may know."""
    with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is not None:
                    return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
                break
    return "a process that this user cannot see"


def is_free(port: int, *, reuse: bool = True) -> bool:
    """Whether one could listen on the port. ``reuse=False`` also refuses ports that another stack holds in reserve."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            sock.bind((HOST, port))
            sock.listen(1)
        except OSError:
            return False
    return True


@dataclass
class Ports:
    """The ports of one stack by name. ``known`` is kept in the state directory between runs.

    On Linux each port is reserved by a socket that is bound but does not listen: a component (they all set
    SO_REUSEADDR) can still listen there, while nobody who looks for a free port is given it.
    """

    known: dict[str, int] = field(default_factory=dict)
    _held: dict[str, socket.socket] = field(default_factory=dict)

    def fixed(self, name: str, port: int) -> int:
        """Takes a port that must be exactly this one.

        Raises:
            PortBusyError: it is taken.
        """
        if name in self._held:
            return port
        if not is_free(port):
            raise PortBusyError(
                f"port {port} (for {name}) is in use by {holder(port)}; stop it, or use --port-base auto"
            )
        return self._hold(name, port)

    def free(self, name: str) -> int:
        """The remembered port of ``name`` when it is still free, else another one."""
        if name in self._held:
            return self.known[name]
        known = self.known.get(name)
        if known is not None and known in FREE_RANGE and is_free(known):
            return self._hold(name, known)
        return self._hold(name, self._pick())

    def release(self) -> None:
        """Gives all ports back."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()

    def _pick(self) -> int:
        taken = set(self.known.values())
        for port in random.sample(FREE_RANGE, 1000):
            if port not in taken and is_free(port, reuse=False):
                return port
        raise PortBusyError(f"no free port found between {FREE_RANGE.start} and {FREE_RANGE.stop}")

    def _hold(self, name: str, port: int) -> int:
        self.known[name] = port
        sock = socket.socket()
        self._held[name] = sock
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, port))
        return port
