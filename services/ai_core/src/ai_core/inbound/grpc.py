"""AI Core over gRPC: ``auralink.ai.v1.AgentService``. Errors and provenance are the server's interceptors' business."""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ai_core.inbound.outcome import Outcome
from ai_core.model import Agent
from ai_core.usecases.agents import CHANGEABLE, Agents
from ai_core.usecases.chat import Chat
from auralink.ai.v1 import ai_pb2, ai_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(ai_pb2_grpc.AgentServiceServicer):
    """Each method acts for the user of the bearer token."""

    def __init__(self, agents: Agents, chat: Chat, outcome: Outcome) -> None:
        self._agents = agents
        self._chat = chat
        self._outcome = outcome

    async def CreateAgent(self, request: ai_pb2.CreateAgentRequest, context: Context) -> ai_pb2.CreateAgentResponse:
        """A new agent."""
        user = self._outcome.caller()
        texts = request.name, request.system_prompt, request.model
        made = self._agents.create(user, *texts, request.idempotency_key, request.id)
        return ai_pb2.CreateAgentResponse(agent=_message(await self._outcome.of(made)))

    async def GetAgent(self, request: ai_pb2.GetAgentRequest, context: Context) -> ai_pb2.GetAgentResponse:
        """One agent."""
        found = await self._outcome.of(self._agents.get(self._outcome.caller(), request.id))
        return ai_pb2.GetAgentResponse(agent=_message(found))

    async def ListAgents(self, request: ai_pb2.ListAgentsRequest, context: Context) -> ai_pb2.ListAgentsResponse:
        """A page of agents, newest first."""
        user = self._outcome.caller()
        found = await self._outcome.of(self._agents.page(user, request.page_size, request.cursor))
        items = [_message(agent) for agent in found.items]
        return ai_pb2.ListAgentsResponse(items=items, next_cursor=found.next_cursor)

    async def UpdateAgent(self, request: ai_pb2.UpdateAgentRequest, context: Context) -> ai_pb2.UpdateAgentResponse:
        """Changes the fields that the mask names."""
        user = self._outcome.caller()
        changed = self._agents.update(user, request.agent.id, _masked(request))
        return ai_pb2.UpdateAgentResponse(agent=_message(await self._outcome.of(changed)))

    async def DeleteAgent(self, request: ai_pb2.DeleteAgentRequest, context: Context) -> ai_pb2.DeleteAgentResponse:
        """Deletes an agent and its conversations."""
        await self._outcome.of(self._agents.delete(self._outcome.caller(), request.id))
        return ai_pb2.DeleteAgentResponse()

    async def Chat(self, request: ai_pb2.ChatRequest, context: Context) -> ai_pb2.ChatResponse:
        """The agent's answer to a message."""
        user = self._outcome.caller()
        asked = self._chat.reply(user, request.agent_id, request.message, request.conversation_id)
        reply = await self._outcome.of(asked)
        return ai_pb2.ChatResponse(
            reply=reply.reply,
            provider=reply.provider,
            model=reply.model,
            cached=reply.cached,
            fallback_from=reply.fallback_from,
            conversation_id=reply.conversation_id,
            simulated=reply.simulated,
        )

    async def AbandonAgent(self, request: ai_pb2.AbandonAgentRequest, context: Context) -> ai_pb2.AbandonAgentResponse:
        """Gives up a creation that nobody should make any more."""
        await self._outcome.of(self._agents.abandon(self._outcome.caller(), request.idempotency_key))
        return ai_pb2.AbandonAgentResponse()


def _masked(request: ai_pb2.UpdateAgentRequest) -> dict[str, str]:
    """The fields to change; the use case refuses names that it does not know."""
    texts = {field: getattr(request.agent, field) for field in CHANGEABLE}
    return {path: texts.get(path, "") for path in request.update_mask.paths}


def _message(agent: Agent) -> ai_pb2.Agent:
    return ai_pb2.Agent(
        id=agent.id,
        name=agent.name,
        system_prompt=agent.system_prompt,
        model=agent.model,
        created_at=timestamp(agent.created_at),
        updated_at=timestamp(agent.updated_at),
    )


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds in the protocol's form."""
    microseconds = round(seconds * 1_000_000)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)
