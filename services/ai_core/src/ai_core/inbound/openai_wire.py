"""OpenAI's wire format as callers of ``/v1`` speak it: what is read from their requests, and how errors look to them.

By hand, as these bodies are large, and most of what is in them is the provider's business alone. Source of the shapes:
OpenAI API reference, "Create chat completion", "Create embeddings" and "Error codes".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response

from ai_core.model import EMBEDDED_TEXTS, MODEL_LIMIT
from ai_core.query import Query
from service_kit import context
from service_kit.errors import BadRequest, ErrorReason, NotFound, ServiceError, error_fields

AUTO = "auto"
"""The name of the chain's first model, whatever that is."""
DEPTH_LIMIT = 100
"""Levels of nesting in a body; deeper ones could be read and not be written again."""
NOT_PARAMETERS = frozenset({"model", "messages", "stream", "stream_options"})
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])")
_NUMBER = (int, float)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "frequency_penalty": _NUMBER,
    "functions": (list,),
    "logit_bias": (dict,),
    "max_completion_tokens": (int,),
    "max_tokens": (int,),
    "metadata": (dict,),
    "n": (int,),
    "presence_penalty": _NUMBER,
    "response_format": (dict,),
    "seed": (int,),
    "stop": (str, list),
    "stream": (bool,),
    "stream_options": (dict,),
    "temperature": _NUMBER,
    "tool_choice": (str, dict),
    "tools": (list,),
    "top_p": _NUMBER,
    "user": (str,),
}
_WORDS = {bool: "a boolean", dict: "an object", float: "a number", int: "an integer", list: "an array", str: "a string"}


class BadParameter(BadRequest):
    """The request is wrong in ``param``; ``code`` is OpenAI's, where it has one."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NoSuchModel(NotFound):
    """No link of the chain has the model."""

    param = "model"
    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__("The model does not exist here. GET /v1/models lists those that do.")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A query, and how its answer is wanted."""

    query: Query
    stream: bool
    include_usage: bool


class EmbeddingRequest(NamedTuple):
    """Texts to be embedded; ``dimensions`` 0: as many as the model makes."""

    texts: list[str]
    model: str
    base64: bool
    dimensions: int


def chat_request(raw: bytes, tenant: str, cache_control: str = "") -> ChatRequest:
    """The request in a body. Raises BadParameter."""
    body = _object(raw)
    model = _model(body)
    messages = _messages(body.get("messages"))
    _check_types(body)
    usage = (body.get("stream_options") or {}).get("include_usage")
    if not isinstance(usage, bool | None):
        raise BadParameter("'stream_options.include_usage' must be a boolean.", "stream_options")
    found = _MAX_AGE.search(cache_control) if cache_control else None
    asked = Query(
        messages,
        tenant,
        {name: value for name, value in body.items() if name not in NOT_PARAMETERS},
        prefer="" if model == AUTO else model,
        fresh_seconds=float(found[1]) if found else 0.0,
        keep="no-store" not in cache_control,
    )
    return ChatRequest(asked, body.get("stream") is True, usage is True)


def embedding_request(raw: bytes) -> EmbeddingRequest:
    """The request in a body. Raises BadParameter."""
    body = _object(raw)
    model = _model(body)
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadParameter("'encoding_format' must be 'float' or 'base64'.", "encoding_format")
    dimensions = body.get("dimensions") or 0
    if type(dimensions) is not int or dimensions < 0:
        raise BadParameter("'dimensions' must be a positive integer.", "dimensions")
    return EmbeddingRequest(_texts(body.get("input")), "" if model == AUTO else model, form == "base64", dimensions)


def error_response(error: ServiceError) -> Response:
    """The platform's error in OpenAI's shape, with the platform's headers."""
    return Response(
        orjson.dumps({"error": error_object(error)}),
        400 if error.status == 422 else error.status,
        dict(error_fields(error, context.degradations())),
        "application/json",
    )


def error_object(error: ServiceError) -> dict[str, Any]:
    """What is in the member ``error``."""
    details = error.details or {}
    problems = "; ".join(f"{name}: {problem}" for name, problem in details.items())
    return {
        "message": f"{error.message} {problems}".rstrip(),
        "type": _type(error),
        "param": getattr(error, "param", next(iter(details), None)),
        "code": getattr(error, "code", None) or _CODES.get(error.reason, error.reason.value.lower()),
        "request_id": context.request_id(),
    }


_CODES = {ErrorReason.UNAUTHORIZED: "invalid_api_key", ErrorReason.RATE_LIMITED: "rate_limit_exceeded"}


def _type(error: ServiceError) -> str:
    if error.status == 429:
        return "rate_limit_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise BadParameter("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise BadParameter("The body must be a JSON object.")
    if raw.count(b"[") + raw.count(b"{") > DEPTH_LIMIT and _too_deep(body, DEPTH_LIMIT):
        raise BadParameter(f"The body is nested more than {DEPTH_LIMIT} levels deep.")
    return body


def _too_deep(value: object, left: int) -> bool:
    if isinstance(value, dict):
        return left == 0 or any(_too_deep(item, left - 1) for item in value.values())
    return isinstance(value, list) and (left == 0 or any(_too_deep(item, left - 1) for item in value))


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_LIMIT:
        raise BadParameter("You must provide a model parameter: a model of GET /v1/models, or 'auto'.", "model")
    return model


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadParameter("'messages' must be a non-empty array.", "messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadParameter("Each message must be an object with a 'role'.", f"messages[{place}]")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            _check_objects(content, f"messages[{place}].content")
        if (calls := message.get("tool_calls")) is not None:
            _check_objects(calls, f"messages[{place}].tool_calls")
    return messages


def _check_types(body: Mapping[str, Any]) -> None:
    for name in _TYPES.keys() & body.keys():
        value, kinds = body[name], _TYPES[name]
        if value is None or (isinstance(value, kinds) and (kinds == (bool,) or not isinstance(value, bool))):
            continue
        words = " or ".join(_WORDS[kind] for kind in kinds if kind is not int or kinds != _NUMBER)
        raise BadParameter(f"'{name}' must be {words}.", name)
    if (tools := body.get("tools")) is not None:
        _check_objects(tools, "tools")


def _check_objects(value: object, place: str) -> None:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadParameter(f"'{place}' must be an array of objects.", place)


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= EMBEDDED_TEXTS:
        raise BadParameter(f"'input' must be a text, or an array of 1 to {EMBEDDED_TEXTS} texts.", "input")
    if not all(isinstance(text, str) for text in texts):
        raise BadParameter("'input' must be texts; tokens cannot be embedded here.", "input")
    if not all(texts):
        raise BadParameter("'input' must not contain empty texts.", "input")
    return texts
