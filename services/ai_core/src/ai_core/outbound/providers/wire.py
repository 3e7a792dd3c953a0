"""The HTTP under the adapters: one pool of connections per provider, on aiohttp; why: docs/adr/0012."""

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import yarl

from ai_core.ports import ProviderFailed

MAX_ANSWER = 8_000_000
"""Bytes of an answer that are read before it counts as useless."""
MAX_ERROR = 100_000
"""Bytes of an answer other than 200 that are read."""
TRANSPORT = (aiohttp.ClientError, OSError, TimeoutError)
"""What aiohttp raises when a call fails; its texts name hosts, so only the class's name leaves."""
STREAMED = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to one provider. Make it inside the running loop. ``connect_limit``: seconds to get a connection,
    waiting for a free one included. Redirects are not followed: they would carry the key to another host.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], connect_limit: float, connections: int) -> None:
        self._base_url = base_url.rstrip("/")
        self._urls: dict[str, yarl.URL] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_limit, sock_connect=connect_limit),
            headers=dict(headers),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Sends a request and reads the answer's head; the caller releases it. Raises ProviderFailed."""
        url = self._urls.get(path) or self._urls.setdefault(path, yarl.URL(self._base_url + path))
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except TRANSPORT as error:
            raise ProviderFailed(type(error).__name__) from None

    async def get(self, path: str, limit: float) -> Answered:
        """The whole answer to a request without a body, within ``limit`` seconds. Raises ProviderFailed."""
        timeout = aiohttp.ClientTimeout(total=limit)
        try:
            response = await self._session.get(self._base_url + path, timeout=timeout, allow_redirects=False)
        except TRANSPORT as error:
            raise ProviderFailed(type(error).__name__) from None
        return await _read(response)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answered:
        """Sends a request and reads the whole answer. Raises ProviderFailed."""
        return await _read(await self.open(path, body, headers))


async def _read(response: aiohttp.ClientResponse) -> Answered:
    try:
        return Answered(response.status, response.headers, await whole(response))
    finally:
        response.release()


async def whole(response: aiohttp.ClientResponse) -> bytes:
    """The answer's body, bounded. Raises ProviderFailed."""
    limit = MAX_ANSWER if response.status == 200 else MAX_ERROR
    parts, size, content = [], 0, response.content
    try:
        while part := await content.readany():
            parts.append(part)
            size += len(part)
            if size > limit and response.status != 200:
                break
            if size > limit:
                raise ProviderFailed("an answer without end")
    except TRANSPORT as error:
        raise ProviderFailed(type(error).__name__) from None
    return b"".join(parts)
