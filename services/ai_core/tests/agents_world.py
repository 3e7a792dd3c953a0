"""Agents, conversations and chat on real servers, whose outages the test makes: by a held circuit, and a deaf Redis."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.degradation import POSTGRES, REDIS_QUEUE, classify_database
from ai_core.model import Agent
from ai_core.outbound.agent_copies import StoredAgentCopies
from ai_core.outbound.postgres import APPLIERS, PostgresAgents
from ai_core.outbound.queue_target import AiCoreTarget, PostgresWrites
from ai_core.usecases.agents import Agents
from ai_core.usecases.applied import refresh
from ai_core.usecases.chat import Chat
from ai_core.usecases.conversations import Conversations
from ai_core.usecases.operations import Operations
from ai_core.usecases.writes import Writes
from resilience import (
    SYSTEM_CLOCK,
    CircuitBreaker,
    Drainer,
    DrainSettings,
    DurableWriter,
    MemoryCache,
    Result,
    RowPolicy,
)
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit.copies import CopyStore
from services.ai_core.tests import chain_fakes

FAST = {"batch_size": 100, "interval": 3600.0, "retry_waits": (0.01, 0.01, 0.01), "contended_wait": 0.01}


class AgentsWorld:
    """One instance of AI Core, as far as row A1 goes. ``redis_is_away``: nothing that is asked of Redis arrives."""

    def __init__(self, engine: AsyncEngine, client: Redis) -> None:
        self.redis_is_away = False
        self.policy = self._policy()
        self.store = PostgresAgents(engine)
        self.settled = PostgresWrites(engine, APPLIERS)
        self.target = AiCoreTarget(engine, APPLIERS)
        self.queue = RedisQueueStore(client, "ai-core", limit=1000, call=self._call)
        self.drainer = self.another_drainer()
        self.memory = MemoryCache(10_000_000, 300.0)
        self.copies = CopyStore(client, self._call, self.memory, SYSTEM_CLOCK)
        self.stored = StoredAgentCopies(self.copies, SYSTEM_CLOCK)
        self.writer = DurableWriter(self.policy, self.queue, self.drainer, fallback=REDIS_QUEUE, settle_wait=0.1)
        self.writes = Writes(self.settled, self.policy, self.writer, SYSTEM_CLOCK, key_secret=b"secret")
        parts = self.store, self.stored, self.policy, self.writes, SYSTEM_CLOCK
        self.agents, self.conversations = Agents(*parts), Conversations(*parts)
        self.operations = Operations(self.queue, self.settled, self.policy)
        self.chain = chain_fakes.World()
        self.chat = Chat(self.conversations, self.chain.chain, SYSTEM_CLOCK)

    def another_drainer(self, **settings: Any) -> Drainer:
        """As another instance has it."""
        return Drainer(
            self.queue,
            self.target,
            call=self.policy.call,
            settings=DrainSettings(**{**FAST, **settings}),
            on_applied=self._applied,
        )

    async def agent(self, owner: str, **fields: str) -> Agent:
        """A new agent, made at once."""
        given = {"name": "Ada", "system_prompt": "Be brief.", "model": "", **fields}
        made = (await self.agents.create(owner, **given)).value
        assert not made.operation_id
        return made.value

    def database_goes(self) -> None:
        self.policy.breaker.force_open()

    async def database_comes(self) -> None:
        """It is there again, and what waits has been applied."""
        self.policy.breaker.reset()
        await self.drainer.drain()
        assert (await self.queue.stats()).depth == 0

    async def _applied(self, results: Any) -> None:
        found: list[Result] = list(results)
        await refresh(self.stored, found)

    async def _call(self, action: Callable[[], Awaitable[Any]]) -> Any:
        if self.redis_is_away:
            raise OSError
        return await action()

    def _policy(self) -> RowPolicy:
        breaker = CircuitBreaker(POSTGRES.id, success_threshold=1, classify=classify_database)
        return RowPolicy(POSTGRES, breaker=breaker)


def somebody() -> str:
    """An owner whom no other test knows."""
    return f"user-{uuid.uuid4()}"
