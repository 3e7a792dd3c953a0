"""Rooms, passed on to the WebRTC service: ``/api/v1/rooms`` (row D4, dashboard.webrtc)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, BeforeValidator, Field

from dashboard.inbound.http.doors import AnyId, Body, Cursor, Doorman, Name, PageSize, listed, whole
from dashboard.inbound.outcome import Outcome
from dashboard.model import Room
from dashboard.ports import Rooms
from service_kit.http import json_response, problem_responses, served_json, stamp


class NewRoom(Body):
    """A new room."""

    name: Name
    max_participants: Annotated[int, Field(ge=2, le=100), BeforeValidator(whole)] = 10


class RoomView(BaseModel):
    """A room."""

    id: str
    name: str
    max_participants: int
    owner_id: str
    created_at: datetime


class RoomList(BaseModel):
    """A page of one's own rooms."""

    items: list[RoomView]
    next_cursor: str | None


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


def room_body(room: Room) -> dict[str, Any]:
    """The public form of a room."""
    return {**asdict(room), "created_at": stamp(room.created_at)}


def create_router(rooms: Rooms, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(
        prefix="/api/v1/rooms",
        tags=["rooms"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 429, 503),
    )
    unknown = problem_responses(403, 404)

    @router.post("", status_code=201, response_model=RoomView, responses=problem_responses(409))
    async def create(body: NewRoom) -> Response:
        """Open a room."""
        served = await outcome.of(rooms.create(body.name, body.max_participants))
        return served_json(served, room_body(served.value), status=201)

    @router.get("", response_model=RoomList)
    async def page(limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own rooms."""
        served = await outcome.of(rooms.page(limit, cursor))
        return served_json(served, listed([room_body(room) for room in served.value.items], served.value.next_cursor))

    @router.get("/{room_id}", response_model=RoomView, responses=unknown)
    async def get(room_id: AnyId) -> Response:
        """Read a room."""
        served = await outcome.of(rooms.get(room_id))
        return served_json(served, room_body(served.value))

    @router.delete("/{room_id}", status_code=204, responses=unknown)
    async def delete(room_id: AnyId) -> None:
        """Close one's own room."""
        await outcome.of(rooms.delete(room_id))

    @router.post("/{room_id}/token", response_model=TicketView, responses=unknown)
    async def ticket(room_id: AnyId) -> Response:
        """Get what is needed to join a room."""
        served = await outcome.of(rooms.ticket(room_id))
        body = asdict(served.value)
        body["ice_servers"] = [{name: value for name, value in one.items() if value} for one in body["ice_servers"]]
        return json_response(body)

    return router
