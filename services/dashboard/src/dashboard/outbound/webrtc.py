"""The WebRTC service over gRPC (row D4, dashboard.webrtc)."""

from __future__ import annotations

import grpc

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from dashboard.model import IceServer, Page, Room, RoomTicket
from dashboard.outbound.peer import Peer, seconds
from resilience import RowPolicy, Served


class GrpcRooms(Peer):
    """See the port."""

    def __init__(self, channel: grpc.aio.Channel, policy: RowPolicy) -> None:
        super().__init__(policy)
        self._stub = webrtc_pb2_grpc.RoomServiceStub(channel)

    async def create(self, name: str, max_participants: int) -> Served[Room]:
        """A new room."""
        request = webrtc_pb2.CreateRoomRequest(name=name, max_participants=max_participants)
        return (await self.call(self._stub.CreateRoom, request)).map(lambda answer: _room(answer.room))

    async def get(self, room_id: str) -> Served[Room]:
        """One room."""
        served = await self.call(self._stub.GetRoom, webrtc_pb2.GetRoomRequest(id=room_id))
        return served.map(lambda answer: _room(answer.room))

    async def page(self, limit: int, cursor: str | None) -> Served[Page[Room]]:
        """The caller's rooms."""
        request = webrtc_pb2.ListRoomsRequest(page_size=limit, cursor=cursor or "")
        served = await self.call(self._stub.ListRooms, request)
        return served.map(lambda answer: Page([_room(room) for room in answer.items], answer.next_cursor or None))

    async def delete(self, room_id: str) -> Served[None]:
        """Deletes the caller's room."""
        served = await self.call(self._stub.DeleteRoom, webrtc_pb2.DeleteRoomRequest(id=room_id))
        return served.map(lambda _: None)

    async def ticket(self, room_id: str) -> Served[RoomTicket]:
        """What the caller needs to join."""
        served = await self.call(self._stub.IssueToken, webrtc_pb2.IssueTokenRequest(room_id=room_id))
        return served.map(
            lambda answer: RoomTicket(
                answer.token,
                answer.ws_url,
                [IceServer(list(one.urls), one.username, one.credential) for one in answer.ice_servers],
                answer.expires_in,
            )
        )


def _room(room: webrtc_pb2.Room) -> Room:
    return Room(room.id, room.name, room.max_participants, room.owner_id, seconds(room.created_at))
