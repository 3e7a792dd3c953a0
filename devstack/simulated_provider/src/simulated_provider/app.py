"""The simulated provider's HTTP surface: chat completions (JSON and SSE), the model list, health. No admin surface."""

import time
from collections.abc import AsyncIterator, Iterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from simulated_provider import wire
from simulated_provider.answers import MODELS

MAX_BODY = 4_000_000
"""Bytes of a request that are read before it is refused."""


def create_app() -> Starlette:
    """Build the application."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={wire.InvalidRequestError: refused, HTTPException: http_error},
    )


async def chat(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    parsed = wire.parse(await _body(request))
    completion = wire.complete(parsed, int(time.time()))
    if not parsed.stream:
        return JSONResponse(wire.as_json(completion))
    events = wire.as_events(completion, include_usage=parsed.include_usage)
    return StreamingResponse(_each(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def models(_: Request) -> Response:
    """`GET /v1/models`."""
    listed = [{"id": model, "object": "model", "created": 0, "owned_by": "simulated"} for model in MODELS]
    return JSONResponse({"object": "list", "data": listed, "simulated": True})


async def health(_: Request) -> Response:
    """`GET /health`: the process answers."""
    return JSONResponse({"status": "healthy", "service": "simulated-provider", "simulated": True})


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise wire.InvalidRequestError("The request body is too large.", status=413)
    return bytes(body)


async def _each(events: Iterator[str]) -> AsyncIterator[str]:
    """As an async iterator, so that Starlette need not hand every event to a thread."""
    for event in events:
        yield event


async def refused(_: Request, exc: Exception) -> Response:
    """A request this format does not know, in OpenAI's error shape."""
    assert isinstance(exc, wire.InvalidRequestError)  # noqa: S101 - registered for this type only
    return JSONResponse(exc.body, status_code=exc.status)


async def http_error(_: Request, exc: Exception) -> Response:
    """Unknown path or method, in the same shape."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this type only
    return JSONResponse(wire.InvalidRequestError(exc.detail).body, status_code=exc.status_code, headers=exc.headers)
