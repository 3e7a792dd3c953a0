"""Row D3: AI Core."""

from __future__ import annotations

from fastapi import APIRouter

from dashboard.degradation import AI_CORE
from dashboard.inbound.http import agents
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound.ai_core import GrpcAgents
from dashboard.settings import Settings
from dashboard.wiring.peers import peer_policy
from dashboard.wiring.redis import RedisPart
from service_kit.rpc_client import channel
from service_kit.runtime import ServiceRuntime


class AiCorePart:
    """Everything that is plugged into AI Core."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart) -> None:  # noqa: ARG002
        self.channel = channel(settings.ai_core_grpc)
        self.policy = peer_policy(runtime, AI_CORE, self.channel, timeout=settings.chat_limit)
        self.agents = GrpcAgents(self.channel, self.policy)
        self._chat_limit = settings.chat_limit
        runtime.on_close(self.channel.close, "ai-core")

    def routers(self, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        return [agents.create_router(self.agents, outcome, doorman, chat_limit=self._chat_limit)]
