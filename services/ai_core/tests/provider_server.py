"""A provider that misbehaves on request, over real HTTP, in OpenAI's or Anthropic's words."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from ai_core.outbound.providers import AnthropicModels, OpenAIModels
from ai_core.query import Link

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = bytes | str | dict[str, Any] | list[Any]

KEY = "sk-secret-key"
PROMPT = "my-secret-prompt"
NOW = 1_700_000_000.0


def event(body: dict[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body)}\n\n".encode()


class OpenAIWords:
    """What OpenAI would send."""

    name = "openai"
    model = "gpt-4"
    served = "gpt-4-0613"

    def answer(self, text: str | None, reason: str = "stop", **members: Any) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return {"id": "c1", "model": self.served, "choices": [choice], "usage": usage, **members}

    def error(self, kind: str = "", message: str = "") -> dict[str, Any]:
        return {"error": {"message": f"{message} {KEY} {PROMPT} org-123", "type": "x", "code": kind or None}}

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def token(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def end(self, reason: str = "stop") -> bytes:
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return (
            self._chunk({}, reason) + event({"model": self.served, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"
        )

    def failed(self) -> bytes:
        return event(self.error("server_error"))

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return event({"id": "c1", "object": "chat.completion.chunk", "model": self.served, "choices": [choice]})


class AnthropicWords:
    """What Anthropic would send."""

    name = "anthropic"
    model = "claude-sonnet-4-5"
    served = "claude-sonnet-4-5-20250929"

    def answer(self, text: str | None, reason: str = "end_turn", **members: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": text}] if text is not None else []
        head = {"id": "m1", "type": "message", "role": "assistant", "model": self.served, "content": content}
        return {**head, "stop_reason": reason, "usage": {"input_tokens": 7, "output_tokens": 3}, **members}

    def error(self, kind: str = "api_error", message: str = "") -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind or "api_error", "message": f"{message} {KEY} {PROMPT} org-123"}}

    def begin(self) -> bytes:
        message = self.answer(None, usage={"input_tokens": 7, "output_tokens": 1})
        start = event({"type": "message_start", "message": {**message, "stop_reason": None}}, "message_start")
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return start + event(block, "content_block_start") + event({"type": "ping"}, "ping")

    def token(self, text: str) -> bytes:
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return event(delta, "content_block_delta")

    def end(self, reason: str = "end_turn") -> bytes:
        stop = event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        delta = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 3}}
        return stop + event(delta, "message_delta") + event({"type": "message_stop"}, "message_stop")

    def failed(self) -> bytes:
        return event(self.error("overloaded_error"), "error")


Words = OpenAIWords | AnthropicWords


class ProviderServer:
    """``handler`` answers the next requests; ``seen`` is the last one's body, ``headers`` its headers."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.handler: Handler = self._well
        self.seen: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.calls = 0
        self.url = ""
        self.runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
        self.runner.app.router.add_route("*", "/{path:.*}", self._answer)

    @property
    def connections(self) -> int:
        """Connections that are open here."""
        assert self.runner.server is not None
        return len(self.runner.server.connections)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.headers = dict(request.headers)
        self.seen = await request.json() if request.can_read_body else {}
        return await self.handler(request)

    async def _well(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self.words.answer("Hello."))

    def respond(self, body: Body, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answers as a whole; JSON unless it is a text."""
        kind = "text/html" if isinstance(body, bytes | str) else "application/json"
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()

        async def handler(_: web.Request) -> web.StreamResponse:
            return web.Response(body=data, status=status, headers={"Content-Type": kind, **(headers or {})})

        self.handler = handler

    def stream(
        self, *parts: bytes, cut: bool = False, hold: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        """Streams the parts, each in a write of its own; then ends, or is cut, or holds the line without a word."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **(headers or {})})
            await response.prepare(request)
            for part in parts:
                await response.write(part)
            if hold:
                await gone(request)
            if cut and request.transport is not None:
                request.transport.abort()
            return response

        self.handler = handler

    async def reset(self, request: web.Request) -> web.StreamResponse:
        """Breaks the connection instead of an answer."""
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def silent(self, request: web.Request) -> web.StreamResponse:
        """Never answers."""
        await gone(request)
        return web.Response()


async def gone(request: web.Request) -> None:
    """Waits for the caller to go."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def eventually(condition: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Served:
    """A server and the adapter that asks it; ``rested`` is what the adapter told."""

    def __init__(self, server: ProviderServer, **options: Any) -> None:
        self.server = server
        self.rested: list[tuple[Link, float]] = []
        options = {"rested": lambda link, seconds: self.rested.append((link, seconds)), "now": lambda: NOW, **options}
        self.models: OpenAIModels | AnthropicModels
        if isinstance(server.words, OpenAIWords):
            self.models = OpenAIModels("openai", server.url + "/v1", KEY, **options)
        else:
            self.models = AnthropicModels("anthropic", server.url, KEY, **options)

    @property
    def words(self) -> Words:
        return self.server.words


@asynccontextmanager
async def serving(words: Words, **options: Any) -> AsyncIterator[Served]:
    """A server that speaks these words, with its adapter."""
    server = ProviderServer(words)
    await server.runner.setup()
    await web.TCPSite(server.runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{server.runner.addresses[0][1]}"
    served = Served(server, **options)
    try:
        yield served
    finally:
        await served.models.close()
        await server.runner.cleanup()
