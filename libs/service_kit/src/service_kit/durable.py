"""A row's write queue put together: its store in Redis, what drains it, and the way of writes in front of both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from resilience import CircuitState, Drainer, DrainSettings, DurableWriter, Result, RowPolicy, Transition
from resilience.integrations.redis_queue import RedisQueueStore
from resilience.queue import Target

from . import logs
from .runtime import ServiceRuntime

REDIS_QUEUE = "redis-queue"
"""What serves, as headers and metrics name it."""

BATCH = 2000
"""Operations that are applied in one transaction."""

log = logs.get_logger("redis")


@dataclass(frozen=True, slots=True)
class Durable:
    """What waits, what applies it, and where writes go."""

    store: RedisQueueStore
    drainer: Drainer
    writer: DurableWriter


def queue_store(runtime: ServiceRuntime, client: Redis, redis: RowPolicy, name: str) -> RedisQueueStore:
    """A write queue of that name (Redis keys ``fallback:queue:NAME`` and ``fallback:dead:NAME``)."""
    return RedisQueueStore(
        client,
        name,
        limit=runtime.settings.fallback_queue_max_size,
        call=redis.call,
        timeout=redis.row.call_timeout,
        loads=orjson.loads,
    )


def durable(
    runtime: ServiceRuntime,
    policy: RowPolicy,
    store: RedisQueueStore,
    target: Target,
    *,
    batch_size: int = BATCH,
    on_applied: Callable[[Sequence[Result]], Awaitable[None]] | None = None,
) -> Durable:
    """Writes of the row ``policy``, which go into ``store`` while ``target`` is away and are drained afterwards."""
    settings = runtime.settings
    drainer = Drainer(
        store,
        target,
        call=policy.call,
        settings=DrainSettings(
            batch_size=batch_size, ttl=settings.fallback_queue_ttl, interval=settings.fallback_queue_interval
        ),
        clock=runtime.clock,
        on_applied=on_applied,
    )
    writer = DurableWriter(policy, store, drainer, fallback=REDIS_QUEUE, clock=runtime.clock)

    def changed(transition: Transition) -> None:
        if transition.new is CircuitState.CLOSED:
            drainer.kick()

    policy.breaker.subscribe(changed)
    runtime.background(f"drain {store.name}", drainer.run)
    runtime.background(f"queue watch {store.name}", writer.watch)
    return Durable(store, drainer, writer)


def say_when_away(redis: RowPolicy, away: str, back: str) -> None:
    """One line per outage of Redis: a trial that fails reopens the circuit, which is no new outage."""

    def changed(transition: Transition) -> None:
        if transition.old is CircuitState.CLOSED and transition.new is CircuitState.OPEN:
            log.warning(away, row=redis.row.id)
        elif transition.new is CircuitState.CLOSED:
            log.info(back, row=redis.row.id)

    redis.breaker.subscribe(changed)
