"""The WebRTC service over HTTP: ``/api/v1/rooms`` and what is below it, and ``/api/v1/ice-servers``."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from service_kit.http import problem_responses
from webrtc.inbound.outcome import Outcome
from webrtc.model import (
    DEFAULT_PAGE,
    DEFAULT_PARTICIPANTS,
    LEAST_PARTICIPANTS,
    MOST_PARTICIPANTS,
    NAME_LIMIT,
    PAGE_LIMIT,
    VISIBLE_PATTERN,
    IceServer,
    Room,
    Ticket,
)
from webrtc.usecases.ice import IceServers
from webrtc.usecases.rooms import Rooms

Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Participants = Annotated[int, Field(ge=LEAST_PARTICIPANTS, le=MOST_PARTICIPANTS)]
RoomId = Annotated[str, Path(max_length=100)]
Cursor = Annotated[str, Query(max_length=200)]
PageSize = Annotated[int, Query(alias="limit", ge=1, le=PAGE_LIMIT)]


class NewRoom(BaseModel):
    """A new room."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    max_participants: Participants = DEFAULT_PARTICIPANTS


class RoomView(BaseModel):
    """A room as everybody who knows its id sees it."""

    id: str
    name: str
    max_participants: int
    owner_id: str
    created_at: datetime


class RoomList(BaseModel):
    """A page of one's own rooms, newest first."""

    items: list[RoomView]
    next_cursor: str | None


class IceServerView(BaseModel):
    """An RTCIceServer dictionary (W3C WebRTC), as RTCPeerConnection takes it."""

    urls: list[str]
    username: str | None = None
    credential: str | None = None


class TicketView(BaseModel):
    """What joining a room takes; ``expires_in`` in seconds."""

    token: str
    ws_url: str
    ice_servers: list[IceServerView]
    expires_in: int


class IceServerList(BaseModel):
    """ICE servers, with credentials made for the caller."""

    ice_servers: list[IceServerView]


def create_router(rooms: Rooms, ice: IceServers, outcome: Outcome) -> APIRouter:
    """The routes; each acts for the user of the bearer token."""
    router = APIRouter(
        prefix="/api/v1",
        tags=["rooms"],
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses=problem_responses(401, 403, 404, 409, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.post("/rooms", status_code=201)
    async def create(body: NewRoom, user: caller) -> RoomView:
        """Open a room."""
        return _view(await outcome.of(rooms.create(user, body.name, body.max_participants)))

    @router.get("/rooms")
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> RoomList:
        """List one's own rooms."""
        found = await outcome.of(rooms.page(user, limit, cursor))
        return RoomList(items=[_view(room) for room in found.items], next_cursor=found.next_cursor or None)

    @router.get("/rooms/{room_id}", dependencies=[Depends(outcome.caller)])
    async def get(room_id: RoomId) -> RoomView:
        """Read a room."""
        return _view(await outcome.of(rooms.get(room_id)))

    @router.delete("/rooms/{room_id}", status_code=204)
    async def delete(room_id: RoomId, user: caller) -> None:
        """Delete an own room."""
        await outcome.of(rooms.delete(user, room_id))

    @router.post("/rooms/{room_id}/token")
    async def token(room_id: RoomId, user: caller) -> TicketView:
        """Get what joining the room takes."""
        return _ticket(await outcome.of(rooms.ticket(user, room_id)))

    @router.get("/ice-servers")
    async def ice_servers(user: caller) -> IceServerList:
        """Get the ICE servers alone, for example before credentials expire."""
        return IceServerList(ice_servers=[_server(server) for server in ice.for_user(user)])

    return router


def _view(room: Room) -> RoomView:
    return RoomView(
        id=room.id,
        name=room.name,
        max_participants=room.max_participants,
        owner_id=room.owner_id,
        created_at=datetime.fromtimestamp(room.created_at, UTC),
    )


def _server(server: IceServer) -> IceServerView:
    return IceServerView(urls=list(server.urls), username=server.username or None, credential=server.credential or None)


def _ticket(ticket: Ticket) -> TicketView:
    return TicketView(
        token=ticket.token,
        ws_url=ticket.ws_url,
        ice_servers=[_server(server) for server in ticket.ice_servers],
        expires_in=ticket.expires_in,
    )
