"""Rooms of the WebRTC service: ``/api/v1/rooms`` (row D4, dashboard.webrtc)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, BeforeValidator, Field

from dashboard.inbound.http.doors import AnyId, Body, Cursor, Doorman, Name, PageSize, listed, whole
from dashboard.inbound.outcome import Outcome
from dashboard.model import Room
from dashboard.usecases.rooms import RoomDirectory
from service_kit.http import json_response, problem_responses, served_json, stamp
from service_kit.tokens import Claims

T = TypeVar("T")

Zone = Annotated[
    str, Query(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9_-]+$", description="Where demand is counted.")
]


class NewRoom(Body):
    """A new room."""

    name: Name
    max_participants: Annotated[int, Field(ge=2, le=100), BeforeValidator(whole)] = 10


class Joining(Body):
    """How the caller is called in the room."""

    name: Name | None = None


class RoomView(BaseModel):
    """A room."""

    id: str
    name: str
    max_participants: int
    owner_id: str
    created_at: datetime
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the room was last seen like this.")] = None


class RoomList(BaseModel):
    """A page of one's own rooms."""

    items: list[RoomView]
    next_cursor: str | None
    stale: bool | None = None
    as_of: datetime | None = None


class IceServerView(BaseModel):
    """An RTCIceServer dictionary (W3C WebRTC)."""

    urls: list[str]
    username: str | None = None
    credential: str | None = None


class TicketView(BaseModel):
    """What a participant needs to join."""

    token: str
    ws_url: str
    ice_servers: list[IceServerView]
    expires_in: int
    degraded: Annotated[bool | None, Field(description="Set when WebRTC served with a fallback.")] = None


def room_body(room: Room) -> dict[str, Any]:
    """The public form of a room."""
    return {**asdict(room), "created_at": stamp(room.created_at)}


def create_router(rooms: RoomDirectory, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1/rooms", tags=["rooms"], responses=problem_responses(401, 429, 503))
    user = Annotated[Claims, Depends(doorman.user)]
    unknown = problem_responses(403, 404)

    @router.post("", status_code=201, response_model=RoomView, responses=problem_responses(409))
    async def create(body: NewRoom, caller: user) -> Response:
        """Open a room."""
        served = await outcome.of(rooms.create(caller.user_id, body.name, body.max_participants))
        return served_json(served, room_body(served.value), status=201)

    @router.get("", response_model=RoomList)
    async def page(caller: user, limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own rooms; as last seen while video calling is unavailable."""
        served = await outcome.of(rooms.page(caller.user_id, limit, cursor))
        return served_json(served, listed([room_body(room) for room in served.value.items], served.value.next_cursor))

    @router.get("/{room_id}", response_model=RoomView, responses=unknown)
    async def get(room_id: AnyId, _: user) -> Response:
        """Read a room; as last seen while video calling is unavailable."""
        served = await outcome.of(rooms.get(room_id))
        return served_json(served, room_body(served.value))

    @router.delete("/{room_id}", status_code=204, responses=unknown)
    async def delete(room_id: AnyId, caller: user) -> None:
        """Close one's own room."""
        await outcome.of(rooms.delete(caller.user_id, room_id))

    @router.post("/{room_id}/token", response_model=TicketView, responses=unknown)
    async def ticket(room_id: AnyId, caller: user, zone: Zone = "default", joining: Joining | None = None) -> Response:
        """Get what is needed to join a room."""
        name = (joining and joining.name) or ""
        served = await outcome.of(rooms.ticket(caller.user_id, room_id, zone, name))
        body = asdict(served.value)
        body["ice_servers"] = [{name: value for name, value in one.items() if value} for one in body["ice_servers"]]
        return json_response({**body, "degraded": True} if served.degraded else body)

    return router
