"""Row A1: the database, with the migrations that run as soon as it is there, and the way of its writes."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.degradation import POSTGRES, classify_database
from ai_core.outbound import postgres
from ai_core.outbound.agent_copies import StoredAgentCopies
from ai_core.outbound.engine import POOL_SIZE, create_engine
from ai_core.outbound.postgres import PostgresAgents
from ai_core.outbound.queue_target import AiCoreTarget, PostgresWrites
from ai_core.ports import StoreDisconnected
from ai_core.settings import Settings
from ai_core.usecases.agents import Agents
from ai_core.usecases.applied import refresh
from ai_core.usecases.conversations import Conversations
from ai_core.usecases.operations import Operations
from ai_core.usecases.writes import Writes
from ai_core.wiring.redis import RedisPart
from resilience import CircuitState, Result, RowPolicy
from service_kit.durable import durable
from service_kit.migrations import Migrator
from service_kit.runtime import ServiceRuntime

MIGRATIONS = Path(__file__).parents[1] / "migrations"
BATCH = 100
"""Queued writes of one transaction: few enough for its time limit."""
PRUNE_SECONDS = 60.0

Applied = Callable[[Sequence[Result]], Awaitable[None]]


class PostgresPart:
    """Everything that is plugged into PostgreSQL."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart) -> None:
        url = settings.database_url or ""
        self._clock = runtime.clock
        self._redis = redis
        self.engine: AsyncEngine = create_engine(url)
        store = PostgresAgents(self.engine)
        self.policy: RowPolicy = runtime.policy(
            POSTGRES,
            classify=classify_database,
            probe=store.ping,
            bulkhead_limit=POOL_SIZE,
            retries=1,
            retry_on=lambda error: isinstance(error, StoreDisconnected),
        )
        self.appliers = dict(postgres.APPLIERS)
        """How writes of each kind are made; others may add theirs."""
        self._settled = PostgresWrites(self.engine, self.appliers)
        copies = StoredAgentCopies(redis.copies, runtime.clock)
        self.on_applied: list[Applied] = [lambda results: refresh(copies, results)]
        """Told of each batch of queued writes that has been applied."""
        target = AiCoreTarget(self.engine, self.appliers)
        writer = durable(runtime, self.policy, redis.queue, target, batch_size=BATCH, on_applied=self._applied).writer
        secret = settings.jwt_secret.get_secret_value().encode()
        self.writes = Writes(self._settled, self.policy, writer, runtime.clock, key_secret=secret)
        self.agents = Agents(store, copies, self.policy, self.writes, runtime.clock)
        self.conversations = Conversations(store, copies, self.policy, self.writes, runtime.clock)
        self.operations = Operations(redis.queue, self._settled, self.policy)
        migrator = Migrator(url, MIGRATIONS, policy=self.policy, ping=store.ping, clock=runtime.clock)
        runtime.background("migrations", migrator.run)
        runtime.background("prune", self._prune_forever)
        runtime.on_close(self.engine.dispose, "postgres")

    async def _applied(self, results: Sequence[Result]) -> None:
        """Before the writes leave the queue: an instance that still serves copies would show neither otherwise."""
        for listener in self.on_applied:
            await listener(results)
        await self._redis.copies.flush_all()

    async def _prune_forever(self) -> None:
        while True:
            await self._clock.sleep(PRUNE_SECONDS)
            if self.policy.breaker.state is CircuitState.CLOSED:
                await self.policy.call(self._settled.prune)
