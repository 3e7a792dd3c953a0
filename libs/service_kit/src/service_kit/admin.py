"""The operator's surface: circuits, mode and write queue by hand. Needs ADMIN_TOKEN, which no user ever has."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict

from resilience.deadline import hard_timeout
from resilience.errors import CallTimeout, MalformedOperation, QueueFull, QueueUnavailable
from resilience.modes import Mode
from resilience.queue import QueueAdmin
from resilience.row_policy import RowPolicy

from . import logs
from .errors import Conflict, DependencyUnavailable, Forbidden, NotFound, ServiceError, Unauthorized
from .health import detailed
from .http.answers import json_response
from .http.problems import problem_responses
from .runtime import ServiceRuntime
from .tokens import TokenVerifier

QUEUE_CALL_LIMIT = 1.5  # seconds, below the request's own limit

log = logs.get_logger("admin")
T = TypeVar("T")

_bearer = HTTPBearer(auto_error=False, scheme_name="adminToken", description="The value of ADMIN_TOKEN.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_NAME = r"^[A-Za-z0-9._:-]+$"
Dependency = Annotated[
    str | None, Query(max_length=100, pattern=_NAME, description="Dependency, row id or label; without it, all.")
]
Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[str, Query(pattern=r"^([0-9]{1,19}-[0-9]{1,19})?$", description="Position of the last one seen.")]
OperationId = Annotated[str, Path(max_length=200, pattern=_NAME)]
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}
}


class HeldMode(BaseModel):
    """The mode to hold; null gives the choice back to the rows."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["normal", "degraded", "emergency"] | None


class AdminGuard:
    """401 without credentials or with unknown ones, 403 with a user's valid token."""

    def __init__(self, runtime: ServiceRuntime) -> None:
        self._expected = runtime.settings.admin_token.get_secret_value().encode()
        self._verifier = TokenVerifier(runtime.settings.jwt_secret.get_secret_value())

    async def __call__(self, credentials: Credentials) -> None:
        """Let the operator pass. Raises Unauthorized or Forbidden."""
        if credentials is None:
            raise Unauthorized("This needs the admin token.")
        if hmac.compare_digest(credentials.credentials.encode(), self._expected):
            return
        try:
            self._verifier.verify(credentials.credentials)
        except Unauthorized:
            raise Unauthorized("The admin token is not valid.") from None
        raise Forbidden("This needs the admin token; a user's token is not enough.")


def router(runtime: ServiceRuntime) -> APIRouter:
    """The routes of all groups."""
    guard = Depends(AdminGuard(runtime))
    refusals = problem_responses(401, 403, 404, 409, 413, 422, 500, 503, 504)
    routes = APIRouter(prefix="/admin", tags=["admin"], dependencies=[guard], responses={**_ANSWER, **refusals})
    _add_circuits(routes, runtime)
    _add_mode(routes, runtime)
    _add_queue(routes, runtime)
    return routes


def _add_circuits(routes: APIRouter, runtime: ServiceRuntime) -> None:
    def apply(action: str, dependency: str | None, found: list[RowPolicy]) -> Response:
        if dependency is not None and not found:
            raise NotFound(f"{runtime.name} has no such dependency.")
        for policy in found:
            getattr(policy.breaker, action)()
        runtime.settle_mode()
        log.warning("circuits changed by hand", action=action, rows=[policy.row.id for policy in found])
        states = {policy.row.dependency: policy.breaker.state.value for policy in found}
        return json_response({"dependencies": states})

    def chosen(dependency: str | None) -> list[RowPolicy]:
        return list(runtime.policies.values()) if dependency is None else runtime.find_policies(dependency)

    @routes.post("/circuit-breaker/reset", response_class=Response)
    async def reset(dependency: Dependency = None) -> Response:
        """Close circuits, forget their failures and end holds."""
        return apply("reset", dependency, chosen(dependency))

    @routes.post("/circuit-breaker/open", response_class=Response)
    async def hold_open(dependency: Dependency = None) -> Response:
        """Hold circuits open until reset."""
        return apply("force_open", dependency, chosen(dependency))

    @routes.post("/circuit-breaker/close", response_class=Response)
    async def hold_closed(dependency: Dependency = None) -> Response:
        """Hold circuits closed until reset."""
        return apply("force_closed", dependency, chosen(dependency))


def _add_mode(routes: APIRouter, runtime: ServiceRuntime) -> None:
    @routes.post("/mode", response_class=Response)
    async def hold_mode(body: HeldMode) -> Response:
        """Hold the service in a mode, or release it."""
        runtime.hold_mode(None if body.mode is None else Mode(body.mode))
        log.warning("mode set by hand", mode=body.mode)
        return json_response({"mode": runtime.mode.value, "held": runtime.tracker.held, "health": detailed(runtime)})


def _add_queue(routes: APIRouter, runtime: ServiceRuntime) -> None:
    @routes.get("/queue", response_class=Response)
    async def waiting(limit: Limit = 100, after: After = "") -> Response:
        """Writes waiting to be applied, oldest first."""
        queue = _queue(runtime)
        stats = await _bounded(queue.stats())
        items = await _bounded(queue.list(limit, after))
        return json_response(
            {"depth": stats.depth, "oldest_age_seconds": stats.oldest_age, "dead": stats.dead, "items": items}
        )

    @routes.get("/queue/dead-letters", response_class=Response)
    async def dead(limit: Limit = 100, after: After = "") -> Response:
        """Writes that could not be applied, with the reason."""
        return json_response({"items": await _bounded(_queue(runtime).dead(limit, after))})

    @routes.delete("/queue/dead-letters", response_class=Response)
    async def clear() -> Response:
        """Delete all dead letters for good."""
        return json_response({"discarded": await _bounded(_queue(runtime).clear())})

    @routes.post("/queue/dead-letters/{operation_id}/replay", response_class=Response)
    async def replay(operation_id: OperationId) -> Response:
        """Put a dead letter back into the queue."""
        try:
            found = await _bounded(_queue(runtime).replay(operation_id))
        except MalformedOperation:
            raise Conflict("This dead letter was never an operation; it can only be deleted.") from None
        except QueueFull:
            raise Conflict("The queue is full; replay this dead letter when it has drained.") from None
        return _handled(operation_id, "replayed", found)

    @routes.delete("/queue/dead-letters/{operation_id}", response_class=Response)
    async def discard(operation_id: OperationId) -> Response:
        """Delete a dead letter for good."""
        return _handled(operation_id, "discarded", await _bounded(_queue(runtime).discard(operation_id)))


def _queue(runtime: ServiceRuntime) -> QueueAdmin:
    if runtime.queue is None:
        raise NotFound(f"{runtime.name} has no write queue.")
    return runtime.queue


def _handled(operation_id: str, what: str, found: bool) -> Response:
    if not found:
        raise NotFound("There is no such dead letter.")
    log.warning("dead letter handled by hand", operation_id=operation_id, what=what)
    return json_response({"id": operation_id, "status": what})


async def _bounded(call: Awaitable[T]) -> T:
    try:
        return await hard_timeout(call, QUEUE_CALL_LIMIT, name="queue")
    except (QueueUnavailable, CallTimeout, OSError) as error:
        raise _store_down() from error


def _store_down() -> ServiceError:
    return DependencyUnavailable("The queue's store is not available.", retry_after=1.0)
