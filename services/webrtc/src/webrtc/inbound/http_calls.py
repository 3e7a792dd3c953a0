"""The history of calls over HTTP: ``/api/v1/calls``, for those who took part."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from service_kit.http import problem_responses
from webrtc.inbound.http import Cursor, PageSize
from webrtc.inbound.outcome import Outcome
from webrtc.model import DEFAULT_PAGE, PastCall, PastParticipant
from webrtc.usecases.calls import Calls, quality_of

CallId = Annotated[str, Path(max_length=200)]


class CallParticipantView(BaseModel):
    """Somebody who took part; whoever came back later is there once for each time."""

    id: str
    user_id: str
    display_name: str
    joined_at: datetime
    left_at: datetime | None
    quality: Annotated[dict[str, Any] | None, Field(description="What the connection was like: label, r, rtt_ms, ...")]


class CallView(BaseModel):
    """A call."""

    id: str
    room_id: str
    room_name: str
    started_at: datetime
    ended_at: datetime | None
    duration_seconds: float | None
    participants: list[CallParticipantView]
    quality: dict[str, Any] | None


class CallList(BaseModel):
    """A page of one's own calls, newest first."""

    items: list[CallView]
    next_cursor: str | None


def create_router(calls: Calls, outcome: Outcome) -> APIRouter:
    """The routes; each acts for the user of the bearer token."""
    router = APIRouter(
        prefix="/api/v1/calls",
        tags=["calls"],
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses=problem_responses(401, 404, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.get("")
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> CallList:
        """List the calls that one took part in."""
        found = await outcome.of(calls.page(user, limit, cursor))
        return CallList(items=[_view(call) for call in found.items], next_cursor=found.next_cursor or None)

    @router.get("/{call_id}")
    async def get(call_id: CallId, user: caller) -> CallView:
        """Read a call that one took part in."""
        return _view(await outcome.of(calls.get(user, call_id)))

    return router


def _view(call: PastCall) -> CallView:
    return CallView(
        id=call.id,
        room_id=call.room_id,
        room_name=call.room_name,
        started_at=_time(call.started_at),
        ended_at=None if call.ended_at is None else _time(call.ended_at),
        duration_seconds=call.duration,
        participants=[_participant(one) for one in call.participants],
        quality=quality_of(call),
    )


def _participant(one: PastParticipant) -> CallParticipantView:
    return CallParticipantView(
        id=one.id,
        user_id=one.user_id,
        display_name=one.name,
        joined_at=_time(one.joined_at),
        left_at=None if one.left_at is None else _time(one.left_at),
        quality=None if one.quality is None else dict(one.quality),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
