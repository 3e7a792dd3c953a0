"""The WebRTC service over gRPC: ``auralink.webrtc.v1.RoomService``. Errors and provenance are the interceptors'."""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from webrtc.inbound.outcome import Outcome
from webrtc.model import IceServer, Member, Room
from webrtc.usecases.ice import IceServers
from webrtc.usecases.participants import Participants
from webrtc.usecases.rooms import Rooms

Context = grpc.aio.ServicerContext[Any, Any]


class RoomService(webrtc_pb2_grpc.RoomServiceServicer):
    """Each method acts for the user of the bearer token."""

    def __init__(self, rooms: Rooms, participants: Participants, ice: IceServers, outcome: Outcome) -> None:
        self._rooms = rooms
        self._participants = participants
        self._ice = ice
        self._outcome = outcome

    async def CreateRoom(
        self, request: webrtc_pb2.CreateRoomRequest, context: Context
    ) -> webrtc_pb2.CreateRoomResponse:
        """A new room."""
        made = self._rooms.create(self._outcome.caller(), request.name, request.max_participants)
        return webrtc_pb2.CreateRoomResponse(room=_room(await self._outcome.of(made)))

    async def GetRoom(self, request: webrtc_pb2.GetRoomRequest, context: Context) -> webrtc_pb2.GetRoomResponse:
        """One room."""
        self._outcome.caller()
        return webrtc_pb2.GetRoomResponse(room=_room(await self._outcome.of(self._rooms.get(request.id))))

    async def ListRooms(self, request: webrtc_pb2.ListRoomsRequest, context: Context) -> webrtc_pb2.ListRoomsResponse:
        """A page of the caller's rooms, newest first."""
        user = self._outcome.caller()
        found = await self._outcome.of(self._rooms.page(user, request.page_size, request.cursor))
        items = [_room(room) for room in found.items]
        return webrtc_pb2.ListRoomsResponse(items=items, next_cursor=found.next_cursor)

    async def DeleteRoom(
        self, request: webrtc_pb2.DeleteRoomRequest, context: Context
    ) -> webrtc_pb2.DeleteRoomResponse:
        """Deletes an own room."""
        await self._outcome.of(self._rooms.delete(self._outcome.caller(), request.id))
        return webrtc_pb2.DeleteRoomResponse()

    async def IssueToken(
        self, request: webrtc_pb2.IssueTokenRequest, context: Context
    ) -> webrtc_pb2.IssueTokenResponse:
        """What joining a room takes."""
        ticket = await self._outcome.of(self._rooms.ticket(self._outcome.caller(), request.room_id, request.name))
        return webrtc_pb2.IssueTokenResponse(
            token=ticket.token,
            ws_url=ticket.ws_url,
            ice_servers=[_server(server) for server in ticket.ice_servers],
            expires_in=ticket.expires_in,
        )

    async def GetIceServers(
        self, request: webrtc_pb2.GetIceServersRequest, context: Context
    ) -> webrtc_pb2.GetIceServersResponse:
        """The ICE servers alone."""
        servers = self._outcome.told(self._ice.for_user(self._outcome.caller()))
        return webrtc_pb2.GetIceServersResponse(ice_servers=[_server(server) for server in servers])

    async def ListParticipants(
        self, request: webrtc_pb2.ListParticipantsRequest, context: Context
    ) -> webrtc_pb2.ListParticipantsResponse:
        """Who is in a room."""
        self._outcome.caller()
        members = await self._outcome.of(self._participants.of(request.room_id))
        return webrtc_pb2.ListParticipantsResponse(items=[_participant(member) for member in members])

    async def RemoveParticipant(
        self, request: webrtc_pb2.RemoveParticipantRequest, context: Context
    ) -> webrtc_pb2.RemoveParticipantResponse:
        """Removes somebody from an own room."""
        user = self._outcome.caller()
        await self._outcome.of(self._participants.remove(user, request.room_id, request.participant_id))
        return webrtc_pb2.RemoveParticipantResponse()


def _room(room: Room) -> webrtc_pb2.Room:
    seconds, microseconds = divmod(room.created_us, 1_000_000)
    return webrtc_pb2.Room(
        id=room.id,
        name=room.name,
        max_participants=room.max_participants,
        owner_id=room.owner_id,
        created_at=Timestamp(seconds=seconds, nanos=microseconds * 1000),
    )


def _participant(member: Member) -> webrtc_pb2.Participant:
    joined = Timestamp()
    joined.FromMicroseconds(round(member.joined_at * 1_000_000))
    return webrtc_pb2.Participant(
        id=member.id,
        user_id=member.user_id,
        name=member.name,
        joined_at=joined,
        audio=member.audio,
        video=member.video,
        away=member.away,
        quality=member.quality,
    )


def _server(server: IceServer) -> webrtc_pb2.IceServer:
    return webrtc_pb2.IceServer(urls=server.urls, username=server.username, credential=server.credential)
