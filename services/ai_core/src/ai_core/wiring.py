"""What is plugged in where: the one place that knows settings, use cases, both doors and every dependency."""

from dataclasses import dataclass
from pathlib import Path

import grpc
from fastapi import FastAPI

from ai_core.degradation import POSTGRES, PROVIDERS, classify
from ai_core.inbound.grpc import AgentService
from ai_core.inbound.http import create_router
from ai_core.inbound.outcome import Outcome
from ai_core.outbound.engine import POOL_SIZE, create_engine
from ai_core.outbound.openai import MAX_CONNECTIONS, OpenAIProvider
from ai_core.outbound.postgres import PostgresAgents
from ai_core.ports import StoreDisconnected
from ai_core.settings import Settings
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat, Provider
from auralink.ai.v1 import ai_pb2_grpc
from resilience import RowPolicy
from service_kit.http import create_app
from service_kit.migrations import Migrator
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenVerifier

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server


async def build(settings: Settings) -> Service:
    """AI Core with its real dependencies, none of which is touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("ai-core", settings)
    store, postgres = _postgres(runtime, settings.database_url or "")
    provider, providers = _provider(runtime, settings)
    agents = Agents(store, postgres, runtime.clock)
    chat = Chat(store, postgres, Provider(provider, providers, runtime.clock), settings.default_model, runtime.clock)
    outcome = Outcome(TokenVerifier(settings.jwt_secret.get_secret_value()), postgres, providers)
    router = create_router(agents, chat, outcome, chat_limit=settings.chat_limit)
    app = create_app(runtime, routers=[router], title="AuraLink AI Core")
    service = AgentService(agents, chat, outcome)
    server = create_server(runtime, lambda server: ai_pb2_grpc.add_AgentServiceServicer_to_server(service, server))
    return Service(runtime, app, server)


def _postgres(runtime: ServiceRuntime, url: str) -> tuple[PostgresAgents, RowPolicy]:
    """Row A1, with the migrations that run as soon as the database is there."""
    engine = create_engine(url)
    store = PostgresAgents(engine)
    policy = runtime.policy(
        POSTGRES,
        classify=classify,
        probe=store.ping,
        bulkhead_limit=POOL_SIZE,
        retries=1,
        retry_on=lambda error: isinstance(error, StoreDisconnected),
    )
    migrator = Migrator(url, MIGRATIONS, policy=policy, ping=store.ping, clock=runtime.clock)
    runtime.background("migrations", migrator.run)
    runtime.on_close(engine.dispose, "postgres")
    return store, policy


def _provider(runtime: ServiceRuntime, settings: Settings) -> tuple[OpenAIProvider, RowPolicy]:
    """Row A2."""
    limit = settings.ai_provider_timeout or PROVIDERS.call_timeout
    key = settings.openai_api_key.get_secret_value()
    provider = OpenAIProvider(settings.openai_base_url, key, limit, runtime.clock.time)
    policy = runtime.policy(
        PROVIDERS, classify=classify, probe=provider.ping, bulkhead_limit=MAX_CONNECTIONS, timeout=limit
    )
    runtime.on_close(provider.close, "providers")
    return provider, policy
