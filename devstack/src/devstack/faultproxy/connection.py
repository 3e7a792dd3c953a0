"""One proxied connection: a client's socket, a socket to the upstream, and a pipe for each direction."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from typing import cast

from devstack.faultproxy.pipe import EOF, Pipe
from devstack.faultproxy.toxics import Toxic, effect_of

DIAL_LIMIT = 10.0  # s
ABORTIVE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Connection:
    """Ends as a whole: when one side is reset, so is the other; a half-close is passed on as such."""

    def __init__(self, upstream: tuple[str, int], forget: Callable[[Connection], None]) -> None:
        self._upstream = upstream
        self._forget = forget
        self._ended = False
        self._dial: asyncio.Task[None] | None = None
        self._finished = 0  # directions whose end of data has been passed on
        self._touched: dict[str, bool] = {}
        self.up = Pipe(self.end, self._direction_finished)
        self.down = Pipe(self.end, self._direction_finished)
        self.client = Side(self, inbound=self.up, outbound=self.down, opened=self._accepted)
        self.server = Side(self, inbound=self.down, outbound=self.up, opened=lambda: None)

    def apply(self, toxics: Iterable[Toxic], draw: Callable[[], float]) -> None:
        """Makes ``toxics`` take effect. Whether one touches this connection is drawn once (``toxicity``)."""
        mine = [toxic for toxic in toxics if self._touched.setdefault(toxic.name, draw() < toxic.toxicity)]
        self._touched = {name: hit for name, hit in self._touched.items() if any(one.name == name for one in toxics)}
        self.up.set_effect(effect_of(toxic for toxic in mine if toxic.stream == "upstream"))
        self.down.set_effect(effect_of(toxic for toxic in mine if toxic.stream == "downstream"))

    def _accepted(self) -> None:
        if self._ended:  # reset before the event loop got here
            self.client.close(reset=True)
        else:
            self._dial = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_LIMIT):
                await loop.create_connection(lambda: self.server, *self._upstream)
        except (OSError, TimeoutError):
            self.end(True)  # for the client the nearest thing to a refused connection
            return
        if self._ended:
            self.server.close(reset=True)

    def _direction_finished(self) -> None:
        self._finished += 1
        if self._finished == 2:
            self.end(False)

    def lost(self, side: Side, error: Exception | None) -> None:
        """A socket is gone: reset the other one if it was reset, else let it have what is still queued."""
        if self._ended:
            return
        if error is not None:
            self.end(True)
        else:
            side.inbound.feed(EOF)

    def end(self, reset: bool) -> None:
        """Closes both sockets; ``reset``: with RST, unsent data is discarded."""
        if self._ended:
            return
        self._ended = True
        self.up.close()
        self.down.close()
        if self._dial is not None and self.server.transport is None:
            self._dial.cancel()
        self.client.close(reset=reset)
        self.server.close(reset=reset)
        self._forget(self)


class Side(asyncio.Protocol):
    """One socket: what it receives goes into ``inbound``; ``outbound`` writes to it."""

    def __init__(self, connection: Connection, *, inbound: Pipe, outbound: Pipe, opened: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.inbound = inbound
        self._connection = connection
        self._outbound = outbound
        self._opened = opened
        self.data_received = inbound.feed  # type: ignore[method-assign]  # straight through: the hot path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)
        self.inbound.source = transport
        self._outbound.connect(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened()

    def eof_received(self) -> bool:
        self.inbound.feed(EOF)
        return True  # the other direction stays open

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(self, exc)

    def pause_writing(self) -> None:
        self._outbound.block(True)

    def resume_writing(self) -> None:
        self._outbound.block(False)

    def close(self, *, reset: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not reset:
            transport.close()
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTIVE)
        transport.abort()
