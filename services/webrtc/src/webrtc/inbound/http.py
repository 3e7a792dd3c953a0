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
    Member,
    Room,
    Ticket,
)
from webrtc.usecases.ice import IceServers
from webrtc.usecases.participants import Participants
from webrtc.usecases.rooms import Rooms

Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Capacity = Annotated[int, Field(ge=LEAST_PARTICIPANTS, le=MOST_PARTICIPANTS)]
RoomId = Annotated[str, Path(max_length=100)]
Cursor = Annotated[str, Query(max_length=200)]
PageSize = Annotated[int, Query(alias="limit", ge=1, le=PAGE_LIMIT)]


class NewRoom(BaseModel):
    """A new room."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    max_participants: Capacity = DEFAULT_PARTICIPANTS


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


class Joining(BaseModel):
    """Who joins: what other participants see."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=NAME_LIMIT)] = ""


class ParticipantView(BaseModel):
    """A participant: what it sends now, whether its connection is lost for a moment, and how good it is."""

    id: str
    user_id: str
    name: str
    joined_at: datetime
    audio: bool
    video: bool
    away: bool
    quality: str


class ParticipantList(BaseModel):
    """Everybody in the room, by the time of their joining."""

    items: list[ParticipantView]


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


def create_router(rooms: Rooms, participants: Participants, ice: IceServers, outcome: Outcome) -> APIRouter:
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
    async def token(room_id: RoomId, user: caller, body: Joining | None = None) -> TicketView:
        """Get what joining the room takes."""
        return _ticket(await outcome.of(rooms.ticket(user, room_id, body.name if body else "")))

    @router.get("/rooms/{room_id}/participants", dependencies=[Depends(outcome.caller)])
    async def list_participants(room_id: RoomId) -> ParticipantList:
        """List who is in the room."""
        members = await outcome.of(participants.of(room_id))
        return ParticipantList(items=[_participant(member) for member in members])

    @router.delete("/rooms/{room_id}/participants/{participant_id}", status_code=204)
    async def remove_participant(room_id: RoomId, participant_id: RoomId, user: caller) -> None:
        """Remove somebody from an own room."""
        await outcome.of(participants.remove(user, room_id, participant_id))

    @router.get("/ice-servers")
    async def ice_servers(user: caller) -> IceServerList:
        """Get the ICE servers alone, for example before credentials expire."""
        return IceServerList(ice_servers=[_server(server) for server in outcome.told(ice.for_user(user))])

    return router


def _view(room: Room) -> RoomView:
    return RoomView(
        id=room.id,
        name=room.name,
        max_participants=room.max_participants,
        owner_id=room.owner_id,
        created_at=datetime.fromtimestamp(room.created_at, UTC),
    )


def _participant(member: Member) -> ParticipantView:
    return ParticipantView(
        id=member.id,
        user_id=member.user_id,
        name=member.name,
        joined_at=datetime.fromtimestamp(member.joined_at, UTC),
        audio=member.audio,
        video=member.video,
        away=member.away,
        quality=member.quality,
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
