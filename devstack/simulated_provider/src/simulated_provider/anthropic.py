"""Anthropic's Messages protocol.

Source of the shapes: Anthropic API reference, "Messages", "Streaming messages" (the order of events), "Errors" (529 is
`overloaded_error`), "Rate limits" and "List models". One member is ours: `"simulated": true`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from simulated_provider.answers import said, text_of, tokens_in
from simulated_provider.values import Answer, Call, Events, Headers, Plain, Refused, Settings, Trouble

MODELS: Final = ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5", "claude-sonnet-4-6", "claude-sonnet-4-5")
SAMPLING_VERSION: Final = "2023-06-01"
"""The last version of the API that takes parameters of sampling, for models before the fifth generation."""
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
REQUEST_ID: Final = "req_simulated"

_TROUBLES: Final[Mapping[Trouble, tuple[int, str, str]]] = {
    "rate_limit": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "quota": (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "error": (500, "api_error", "Internal server error"),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "unauthorized": (401, "authentication_error", "invalid x-api-key"),
    "bad_request": (400, "invalid_request_error", "The request is not valid."),
    "too_long": (400, "invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
    "policy": (400, "invalid_request_error", "Output blocked by content filtering policy"),
    "unknown_model": (404, "not_found_error", "model: unknown"),
}


class Anthropic:
    """See `values.Dialect`."""

    models = MODELS

    def parse(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Call:
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(method, "GET")
            return Call("anthropic", "models", "", path.removeprefix("/v1/models").lstrip("/"))
        if path != "/v1/messages":
            raise Refused(error(404, "not_found_error", "Not Found"))
        _expect(method, "POST")
        data = _checked(body)
        _check_sampling(data, headers.get("anthropic-version", SAMPLING_VERSION))
        return Call("anthropic", "stream" if data.get("stream") is True else "chat", data["model"], data)

    def answer(self, call: Call, settings: Settings) -> Answer:
        if call.kind == "models":
            return self._listed(call.request)
        message = Message(call, settings)
        return message.events() if call.kind == "stream" else message.plain()

    def trouble(self, what: Trouble, call: Call | None = None) -> Plain:  # noqa: ARG002 - the same for each call
        return error(*_TROUBLES[what])

    def empty(self, call: Call) -> Answer:
        if call.kind == "models":
            return Plain(orjson.dumps({"data": [], "has_more": False, "simulated": True}))
        body = _message("msg_simulated", call.model, [], {"input_tokens": 1, "output_tokens": 0}, "end_turn")
        if call.kind == "chat":
            return Plain(orjson.dumps(body))
        return Events(_event("message_start", message={**body, "stop_reason": None}), [], _end("end_turn", 0))

    def broken(self) -> bytes:
        return b"event: error\ndata: " + self.trouble("overloaded").body + b"\n\n"

    def limits(self, remaining: int, reset: float, now: float) -> Headers:
        moment = datetime.fromtimestamp(now + reset, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return (
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", str(remaining)),
            ("anthropic-ratelimit-requests-reset", moment),
        )

    def _listed(self, wanted: str) -> Plain:
        if wanted and wanted not in MODELS:
            return self.trouble("unknown_model")
        listed = [_listing(name) for name in MODELS]
        if wanted:
            return Plain(orjson.dumps({**_listing(wanted), "simulated": True}))
        ends = {"first_id": MODELS[0], "last_id": MODELS[-1], "has_more": False}
        return Plain(orjson.dumps({"data": listed, **ends, "simulated": True}))


class Message:
    """One answered request."""

    def __init__(self, call: Call, settings: Settings) -> None:
        data = call.request
        system = [{"role": "system", "content": data["system"]}] if data.get("system") else []
        messages = [*system, *data["messages"]]
        self.model = call.model
        self.tool = _forced_tool(data)
        self.pieces, cut = said(messages, settings.answer_tokens, data["max_tokens"])
        self.text = "".join(self.pieces)
        self.reason = "tool_use" if self.tool else "max_tokens" if cut else "end_turn"
        self.prompt = sum(tokens_in(text_of(message.get("content"))) for message in messages)
        self.tokens = 1 if self.tool else tokens_in(self.text)
        digest = hashlib.sha256(f"{self.model}{self.text}".encode("utf-8", "replace")).hexdigest()[:24]
        self.id = f"msg_simulated{digest}"

    def plain(self) -> Plain:
        """The message object."""
        block = _tool_use(self.tool) if self.tool else {"type": "text", "text": self.text}
        usage = {"input_tokens": self.prompt, "output_tokens": self.tokens}
        body = _message(self.id, self.model, [block], usage, self.reason)
        return Plain(orjson.dumps(body), headers=(("request-id", REQUEST_ID),), tokens=len(self.pieces))

    def events(self) -> Events:
        """The native sequence of events; the part that all tokens share is made once."""
        usage = {"input_tokens": self.prompt, "output_tokens": 1}
        start = {**_message(self.id, self.model, [], usage, ""), "stop_reason": None}
        block = _tool_use(self.tool) if self.tool else {"type": "text", "text": ""}
        opening = _event("message_start", message=start) + _event("content_block_start", index=0, content_block=block)
        frame = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "\x00"})
        before, after = frame.split(b'"\\u0000"')
        tokens = [before + orjson.dumps(piece) + after for piece in self.pieces]
        if self.tool:
            tokens = [_event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{}"})]
        closing = _event("content_block_stop", index=0) + _end(self.reason, self.tokens)
        headers = (("cache-control", "no-cache"), ("request-id", REQUEST_ID))
        return Events(opening + PING, tokens, closing, headers)


def _message(name: str, model: str, content: list[Any], usage: dict[str, int], reason: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
        "simulated": True,
    }


def _event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **members}) + b"\n\n"


def _end(reason: str, tokens: int) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return _event("message_delta", delta=delta, usage={"output_tokens": tokens}) + STOP


def _listing(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": f"{name} (simulated)", "created_at": "2026-01-01T00:00:00Z"}


def _tool_use(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_simulated", "name": name, "input": {}}


def error(status: int, kind: str, message: str) -> Plain:
    """Anthropic's error object."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID, "simulated": True}
    return Plain(orjson.dumps(body), status, headers=(("request-id", REQUEST_ID),))


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refused(error(405, "invalid_request_error", "Method Not Allowed"))


def _checked(body: bytes) -> dict[str, Any]:
    """The request. Raises Refused."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise Refused(_invalid("The request body is not valid JSON."))
    if not isinstance(data.get("model"), str):
        raise Refused(_invalid("model: Field required"))
    if data["model"] not in MODELS:
        raise Refused(error(404, "not_found_error", f"model: {data['model'][:100]}"))
    if not isinstance(data.get("max_tokens"), int) or data["max_tokens"] < 1:
        raise Refused(_invalid("max_tokens: Field required"))
    _check_messages(data.get("messages"))
    return data


def _check_sampling(data: dict[str, Any], version: str) -> None:
    if version <= SAMPLING_VERSION and "-4-" in data["model"]:
        return
    for name in ("temperature", "top_p", "top_k"):
        if name in data:
            raise Refused(_invalid(f"{name}: Extra inputs are not permitted"))


def _check_messages(value: object) -> None:
    if not isinstance(value, list) or not value:
        raise Refused(_invalid("messages: at least one message is required"))
    for at, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise Refused(_invalid(f"messages.{at}.role: Input should be 'user' or 'assistant'"))
        if not message.get("content"):
            raise Refused(_invalid(f"messages.{at}: all messages must have non-empty content"))


def _invalid(message: str) -> Plain:
    return error(400, "invalid_request_error", message)


def _forced_tool(data: dict[str, Any]) -> str:
    """The tool that the request wants to be used in any case; "" when it leaves it to the model, which uses none."""
    choice, tools = data.get("tool_choice"), data.get("tools")
    names = [one["name"] for one in tools or [] if isinstance(one, dict) and isinstance(one.get("name"), str)]
    if not isinstance(choice, dict) or not names:
        return ""
    if choice.get("type") == "tool":
        return str(choice["name"]) if choice.get("name") in names else ""
    return names[0] if choice.get("type") == "any" else ""
