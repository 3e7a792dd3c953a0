"""The history of calls over gRPC: ``auralink.webrtc.v1.CallService``, for those who took part."""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from webrtc.inbound.outcome import Outcome
from webrtc.model import PastCall, PastParticipant
from webrtc.usecases.calls import Calls, quality_of

Context = grpc.aio.ServicerContext[Any, Any]


class CallService(webrtc_pb2_grpc.CallServiceServicer):
    """Each method acts for the user of the bearer token."""

    def __init__(self, calls: Calls, outcome: Outcome) -> None:
        self._calls = calls
        self._outcome = outcome

    async def ListCalls(self, request: webrtc_pb2.ListCallsRequest, context: Context) -> webrtc_pb2.ListCallsResponse:
        """A page of the caller's calls, newest first."""
        user = self._outcome.caller()
        found = await self._outcome.of(self._calls.page(user, request.page_size, request.cursor))
        return webrtc_pb2.ListCallsResponse(items=map(_call, found.items), next_cursor=found.next_cursor)

    async def GetCall(self, request: webrtc_pb2.GetCallRequest, context: Context) -> webrtc_pb2.GetCallResponse:
        """One call."""
        user = self._outcome.caller()
        return webrtc_pb2.GetCallResponse(call=_call(await self._outcome.of(self._calls.get(user, request.id))))


def _call(call: PastCall) -> webrtc_pb2.Call:
    return webrtc_pb2.Call(
        id=call.id,
        room_id=call.room_id,
        room_name=call.room_name,
        started_at=_time(call.started_at),
        ended_at=None if call.ended_at is None else _time(call.ended_at),
        participants=map(_participant, call.participants),
        quality=_struct(quality_of(call)),
    )


def _participant(one: PastParticipant) -> webrtc_pb2.CallParticipant:
    return webrtc_pb2.CallParticipant(
        id=one.id,
        user_id=one.user_id,
        display_name=one.name,
        joined_at=_time(one.joined_at),
        left_at=None if one.left_at is None else _time(one.left_at),
        quality=_struct(one.quality),
    )


def _struct(fields: Mapping[str, object] | None) -> Struct | None:
    if fields is None:
        return None
    return ParseDict(dict(fields), Struct())


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1_000_000))
    return stamp
