"""Claude through Anthropic's own Messages API: the OpenAI-compatible endpoint drops formats and seeds silently.

The official client says with which headers and version of the API (docs/adr/0012). The chain retries, not this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import aiohttp

from ai_core.outbound.providers.anthropic_answer import AnthropicEvents, completion_body
from ai_core.outbound.providers.anthropic_request import translated
from ai_core.outbound.providers.base import Rested, SdkModels, unheard
from ai_core.outbound.providers.openai import completion, encoded
from ai_core.outbound.providers.sdk import anthropic_headers
from ai_core.outbound.providers.streams import ChunkStream
from ai_core.outbound.providers.wire import STREAMED
from ai_core.query import Completion, Query

PATH = "/v1/messages"


class AnthropicModels(SdkModels):
    """Claude at ``base_url``, without ``/v1``. Make it inside the running loop, close it with the service.

    ``leave_out``: parameters that an operator allows to be lost rather than pass Claude over, for example temperature;
    none by default. The rest is as for ``OpenAIModels``.
    """

    models = "/v1/models"

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str,
        *,
        connect_limit: float = 1.0,
        connections: int = 100,
        rested: Rested = unheard,
        now: Callable[[], float] = time.time,
        leave_out: Collection[str] = (),
    ) -> None:
        super().__init__(name, base_url, anthropic_headers(base_url, api_key), connect_limit, connections, rested, now)
        self._leave_out = frozenset(leave_out)

    async def complete(self, model: str, asked: Query) -> Completion:
        """The port's ``complete``."""
        body, headers = translated(model, asked, self._leave_out)
        message = await self._answer(model, PATH, encoded(body), headers)
        return completion(self.name, model, completion_body(message, model, int(self._now())))

    def stream(self, model: str, asked: Query) -> ChunkStream:
        """The port's ``stream``."""

        async def opening() -> aiohttp.ClientResponse:
            body, headers = translated(model, asked, self._leave_out)
            return await self._open_stream(model, PATH, encoded({**body, "stream": True}), {**STREAMED, **headers})

        return ChunkStream(opening, AnthropicEvents(self.name, model, int(self._now())))
