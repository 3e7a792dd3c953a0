"""The WebRTC service over gRPC (row D4, dashboard.webrtc).

A read that WebRTC answers with an outage of its own, such as its Redis, takes the same fallbacks as one that it does
not answer; its circuit stays closed then, as the service lives. So does a list that it makes from memory (its row W1):
it has only the rooms that its instance has seen, and is what serves when the fallbacks have nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from dashboard.model import IceServer, Page, Room, RoomTicket, RoomUnknown
from dashboard.outbound.peer import Peer, seconds
from resilience import Events, FallbackUsed, RowPolicy, Rung, Served, descend
from service_kit import context
from service_kit.errors import DependencyUnavailable, ErrorReason, ServiceError

T = TypeVar("T")

_SEEN_ONLY = "memory-rooms"
_UNABLE = frozenset({ErrorReason.DEPENDENCY_UNAVAILABLE, ErrorReason.CIRCUIT_OPEN, ErrorReason.DATABASE_ERROR})


class GrpcRooms(Peer):
    """See the port. ``events`` are told of fallbacks."""

    def __init__(self, channel: grpc.aio.Channel, policy: RowPolicy, events: Events) -> None:
        super().__init__(policy)
        self._stub = webrtc_pb2_grpc.RoomServiceStub(channel)
        self._events = events

    async def create(self, name: str, max_participants: int) -> Served[Room]:
        """A new room."""
        request = webrtc_pb2.CreateRoomRequest(name=name, max_participants=max_participants)
        return (await self.call(self._stub.CreateRoom, request)).map(lambda answer: _room(answer.room))

    async def get(self, room_id: str, *rungs: Rung[Room]) -> Served[Room]:
        """One room. Raises RoomUnknown."""
        request = webrtc_pb2.GetRoomRequest(id=room_id)
        try:
            with _known():
                return await self._read(self._stub.GetRoom, request, lambda answer: _room(answer.room), rungs)
        except RoomUnknown as error:
            if error.by:  # that a room is gone is also an answer of a fallback
                context.degrade(self.policy.degradation(error.by))
            raise

    async def page(self, limit: int, cursor: str | None, *rungs: Rung[Page[Room]]) -> Served[Page[Room]]:
        """The caller's rooms."""
        request = webrtc_pb2.ListRoomsRequest(page_size=limit, cursor=cursor or "")
        served = await self._read(
            self._stub.ListRooms,
            request,
            lambda answer: Page([_room(room) for room in answer.items], answer.next_cursor or None),
            rungs,
        )
        if not any(one.fallback == _SEEN_ONLY for one in served.degradations):
            return served
        partial = DependencyUnavailable("WebRTC has only seen a part.")
        try:
            return await descend(partial, rungs, degradation=self.policy.degradation, tried=self._tried)
        except DependencyUnavailable:
            return served

    async def delete(self, room_id: str) -> Served[None]:
        """Deletes the caller's room. Raises RoomUnknown."""
        with _known():
            served = await self.call(self._stub.DeleteRoom, webrtc_pb2.DeleteRoomRequest(id=room_id))
        return served.map(lambda _: None)

    async def ticket(self, room_id: str, name: str) -> Served[RoomTicket]:
        """What the caller needs to join under that name. Raises RoomUnknown."""
        request = webrtc_pb2.IssueTokenRequest(room_id=room_id, name=name)
        with _known():
            served = await self.call(self._stub.IssueToken, request)
        return served.map(
            lambda answer: RoomTicket(
                answer.token,
                answer.ws_url,
                [IceServer(list(one.urls), one.username, one.credential) for one in answer.ice_servers],
                answer.expires_in,
            )
        )

    async def _read(
        self, method: Callable[..., Any], request: object, convert: Callable[[Any], T], rungs: tuple[Rung[T], ...]
    ) -> Served[T]:
        async def ask() -> Served[T]:
            return (await self._caller.unary(method, request, timeout=self.policy.row.call_timeout)).map(convert)

        try:
            return await self.policy.serve(ask, *rungs)
        except ServiceError as error:
            if not error.answered or error.reason not in _UNABLE:
                raise
            return await descend(error, rungs, degradation=self.policy.degradation, tried=self._tried)

    def _tried(self, rung: str, outcome: Any) -> None:
        self._events.emit(FallbackUsed(self.policy.row.id, rung, outcome))


@contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        if error.reason is not ErrorReason.NOT_FOUND:
            raise
        raise RoomUnknown from error


def _room(room: webrtc_pb2.Room) -> Room:
    return Room(room.id, room.name, room.max_participants, room.owner_id, seconds(room.created_at))
