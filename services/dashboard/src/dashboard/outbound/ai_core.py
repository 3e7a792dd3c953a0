"""AI Core over gRPC (row D3, dashboard.ai_core)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from dashboard.degradation import AI_CORE
from dashboard.model import (
    AI_CORE_ENTITY,
    Agent,
    Conversation,
    Found,
    Made,
    Memory,
    Page,
    Reply,
    Speech,
    Translation,
    Turn,
)
from dashboard.outbound.ai_stream import STREAM_IDLE_SECONDS, STREAM_SECONDS, GrpcReplyStream, reply_of
from dashboard.outbound.peer import seconds
from dashboard.ports import ReplyStream
from resilience import Bulkhead, Operation, OperationRecord, OperationStatus, Served
from service_kit.errors import NotFound
from service_kit.rpc_client import Caller

QUICK = 1.2
"""Seconds for a call that needs no provider: more than AI Core gives its database, and little enough that what serves
instead of a frozen AI Core still answers in time."""

PATIENT = 128
"""Calls at a time that may have to wait for a provider; whoever comes beyond is refused at once."""

T = TypeVar("T")

_READY = ai_pb2.EMBEDDING_STATUS_READY


class GrpcAiCore:
    """See the port. ``patience``: seconds for a call that may have to wait for a provider.

    Such a call outlives all others, but not AI Core: the channel's keepalive ends it at most 1.5 s after a frozen AI
    Core has shown for the last time that it lives, and the row's circuit learns of it. It has places of its own:
    however many providers are slow, ordinary calls keep theirs.
    """

    def __init__(self, channel: grpc.aio.Channel, *, patience: float) -> None:
        self._caller = Caller(AI_CORE)
        self._patience = patience
        self._places = Bulkhead(f"{AI_CORE.id}.patient", PATIENT, 0)
        self._agents = ai_pb2_grpc.AgentServiceStub(channel)
        self._memories = ai_pb2_grpc.MemoryServiceStub(channel)
        self._language = ai_pb2_grpc.LanguageServiceStub(channel)
        self._operations = ai_pb2_grpc.OperationServiceStub(channel)

    async def create_agent(self, agent_id: str, name: str, prompt: str, model: str, key: str) -> Served[Made[Agent]]:
        """A new agent."""
        request = ai_pb2.CreateAgentRequest(
            id=agent_id, name=name, system_prompt=prompt, model=model, idempotency_key=key
        )
        return (await self._quick(self._agents.CreateAgent, request)).map(
            lambda answer: _made(answer, _agent(answer.agent))
        )

    async def abandon_agent(self, key: str) -> None:
        """No later creation with this key makes an agent; one made before stays."""
        await self._quick(self._agents.AbandonAgent, ai_pb2.AbandonAgentRequest(idempotency_key=key))

    async def agent(self, agent_id: str) -> Served[Agent]:
        """One of the caller's agents."""
        served = await self._quick(self._agents.GetAgent, ai_pb2.GetAgentRequest(id=agent_id))
        return _told(served, _agent(served.value.agent))

    async def agents(self, limit: int, cursor: str | None) -> Served[Page[Agent]]:
        """The caller's agents."""
        request = ai_pb2.ListAgentsRequest(page_size=limit, cursor=cursor or "")
        served = await self._quick(self._agents.ListAgents, request)
        answer = served.value
        return _told(served, Page([_agent(one) for one in answer.items], answer.next_cursor or None))

    async def change_agent(self, agent_id: str, fields: dict[str, str]) -> Served[Made[Agent | None]]:
        """Changes the given fields."""
        agent = ai_pb2.Agent(id=agent_id)
        for name, value in fields.items():
            setattr(agent, name, value)
        request = ai_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=list(fields)))
        served = await self._quick(self._agents.UpdateAgent, request)
        return served.map(lambda answer: _made(answer, _agent(answer.agent) if answer.HasField("agent") else None))

    async def delete_agent(self, agent_id: str) -> Served[Made[None]]:
        """Deletes the caller's agent."""
        served = await self._quick(self._agents.DeleteAgent, ai_pb2.DeleteAgentRequest(id=agent_id))
        return served.map(lambda answer: _made(answer, None))

    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]:
        """The agent's answer."""
        request = ai_pb2.ChatRequest(agent_id=agent_id, message=message, conversation_id=conversation_id)
        return (await self._patient(self._agents.Chat, request)).map(reply_of)

    async def conversations(self, agent_id: str, limit: int, cursor: str | None) -> Served[Page[Conversation]]:
        """The conversations with an agent, the one that was used last first."""
        request = ai_pb2.ListConversationsRequest(agent_id=agent_id, page_size=limit, cursor=cursor or "")
        served = await self._quick(self._agents.ListConversations, request)
        answer = served.value
        return _told(served, Page([_conversation(one) for one in answer.items], answer.next_cursor or None))

    async def conversation(self, agent_id: str, conversation_id: str) -> Served[Conversation]:
        """What was said in a conversation."""
        request = ai_pb2.GetConversationRequest(agent_id=agent_id, conversation_id=conversation_id)
        served = await self._quick(self._agents.GetConversation, request)
        return _told(served, _conversation(served.value.conversation, served.value.turns))

    async def delete_conversation(self, agent_id: str, conversation_id: str) -> Served[Made[None]]:
        """Forgets a conversation."""
        request = ai_pb2.DeleteConversationRequest(agent_id=agent_id, conversation_id=conversation_id)
        served = await self._quick(self._agents.DeleteConversation, request)
        return served.map(lambda answer: _made(answer, None))

    async def chat_stream(self, agent_id: str, message: str, conversation_id: str) -> Served[ReplyStream]:
        """The agent's answer as it comes, once it has begun."""
        request = ai_pb2.ChatStreamRequest(agent_id=agent_id, message=message, conversation_id=conversation_id)
        served = await self._caller.stream(
            self._agents.ChatStream, request, timeout=STREAM_SECONDS, idle=STREAM_IDLE_SECONDS
        )
        return served.map(GrpcReplyStream)

    async def create_memory(self, memory_id: str, text: str, tags: Sequence[str], key: str) -> Served[Made[Memory]]:
        """A new memory."""
        request = ai_pb2.CreateMemoryRequest(id=memory_id, text=text, tags=tags, idempotency_key=key)
        served = await self._quick(self._memories.CreateMemory, request)
        return served.map(lambda answer: _made(answer, _memory(answer.memory)))

    async def abandon_memory(self, key: str) -> None:
        """No later creation with this key makes a memory; one made before stays."""
        await self._quick(self._memories.AbandonMemory, ai_pb2.AbandonMemoryRequest(idempotency_key=key))

    async def memories(self, limit: int, cursor: str | None) -> Served[Page[Memory]]:
        """The caller's memories."""
        request = ai_pb2.ListMemoriesRequest(page_size=limit, cursor=cursor or "")
        served = await self._quick(self._memories.ListMemories, request)
        answer = served.value
        return _told(served, Page([_memory(one) for one in answer.items], answer.next_cursor or None))

    async def search(self, query: str, limit: int) -> Served[Found]:
        """The caller's memories that fit a query."""
        request = ai_pb2.SearchMemoriesRequest(query=query, limit=limit)
        served = await self._patient(self._memories.SearchMemories, request)
        return served.map(
            lambda answer: Found([(_memory(one.memory), one.score) for one in answer.matches], answer.search)
        )

    async def delete_memory(self, memory_id: str) -> Served[Made[None]]:
        """Deletes the caller's memory."""
        served = await self._quick(self._memories.DeleteMemory, ai_pb2.DeleteMemoryRequest(id=memory_id))
        return served.map(lambda answer: _made(answer, None))

    async def translate(self, text: str, target: str, source: str) -> Served[Translation]:
        """A text in another language."""
        request = ai_pb2.TranslateRequest(text=text, target_language=target, source_language=source)
        return (await self._patient(self._language.Translate, request)).map(
            lambda answer: Translation(answer.text, answer.translated, answer.provider, answer.model, answer.simulated)
        )

    async def speak(self, text: str, voice: str) -> Served[Speech]:
        """A text spoken."""
        served = await self._patient(self._language.Speak, ai_pb2.SpeakRequest(text=text, voice=voice))
        return served.map(
            lambda answer: Speech(
                answer.text,
                answer.audio if answer.HasField("audio") else None,
                answer.content_type,
                answer.provider,
                answer.model,
                answer.simulated,
            )
        )

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """See the port."""
        try:
            served = await self._quick(self._operations.GetOperation, ai_pb2.GetOperationRequest(id=operation_id))
        except NotFound:
            return None
        answer = served.value
        accepted = seconds(answer.accepted_at) if answer.HasField("accepted_at") else 0.0
        operation = Operation(operation_id, answer.kind, AI_CORE_ENTITY, "", {}, accepted_at=accepted)
        return OperationRecord(operation, OperationStatus(answer.status), answer.error)

    async def _quick(self, method: Callable[..., Any], request: object) -> Served[Any]:
        return await self._caller.unary(method, request, timeout=QUICK)

    async def _patient(self, method: Callable[..., Any], request: object) -> Served[Any]:
        await self._places.acquire()
        try:
            return await self._caller.unary(method, request, timeout=self._patience)
        finally:
            self._places.release()


def _made(answer: Any, value: T) -> Made[T]:
    return Made(value, answer.queued.operation_id)


def _told(served: Served[Any], value: T) -> Served[T]:
    """The value with what AI Core itself says of its origin."""
    told = served.value.provenance
    as_of = seconds(told.as_of) if told.HasField("as_of") else None
    return Served(value, served.degradations, as_of, told.pending)


def _agent(agent: ai_pb2.Agent) -> Agent:
    return Agent(
        agent.id, agent.name, agent.system_prompt, agent.model, seconds(agent.created_at), seconds(agent.updated_at)
    )


def _conversation(conversation: ai_pb2.Conversation, turns: Iterable[ai_pb2.Turn] = ()) -> Conversation:
    said = tuple(Turn(turn.role, turn.content) for turn in turns)
    return Conversation(conversation.id, seconds(conversation.updated_at), said)


def _memory(memory: ai_pb2.Memory) -> Memory:
    embedding = "ready" if memory.embedding == _READY else "pending"
    return Memory(memory.id, memory.text, tuple(memory.tags), embedding, seconds(memory.created_at))
