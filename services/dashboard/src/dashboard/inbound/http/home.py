"""The home page's data: ``GET /api/v1/dashboard``, made of parts that fail one by one."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.degradation import PARTIAL_ANSWER
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.usecases.home import Home, PartLeftOut, PartTooSlow
from resilience import Degradation, Served
from service_kit import context, logs
from service_kit.errors import ServiceError
from service_kit.http import json_response, problem_responses, stamp
from service_kit.provenance import whole_seconds
from service_kit.tokens import Claims

log = logs.get_logger("home")
Bodies = Mapping[str, Callable[[Served[Any]], dict[str, Any]]]

LEFT_OUT = "left out while the service is degraded"
TOO_SLOW = "not answered in time"
BROKEN = "an unexpected error"

Shown = Annotated[dict[str, Any] | None, Field(description="Null when the part failed; then its error says why.")]
Reason = Annotated[str | None, Field(description="Why the part is null.")]
Wait = Annotated[int | None, Field(description="Seconds after which the part may be there again.")]


class HomeView(BaseModel):
    """Each part, or why it is not there. A part that a fallback served says ``stale`` and ``as_of`` itself."""

    status: Literal["ok", "partial"]
    user: Shown = None
    user_error: Reason = None
    user_retry_after: Wait = None
    rooms: Shown = None
    rooms_error: Reason = None
    rooms_retry_after: Wait = None
    calls: Shown = None
    calls_error: Reason = None
    calls_retry_after: Wait = None
    agents: Shown = None
    agents_error: Reason = None
    agents_retry_after: Wait = None
    analytics: Shown = None
    analytics_error: Reason = None
    analytics_retry_after: Wait = None
    operations: Shown = None
    operations_error: Reason = None
    operations_retry_after: Wait = None


def create_router(home: Home, bodies: Bodies, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """``bodies``: the public form of each part."""
    router = APIRouter(prefix="/api/v1/dashboard", tags=["dashboard"], responses=problem_responses(401, 429))

    @router.get("", response_model=HomeView)
    async def show(caller: Annotated[Claims, Depends(doorman.user)]) -> Response:
        """Everything of the home page at once. It is there whatever is away; what is missing is named."""
        found = await home.show(caller.user_id)
        body: dict[str, Any] = {}
        for name, part in found.items():
            body |= await _failed(name, part, outcome) if isinstance(part, Exception) else _shown(name, part, bodies)
        status = "partial" if any(isinstance(part, Exception) for part in found.values()) else "ok"
        return json_response({"status": status, **body})

    return router


def _shown(name: str, part: Served[Any], bodies: Bodies) -> dict[str, Any]:
    context.report(part)
    body = bodies[name](part)
    if part.as_of is not None and part.degraded:
        body |= {"stale": True, "as_of": stamp(part.as_of)}
    if part.pending:
        body["pending"] = True
    return {name: body}


async def _failed(name: str, error: Exception, outcome: Outcome) -> dict[str, Any]:
    text, wait, missing = await _told(name, error, outcome)
    context.degrade(missing)
    body: dict[str, Any] = {name: None, f"{name}_error": text}
    return body if wait is None else {**body, f"{name}_retry_after": whole_seconds(wait)}


async def _told(name: str, error: Exception, outcome: Outcome) -> tuple[str, float | None, Degradation]:
    """What is said of a part that is not there: why, for how long, and the mark of an incomplete answer."""
    match error:
        case PartLeftOut():
            return LEFT_OUT, None, Degradation("", PARTIAL_ANSWER, "closed")
        case PartTooSlow():
            return TOO_SLOW, None, Degradation("", PARTIAL_ANSWER, "closed")
    try:
        await outcome.of(_raised(error))
    except ServiceError as found:
        mark = Degradation(found.row, PARTIAL_ANSWER, found.circuit or "closed", found.retry_after)
        return found.message, found.retry_after, mark
    except Exception as defect:
        log.error("a part of the home page failed", part=name, error=type(defect).__name__, exc_info=defect)
    return BROKEN, None, Degradation("", PARTIAL_ANSWER, "closed")


async def _raised(error: Exception) -> Served[Any]:
    raise error
