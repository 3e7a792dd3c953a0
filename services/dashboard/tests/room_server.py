"""A WebRTC service for tests: speaks RoomService on a real port, and can be killed, frozen and made to fail."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from dashboard.model import Room
from dashboard.outbound.rooms import cursor_after, place_of
from resilience import Degradation
from service_kit import context
from service_kit.errors import DependencyUnavailable, NotFound, ServiceError
from service_kit.provenance import to_metadata
from service_kit.rpc_errors import to_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class RoomServer(webrtc_pb2_grpc.RoomServiceServicer):
    """Rooms in memory. ``user_of`` a bearer token: the token itself if not told otherwise."""

    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.unable = False
        self.degraded = False
        self.forgetful = False
        self.port = 0
        self.user_of: Callable[[str], str] = str
        self._ids = itertools.count(1)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        webrtc_pb2_grpc.add_RoomServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def _user(self, call: Context) -> str:
        await self.thawed.wait()
        if self.unable:
            await _abort(call, DependencyUnavailable("Video calling temporarily unavailable", row="webrtc.redis"))
        if self.degraded:
            call.set_trailing_metadata(tuple(to_metadata([Degradation("webrtc.turn", "stun-only", "open", 3.0)])))
        sent: dict[str, Any] = dict(call.invocation_metadata() or ())
        return self.user_of(str(sent["authorization"]).removeprefix("Bearer "))

    async def _room(self, room_id: str, call: Context) -> Room:
        if room_id not in self.rooms:
            await _abort(call, NotFound("There is no such room."))
        return self.rooms[room_id]

    async def CreateRoom(self, request: Any, context: Context) -> Any:
        user, now = await self._user(context), round(time.time() * 1e6) / 1e6
        room = Room(f"room-{next(self._ids):04d}", request.name, request.max_participants, user, now)
        self.rooms[room.id] = room
        return webrtc_pb2.CreateRoomResponse(room=_written(room))

    async def GetRoom(self, request: Any, context: Context) -> Any:
        await self._user(context)
        return webrtc_pb2.GetRoomResponse(room=_written(await self._room(request.id, context)))

    async def ListRooms(self, request: Any, context: Context) -> Any:
        user, after = await self._user(context), place_of(request.cursor)
        own = sorted((room for room in self.rooms.values() if room.owner_id == user), key=lambda r: r.place)[::-1]
        own = [room for room in own if after is None or room.place < after]
        if self.forgetful:
            own = own[1:]
            context.set_trailing_metadata(
                tuple(to_metadata([Degradation("webrtc.redis", "memory-rooms", "open", 3.0)]))
            )
        items, more = own[: request.page_size], len(own) > request.page_size
        cursor = cursor_after(items[-1]) if more else ""
        return webrtc_pb2.ListRoomsResponse(items=[_written(room) for room in items], next_cursor=cursor)

    async def DeleteRoom(self, request: Any, context: Context) -> Any:
        await self._user(context)
        del self.rooms[(await self._room(request.id, context)).id]
        return webrtc_pb2.DeleteRoomResponse()

    async def IssueToken(self, request: Any, context: Context) -> Any:
        await self._user(context)
        await self._room(request.room_id, context)
        return webrtc_pb2.IssueTokenResponse(token="token", ws_url="ws://here/ws", expires_in=60)

    async def GetIceServers(self, request: Any, context: Context) -> Any:
        await self._user(context)
        return webrtc_pb2.GetIceServersResponse()

    async def ListParticipants(self, request: Any, context: Context) -> Any:
        await self._user(context)
        return webrtc_pb2.ListParticipantsResponse()

    async def RemoveParticipant(self, request: Any, context: Context) -> Any:
        await self._user(context)
        return webrtc_pb2.RemoveParticipantResponse()


async def _abort(call: Context, error: ServiceError) -> None:
    code, text, trailing = to_grpc(error)
    await call.abort(code, text, tuple(trailing))


def _written(room: Room) -> webrtc_pb2.Room:
    stamp = Timestamp()
    stamp.FromMicroseconds(room.place[0])
    return webrtc_pb2.Room(
        id=room.id,
        name=room.name,
        max_participants=room.max_participants,
        owner_id=room.owner_id,
        created_at=stamp,
    )


def act_as(user_id: str) -> None:
    """What is called next is called for this user."""
    context.bind(context.RequestContext("test", bearer=user_id))
