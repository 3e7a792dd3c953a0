"""What the adapters have in common: one request, its answer read within bounds, and sound told from anything else.

On aiohttp, as the adapters of language models are (docs/adr/0012): the official clients would add a second pool of
connections and their own retries to what is a single POST.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import orjson

from ai_core.model import Speech, TooLong
from ai_core.outbound.providers.wire import TRANSPORT, whole
from ai_core.ports import ProviderFailed

MAX_AUDIO = 3_500_000
"""Bytes of audio that are passed on: a gRPC message holds 4 MiB (gRPC's own default)."""
MAX_CONNECTIONS = 16
CONNECT_LIMIT = 1.0
"""Seconds to get a connection."""
UNUSUAL = 5.0
"""Seconds after which a request ends when nobody has ended it before; the policy's limit is usually shorter."""
TOO_MUCH = "The text is too long to be spoken."
_MEDIA = frozenset({"audio/mpeg", "audio/wav", "audio/x-wav", "audio/ogg", "audio/opus", "audio/aac", "audio/flac"})
_UNNAMED = frozenset({"application/octet-stream", "binary/octet-stream", "audio/mp3"})
"""Media types that say less than is known: MP3 was asked for."""


class HttpSpeech(ABC):
    """One provider at ``base_url``. Make it inside the running loop, close it with the service."""

    name: str
    """As in answers."""
    longest: int
    """Characters of a text that it speaks."""

    def __init__(self, base_url: str, headers: Mapping[str, str], now: Callable[[], float]) -> None:
        self._base_url = base_url.rstrip("/")
        self._now = now
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_LIMIT, sock_connect=CONNECT_LIMIT),
            headers={**headers, "Content-Type": "application/json"},
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    @abstractmethod
    async def speak(self, text: str, voice: str) -> Speech:
        """The port's ``speak``."""

    async def ping(self) -> None:
        """Raises ProviderFailed unless an endpoint that costs nothing answers, and our key is good."""
        limit = aiohttp.ClientTimeout(total=UNUSUAL, connect=CONNECT_LIMIT)
        try:
            async with self._session.get(self._base_url + self._list, timeout=limit, allow_redirects=False) as response:
                status = response.status
        except TRANSPORT as error:
            raise ProviderFailed(type(error).__name__) from None
        if status >= 500 or status in (401, 403):
            raise ProviderFailed(f"status {status}")

    @property
    @abstractmethod
    def _list(self) -> str:
        """The path of that endpoint."""

    @abstractmethod
    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """What an answer other than 200 means."""

    async def _spoken(self, path: str, request: Mapping[str, Any], text: str, model: str) -> Speech:
        """The sound in the answer to a request. Redirects are not followed: they would carry the key elsewhere."""
        try:
            response = await self._session.post(
                self._base_url + path, data=orjson.dumps(request), allow_redirects=False
            )
        except TRANSPORT as error:
            raise ProviderFailed(type(error).__name__) from None
        try:
            body = await whole(response)
        finally:
            response.release()
        if response.status != 200:
            raise self._refusal(response.status, response.headers, body)
        simulated = response.headers.get("X-Simulated") == "true"
        return Speech(text, body, media_type(response.content_type, body), self.name, model, simulated)


def media_type(named: str, body: bytes) -> str:
    """The audio's media type. Raises ProviderFailed when it is no audio, TooLong when it is too much of it."""
    kind = "audio/mpeg" if named in _UNNAMED else named
    if kind not in _MEDIA or not body:
        raise ProviderFailed("an answer without sound")
    if len(body) > MAX_AUDIO:
        raise TooLong(TOO_MUCH)
    return kind
