"""What a user did, in numbers: ``/api/v1/analytics`` (row D1, dashboard.postgres)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from dashboard.inbound.http.doors import Doorman, UserId, bearer
from dashboard.inbound.outcome import Outcome
from dashboard.model import Analytics
from dashboard.usecases.analytics import UserAnalytics
from resilience import Served
from service_kit.errors import Unauthorized
from service_kit.http import problem_responses, served_json, stamp
from service_kit.tokens import Claims

NOTE = "Not known at the moment; shown again as soon as the database is back."


class AnalyticsView(BaseModel):
    """What one user did; null where it is not known, and then ``note`` says why."""

    user_id: str
    calls_total: int | None
    minutes_total: float | None
    rooms_total: int | None
    last_active_at: datetime | None
    computed_at: datetime | None
    note: str | None = None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: datetime | None = None


def analytics_body(served: Served[Analytics]) -> dict[str, Any]:
    """The public form."""
    found = served.value
    body = {**asdict(found), "last_active_at": _moment(found.last_active_at), "computed_at": _moment(found.computed_at)}
    return body if found.calls_total is not None else {**body, "note": NOTE}


def create_router(analytics: UserAnalytics, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1/analytics", tags=["analytics"], responses=problem_responses(429, 503))

    async def reader(request: Request) -> Claims | None:
        """A user, or None for the operator, whose token is no user's. Raises Unauthorized."""
        try:
            return await doorman.user(request)
        except Unauthorized:
            await doorman.admin(request)
            return None

    @router.get(
        "/users/{user_id}",
        response_model=AnalyticsView,
        dependencies=[Depends(bearer)],
        responses=problem_responses(401, 403),
    )
    async def user(user_id: UserId, caller: Annotated[Claims | None, Depends(reader)]) -> Response:
        """One's own numbers, or anybody's for administrators; nulls and a note while nothing can tell."""
        own = None if caller is None or caller.role == "admin" else caller.user_id
        served = await outcome.of(analytics.read(str(user_id), own))
        return served_json(served, analytics_body(served))

    return router


def _moment(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else stamp(unix_seconds)
