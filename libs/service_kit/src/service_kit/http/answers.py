"""Answers of use cases as responses: provenance goes into body, headers and the request's context."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Response

from resilience.outcome import Served
from service_kit import context

JSON = "application/json"


def json_response(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any value that orjson can write, as JSON."""
    return Response(orjson.dumps(body, default=str), status, headers, JSON)


def served_json(
    served: Served[Any], body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The body of an outcome; a copy served by a fallback also says `stale`, `as_of`, `pending`, and its Age."""
    context.report(served)
    found = dict(headers or {})
    extra: dict[str, Any] = {}
    if served.as_of is not None and served.degraded:
        extra = {"stale": True, "as_of": stamp(served.as_of)}
        found["age"] = str(max(0, int(time.time() - served.as_of)))
    if served.pending:
        extra["pending"] = True
    return json_response({**body, **extra}, status=status, headers=found)


def stamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
