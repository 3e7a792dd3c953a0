"""The provider chain as a gateway that OpenAI's own clients can use: ``/v1`` (rows A2 and A4).

The access token of a user of the platform is the API key. Who really answered is in the answer's member ``auralink``;
of a stream, in that of its first chunk.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from math import sqrt
from struct import pack
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from ai_core.inbound import openai_document as document
from ai_core.inbound import openai_wire as wire
from ai_core.inbound.openai_wire import BadParameter, ChatRequest, NoSuchModel
from ai_core.inbound.outcome import Outcome
from ai_core.model import ModelNotOffered, RequestRefused, TooLong
from ai_core.ports import ProviderBusy, ProviderFailed
from ai_core.query import Chunk, Completion
from ai_core.usecases.chain import Chain, StreamBroken
from ai_core.usecases.embeddings import LOCAL, Embedded, Embeddings
from ai_core.usecases.streams import Stream
from resilience import Served
from service_kit.context import allow, attend
from service_kit.errors import translate
from service_kit.http import EventStream, json_response, stamp

T = TypeVar("T")

PREFIX = "/v1/"
EMBED_SECONDS = 10.0
"""For a request of many texts."""
SHORTENED = "text-embedding-3"
"""Embeddings of these models may be cut to fewer dimensions (OpenAI, "Embeddings", "Reducing embedding dimensions")."""
_DONE = b"data: [DONE]\n\n"


def create_router(
    chain: Chain, embeddings: Embeddings, outcome: Outcome, *, chat_limit: float | None = None
) -> APIRouter:
    """The routes. ``chat_limit``: seconds until an answer has begun, if not the usual ones."""
    router = APIRouter(prefix="/v1", tags=["gateway"], responses=document.ERRORS, route_class=_Route)
    gateway = _Gateway(chain, embeddings, outcome, chat_limit)

    @router.post("/chat/completions", response_class=Response, responses=document.CHAT, openapi_extra=document.ASK_CHAT)
    async def chat(request: Request) -> Response:
        """Continue a conversation, as OpenAI's API of this name; with `stream` as server-sent events."""
        user = outcome.caller()
        asked = wire.chat_request(await request.body(), user, request.headers.get("cache-control", ""))
        return await (gateway.stream(asked) if asked.stream else gateway.complete(asked))

    @router.post(
        "/embeddings", response_class=Response, responses=document.EMBEDDINGS, openapi_extra=document.ASK_EMBEDDINGS
    )
    async def embed(request: Request) -> Response:
        """Embed texts, as OpenAI's API of this name."""
        outcome.caller()
        asked = wire.embedding_request(await request.body())
        allow(EMBED_SECONDS)
        attend()
        made = await outcome.of(_embedded(embeddings, asked))
        return json_response(_embedding_list(asked, made))

    @router.get("/models", response_class=Response, responses=document.MODELS, openapi_extra=document.SECURED)
    async def models(_: Request) -> Response:
        """List what can be asked for as `model`."""
        outcome.caller()
        return json_response({"object": "list", "data": gateway.models()})

    @router.get(
        "/models/{model:path}", response_class=Response, responses=document.MODEL, openapi_extra=document.SECURED
    )
    async def model(_: Request, model: str) -> Response:
        """Look up a model."""
        outcome.caller()
        return json_response(gateway.model(model))

    return router


class _Route(APIRoute):
    """A route whose function reads the request by itself: FastAPI's own way there is a fifth of the work done here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(request, **request.path_params)
            return response

        return handle


class _Gateway:
    """The chain, behind the wire format."""

    def __init__(self, chain: Chain, embeddings: Embeddings, outcome: Outcome, limit: float | None) -> None:
        self._chain = chain
        self._embeddings = embeddings
        self._outcome = outcome
        self._limit = limit

    async def complete(self, asked: ChatRequest) -> Response:
        """The whole answer."""
        self._allow()
        done = await self._outcome.of(_asked(self._chain.complete(asked.query)))
        body = {**done.body, "auralink": {**_provenance(done), "cost": done.cost}}
        return Response(orjson.dumps(body), 200, _age(done.as_of), "application/json")

    async def stream(self, asked: ChatRequest) -> Response:
        """The answer as it comes; it has begun when this returns."""
        self._allow()
        stream = await self._outcome.of(_asked(self._chain.stream(asked.query)))
        response = EventStream(stream, lambda stream: _events(stream, include_usage=asked.include_usage))
        response.headers.update(_age(stream.as_of))
        return response

    def models(self) -> list[dict[str, Any]]:
        """Each model once, by the first provider that has it: ``auto``, the chain's, and those that embed."""
        owners = {wire.AUTO: "auralink"}
        for link in self._chain.links():
            owners.setdefault(link.model, link.provider)
        for provider, model in self._embedding():
            owners.setdefault(model, provider)
        return [_model(name, owner) for name, owner in owners.items()]

    def model(self, name: str) -> dict[str, Any]:
        """The model or link of that name. Raises NoSuchModel."""
        for link in self._chain.links():
            if name in (link.name, link.model, f"{link.provider}/{link.model}"):
                return _model(name, link.provider)
        for found in self.models():
            if found["id"] == name:
                return found
        raise NoSuchModel

    def _embedding(self) -> Iterator[tuple[str, str]]:
        """Provider and model of those that embed; the local one by the name under which it can be asked for."""
        for one in self._embeddings.models:
            provider, _, model = one.name.partition(":")
            yield ("auralink", LOCAL) if provider == LOCAL else (provider, model)

    def _allow(self) -> None:
        attend()
        if self._limit is not None:
            allow(self._limit)


async def _asked(work: Awaitable[Served[T]]) -> Served[T]:
    """The outcome; refusals as OpenAI words them. Raises BadParameter, NoSuchModel, and whatever else the work does."""
    try:
        return await work
    except ModelNotOffered:
        raise NoSuchModel from None
    except TooLong as error:
        raise BadParameter(str(error), "messages", "context_length_exceeded") from error
    except RequestRefused as error:
        raise BadParameter(str(error)) from error


async def _embedded(embeddings: Embeddings, asked: wire.EmbeddingRequest) -> Served[Embedded]:
    try:
        return await _asked(embeddings.of_texts(asked.texts, asked.model))
    except (ProviderFailed, ProviderBusy) as error:
        raise translate(error, embeddings.policy) from error


async def _events(stream: Stream, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """What is sent: one piece per read of the provider's. Only a complete answer ends with [DONE].

    The chunk with nothing but the usage is for those who asked for it (``stream_options.include_usage``), and held back
    to the end, when the price is known as well.
    """
    first, usage = _provenance(stream), b""
    try:
        async for chunks in stream:
            wanted = [chunk.data for chunk in chunks if not _only_usage(chunk)]
            if len(wanted) < len(chunks):
                usage = next(chunk.data for chunk in chunks if _only_usage(chunk))
            if first and wanted:
                wanted[0], first = _with(wanted[0], first), {}
            if wanted:
                yield b"data: %s\n\n" % b"\n\ndata: ".join(wanted)
    except StreamBroken as broken:
        yield _broken(broken)
        return
    last = b"data: %s\n\n" % _with(usage, {"cost": stream.cost}) if usage and include_usage else b""
    yield last + _DONE


def _only_usage(chunk: Chunk) -> bool:
    return chunk.usage is not None and not chunk.commits and not chunk.finish_reason


def _with(data: bytes, provenance: dict[str, Any]) -> bytes:
    """A chunk's object with the member ``auralink``, without taking it apart: it is never empty."""
    return b'{"auralink":%s,%s' % (orjson.dumps(provenance), data.lstrip()[1:])


def _broken(broken: StreamBroken) -> bytes:
    """The last event of an answer that broke off: clients take it for an error and not for an end."""
    error = {
        "message": f"The answer broke off after {broken.sent} characters.",
        "type": "server_error",
        "param": None,
        "code": "stream_broken",
        "sent_characters": broken.sent,
        "retry_after": broken.retry_after,
    }
    return b"data: %s\n\n" % orjson.dumps({"error": error})


def _provenance(answer: Completion | Stream) -> dict[str, Any]:
    return {
        "provider": answer.provider,
        "model": answer.model,
        "cached": answer.as_of is not None,
        "as_of": None if answer.as_of is None else stamp(answer.as_of),
        "fallback_from": answer.fallback_from or None,
        "simulated": answer.simulated,
    }


def _age(as_of: float | None) -> dict[str, str]:
    """Headers of a kept answer (RFC 9111 section 5.1, RFC 9211)."""
    if as_of is None:
        return {}
    return {"age": str(max(0, int(time.time() - as_of))), "cache-status": "ai-core; hit"}


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _embedding_list(asked: wire.EmbeddingRequest, made: Embedded) -> dict[str, Any]:
    provider, _, model = made.model.partition(":")
    vectors = [_shortened(vector, asked.dimensions, model) for vector in made.vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if asked.base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    about = {"provider": provider, "model": model, "simulated": made.simulated}
    return {"object": "list", "data": data, "model": model, "usage": usage, "auralink": about}


def _packed(vector: Sequence[float]) -> str:
    """32-bit numbers, little-endian, in base64: what OpenAI's clients ask for unless told otherwise."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _shortened(vector: Sequence[float], dimensions: int, model: str) -> Sequence[float]:
    """Raises BadParameter where the model's vectors cannot be cut."""
    if dimensions in (0, len(vector)):
        return vector
    if dimensions > len(vector) or not model.startswith(SHORTENED):
        raise BadParameter(f"This model has {len(vector)} dimensions.", "dimensions")
    cut = vector[:dimensions]
    length = sqrt(sum(number * number for number in cut)) or 1.0
    return [number / length for number in cut]
