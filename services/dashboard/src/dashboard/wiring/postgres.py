"""Rows D1 and D6: the database and its standby, their circuits, and the way of a write when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dashboard.degradation import POSTGRES, STANDBY
from dashboard.model import User
from dashboard.outbound import postgres
from dashboard.outbound.queue_target import SettledOperations, UserQueueTarget
from dashboard.outbound.standby import Standby
from dashboard.outbound.users import PostgresUsers
from dashboard.settings import Settings
from dashboard.usecases.reads import Reads
from dashboard.wiring.redis import RedisPart
from resilience import CircuitState, Result, RowPolicy, Transition
from service_kit.durable import durable
from service_kit.migrations import Migrator
from service_kit.runtime import ServiceRuntime

S = TypeVar("S")

PRUNE_SECONDS = 60.0


class PostgresPart:
    """Everything that is plugged into PostgreSQL. ``migrations``: the folder."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart, migrations: Path) -> None:
        url = settings.database_url or ""
        self.database = postgres.Database(url)
        self.users = PostgresUsers(self.database)
        self._copies = redis.users
        self._flush = redis.copies.flush_all
        self._clock = runtime.clock
        self._cutting: set[asyncio.Task[None]] = set()
        self.policy: RowPolicy = runtime.policy(
            POSTGRES,
            classify=postgres.classify,
            probe=self.database.probe,
            bulkhead_limit=postgres.POOL_SIZE,
            retries=1,
            retry_on=postgres.is_disconnect,
        )
        self._cut_when_open(self.policy, self.database)
        self.on_applied: list[Callable[[Result], None]] = []
        """Told of each queued write that has been applied."""
        target = UserQueueTarget(self.database)
        self.writer = durable(runtime, self.policy, redis.queue, target, on_applied=self._applied).writer
        self.replica, self.standby = self._standby(runtime, settings)
        migrator = Migrator(url, migrations, policy=self.policy, ping=self.database.ping, clock=runtime.clock)
        runtime.background("migrations", migrator.run)
        runtime.background("prune", self._prune_forever)
        runtime.on_close(self.database.close, "postgres")

    async def open(self) -> None:
        """Prepares the pools; connects to nothing."""
        await self.database.open()
        if self.replica is not None:
            await self.replica.open()

    def reads(self, store: Callable[[postgres.Database], S]) -> Reads[S]:
        """The way of reads: ``store`` makes of a database what reads its rows."""
        replica = None if self.replica is None else store(self.replica)
        return Reads(self.policy, store(self.database), self.standby, replica)

    def _standby(self, runtime: ServiceRuntime, settings: Settings) -> tuple[postgres.Database | None, Standby | None]:
        url = settings.database_replica_url
        if url is None:
            return None, None
        replica = postgres.Database(url)
        policy = runtime.policy(
            STANDBY,
            classify=postgres.classify,
            probe=replica.probe,
            bulkhead_limit=postgres.POOL_SIZE,
            retries=1,
            retry_on=postgres.is_disconnect,
        )
        self._cut_when_open(policy, replica)
        standby = Standby(self.database, self.policy, replica, policy, runtime.clock)
        runtime.background("standby", standby.watch)
        runtime.metrics.watch("standby_lag_seconds", "Age of what the standby would serve.", standby.lag)
        runtime.on_close(replica.close, "standby")
        return replica, standby

    def _cut_when_open(self, policy: RowPolicy, database: postgres.Database) -> None:
        def cut(transition: Transition) -> None:
            if transition.new is CircuitState.OPEN:
                task = asyncio.get_running_loop().create_task(database.replace_connections())
                self._cutting.add(task)
                task.add_done_callback(self._cutting.discard)

        policy.breaker.subscribe(cut)

    async def _applied(self, results: Sequence[Result]) -> None:
        """Before the writes leave the queue: an instance that still serves copies would show neither otherwise."""
        for result in results:
            if isinstance(result.value, User):
                self._copies.keep(result.value)
            elif result.operation.kind == "user.delete":
                await self._copies.forget(result.operation.entity.removeprefix("user:"))
            for listener in self.on_applied:
                listener(result)
        await self._flush()

    async def _prune_forever(self) -> None:
        settled = SettledOperations(self.database)
        while True:
            await self._clock.sleep(PRUNE_SECONDS)
            if self.policy.breaker.state is CircuitState.CLOSED:
                await self.policy.call(settled.prune)
