"""AI Core over gRPC (row D3, dashboard.ai_core)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from dashboard.degradation import AI_CORE
from dashboard.model import Agent, Found, Memory, Page, Reply, Speech, Translation
from dashboard.outbound.peer import seconds
from resilience import Served
from service_kit.rpc_client import Caller

QUICK = 1.2
"""Seconds for a call that needs no provider: more than AI Core gives its database, and little enough that what serves
instead of a frozen AI Core still answers in time."""

_READY = ai_pb2.EMBEDDING_STATUS_READY


class GrpcAiCore:
    """See the port. ``patience``: seconds for a call that may have to wait for a provider."""

    def __init__(self, channel: grpc.aio.Channel, *, patience: float) -> None:
        self._caller = Caller(AI_CORE)
        self._patience = patience
        self._agents = ai_pb2_grpc.AgentServiceStub(channel)
        self._memories = ai_pb2_grpc.MemoryServiceStub(channel)
        self._language = ai_pb2_grpc.LanguageServiceStub(channel)

    async def create_agent(self, agent_id: str, name: str, prompt: str, model: str, key: str) -> Served[Agent]:
        """A new agent."""
        request = ai_pb2.CreateAgentRequest(
            id=agent_id, name=name, system_prompt=prompt, model=model, idempotency_key=key
        )
        return (await self._quick(self._agents.CreateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def abandon_agent(self, key: str) -> None:
        """No later creation with this key makes an agent; one made before stays."""
        await self._quick(self._agents.AbandonAgent, ai_pb2.AbandonAgentRequest(idempotency_key=key))

    async def agent(self, agent_id: str) -> Served[Agent]:
        """One of the caller's agents."""
        served = await self._quick(self._agents.GetAgent, ai_pb2.GetAgentRequest(id=agent_id))
        return served.map(lambda answer: _agent(answer.agent))

    async def agents(self, limit: int, cursor: str | None) -> Served[Page[Agent]]:
        """The caller's agents."""
        request = ai_pb2.ListAgentsRequest(page_size=limit, cursor=cursor or "")
        served = await self._quick(self._agents.ListAgents, request)
        return served.map(lambda answer: Page([_agent(one) for one in answer.items], answer.next_cursor or None))

    async def change_agent(self, agent_id: str, fields: dict[str, str]) -> Served[Agent]:
        """Changes the given fields."""
        agent = ai_pb2.Agent(id=agent_id)
        for name, value in fields.items():
            setattr(agent, name, value)
        request = ai_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=list(fields)))
        return (await self._quick(self._agents.UpdateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def delete_agent(self, agent_id: str) -> Served[None]:
        """Deletes the caller's agent."""
        served = await self._quick(self._agents.DeleteAgent, ai_pb2.DeleteAgentRequest(id=agent_id))
        return served.map(lambda _: None)

    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]:
        """The agent's answer."""
        request = ai_pb2.ChatRequest(agent_id=agent_id, message=message, conversation_id=conversation_id)
        return (await self._patient(self._agents.Chat, request)).map(_reply)

    async def create_memory(self, memory_id: str, text: str, tags: Sequence[str], key: str) -> Served[Memory]:
        """A new memory."""
        request = ai_pb2.CreateMemoryRequest(id=memory_id, text=text, tags=tags, idempotency_key=key)
        return (await self._quick(self._memories.CreateMemory, request)).map(lambda answer: _memory(answer.memory))

    async def abandon_memory(self, key: str) -> None:
        """No later creation with this key makes a memory; one made before stays."""
        await self._quick(self._memories.AbandonMemory, ai_pb2.AbandonMemoryRequest(idempotency_key=key))

    async def memories(self, limit: int, cursor: str | None) -> Served[Page[Memory]]:
        """The caller's memories."""
        request = ai_pb2.ListMemoriesRequest(page_size=limit, cursor=cursor or "")
        served = await self._quick(self._memories.ListMemories, request)
        return served.map(lambda answer: Page([_memory(one) for one in answer.items], answer.next_cursor or None))

    async def search(self, query: str, limit: int) -> Served[Found]:
        """The caller's memories that fit a query."""
        request = ai_pb2.SearchMemoriesRequest(query=query, limit=limit)
        served = await self._patient(self._memories.SearchMemories, request)
        return served.map(
            lambda answer: Found([(_memory(one.memory), one.score) for one in answer.matches], answer.search)
        )

    async def delete_memory(self, memory_id: str) -> Served[None]:
        """Deletes the caller's memory."""
        served = await self._quick(self._memories.DeleteMemory, ai_pb2.DeleteMemoryRequest(id=memory_id))
        return served.map(lambda _: None)

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
            )
        )

    async def _quick(self, method: Callable[..., Any], request: object) -> Served[Any]:
        return await self._caller.unary(method, request, timeout=QUICK)

    async def _patient(self, method: Callable[..., Any], request: object) -> Served[Any]:
        return await self._caller.unary(method, request, timeout=self._patience)


def _agent(agent: ai_pb2.Agent) -> Agent:
    return Agent(
        agent.id, agent.name, agent.system_prompt, agent.model, seconds(agent.created_at), seconds(agent.updated_at)
    )


def _reply(answer: ai_pb2.ChatResponse) -> Reply:
    return Reply(
        answer.reply,
        answer.provider,
        answer.model,
        answer.cached,
        answer.fallback_from,
        answer.conversation_id,
        answer.simulated,
    )


def _memory(memory: ai_pb2.Memory) -> Memory:
    embedding = "ready" if memory.embedding == _READY else "pending"
    return Memory(memory.id, memory.text, tuple(memory.tags), embedding, seconds(memory.created_at))
