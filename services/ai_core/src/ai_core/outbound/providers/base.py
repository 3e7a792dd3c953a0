"""What the adapters have in common: the official client's configuration, and the calls past its typed methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from ai_core.outbound.providers import payload
from ai_core.outbound.providers.errors import refusal
from ai_core.outbound.providers.limits import exhausted, retry_after
from ai_core.outbound.providers.streams import no_stream
from ai_core.outbound.providers.wire import Wire, whole
from ai_core.ports import ProviderFailed
from ai_core.query import Link

if TYPE_CHECKING:
    import httpx2

Rested = Callable[[Link, float], None]
"""Hears that a link should be left alone for so many seconds."""
PING_LIMIT = 5.0
"""Seconds that the official client waits for the list of models; the probe's own limit is usually shorter."""


def unheard(link: Link, seconds: float) -> None:
    """For those who do not want to hear it."""


class SdkClient(Protocol):
    """What both official clients show of their configuration."""

    @property
    def base_url(self) -> httpx2.URL: ...

    @property
    def default_headers(self) -> Mapping[str, object]: ...

    @property
    def auth_headers(self) -> Mapping[str, str]: ...

    async def close(self) -> None: ...


class SdkModels(ABC):
    """A provider configured through its official client."""

    def __init__(
        self,
        name: str,
        client: SdkClient,
        connect_limit: float,
        connections: int,
        rested: Rested,
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self._sdk = client
        self._rested = rested
        self._now = now
        self._wire = Wire(str(client.base_url), headers_of(client), connect_limit, connections)

    @property
    def name(self) -> str:
        """The provider's name in the chain."""
        return self._name

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()
        await self._sdk.close()

    async def ping(self) -> None:
        """The port's ``ping``, through the list of models; a provider that has none but answers is well."""
        try:
            listed = await self._list_models()
        except Exception as error:  # noqa: BLE001 (the client raises its own errors, httpx's and json's)
            status = getattr(error, "status_code", 0)
            if status not in (404, 405, 429):
                raise ProviderFailed(f"status {status}" if status else type(error).__name__) from None
        else:
            payload.read(listed)

    @abstractmethod
    async def _list_models(self) -> bytes:
        """The list of models, asked for through the official client, as it came."""

    async def _answer(self, model: str, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object of an answer of 200. Raises the port's errors."""
        answered = await self._wire.post(path, body, headers)
        self._hear(model, answered.status, answered.headers)
        if answered.status != 200:
            raise refusal(self.name, model, answered.status, answered.headers, answered.body, self._now())
        return payload.read(answered.body)

    async def _open_stream(
        self, model: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """An answer of 200 that may be a stream. Raises the port's errors."""
        response = await self._wire.open(path, body, headers)
        try:
            await self._check_stream(model, response)
        except BaseException:
            response.release()
            raise
        return response

    async def _check_stream(self, model: str, response: aiohttp.ClientResponse) -> None:
        self._hear(model, response.status, response.headers)
        if response.status != 200:
            body = await whole(response)
            raise refusal(self.name, model, response.status, response.headers, body, self._now())
        if response.content_type in ("text/html", "application/json"):
            raise await no_stream(self.name, model, response)

    def _hear(self, model: str, status: int, headers: Mapping[str, str]) -> None:
        """Passes on how long the model wants to be left alone, unless an error will say so (429)."""
        if status == 200:
            seconds = exhausted(headers, self._now())
        else:
            seconds = retry_after(headers, self._now()) if status >= 500 else None
        if seconds:
            self._rested(Link(self.name, model), seconds)


def headers_of(client: SdkClient) -> dict[str, str]:
    """The client's headers, without those that it leaves out."""
    both = {**client.default_headers, **client.auth_headers}
    return {name: value for name, value in both.items() if isinstance(value, str)}
