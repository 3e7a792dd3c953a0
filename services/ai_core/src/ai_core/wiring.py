"""What is plugged in where: the one place that knows settings, use cases, both doors and every dependency."""

from dataclasses import dataclass
from pathlib import Path

import grpc
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.degradation import POSTGRES, PROVIDERS, classify
from ai_core.inbound import http, http_language
from ai_core.inbound.grpc import AgentService
from ai_core.inbound.grpc_language import LanguageService, MemoryService
from ai_core.inbound.outcome import Outcome
from ai_core.outbound.engine import POOL_SIZE, create_engine
from ai_core.outbound.memories import PostgresMemories
from ai_core.outbound.openai import MAX_CONNECTIONS, OpenAIProvider
from ai_core.outbound.postgres import PostgresAgents
from ai_core.ports import StoreDisconnected
from ai_core.settings import Settings
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat, Provider
from ai_core.usecases.language import Language
from ai_core.usecases.memories import Memories
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
    engine = create_engine(settings.database_url or "")
    store = PostgresAgents(engine)
    postgres = _postgres(runtime, settings.database_url or "", engine, store)
    provider, providers = _provider(runtime, settings)
    agents = Agents(store, postgres, runtime.clock)
    guarded = Provider(provider, providers, runtime.clock)
    chat = Chat(store, postgres, guarded, settings.default_model, runtime.clock)
    memories = Memories(PostgresMemories(engine), postgres, runtime.clock)
    language = Language(guarded, settings.default_model)
    outcome = Outcome(TokenVerifier(settings.jwt_secret.get_secret_value()), postgres, providers)
    routers = [
        http.create_router(agents, chat, outcome, chat_limit=settings.chat_limit),
        http_language.create_router(memories, language, outcome, chat_limit=settings.chat_limit),
    ]
    app = create_app(runtime, routers=routers, title="AuraLink AI Core")

    def add(server: grpc.aio.Server) -> None:
        ai_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(agents, chat, outcome), server)
        ai_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(memories, outcome), server)
        ai_pb2_grpc.add_LanguageServiceServicer_to_server(LanguageService(language, outcome), server)

    return Service(runtime, app, create_server(runtime, add))


def _postgres(runtime: ServiceRuntime, url: str, engine: AsyncEngine, store: PostgresAgents) -> RowPolicy:
    """Row A1, with the migrations that run as soon as the database is there."""
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
    return policy


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
