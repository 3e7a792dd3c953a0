"""The other services over gRPC: WebRTC (row D4, dashboard.webrtc) and AI Core (row D3, dashboard.ai_core)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from auralink.common.v1 import status_pb2, status_pb2_grpc
from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from dashboard.model import Agent, IceServer, Page, Reply, Room, RoomTicket
from resilience import RowPolicy, Served
from service_kit.rpc_client import Caller

STATUS_SECONDS = 0.5


class _Peer:
    """Calls of one service under its row's policy."""

    def __init__(self, policy: RowPolicy) -> None:
        self._policy = policy
        self._caller = Caller(policy.row)

    async def _call(self, method: Callable[..., Any], request: object, timeout: float | None = None) -> Served[Any]:
        """``timeout`` in seconds when a call may take longer than the row's calls usually do."""
        timeout = timeout or self._policy.row.call_timeout
        return await self._policy.serve(lambda: self._caller.unary(method, request, timeout=timeout))


class GrpcRooms(_Peer):
    """See the port."""

    def __init__(self, channel: grpc.aio.Channel, policy: RowPolicy) -> None:
        super().__init__(policy)
        self._stub = webrtc_pb2_grpc.RoomServiceStub(channel)

    async def create(self, name: str, max_participants: int) -> Served[Room]:
        """A new room."""
        request = webrtc_pb2.CreateRoomRequest(name=name, max_participants=max_participants)
        return (await self._call(self._stub.CreateRoom, request)).map(lambda answer: _room(answer.room))

    async def get(self, room_id: str) -> Served[Room]:
        """One room."""
        served = await self._call(self._stub.GetRoom, webrtc_pb2.GetRoomRequest(id=room_id))
        return served.map(lambda answer: _room(answer.room))

    async def page(self, limit: int, cursor: str | None) -> Served[Page[Room]]:
        """The caller's rooms."""
        request = webrtc_pb2.ListRoomsRequest(page_size=limit, cursor=cursor or "")
        served = await self._call(self._stub.ListRooms, request)
        return served.map(lambda answer: Page([_room(room) for room in answer.items], answer.next_cursor or None))

    async def delete(self, room_id: str) -> Served[None]:
        """Deletes the caller's room."""
        served = await self._call(self._stub.DeleteRoom, webrtc_pb2.DeleteRoomRequest(id=room_id))
        return served.map(lambda _: None)

    async def ticket(self, room_id: str) -> Served[RoomTicket]:
        """What the caller needs to join."""
        served = await self._call(self._stub.IssueToken, webrtc_pb2.IssueTokenRequest(room_id=room_id))
        return served.map(
            lambda answer: RoomTicket(
                answer.token,
                answer.ws_url,
                [IceServer(list(one.urls), one.username, one.credential) for one in answer.ice_servers],
                answer.expires_in,
            )
        )


class GrpcAgents(_Peer):
    """See the port."""

    def __init__(self, channel: grpc.aio.Channel, policy: RowPolicy) -> None:
        super().__init__(policy)
        self._stub = ai_pb2_grpc.AgentServiceStub(channel)

    async def create(self, name: str, prompt: str, model: str, key: str) -> Served[Agent]:
        """A new agent."""
        request = ai_pb2.CreateAgentRequest(name=name, system_prompt=prompt, model=model, idempotency_key=key)
        return (await self._call(self._stub.CreateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def get(self, agent_id: str) -> Served[Agent]:
        """One of the caller's agents."""
        served = await self._call(self._stub.GetAgent, ai_pb2.GetAgentRequest(id=agent_id))
        return served.map(lambda answer: _agent(answer.agent))

    async def page(self, limit: int, cursor: str | None) -> Served[Page[Agent]]:
        """The caller's agents."""
        request = ai_pb2.ListAgentsRequest(page_size=limit, cursor=cursor or "")
        served = await self._call(self._stub.ListAgents, request)
        return served.map(lambda answer: Page([_agent(one) for one in answer.items], answer.next_cursor or None))

    async def change(self, agent_id: str, fields: dict[str, str]) -> Served[Agent]:
        """Changes the given fields."""
        agent = ai_pb2.Agent(id=agent_id)
        for name, value in fields.items():
            setattr(agent, name, value)
        request = ai_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=list(fields)))
        return (await self._call(self._stub.UpdateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def delete(self, agent_id: str) -> Served[None]:
        """Deletes the caller's agent."""
        served = await self._call(self._stub.DeleteAgent, ai_pb2.DeleteAgentRequest(id=agent_id))
        return served.map(lambda _: None)

    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]:
        """The agent's answer."""
        request = ai_pb2.ChatRequest(agent_id=agent_id, message=message, conversation_id=conversation_id)
        return (await self._call(self._stub.Chat, request, self._policy.timeout)).map(
            lambda answer: Reply(
                answer.reply,
                answer.provider,
                answer.model,
                answer.cached,
                answer.fallback_from,
                answer.conversation_id,
                answer.simulated,
            )
        )


async def check(channel: grpc.aio.Channel) -> None:
    """Raises unless the peer says that it is serving: the probe of its row."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs leave the methods out
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=STATUS_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConnectionError("the peer is not serving")


async def status(channel: grpc.aio.Channel) -> status_pb2.GetStatusResponse:
    """The peer's live matrix, for the console; past its circuit, as a look at a sick peer is the point."""
    stub = status_pb2_grpc.StatusServiceStub(channel)
    return await stub.GetStatus(status_pb2.GetStatusRequest(), timeout=STATUS_SECONDS)


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def _room(room: webrtc_pb2.Room) -> Room:
    return Room(room.id, room.name, room.max_participants, room.owner_id, _seconds(room.created_at))


def _agent(agent: ai_pb2.Agent) -> Agent:
    return Agent(
        agent.id, agent.name, agent.system_prompt, agent.model, _seconds(agent.created_at), _seconds(agent.updated_at)
    )
