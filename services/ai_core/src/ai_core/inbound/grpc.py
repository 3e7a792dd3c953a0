"""AI Core over gRPC: agents, chat, conversations, queued writes. Errors and headers are the interceptors' business.

What was queued is no error here: the answer has it in ``queued``.
"""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from collections.abc import AsyncGenerator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ai_core.inbound.grpc_streams import chat_response, chat_stream
from ai_core.inbound.outcome import Outcome
from ai_core.model import Agent, Conversation
from ai_core.usecases.agents import CHANGEABLE, Agents
from ai_core.usecases.chat import Chat
from ai_core.usecases.conversations import Conversations
from ai_core.usecases.operations import Operations
from ai_core.usecases.writes import Made
from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from resilience import Served

Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(ai_pb2_grpc.AgentServiceServicer):
    """Each method acts for the user of the bearer token. ``opening_limit``: seconds until a stream has begun."""

    def __init__(
        self, agents: Agents, chat: Chat, conversations: Conversations, outcome: Outcome, opening_limit: float
    ) -> None:
        self._agents = agents
        self._chat = chat
        self._conversations = conversations
        self._outcome = outcome
        self._opening_limit = opening_limit

    async def CreateAgent(self, request: ai_pb2.CreateAgentRequest, context: Context) -> ai_pb2.CreateAgentResponse:
        """A new agent."""
        user = self._outcome.caller()
        texts = request.name, request.system_prompt, request.model
        made = await self._outcome.of(self._agents.create(user, *texts, request.idempotency_key, request.id))
        return ai_pb2.CreateAgentResponse(agent=_message(made.value), queued=queued(made))

    async def GetAgent(self, request: ai_pb2.GetAgentRequest, context: Context) -> ai_pb2.GetAgentResponse:
        """One agent."""
        found = await self._outcome.served(self._agents.get(self._outcome.caller(), request.id))
        return ai_pb2.GetAgentResponse(agent=_message(found.value), provenance=provenance(found))

    async def ListAgents(self, request: ai_pb2.ListAgentsRequest, context: Context) -> ai_pb2.ListAgentsResponse:
        """A page of agents, newest first."""
        user = self._outcome.caller()
        found = await self._outcome.served(self._agents.page(user, request.page_size, request.cursor))
        items, cursor = [_message(agent) for agent in found.value.items], found.value.next_cursor
        return ai_pb2.ListAgentsResponse(items=items, next_cursor=cursor, provenance=provenance(found))

    async def UpdateAgent(self, request: ai_pb2.UpdateAgentRequest, context: Context) -> ai_pb2.UpdateAgentResponse:
        """Changes the fields that the mask names."""
        user = self._outcome.caller()
        made = await self._outcome.of(self._agents.update(user, request.agent.id, _masked(request)))
        agent = None if made.value is None else _message(made.value)
        return ai_pb2.UpdateAgentResponse(agent=agent, queued=queued(made))

    async def DeleteAgent(self, request: ai_pb2.DeleteAgentRequest, context: Context) -> ai_pb2.DeleteAgentResponse:
        """Deletes an agent and its conversations."""
        made = await self._outcome.of(self._agents.delete(self._outcome.caller(), request.id))
        return ai_pb2.DeleteAgentResponse(queued=queued(made))

    async def Chat(self, request: ai_pb2.ChatRequest, context: Context) -> ai_pb2.ChatResponse:
        """The agent's answer to a message."""
        user = self._outcome.caller()
        asked = self._chat.reply(user, request.agent_id, request.message, request.conversation_id)
        return chat_response(await self._outcome.of(asked))

    def ChatStream(
        self, request: ai_pb2.ChatStreamRequest, context: Context
    ) -> AsyncGenerator[ai_pb2.ChatStreamResponse, None]:
        """The same answer as it comes."""
        return chat_stream(self._chat, self._outcome, request, self._opening_limit)

    async def ListConversations(
        self, request: ai_pb2.ListConversationsRequest, context: Context
    ) -> ai_pb2.ListConversationsResponse:
        """A page of conversations, the one that was used last first."""
        user = self._outcome.caller()
        asked = self._conversations.page(user, request.agent_id, request.page_size, request.cursor)
        found = await self._outcome.served(asked)
        items, cursor = [_conversation(one) for one in found.value.items], found.value.next_cursor
        return ai_pb2.ListConversationsResponse(items=items, next_cursor=cursor, provenance=provenance(found))

    async def GetConversation(
        self, request: ai_pb2.GetConversationRequest, context: Context
    ) -> ai_pb2.GetConversationResponse:
        """What was said in a conversation."""
        user = self._outcome.caller()
        found = await self._outcome.served(self._conversations.get(user, request.agent_id, request.conversation_id))
        turns = [ai_pb2.Turn(role=turn.role, content=turn.content) for turn in found.value.turns]
        return ai_pb2.GetConversationResponse(
            conversation=_conversation(found.value), turns=turns, provenance=provenance(found)
        )

    async def DeleteConversation(
        self, request: ai_pb2.DeleteConversationRequest, context: Context
    ) -> ai_pb2.DeleteConversationResponse:
        """Forgets a conversation."""
        user = self._outcome.caller()
        made = await self._outcome.of(self._conversations.delete(user, request.agent_id, request.conversation_id))
        return ai_pb2.DeleteConversationResponse(queued=queued(made))

    async def AbandonAgent(self, request: ai_pb2.AbandonAgentRequest, context: Context) -> ai_pb2.AbandonAgentResponse:
        """Gives up a creation that nobody should make any more."""
        await self._outcome.of(self._agents.abandon(self._outcome.caller(), request.idempotency_key))
        return ai_pb2.AbandonAgentResponse()


class OperationService(ai_pb2_grpc.OperationServiceServicer):
    """What became of queued writes, each shown to its owner only."""

    def __init__(self, operations: Operations, outcome: Outcome) -> None:
        self._operations = operations
        self._outcome = outcome

    async def GetOperation(self, request: ai_pb2.GetOperationRequest, context: Context) -> ai_pb2.GetOperationResponse:
        """One write."""
        record = await self._outcome.of(self._operations.status(self._outcome.caller(), request.id))
        operation = record.operation
        accepted = operation.accepted_at if operation else 0.0
        return ai_pb2.GetOperationResponse(
            id=request.id,
            status=record.status.value,
            kind=operation.kind if operation else "",
            accepted_at=timestamp(accepted) if accepted else None,
            error=record.error,
        )


def provenance(served: Served[Any]) -> ai_pb2.Provenance | None:
    """Where a value came from; None for what is live."""
    if served.as_of is None and not served.pending:
        return None
    return ai_pb2.Provenance(as_of=None if served.as_of is None else timestamp(served.as_of), pending=served.pending)


def queued(made: Made[Any]) -> ai_pb2.QueuedWrite | None:
    """That a write waits; None when it has been applied."""
    return ai_pb2.QueuedWrite(operation_id=made.operation_id) if made.operation_id else None


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


def _conversation(conversation: Conversation) -> ai_pb2.Conversation:
    return ai_pb2.Conversation(id=conversation.id, updated_at=timestamp(conversation.updated_at))


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds in the protocol's form."""
    microseconds = round(seconds * 1_000_000)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)
