"""A proxy: a listening port, the upstream behind it, its toxics and its live connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devstack.faultproxy.connection import Connection, Side
from devstack.faultproxy.toxics import Toxic

CONNECTIONS = 4096  # per proxy; one more is reset
BACKLOG = 1024


class ConflictError(Exception):
    """The name is taken, or the port is."""


class AddressError(ValueError):
    """Not ``host:port``."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Address:
        """From ``host:port``.

        Raises:
            AddressError: it is something else.
        """
        host, _, port = str(text).rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise AddressError(f"not an address of the form host:port: {text!r}")
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Proxy:
    """Disabled, it does not listen and has no connections."""

    def __init__(
        self, name: str, listen: Address, upstream: Address, draw: Callable[[], float] = random.random
    ) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self.toxics: dict[str, Toxic] = {}
        self._draw = draw
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def enabled(self) -> bool:
        return self._server is not None

    async def enable(self) -> None:
        """Starts listening.

        Raises:
            ConflictError: the port is in use.
        """
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self.listen.host, self.listen.port, backlog=BACKLOG)
        except OSError as error:
            raise ConflictError(f"cannot listen on {self.listen}: {error.strerror or error}") from error
        port = self._server.sockets[0].getsockname()[1]
        self.listen = Address(self.listen.host, port)

    async def disable(self) -> None:
        """Stops listening and closes all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self._connections):
            connection.end(False)

    def put_toxic(self, toxic: Toxic) -> None:
        """Adds or replaces a toxic, for new connections and live ones."""
        self.toxics[toxic.name] = toxic
        self._apply()

    def remove_toxic(self, name: str) -> None:
        del self.toxics[name]
        self._apply()

    def clear(self) -> None:
        """Removes all toxics."""
        self.toxics.clear()
        self._apply()

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "listen": str(self.listen),
            "upstream": str(self.upstream),
            "enabled": self.enabled,
            "toxics": [toxic.as_json() for toxic in self.toxics.values()],
        }

    def _accept(self) -> Side:
        connection = Connection((self.upstream.host, self.upstream.port), self._connections.discard)
        if len(self._connections) >= CONNECTIONS:
            connection.end(True)
        else:
            self._connections.add(connection)
            connection.apply(self.toxics.values(), self._draw)
        return connection.client

    def _apply(self) -> None:
        for connection in list(self._connections):
            connection.apply(self.toxics.values(), self._draw)


class Proxies:
    """All proxies of the process by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Proxy] = {}

    async def create(self, body: Mapping[str, Any]) -> Proxy:
        """Makes one from the API's JSON.

        Raises:
            ConflictError, AddressError: see there; KeyError: ``name`` or ``upstream`` is missing.
        """
        name = str(body["name"])
        if name in self.by_name:
            raise ConflictError("proxy already exists")
        proxy = Proxy(name, Address.parse(body.get("listen") or "127.0.0.1:0"), Address.parse(body["upstream"]))
        if body.get("enabled", True):
            await proxy.enable()
        self.by_name[name] = proxy
        return proxy

    async def populate(self, bodies: list[Mapping[str, Any]]) -> list[Proxy]:
        """Makes all of them; one that exists is replaced when it differs. Errors as in ``create``."""
        return [await self._replace(body) for body in bodies]

    async def _replace(self, body: Mapping[str, Any]) -> Proxy:
        name = str(body["name"])
        present = self.by_name.get(name)
        if present is None:
            return await self.create(body)
        await self.update(name, body)
        return present

    async def update(self, name: str, body: Mapping[str, Any]) -> Proxy:
        """Changes addresses and ``enabled``; a changed address closes the connections. Errors as in ``create``."""
        proxy = self.by_name[name]
        listen = Address.parse(body.get("listen") or str(proxy.listen))
        upstream = Address.parse(body.get("upstream") or str(proxy.upstream))
        wanted = bool(body.get("enabled", proxy.enabled))
        if not wanted or (listen, upstream) != (proxy.listen, proxy.upstream):
            await proxy.disable()
        proxy.listen, proxy.upstream = listen, upstream
        if wanted:
            await proxy.enable()
        return proxy

    async def delete(self, name: str) -> None:
        await self.by_name.pop(name).disable()

    async def reset(self) -> None:
        """Enables every proxy and removes every toxic."""
        for proxy in self.by_name.values():
            proxy.clear()
            await proxy.enable()

    async def close(self) -> None:
        for name in list(self.by_name):
            await self.delete(name)
