"""Row W3: the history of calls, its migrations, which run as soon as the database is there, and the way of writes."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from fastapi import APIRouter
from prometheus_client import Gauge

from auralink.webrtc.v1 import webrtc_pb2_grpc
from resilience import CircuitState, RowPolicy
from service_kit import durable, logs
from service_kit.database import POOL_SIZE, create_engine
from service_kit.migrations import Migrator
from service_kit.runtime import ServiceRuntime
from webrtc.degradation import POSTGRES, classify_history
from webrtc.inbound import http_calls
from webrtc.inbound.grpc_calls import CallService
from webrtc.inbound.outcome import Outcome
from webrtc.outbound.history import HistoryTarget, PostgresHistory
from webrtc.ports import HistoryDisconnected
from webrtc.settings import Settings
from webrtc.usecases.calls import Announce, CallJournal, Calls
from webrtc.usecases.forgotten import Forgotten, Members
from webrtc.usecases.scribe import Scribe
from webrtc.wiring.redis import RedisPart

MIGRATIONS = Path(__file__).parents[1] / "migrations"
BATCH = 100
"""Queued reports of one transaction: few enough for its time limit."""
FINISH_SECONDS = 1.5
WATCH_SECONDS = 0.5

log = logs.get_logger("calls")


class HistoryPart:
    """``journal`` is where the signalling reports calls; ``calls``, reads of the history, and ``policy`` are None
    where no database is configured: then events are all there is of a call."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, redis: RedisPart, announce: Announce) -> None:
        self._runtime = runtime
        self._history: PostgresHistory | None = None
        self.calls: Calls | None = None
        self.policy: RowPolicy | None = None
        if settings.database_url is None:
            runtime.buffers["calls"] = _no_history
            self.journal = CallJournal(None, announce)
            return
        engine = create_engine(settings.database_url)
        self._history = history = PostgresHistory(engine)
        self.policy = policy = runtime.policy(
            POSTGRES,
            classify=classify_history,
            probe=history.ping,
            bulkhead_limit=POOL_SIZE,
            retries=1,
            retry_on=lambda error: isinstance(error, HistoryDisconnected),
        )
        store = durable.queue_store(runtime, redis.client, redis.policy, runtime.name)
        runtime.queue, runtime.queue_row = store, POSTGRES.id
        self.way = way = durable.durable(runtime, self.policy, store, HistoryTarget(engine), batch_size=BATCH)
        scribe = Scribe(history, policy, way.writer, runtime.clock, _note)
        self.calls = Calls(history, self.policy)
        self.journal = CallJournal(scribe.keep, announce)
        self._show(runtime, scribe)
        migrator = Migrator(
            settings.database_url, MIGRATIONS, policy=self.policy, ping=history.ping, clock=runtime.clock
        )
        runtime.background("migrations", migrator.run)
        runtime.background("watch postgres", lambda: _watch(runtime, policy, history))
        runtime.background("call history", scribe.run)
        runtime.on_close(engine.dispose, "postgres")
        runtime.on_close(lambda: scribe.finish(FINISH_SECONDS), "call history")

    def sweep(self, members: Members, knows_all: Callable[[], bool]) -> None:
        """Have calls ended whose participants are gone; see ``Forgotten``."""
        if self._history is not None and self.policy is not None:
            clock = self._runtime.clock
            forgotten = Forgotten(self._history, self.policy, self.journal, members, knows_all, clock)
            self._runtime.background("forgotten calls", forgotten.run)

    def routers(self, outcome: Outcome) -> list[APIRouter]:
        """Its routes."""
        return [] if self.calls is None else [http_calls.create_router(self.calls, outcome)]

    def serve(self, server: grpc.aio.Server, outcome: Outcome) -> None:
        """Adds its gRPC service."""
        if self.calls is not None:
            webrtc_pb2_grpc.add_CallServiceServicer_to_server(CallService(self.calls, outcome), server)

    @staticmethod
    def _show(runtime: ServiceRuntime, scribe: Scribe) -> None:
        runtime.buffers["calls"] = lambda: asdict(scribe.stats())
        registry = runtime.metrics.registry
        depth = Gauge("webrtc_call_reports_waiting", "Reports about calls in memory.", ["service"], registry=registry)
        depth.labels(runtime.name).set_function(lambda: scribe.stats().depth)


async def _watch(runtime: ServiceRuntime, policy: RowPolicy, history: PostgresHistory) -> None:
    """Asks while the circuit is closed: nothing else would notice the loss while nobody calls."""
    while True:
        await runtime.clock.sleep(WATCH_SECONDS)
        if policy.breaker.state is CircuitState.CLOSED:
            with contextlib.suppress(Exception):  # the circuit has taken note
                await policy.call(history.ping)


def _no_history() -> dict[str, Any]:
    return {"depth": 0, "history": "off: DATABASE_URL is not set"}


def _note(event: str, /, **fields: object) -> None:
    log.warning(event, **fields)
