"""The OpenAI chat completions wire format, as far as clients of a chat need it.

Source of the shapes: OpenAI API reference, "Create chat completion", "The chat completion chunk object" and
"Error codes". One member is ours: `"simulated": true` on every answer.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from simulated_provider.answers import MODELS, answer_to, pieces_of, text_of, tokens_in


class InvalidRequestError(Exception):
    """The request is not one this format knows; carries OpenAI's error members."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code},
            "simulated": True,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """One answered request."""

    id: str
    created: int
    model: str
    text: str
    prompt_tokens: int

    def usage(self) -> dict[str, int]:
        """Token counts of the answer."""
        completion = tokens_in(self.text)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The members of a request that change the answer."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    include_usage: bool


def parse(body: bytes) -> ChatRequest:
    """Read a request body. Raises InvalidRequestError with the status and code OpenAI would give."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(data, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    options = data.get("stream_options")
    return ChatRequest(
        model=_model(data.get("model")),
        messages=_messages(data.get("messages")),
        stream=data.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _model(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("you must provide a model parameter", param="model")
    if value not in MODELS:
        raise InvalidRequestError("The model does not exist.", status=404, code="model_not_found", param="model")
    return value


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("'messages' must be a non-empty array.", param="messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequestError("Each message must be an object with a 'role'.", param="messages")
    return value


def complete(request: ChatRequest, created: int) -> Completion:
    """Answer a request; `created` is unix time in seconds."""
    text = answer_to(request.messages)
    digest = hashlib.sha256(f"{created}{request.model}{text}".encode("utf-8", "replace")).hexdigest()[:24]
    prompt = sum(tokens_in(text_of(message.get("content"))) for message in request.messages)
    return Completion(f"chatcmpl-simulated-{digest}", created, request.model, text, prompt)


def as_json(completion: Completion) -> dict[str, Any]:
    """The `chat.completion` object."""
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    return {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": completion.usage(),
        "simulated": True,
    }


def as_events(completion: Completion, *, include_usage: bool) -> Iterator[str]:
    """The server-sent events of a streamed answer, the closing `[DONE]` included."""
    yield _event(completion, [_choice({"role": "assistant", "content": ""})])
    for piece in pieces_of(completion.text):
        yield _event(completion, [_choice({"content": piece})])
    yield _event(completion, [_choice({}, finish_reason="stop")])
    if include_usage:
        yield _event(completion, [], usage=completion.usage())
    yield "data: [DONE]\n\n"


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(completion: Completion, choices: list[dict[str, Any]], **extra: Any) -> str:
    chunk = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created,
        "model": completion.model,
        "choices": choices,
        "simulated": True,
        **extra,
    }
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
