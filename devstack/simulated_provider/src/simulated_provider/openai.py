"""OpenAI's protocol, as far as clients of chat, embeddings and speech need it.

Source of the shapes: OpenAI API reference, "Create chat completion", "The chat completion chunk object", "Create
embeddings", "Create speech", "Error codes" and "Rate limits". One member is ours: `"simulated": true` on every answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from simulated_provider import audio, vectors
from simulated_provider.answers import said, text_of, tokens_in
from simulated_provider.values import Answer, Call, Events, Headers, Plain, Refused, Settings, Trouble

CHAT: Final = ("gpt-4", "gpt-3.5-turbo", "gpt-4o-mini")
EMBEDDINGS: Final = ("text-embedding-3-small",)
SPEECH: Final = ("tts-1",)
MAX_INPUTS: Final = 2048
MAX_SPEECH: Final = 4096  # characters, as the reference says
SSE_END: Final = b"data: [DONE]\n\n"

_PATHS: Final = {"/v1/chat/completions": "POST", "/v1/embeddings": "POST", "/v1/audio/speech": "POST"}
_MESSAGES: Final[Mapping[Trouble, tuple[int, str, str, str | None]]] = {
    "rate_limit": (429, "Rate limit reached.", "requests", "rate_limit_exceeded"),
    "quota": (429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
    "error": (500, "The server had an error while processing your request.", "server_error", None),
    "overloaded": (503, "The engine is currently overloaded.", "server_error", None),
    "unauthorized": (401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    "bad_request": (400, "The request is not valid.", "invalid_request_error", None),
    "too_long": (400, "Maximum context length exceeded.", "invalid_request_error", "context_length_exceeded"),
    "policy": (400, "Rejected by the safety system.", "invalid_request_error", "content_policy_violation"),
    "unknown_model": (404, "The model does not exist.", "invalid_request_error", "model_not_found"),
}


class OpenAI:
    """See `values.Dialect`."""

    models = (*CHAT, *EMBEDDINGS, *SPEECH)

    def parse(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Call:  # noqa: ARG002
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(method, "GET")
            return Call("openai", "models", "", path.removeprefix("/v1/models").lstrip("/"))
        if path not in _PATHS:
            raise Refused(error(404, f"Invalid URL ({method} {path[:100]})"))
        _expect(method, _PATHS[path])
        data = json_object(body)
        if path == "/v1/embeddings":
            return Call("openai", "embeddings", _model(data, EMBEDDINGS), _embedding_request(data))
        if path == "/v1/audio/speech":
            return Call("openai", "speech", _model(data, SPEECH), _speech_request(data))
        _messages(data)
        return Call("openai", "stream" if data.get("stream") is True else "chat", _model(data, CHAT), data)

    def answer(self, call: Call, settings: Settings) -> Answer:
        match call.kind:
            case "models":
                return self._listed(call.request)
            case "embeddings":
                return _embedded(call)
            case "speech":
                return _spoken(call)
            case "stream":
                return Completion(call, settings).events()
            case _:
                return Completion(call, settings).plain()

    def trouble(self, what: Trouble, call: Call | None = None) -> Plain:  # noqa: ARG002 - the same for each call
        status, message, kind, code = _MESSAGES[what]
        return error(status, message, kind=kind, code=code)

    def empty(self, call: Call) -> Answer:
        if call.kind == "speech":
            return Plain(b"", content_type="audio/wav")
        if call.kind == "stream":
            return Events(_event(call.model, []), [], SSE_END)
        member: dict[str, Any] = {"choices": []} if call.kind == "chat" else {"data": []}
        return Plain(orjson.dumps({"id": "chatcmpl-simulated", "object": "list", **member, "simulated": True}))

    def broken(self) -> bytes:
        return b"data: " + self.trouble("error").body + b"\n\n"

    def limits(self, remaining: int, reset: float, now: float) -> Headers:  # noqa: ARG002 - durations here
        return (
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", str(remaining)),
            ("x-ratelimit-reset-requests", f"{reset:g}s"),
            ("x-ratelimit-limit-tokens", "30000"),
            ("x-ratelimit-remaining-tokens", "29000"),
            ("x-ratelimit-reset-tokens", "2s"),
        )

    def _listed(self, wanted: str) -> Plain:
        if wanted and wanted not in self.models:
            return self.trouble("unknown_model")
        found = [{"id": name, "object": "model", "created": 0, "owned_by": "simulated"} for name in self.models]
        if wanted:
            return Plain(orjson.dumps({**found[self.models.index(wanted)], "simulated": True}))
        return Plain(orjson.dumps({"object": "list", "data": found, "simulated": True}))


class Completion:
    """One answered chat request."""

    def __init__(self, call: Call, settings: Settings) -> None:
        data = call.request
        self.model, self.created = call.model, int(time.time())
        self.tool = _forced_tool(data)
        self.pieces, self.cut = said(data["messages"], settings.answer_tokens, _most(data))
        if _wants_json(data):
            self.pieces = [orjson.dumps({"simulated": True, "answer": "".join(self.pieces)}).decode()]
        self.text = "" if self.tool else "".join(self.pieces)
        prompt = sum(tokens_in(text_of(message.get("content"))) for message in data["messages"])
        answered = tokens_in(self.text) + len(self.tool)
        self.usage = {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered}
        self.with_usage = (data.get("stream_options") or {}).get("include_usage") is True
        digest = hashlib.sha256(f"{self.created}{self.model}{self.text}".encode("utf-8", "replace")).hexdigest()[:24]
        self.id = f"chatcmpl-simulated-{digest}"

    @property
    def reason(self) -> str:
        return "tool_calls" if self.tool else "length" if self.cut else "stop"

    def plain(self) -> Plain:
        """The `chat.completion` object."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None, "refusal": None}
        if self.tool:
            message["tool_calls"] = [_tool_call(self.tool)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.reason}
        body = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": self.usage,
            "simulated": True,
        }
        return Plain(orjson.dumps(body), tokens=len(self.pieces))

    def events(self) -> Events:
        """The `chat.completion.chunk` objects; the part that all tokens share is made once."""
        frame = self._event([{"index": 0, "delta": {"content": "\x00"}, "logprobs": None, "finish_reason": None}])
        before, after = frame.split(b'"\\u0000"')
        tokens = [before + orjson.dumps(piece) + after for piece in self.pieces]
        if self.tool:
            delta = {"tool_calls": [{"index": 0, **_tool_call(self.tool)}]}
            tokens = [self._event([_choice(delta)])]
        opening = self._event([_choice({"role": "assistant", "content": None if self.tool else "", "refusal": None})])
        return Events(opening, tokens, self._closing())

    def _closing(self) -> bytes:
        closing = self._event([_choice({}, self.reason)])
        if self.with_usage:
            closing += self._event([], usage=self.usage)
        return closing + SSE_END

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": None} if self.with_usage else {}
        return _event(self.model, choices, id=self.id, created=self.created, **{**usage, **more})


def _event(model: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
    known = {"id": "chatcmpl-simulated", "object": "chat.completion.chunk", "created": 0, "model": model}
    return b"data: " + orjson.dumps({**known, "choices": choices, "simulated": True, **more}) + b"\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _tool_call(name: str) -> dict[str, Any]:
    return {"id": "call_simulated", "type": "function", "function": {"name": name, "arguments": "{}"}}


def error(
    status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> Plain:
    """OpenAI's error object."""
    body = {"message": message, "type": kind, "param": param, "code": code}
    return Plain(orjson.dumps({"error": body, "simulated": True}), status)


def json_object(body: bytes) -> dict[str, Any]:
    """Raises Refused."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(error(400, "We could not parse the JSON body of your request.")) from None
    if not isinstance(data, dict):
        raise Refused(error(400, "The body must be a JSON object."))
    return data


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refused(error(405, f"Not allowed to {method[:10]} here."))


def _model(data: dict[str, Any], known: tuple[str, ...]) -> str:
    value = data.get("model")
    if not isinstance(value, str) or not value:
        raise Refused(error(400, "you must provide a model parameter", param="model"))
    if value not in known:
        raise Refused(error(404, "The model does not exist.", code="model_not_found", param="model"))
    return value


def _messages(data: dict[str, Any]) -> None:
    value = data.get("messages")
    if not isinstance(value, list) or not value:
        raise Refused(error(400, "'messages' must be a non-empty array.", param="messages"))
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value):
        raise Refused(error(400, "Each message must be an object with a 'role'.", param="messages"))
    for member, kind in (("stream_options", dict), ("tools", list), ("response_format", dict)):
        if data.get(member) is not None and not isinstance(data[member], kind):
            raise Refused(error(400, f"'{member}' has the wrong type.", param=member))


def _most(data: dict[str, Any]) -> int | None:
    """Tokens of the answer at most, as far as the request says."""
    for member in ("max_completion_tokens", "max_tokens"):
        value = data.get(member)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _wants_json(data: dict[str, Any]) -> bool:
    return (data.get("response_format") or {}).get("type") in ("json_object", "json_schema")


def _forced_tool(data: dict[str, Any]) -> str:
    """The function that the request wants to be called in any case; "" when it leaves it to the model, which calls
    none."""
    choice = data.get("tool_choice")
    tools = [one.get("function") for one in data.get("tools") or [] if isinstance(one, dict)]
    names = [tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        wanted = choice["function"].get("name")
        return wanted if wanted in names else ""
    return names[0] if choice == "required" and names else ""


def _embedding_request(data: dict[str, Any]) -> tuple[list[str], int, bool]:
    """Texts, dimensions, and whether they are wanted in base64. Raises Refused."""
    given = data.get("input")
    items = [given] if isinstance(given, str) or _is_tokens(given) else given
    if not isinstance(items, list) or not items or len(items) > MAX_INPUTS:
        raise Refused(error(400, "'input' must be a text or up to 2048 of them.", param="input"))
    texts = [one if isinstance(one, str) else str(one) if _is_tokens(one) else "" for one in items]
    if not all(texts):
        raise Refused(error(400, "'$.input' is invalid.", param="input"))
    dimensions = data.get("dimensions", vectors.DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= vectors.DIMENSIONS:
        raise Refused(error(400, "'dimensions' is out of range.", param="dimensions"))
    return texts, dimensions, data.get("encoding_format") == "base64"


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, int) for one in value)


def _embedded(call: Call) -> Plain:
    texts, dimensions, packed = call.request
    found = [vectors.vector_of(text, dimensions) for text in texts]
    made: list[Any] = [vectors.as_base64(vector) if packed else vector.tolist() for vector in found]
    data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(made)]
    tokens = sum(map(tokens_in, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    listed = {"object": "list", "data": data, "model": call.model, "usage": usage, "simulated": True}
    return Plain(orjson.dumps(listed))


def _speech_request(data: dict[str, Any]) -> tuple[str, bool]:
    """The text, and whether raw samples are wanted. Raises Refused."""
    text = data.get("input")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_SPEECH:
        raise Refused(error(400, f"'input' must have 1 to {MAX_SPEECH} characters.", param="input"))
    if not isinstance(data.get("voice"), str | dict) or not data["voice"]:
        raise Refused(error(400, "you must provide a voice parameter", param="voice"))
    return text, data.get("response_format") == "pcm"


def _spoken(call: Call) -> Plain:
    text, raw = call.request
    seconds = audio.length_of(text)
    return (
        Plain(audio.samples(seconds), content_type="audio/pcm")
        if raw
        else Plain(audio.wav(seconds), content_type="audio/wav")
    )
