"""Call history of those who took part: ``/api/v1/calls``."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.inbound.http.doors import AnyId, Cursor, Doorman, PageSize, listed
from dashboard.inbound.outcome import Outcome
from dashboard.model import Call
from dashboard.usecases.calls import Calls
from service_kit.http import problem_responses, served_json, stamp
from service_kit.tokens import Claims


class ParticipantView(BaseModel):
    """Somebody who took part."""

    user_id: str
    display_name: str
    joined_at: datetime | None
    left_at: datetime | None
    quality: dict[str, Any] | None


class CallView(BaseModel):
    """A call."""

    id: str
    room_id: str
    room_name: str
    started_at: datetime
    ended_at: datetime | None
    duration_seconds: float | None
    participants: list[ParticipantView]
    quality: dict[str, Any] | None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was read from the database.")] = None


class CallList(BaseModel):
    """A page of one's own calls, newest first."""

    items: list[CallView]
    next_cursor: str | None
    stale: bool | None = None
    as_of: datetime | None = None


def call_body(call: Call) -> dict[str, Any]:
    """The public form of a call."""
    return {
        "id": call.id,
        "room_id": call.room_id,
        "room_name": call.room_name,
        "started_at": stamp(call.started_at),
        "ended_at": _stamp(call.ended_at),
        "duration_seconds": call.duration,
        "participants": [
            {
                "user_id": one.user_id,
                "display_name": one.display_name,
                "joined_at": _stamp(one.joined_at),
                "left_at": _stamp(call.left_at(one)),
                "quality": one.quality,
            }
            for one in call.participants
        ],
        "quality": call.quality,
    }


def create_router(calls: Calls, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1/calls", tags=["calls"], responses=problem_responses(401, 429, 503))
    user = Annotated[Claims, Depends(doorman.user)]

    @router.get("", response_model=CallList)
    async def page(caller: user, limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own calls; the newest from a copy while the database is away."""
        served = await outcome.of(calls.page(caller.user_id, limit, cursor))
        found = served.value
        return served_json(
            served, listed([call_body(call) for call in found.items], found.next_cursor, found.unreadable)
        )

    @router.get("/{call_id}", response_model=CallView, responses=problem_responses(404))
    async def get(call_id: AnyId, caller: user) -> Response:
        """Read a call that one took part in."""
        served = await outcome.of(calls.get(caller.user_id, call_id))
        return served_json(served, call_body(served.value))

    return router


def _stamp(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else stamp(unix_seconds)
