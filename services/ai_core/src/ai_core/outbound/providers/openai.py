"""Providers that speak OpenAI's chat completions: OpenAI itself, or anything compatible, at any base URL.

The official client says with which headers; the calls go past its typed methods, which cost ten times the call
(docs/adr/0012). Nothing retries here: the chain does.

Source of the protocol: OpenAI API reference, "Create chat completion" and "Streaming".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from ai_core.model import MODEL_LIMIT, RequestRefused
from ai_core.outbound.providers import payload
from ai_core.outbound.providers.base import Rested, SdkModels, unheard
from ai_core.outbound.providers.errors import REFUSED, empty, failure_inside
from ai_core.outbound.providers.sdk import openai_headers
from ai_core.outbound.providers.sse import Event
from ai_core.outbound.providers.streams import ChunkStream
from ai_core.outbound.providers.wire import STREAMED
from ai_core.ports import ProviderFailed
from ai_core.query import Chunk, Completion, Query, Usage

Json = Mapping[str, Any]

PATH = "/chat/completions"
_CONTENT = ("content", "refusal")
_CALLS = ("tool_calls", "function_call", "audio")
"""Members of a message or delta that are an answer without being text."""


class OpenAIModels(SdkModels):
    """One provider at ``base_url``, its ``/v1`` included. Make it inside the running loop, close it with the service.

    ``connect_limit``: seconds to get a connection; ``connections``: at most so many at once. ``rested(link, seconds)``
    hears that a well answer said that nothing more will be granted for so long. ``ask_usage``: whether the provider
    knows ``stream_options``.
    """

    models = "/models"

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
        ask_usage: bool = True,
    ) -> None:
        super().__init__(name, base_url, openai_headers(base_url, api_key), connect_limit, connections, rested, now)
        self._streaming: dict[str, Any] = {"stream": True}
        if ask_usage:
            self._streaming["stream_options"] = {"include_usage": True}

    async def complete(self, model: str, asked: Query) -> Completion:
        """The port's ``complete``."""
        body = self._body({**asked.parameters, "model": model, "messages": asked.messages})
        return completion(self.name, model, await self._answer(model, PATH, body, {}))

    def stream(self, model: str, asked: Query) -> ChunkStream:
        """The port's ``stream``."""

        async def opening() -> aiohttp.ClientResponse:
            body = {**asked.parameters, "model": model, "messages": asked.messages, **self._streaming}
            return await self._open_stream(model, PATH, self._body(body), STREAMED)

        return ChunkStream(opening, OpenAIEvents(self.name, model, _choices_asked(asked)))

    def _body(self, body: Mapping[str, Any]) -> bytes:
        return encoded(body)


def encoded(body: Mapping[str, Any]) -> bytes:
    """The request's JSON. Raises RequestRefused for what has none: halves of surrogate pairs, huge numbers."""
    try:
        return orjson.dumps(body)
    except TypeError:
        raise RequestRefused(REFUSED) from None


def completion(provider: str, model: str, body: Mapping[str, Any]) -> Completion:
    """The checked completion. Raises ProviderFailed when it is none or has no content, RequestRefused by policy."""
    choices = body.get("choices")
    if not choices and "error" in body:
        raise failure_inside(provider, model, body)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ProviderFailed("an answer without choices")
    if not _useful(message):
        raise empty(str(choice.get("finish_reason") or ""))
    return Completion(body, provider, _named(body, model), usage_of(body) or Usage(), body.get("simulated") is True)


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The count of tokens in an answer or a chunk."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


class OpenAIEvents:
    """The events of one stream, passed on as they are once they have been looked at."""

    def __init__(self, provider: str, model: str, choices: int) -> None:
        self.finished = False
        self.done = False
        self._provider = provider
        self._model = model
        self._running = choices

    def chunks(self, event: Event) -> Sequence[Chunk]:
        """Of one event, none for the end mark. Raises the port's errors."""
        name, data = event
        if data == b"[DONE]":
            self.done = True
            return ()
        body = payload.read(data)
        if name == b"error" or body.get("error"):
            raise failure_inside(self._provider, self._model, body if "error" in body else {"error": body})
        try:
            return (self._chunk(data, body),)
        except (TypeError, AttributeError):
            raise ProviderFailed("a stream with a malformed event") from None

    def _chunk(self, data: bytes, body: Json) -> Chunk:
        text, commits, reason = "", False, ""
        for choice in body.get("choices") or ():
            added, part = _added(choice.get("delta"))
            commits = commits or part
            if ended := choice.get("finish_reason"):
                self._running -= 1
                self.finished = self._running <= 0
            if not choice.get("index"):
                text, reason = text + added, reason or str(ended or "")
        if b"\n" in data or (b"\\u" in data and _unclean(data)):
            data = orjson.dumps(body)  # on one line, as it goes into an event again
        return Chunk(data, text, commits, reason, usage_of(body) if body.get("usage") else None)


def _added(delta: object) -> tuple[str, bool]:
    """What a delta adds to the text, and whether it adds anything to the answer."""
    if not isinstance(delta, dict):
        return "", False
    text = delta.get("content") or delta.get("refusal")
    if text and isinstance(text, str):
        return text, True
    return "", any(delta.get(member) for member in _CALLS)


def _useful(message: Mapping[str, Any]) -> bool:
    texts = (message.get(member) for member in _CONTENT)
    return any(isinstance(text, str) and text.strip() for text in texts) or any(message.get(part) for part in _CALLS)


def _unclean(data: bytes) -> bool:
    """Whether the bytes may hold what ``payload.read`` cleans away; a whole pair only costs writing it anew."""
    return b"\\u0000" in data or b"\\ud" in data.lower()


def _named(body: Mapping[str, Any], asked: str) -> str:
    model = body.get("model")
    return model[:MODEL_LIMIT] if isinstance(model, str) and model else asked


def _choices_asked(asked: Query) -> int:
    n = asked.parameters.get("n")
    return n if isinstance(n, int) and n > 0 else 1


def _count(tokens: object) -> int:
    return tokens if isinstance(tokens, int) and tokens > 0 else 0
