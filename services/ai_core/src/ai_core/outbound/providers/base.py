"""What the adapters have in common: the official client's configuration, and the calls past its typed methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import aiohttp

from ai_core.outbound.providers import payload
from ai_core.outbound.providers.errors import refusal
from ai_core.outbound.providers.limits import exhausted, retry_after
from ai_core.outbound.providers.streams import no_stream
from ai_core.outbound.providers.wire import Wire, whole
from ai_core.ports import ProviderFailed
from ai_core.query import Link

Rested = Callable[[Link, float], None]
"""Hears that a link should be left alone for so many seconds."""
PING_LIMIT = 5.0
"""Seconds for the list of models; the probe's own limit is usually shorter."""


def unheard(link: Link, seconds: float) -> None:
    """For those who do not want to hear it."""


class SdkModels:
    """A provider at ``base_url``, with the ``headers`` of its official client (``sdk``)."""

    models: ClassVar[str]
    """The path of its list of models."""

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        connect_limit: float,
        connections: int,
        rested: Rested,
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self._rested = rested
        self._now = now
        self._wire = Wire(base_url, headers, connect_limit, connections)

    @property
    def name(self) -> str:
        """The provider's name in the chain."""
        return self._name

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()

    async def ping(self) -> None:
        """The port's ``ping``, by the list of models; a provider that has none but answers is well."""
        answered = await self._wire.get(self.models, PING_LIMIT)
        if answered.status == 200:
            payload.read(answered.body)
        elif answered.status not in (404, 405, 429):
            raise ProviderFailed(f"status {answered.status}")

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
