"""How the OpenAPI document describes ``/v1``, whose bodies are read by hand."""

from __future__ import annotations

from typing import Any

from ai_core.model import EMBEDDED_TEXTS, MODEL_LIMIT

Json = dict[str, Any]
Responses = dict[int | str, Json]

_ANY: Json = {"type": "object", "additionalProperties": True}
_NAME: Json = {"type": "string", "minLength": 1, "maxLength": MODEL_LIMIT}
_TEXT: Json = {"type": "string", "minLength": 1}
_AURALINK: Json = {
    "type": "object",
    "description": "Who really answered.",
    "properties": {
        "provider": {"type": "string"},
        "model": {"type": "string"},
        "cached": {"type": "boolean"},
        "as_of": {"type": ["string", "null"], "format": "date-time"},
        "fallback_from": {"type": ["string", "null"], "description": "Who should have answered, when another did."},
        "simulated": {"type": "boolean"},
        "cost": {"type": ["number", "null"], "description": "US dollars, when the price is known."},
    },
}
_MESSAGE: Json = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}],
        },
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
    },
}
_CHAT: Json = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {**_NAME, "description": "A model of the chain, provider:model, or auto.", "examples": ["auto"]},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}}},
    },
    "additionalProperties": True,
    "description": "All further members are passed on to the provider.",
}
_EMBEDDINGS: Json = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": _NAME,
        "input": {
            "anyOf": [
                _TEXT,
                {"type": "array", "minItems": 1, "maxItems": EMBEDDED_TEXTS, "items": _TEXT},
            ]
        },
        "encoding_format": {"enum": ["float", "base64", None]},
        "dimensions": {"type": ["integer", "null"], "minimum": 0},
    },
}
_MODEL: Json = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
        }
    },
}
_DESCRIPTIONS = {
    400: "The request is wrong; `param` says where.",
    401: "No valid access token.",
    404: "No such model.",
    405: "Not a method of this address.",
    413: "The body is too large.",
    422: "Not used here.",
    429: "Asked to wait.",
    500: "An unexpected error.",
    503: "All AI providers unavailable; Retry-After says when one may be back.",
    504: "Not answered in time.",
}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _answer(text: str, content: Json) -> Responses:
    return {200: {"description": text, "content": content}}


def _body(schema: Json) -> Json:
    return {**SECURED, "requestBody": {"required": True, "content": _json(schema)}}


SECURED: Json = {"security": [{"HTTPBearer": []}]}
ERRORS: Responses = {status: {"description": text, "content": _json(_ERROR)} for status, text in _DESCRIPTIONS.items()}
ASK_CHAT = _body(_CHAT)
ASK_EMBEDDINGS = _body(_EMBEDDINGS)
CHAT = _answer(
    "A `chat.completion`, or with `stream` its `chat.completion.chunk`s. An answer that breaks off ends with an event "
    "whose data has the member `error`, and without [DONE].",
    {
        **_json({**_ANY, "properties": {"auralink": _AURALINK}}),
        "text/event-stream": {},
    },
)
EMBEDDINGS = _answer("The embeddings, in the order of the texts.", _json(_ANY))
MODELS = _answer(
    "The models of the chain.",
    _json(
        {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
        }
    ),
)
MODEL = _answer("A model of the chain.", _json(_MODEL))
