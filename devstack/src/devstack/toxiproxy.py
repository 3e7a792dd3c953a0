"""What the stack asks of the fault proxy, in Toxiproxy's API; works with the real one as well."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import aiohttp

from devstack.errors import ProxyError

LIMIT = 5.0  # s per call


class ToxiproxyClient:
    """Use with ``async with``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT))

    async def __aenter__(self) -> ToxiproxyClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def add(self, proxy: str, kind: str, attributes: Mapping[str, int]) -> None:
        """Adds a downstream toxic named after its type, or changes the one that is there.

        Raises:
            ProxyError: see there.
        """
        name = f"{kind}_downstream"
        body = {"name": name, "type": kind, "stream": "downstream", "attributes": dict(attributes)}
        status, _ = await self._call("POST", f"/proxies/{proxy}/toxics", body, accept=(200, 409))
        if status == 409:
            await self._call("POST", f"/proxies/{proxy}/toxics/{name}", {"attributes": dict(attributes)})

    async def clear(self, proxy: str) -> None:
        """Removes every toxic and enables the proxy.

        Raises:
            ProxyError: see there.
        """
        _, toxics = await self._call("GET", f"/proxies/{proxy}/toxics")
        for toxic in toxics:
            await self._call("DELETE", f"/proxies/{proxy}/toxics/{toxic['name']}", accept=(204, 404))
        await self._call("POST", f"/proxies/{proxy}", {"enabled": True})

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, accept: tuple[int, ...] = (200,)
    ) -> tuple[int, Any]:
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                content = await response.json() if response.content_type == "application/json" else None
                if response.status not in accept:
                    raise ProxyError(f"fault proxy: {method} {path}: {response.status} {content}")
                return response.status, content
        except (aiohttp.ClientError, OSError) as error:
            raise ProxyError(f"fault proxy: {method} {path}: {error or type(error).__name__}") from error
