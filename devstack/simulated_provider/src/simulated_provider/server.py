"""HTTP/1.1 as far as a provider's clients need it, on asyncio and httptools.

Not a framework's server, for two reasons: a benchmark must not measure the simulator, and a fault needs the connection
itself (reset without an answer, closed in the middle of a body).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, cast

import httptools

MAX_BODY: Final = 4_000_000
"""Bytes of a request that are read before it is refused."""
MAX_HEADERS: Final = 65_536
MAX_CONNECTIONS: Final = 2_000
MAX_PIPELINED: Final = 16
IDLE: Final = 75.0
"""Seconds after which a connection without a running request is closed."""
UNREAD: Final = 60.0
"""Seconds that a client may leave an answer unread before the connection is closed."""
GRACE: Final = 2.0
"""Seconds that running requests get when the server stops."""

_SWEEP: Final = 5.0
_RESET: Final = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: on, 0 s
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = Iterable[tuple[str, str]]


class Exchange:
    """One request and the way to answer it."""

    __slots__ = ("_connection", "body", "headers", "keep_alive", "method", "target")

    def __init__(self, connection: Connection, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self._connection = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.keep_alive = True

    def answer(self, status: int, body: bytes, content_type: str = "application/json", headers: Headers = ()) -> None:
        """The whole answer at once."""
        length = ("content-length", str(len(body)))
        self._connection.write(self._head(status, (("content-type", content_type), length, *headers)) + body)

    def begin(self, content_type: str, headers: Headers = (), first: bytes = b"") -> None:
        """The head of an answer of 200 that comes in parts, and perhaps its first part."""
        head = self._head(200, (("content-type", content_type), ("transfer-encoding", "chunked"), *headers))
        self._connection.write(head + (chunk(first) if first else b""))

    def part(self, part: bytes) -> None:
        """One part, without waiting."""
        self._connection.write(chunk(part))

    async def send(self, part: bytes) -> None:
        """One part; waits while the client does not read. Raises ConnectionError when it is gone or never reads."""
        self._connection.write(chunk(part))
        await self._connection.drained()

    def end(self, last: bytes = b"") -> None:
        """The regular end of an answer in parts."""
        self._connection.write((chunk(last) if last else b"") + b"0\r\n\r\n")

    def promise(self, length: int, content_type: str, part: bytes) -> None:
        """The head of an answer of ``length`` bytes and only a part of it."""
        head = self._head(200, (("content-type", content_type), ("content-length", str(length))))
        self._connection.write(head + part)

    def cut(self) -> None:
        """Ends the connection as it is, in the middle of an answer."""
        self._connection.close()

    def reset(self) -> None:
        """Resets the connection (TCP RST)."""
        self._connection.reset()

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", "x-simulated: true"]
        if not self.keep_alive:
            lines.append("connection: close")
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]
"""Answers at once, or returns what will."""


def chunk(data: bytes) -> bytes:
    """One part of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One client. Its requests are answered one after the other, in order."""

    def __init__(self, handle: Handler, known: set[Connection]) -> None:
        self._handle = handle
        self._known = known
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._transport: asyncio.Transport | None = None
        self._target, self._headers, self._body, self._size = b"", {}, bytearray(), 0  # type: ignore[var-annotated]
        self._refused = False
        self.task: asyncio.Task[None] | None = None
        self.used = 0.0

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = made = cast(asyncio.Transport, transport)
        self.used = asyncio.get_running_loop().time()
        self._known.add(self)
        if len(self._known) > MAX_CONNECTIONS:
            made.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._known.discard(self)
        self._transport = None
        self._waiting.clear()
        self._room.set()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.used = asyncio.get_running_loop().time()
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400)
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(400)
        self._next()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # --- httptools

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body, self._size = b"", {}, bytearray(), 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > MAX_HEADERS:
            raise ValueError("too many headers")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) > MAX_BODY:
            self._refuse(413)
            raise ValueError("too large")
        self._body += body

    def on_message_complete(self) -> None:
        if len(self._waiting) >= MAX_PIPELINED:
            self.reset()
            return
        method, target = self._parser.get_method().decode(), self._target.decode("latin-1")
        exchange = Exchange(self, method, target, self._headers, bytes(self._body))
        exchange.keep_alive = self._parser.should_keep_alive()
        self._waiting.append(exchange)

    # --- answers

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Raises ConnectionError when the client is gone, or does not read for too long."""
        if not self._room.is_set():
            try:
                async with asyncio.timeout(UNREAD):
                    await self._room.wait()
            except TimeoutError:
                self.reset()
        if self._transport is None:
            raise ConnectionError("the client is gone")

    def close(self) -> None:
        """Closes once everything written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Closes with a reset; what was not sent yet is lost."""
        if self._transport is None:
            return
        with suppress(OSError), socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _refuse(self, status: int) -> None:
        """Answers a request that cannot be read, and closes."""
        self._refused = True
        exchange = Exchange(self, "", "", {}, b"")
        exchange.keep_alive = False
        exchange.answer(
            status,
            b'{"error":{"message":"The request cannot be read.","type":"invalid_request_error",'
            b'"param":null,"code":null},"simulated":true}',
        )
        self.close()

    def _next(self) -> None:
        """Works on the waiting requests as far as they are answered at once."""
        while self._waiting and self.task is None and self._transport is not None:
            exchange = self._waiting.popleft()
            work = self._handle(exchange)
            if work is None:
                self._done(exchange)
            else:
                self.task = asyncio.get_running_loop().create_task(self._run(work, exchange))

    async def _run(self, work: Coroutine[Any, Any, None], exchange: Exchange) -> None:
        try:
            with suppress(ConnectionError):
                await work
        finally:
            self.task = None
        self._done(exchange)
        self._next()

    def _done(self, exchange: Exchange) -> None:
        self.used = asyncio.get_running_loop().time()
        if not exchange.keep_alive:
            self.close()


class Server:
    """Serves until it is stopped."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which is a free one for 0. Raises OSError when it is in use."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handle, self._connections), host, port, backlog=1024
        )
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Takes no more connections, gives running requests a moment, closes all."""
        if self._server is None or self._sweeper is None:
            return
        self._server.close()
        self._sweeper.cancel()
        if running := [one.task for one in self._connections if one.task is not None]:
            await asyncio.wait(running, timeout=GRACE)
        for one in [*self._connections]:
            one.close()
        if left := [one.task for one in self._connections if one.task is not None]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=GRACE)

    async def _sweep(self) -> None:
        """Closes what nobody uses."""
        while True:
            await asyncio.sleep(_SWEEP)
            limit = asyncio.get_running_loop().time() - IDLE
            for one in [*self._connections]:
                if one.task is None and one.used < limit:
                    one.close()


async def serve(handle: Handler, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT. Raises OSError when the port is in use."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(handle)
    await server.start(host, port)
    await stop.wait()
    await server.stop()
