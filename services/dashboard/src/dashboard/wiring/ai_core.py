"""Row D3: AI Core, and the queue of what it is to make when it is back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from dashboard.degradation import AI_CORE
from dashboard.inbound.http import agents, ai, conversations
from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.outbound.ai_copies import AiCoreCopies
from dashboard.outbound.ai_core import PATIENT, GrpcAiCore
from dashboard.outbound.ai_queue import AiQueueTarget
from dashboard.outbound.all_queues import AllQueues
from dashboard.ports import Announce, silent
from dashboard.settings import Settings
from dashboard.usecases.assistant import (
    STREAMS,
    Agents,
    Conversations,
    Language,
    Memories,
    agents_of,
    announce_creation,
    memories_of,
)
from dashboard.usecases.creations import Creations
from dashboard.wiring.peers import peer_policy
from dashboard.wiring.redis import RedisPart
from resilience import Operation, OperationRecord, Result
from service_kit.durable import durable, queue_store
from service_kit.rpc_client import channel
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenIssuer

QUEUE = "dashboard-ai"
BATCH = 64
"""Creations handed over under one call of the policy: few enough for its time limit."""
TOKEN_SECONDS = 60.0
"""Life of the token with which a queued creation is made for its owner."""


class AiCorePart:
    """Everything that is plugged into AI Core. ``announce`` tells of agents that are made, changed and deleted."""

    def __init__(
        self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart, announce: Announce = silent
    ) -> None:
        self._announce = announce
        self.channel = channel(settings.ai_core_grpc)
        limit, patient = settings.chat_limit, PATIENT + STREAMS
        self.policy = peer_policy(runtime, AI_CORE, self.channel, timeout=limit, patient=patient)
        secret = settings.jwt_secret.get_secret_value()
        issuer = TokenIssuer(secret, lifetime=TOKEN_SECONDS)
        self._chat_limit = settings.chat_limit
        ai_core = self._ai_core = GrpcAiCore(self.channel, patience=self.policy.timeout)
        self.queue = queue_store(runtime, redis.client, redis.policy, QUEUE)
        target = AiQueueTarget(ai_core, lambda owner: issuer.issue(owner, QUEUE))
        self._writer = durable(
            runtime, self.policy, self.queue, target, batch_size=BATCH, on_applied=self._on_applied
        ).writer
        creations = Creations(self._writer, runtime.clock, key_secret=secret.encode())
        copies = AiCoreCopies(redis.copies)
        self.agents = Agents(ai_core, self.policy, creations, copies, announce)
        self.memories = Memories(ai_core, self.policy, creations, copies)
        self.language = Language(ai_core, self.policy)
        self.conversations = Conversations(ai_core, self.policy)
        self._show_queue(runtime, redis)
        runtime.on_close(self.channel.close, "ai-core")

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """What became of a write that AI Core has queued for the user of the current request."""
        return await self.policy.call(lambda: self._ai_core.operation(operation_id))

    def _show_queue(self, runtime: ServiceRuntime, redis: RedisPart) -> None:
        """Operators see both queues as the service's one; the health page shows this one's share as well."""
        queues = AllQueues(runtime.name, (redis.queue, self.queue))

        def share() -> dict[str, Any]:
            stats = queues.seen[QUEUE]
            return {"depth": stats.depth, "oldest_age_seconds": stats.oldest_age, "dead": stats.dead}

        runtime.queue = queues
        runtime.buffers[QUEUE] = share

    async def _on_applied(self, results: Sequence[Result]) -> None:
        for result in results:
            announce_creation(self._announce, result.operation)

    async def waiting(self, owner: str) -> Sequence[Operation]:
        """A user's creations that are still to be made."""
        return [one for entity in (agents_of(owner), memories_of(owner)) for one in await self._writer.pending(entity)]

    def routers(self, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        limit = self._chat_limit
        return [
            agents.create_router(self.agents, outcome, doorman, chat_limit=limit),
            conversations.create_router(self.conversations, outcome, doorman),
            ai.create_router(self.memories, self.language, outcome, doorman, chat_limit=limit),
        ]
