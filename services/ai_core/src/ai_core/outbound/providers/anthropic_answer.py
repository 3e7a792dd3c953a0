"""Anthropic's messages and stream events as OpenAI's completions and chunks.

Sources: Anthropic API reference, "Create a Message", "Streaming Messages", "Stop reasons"; OpenAI API reference, "The
chat completion object".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ai_core.model import MODEL_LIMIT
from ai_core.outbound.providers import payload
from ai_core.outbound.providers.errors import failure_inside
from ai_core.outbound.providers.sse import Event
from ai_core.ports import ProviderFailed
from ai_core.query import Chunk, Usage

Json = Mapping[str, Any]

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""``pause_turn``: the turn is not at its end, which "length" says; only tools of the server's own cause it."""


def finish_reason(stop_reason: object) -> str:
    """OpenAI's word; "stop" for reasons that are newer than the table."""
    return _REASONS.get(str(stop_reason), "stop")


def completion_body(message: Json, model: str, created: int) -> dict[str, Any]:
    """A whole message as a ``chat.completion`` object. Raises ProviderFailed when it is no message."""
    blocks = message.get("content")
    if message.get("type") != "message" or not isinstance(blocks, list):
        raise ProviderFailed("an answer that is no message")
    choice = {"index": 0, "message": _spoken(blocks), "finish_reason": finish_reason(message.get("stop_reason"))}
    head = _head("chat.completion", message, model, created)
    return {**head, "choices": [{**choice, "logprobs": None}], "usage": usage_body(_usage(message.get("usage")))}


def usage_body(usage: Usage) -> Json:
    """OpenAI's ``usage`` object."""
    total = usage.prompt + usage.completion
    return {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total}


class AnthropicEvents:
    """The events of one stream."""

    def __init__(self, provider: str, model: str, created: int) -> None:
        self.finished = False
        self.done = False
        self._provider = provider
        self._model = model
        self._created = created
        self._head: Json = {}
        self._text_open = b""
        self._calls = -1
        self._input = 0
        self._output = 0

    def chunks(self, event: Event) -> list[Chunk]:
        """Of one event; none for pings, thinking and what only opens or closes a block. Raises the port's errors."""
        body = payload.read(event[1])
        kind = body.get("type")
        try:
            if kind == "content_block_delta":
                return self._delta(body["delta"])
            if kind == "content_block_start":
                return self._block(body["content_block"])
            return self._frame(kind, body)
        except (KeyError, TypeError, AttributeError):
            raise ProviderFailed("a stream with a malformed event") from None

    def _frame(self, kind: object, body: Json) -> list[Chunk]:
        if kind == "error":
            raise failure_inside(self._provider, self._model, body)
        if kind == "message_start":
            return [self._start(body["message"])]
        if kind == "message_delta":
            return self._end(body)
        self.done = kind == "message_stop"
        return []

    def _start(self, message: Json) -> Chunk:
        self._head = _head("chat.completion.chunk", message, self._model, self._created)
        self._text_open = orjson.dumps(self._head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._count(message.get("usage"))
        return Chunk(self._chunk({"role": "assistant", "content": ""}))

    def _delta(self, delta: Json) -> list[Chunk]:
        if delta["type"] == "text_delta":
            return [self._text(delta["text"])] if delta["text"] else []
        if delta["type"] == "input_json_delta" and delta["partial_json"] and self._calls >= 0:
            return [self._call({"function": {"arguments": "" + delta["partial_json"]}})]
        return []

    def _block(self, block: Json) -> list[Chunk]:
        if block["type"] == "text" and block.get("text"):
            return [self._text(block["text"])]
        if block["type"] != "tool_use":
            return []
        self._calls += 1
        function = {"name": block["name"], "arguments": ""}
        return [self._call({"id": block["id"], "type": "function", "function": function})]

    def _text(self, text: str) -> Chunk:
        if not self._text_open or not isinstance(text, str):
            raise ProviderFailed("a stream with text out of place")
        data = self._text_open + orjson.dumps(text) + b'},"logprobs":null,"finish_reason":null}]}'
        return Chunk(data, text, commits=True)

    def _call(self, call: Json) -> Chunk:
        return Chunk(self._chunk({"tool_calls": [{"index": self._calls, **call}]}), commits=True)

    def _end(self, body: Json) -> list[Chunk]:
        """The finish reason, and the count of tokens in a chunk of its own, as OpenAI's streams end."""
        self._count(body.get("usage"))
        stopped = body["delta"].get("stop_reason")
        if not stopped or self.finished:
            return []
        self.finished = True
        reason = finish_reason(stopped)
        usage = Usage(self._input, self._output)
        counted = orjson.dumps({**self._head, "choices": [], "usage": usage_body(usage)})
        return [Chunk(self._chunk({}, reason), finish_reason=reason), Chunk(counted, usage=usage)]

    def _chunk(self, delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return orjson.dumps({**self._head, "choices": [choice]})

    def _count(self, usage: object) -> None:
        """Counts are totals so far; the last event may repeat those of the first or leave them out."""
        counted = _usage(usage)
        self._input = counted.prompt or self._input
        self._output = counted.completion or self._output


def _head(kind: str, message: Json, model: str, created: int) -> Json:
    named = message.get("model")
    head = {"id": f"chatcmpl-{message.get('id', '')}", "object": kind, "created": created}
    head["model"] = named[:MODEL_LIMIT] if isinstance(named, str) and named else model
    return {**head, "simulated": True} if message.get("simulated") is True else head


def _spoken(blocks: Sequence[Json]) -> Json:
    """The message object of blocks; thinking is not part of it. Raises ProviderFailed."""
    try:
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        calls = [_called(block) for block in blocks if block["type"] == "tool_use"]
    except (KeyError, TypeError):
        raise ProviderFailed("an answer with a malformed block") from None
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    return {**message, "tool_calls": calls} if calls else message


def _called(block: Json) -> Json:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _usage(usage: object) -> Usage:
    """Cached parts of the prompt are counted apart there."""
    if not isinstance(usage, dict):
        return Usage()
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return Usage(sum(_tokens(usage.get(name)) for name in names), _tokens(usage.get("output_tokens")))


def _tokens(count: object) -> int:
    return count if isinstance(count, int) and count > 0 else 0
