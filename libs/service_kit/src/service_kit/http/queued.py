"""The answer to a write that was accepted and will be applied: 503, or 202 for who prefers that (RFC 7240)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response

from resilience.matrix import Row
from resilience.outcome import Served
from service_kit import context
from service_kit.errors import DependencyUnavailable, to_problem

from .answers import json_response


def queued_answer(
    served: Served[Any],
    operation_id: str,
    row: Row,
    text: str,
    *,
    prefer: str | None = None,
    accepted: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """The promise, and where to see that it is kept.

    ``row``: whose target is away, when ``served`` names none; ``prefer``: the request's header; ``accepted``: 202
    without being asked for; ``more``: further members of the body of a 202. Raises DependencyUnavailable for the 503.
    """
    asked = prefer is not None and "respond-async" in prefer.lower()
    first = served.degradations[0] if served.degradations else None
    wait = first.retry_after if first else None
    error = DependencyUnavailable(
        text,
        status=202 if asked or accepted else 503,
        row=first.row if first and first.row else row.id,
        retry_after=row.probe_interval if wait is None else wait,
        queued=True,
        operation_id=operation_id,
        status_url=f"/api/v1/operations/{operation_id}",
        suggestion="Look at status_url to see when it is applied.",
    )
    if error.status == 503:
        raise error
    headers = {"location": error.status_url or "", **({"preference-applied": "respond-async"} if asked else {})}
    return json_response({**to_problem(error, context.request_id()), **(more or {})}, status=202, headers=headers)
