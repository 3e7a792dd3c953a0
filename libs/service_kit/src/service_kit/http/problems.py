"""Errors as application/problem+json (RFC 9457): the handlers, and how the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from resilience.errors import QueueFull as QueueIsFull
from resilience.errors import QueueUnavailable, ResilienceError
from service_kit import context, errors
from service_kit.errors import ErrorReason, ServiceError
from service_kit.runtime import ServiceRuntime

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBLEM_JSON = "application/problem+json"
MAX_DETAILS = 50
_ORDINARY = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    422: errors.ValidationFailed,
    429: errors.RateLimited,
}
_TEXTS = {
    400: "The request cannot be understood.",
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
}
_DESCRIPTIONS = {
    400: "The request cannot be understood.",
    401: "No valid credentials.",
    403: "Not allowed.",
    404: "No such thing.",
    405: "Not a method of this address.",
    409: "Contradicts the present state.",
    413: "The body is too large.",
    422: "Wrong values; `details` names the fields.",
    429: "Too many requests, or the circuit of a dependency is open.",
    500: "An unexpected error.",
    503: "A dependency is not available; the answer says when to retry, and whether a write was saved.",
    504: "Not answered in time.",
}


def respond(error: ServiceError) -> Response:
    """The error as a response, with its headers; notes the reason for the metrics."""
    state = context.current()
    if state is not None:
        state.error = error.reason.value
        if state.shape is not None:
            response: Response = state.shape(error)
            return response
    body = orjson.dumps(errors.to_problem(error, context.request_id()), default=str)
    headers = dict(errors.error_fields(error, context.degradations()))
    return Response(body, error.status, headers, PROBLEM_JSON)


def from_http(error: HTTPException) -> ServiceError:
    """A framework's own error in the platform's form; its text is kept only where we wrote it."""
    status = error.status_code
    text = _TEXTS.get(status) or (str(error.detail) if status < 500 else errors.INTERNAL_MESSAGE)
    kind = _ORDINARY.get(status)
    if kind is not None:
        return kind(text, headers=error.headers)
    reason = ErrorReason.VALIDATION_ERROR if status < 500 else ErrorReason.INTERNAL_ERROR
    return ServiceError(text, reason=reason, status=status, headers=error.headers)


def from_validation(found: Sequence[Mapping[str, Any]]) -> ServiceError:
    """A validation error with one text per field. Values are not repeated: they may be secrets."""
    details: dict[str, str] = {}
    for item in found[:MAX_DETAILS]:
        place = [str(part) for part in item["loc"]]
        name = ".".join(place[1:]) or place[0]
        details.setdefault(_printable(name), _printable(str(item["msg"])))
    return errors.ValidationFailed("The request is not valid.", details=details)


def from_resilience(error: ResilienceError, runtime: ServiceRuntime) -> ServiceError:
    """A failure of a dependency that nobody translated: the row is found by the name of its circuit."""
    if isinstance(error, QueueIsFull):
        return errors.QueueFull("Too many changes are waiting; this one was not accepted.", queued=False)
    if isinstance(error, QueueUnavailable):
        return errors.DependencyUnavailable("The service is temporarily not available.", queued=False)
    return errors.translate(error, runtime.policies.get(getattr(error, "name", "")))


def allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """Every method of the request's address; the framework names only those of the first route that matches."""
    scopes = {method: {**request.scope, "method": method, "path_params": {}} for method in METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
    ]


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:200]


def install(app: FastAPI, runtime: ServiceRuntime) -> None:
    """Register the handlers and the document."""

    async def service(_: Request, error: Any) -> Response:
        return respond(error)

    async def http(request: Request, error: Any) -> Response:
        found = from_http(error)
        if found.status == 405:
            found.headers = {"allow": ", ".join(allowed_methods(app, request))}
        return respond(found)

    async def validation(_: Request, error: Any) -> Response:
        return respond(from_validation(error.errors()))

    async def resilience(_: Request, error: Any) -> Response:
        return respond(from_resilience(error, runtime))

    app.add_exception_handler(ServiceError, service)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(ResilienceError, resilience)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of routes that may fail with these statuses; all the usual ones when none is named."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {PROBLEM_JSON: {"schema": schema}}}
        for status in statuses or _DESCRIPTIONS
    }


PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with the platform's own members.",
    "type": "object",
    "required": ["type", "title", "status", "error", "message", "request_id", "timestamp"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "error": {"type": "string", "enum": [reason.value for reason in ErrorReason]},
        "message": {"type": "string"},
        "request_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "suggestion": {"type": "string"},
        "details": {"type": "object", "additionalProperties": True},
        "retry_after": {"type": "integer", "minimum": 1, "description": "Seconds."},
        "queued": {"type": "boolean"},
        "operation_id": {"type": "string"},
        "status_url": {"type": "string"},
        "row": {"type": "string"},
    },
}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the problem schema, and without FastAPI's own error bodies."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for own in ("HTTPValidationError", "ValidationError"):
        schemas.pop(own, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for response in _responses(document):
        content = response.get("content", {})
        if PROBLEM_JSON in content:
            content.pop("application/json", None)
    return document


def _responses(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for path in document.get("paths", {}).values():
        for operation in path.values():
            if isinstance(operation, dict):
                yield from operation.get("responses", {}).values()
