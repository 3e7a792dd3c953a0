"""AI Core over gRPC (row D3, dashboard.ai_core)."""

from __future__ import annotations

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from dashboard.model import Agent, Page, Reply
from dashboard.outbound.peer import Peer, seconds
from resilience import RowPolicy, Served


class GrpcAgents(Peer):
    """See the port."""

    def __init__(self, channel: grpc.aio.Channel, policy: RowPolicy) -> None:
        super().__init__(policy)
        self._stub = ai_pb2_grpc.AgentServiceStub(channel)

    async def create(self, name: str, prompt: str, model: str, key: str) -> Served[Agent]:
        """A new agent."""
        request = ai_pb2.CreateAgentRequest(name=name, system_prompt=prompt, model=model, idempotency_key=key)
        return (await self.call(self._stub.CreateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def get(self, agent_id: str) -> Served[Agent]:
        """One of the caller's agents."""
        served = await self.call(self._stub.GetAgent, ai_pb2.GetAgentRequest(id=agent_id))
        return served.map(lambda answer: _agent(answer.agent))

    async def page(self, limit: int, cursor: str | None) -> Served[Page[Agent]]:
        """The caller's agents."""
        request = ai_pb2.ListAgentsRequest(page_size=limit, cursor=cursor or "")
        served = await self.call(self._stub.ListAgents, request)
        return served.map(lambda answer: Page([_agent(one) for one in answer.items], answer.next_cursor or None))

    async def change(self, agent_id: str, fields: dict[str, str]) -> Served[Agent]:
        """Changes the given fields."""
        agent = ai_pb2.Agent(id=agent_id)
        for name, value in fields.items():
            setattr(agent, name, value)
        request = ai_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=list(fields)))
        return (await self.call(self._stub.UpdateAgent, request)).map(lambda answer: _agent(answer.agent))

    async def delete(self, agent_id: str) -> Served[None]:
        """Deletes the caller's agent."""
        served = await self.call(self._stub.DeleteAgent, ai_pb2.DeleteAgentRequest(id=agent_id))
        return served.map(lambda _: None)

    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]:
        """The agent's answer."""
        request = ai_pb2.ChatRequest(agent_id=agent_id, message=message, conversation_id=conversation_id)
        return (await self.call(self._stub.Chat, request, self.policy.timeout)).map(
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


def _agent(agent: ai_pb2.Agent) -> Agent:
    return Agent(
        agent.id, agent.name, agent.system_prompt, agent.model, seconds(agent.created_at), seconds(agent.updated_at)
    )
