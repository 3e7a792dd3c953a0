"""Embeddings from OpenAI, or from anything that speaks its protocol (row A4, ai_core.embeddings).

The official client says with which headers; the call goes past its typed method, as with completions.

Source of the protocol: OpenAI API reference, "Create embeddings"; at most 8,192 tokens a text.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from ai_core.model import RequestRefused
from ai_core.outbound.providers import payload
from ai_core.outbound.providers.errors import REFUSED, failure_inside, refusal
from ai_core.outbound.providers.openai import usage_of
from ai_core.outbound.providers.sdk import openai_headers
from ai_core.outbound.providers.wire import Wire
from ai_core.ports import ProviderFailed, Vectors
from ai_core.query import Usage

PATH: Final = "/embeddings"
DIMENSIONS: Final = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
"""Source: OpenAI, "Embedding models"."""
DEFAULT: Final = "text-embedding-3-small"
MAX_DIMENSIONS: Final = 8_192


class OpenAIEmbeddings:
    """The provider; ``named`` and ``embed`` ask for one of its models. Make it in the running loop, close it after.

    ``connect_limit``: seconds to get a connection.
    """

    def __init__(
        self,
        provider: str,
        base_url: str,
        api_key: str,
        *,
        connect_limit: float = 1.0,
        connections: int = 20,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._now = now
        self._wire = Wire(base_url, openai_headers(base_url, api_key), connect_limit, connections)

    def named(self, model: str, dimensions: int | None = None) -> "OpenAIEmbedding":
        """One of its models; ``dimensions``: a shorter vector than the model's own, where it offers that."""
        return OpenAIEmbedding(self, self._provider, model, dimensions)

    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int | None = None
    ) -> tuple[list[Any], Usage, bool]:
        """The vectors as they came, tokens, and whether they were simulated. Raises the port's errors."""
        body = {"model": model, "input": list(texts), "encoding_format": "float"}
        answered = await self._wire.post(PATH, _encoded(body | ({"dimensions": dimensions} if dimensions else {})), {})
        if answered.status != 200:
            raise refusal(self._provider, model, answered.status, answered.headers, answered.body, self._now())
        data = payload.read(answered.body)
        if "data" not in data and "error" in data:
            raise failure_inside(self._provider, model, data)
        return _listed(data), usage_of(data) or Usage(), data.get("simulated") is True

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()


class OpenAIEmbedding:
    """One model of a provider."""

    def __init__(self, provider: OpenAIEmbeddings, name: str, model: str, dimensions: int | None) -> None:
        self._provider = provider
        self._model = model
        self._asked = dimensions
        self.name = space_name(name, model, dimensions)
        self.dimensions = size_of(model, dimensions)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector of length 1 per text. An answer of 200 that does not hold just that is a failure."""
        found, usage, simulated = await self._provider.embed(self._model, texts, self._asked)
        if len(found) != len(texts):
            raise ProviderFailed("an answer with another number of vectors")
        return Vectors([_unit(vector, self.dimensions) for vector in found], self.name, usage.prompt, simulated)

    async def ping(self) -> None:
        """One word: the list of models may be well while this is not. A thousandth of a cent an hour."""
        await self.embed(["ready"])


def space_name(provider: str, model: str, dimensions: int | None) -> str:
    """The name beside the vectors: shortened ones do not compare with others."""
    return f"{provider}:{model}" + (f"@{dimensions}" if dimensions else "")


def size_of(model: str, dimensions: int | None) -> int | None:
    """Numbers of a vector, if that is known."""
    return dimensions or DIMENSIONS.get(model)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        raise RequestRefused(REFUSED) from None


def _listed(data: Mapping[str, Any]) -> list[Any]:
    """The vectors in the order of the texts."""
    items = data.get("data")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ProviderFailed("an answer without vectors")
    placed = {item.get("index", place): item.get("embedding") for place, item in enumerate(items)}
    if placed.keys() != set(range(len(items))):
        raise ProviderFailed("an answer with vectors of nothing")
    return [placed[place] for place in range(len(items))]


def _unit(vector: object, dimensions: int | None) -> list[float]:
    """A vector with a direction. Raises ProviderFailed."""
    if not isinstance(vector, list) or not 0 < len(vector) <= MAX_DIMENSIONS:
        raise ProviderFailed("an answer without a vector")
    if dimensions is not None and len(vector) != dimensions:
        raise ProviderFailed("a vector of another size")
    try:
        length = math.sqrt(math.fsum(value * value for value in vector))
    except TypeError:
        length = 0.0
    if not 0 < length < math.inf:
        raise ProviderFailed("a vector without a direction")
    return [value / length for value in vector]
