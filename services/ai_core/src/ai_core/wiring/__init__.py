"""What is plugged in where: the one place that knows settings, use cases, both doors and every dependency.

A module per dependency; this one puts the parts together.
"""

from dataclasses import dataclass

import grpc
from fastapi import FastAPI

from ai_core.inbound import http, http_language
from ai_core.inbound.grpc import AgentService
from ai_core.inbound.grpc_language import LanguageService, MemoryService
from ai_core.inbound.outcome import Outcome
from ai_core.outbound.memories import PostgresMemories
from ai_core.settings import Settings
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat
from ai_core.usecases.language import Language
from ai_core.usecases.memories import Memories
from ai_core.wiring.postgres import PostgresPart
from ai_core.wiring.providers import ProvidersPart
from auralink.ai.v1 import ai_pb2_grpc
from service_kit.http import create_app
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.tokens import TokenVerifier


@dataclass(frozen=True, slots=True)
class Service:
    """Ready to be served."""

    runtime: ServiceRuntime
    app: FastAPI
    grpc_server: grpc.aio.Server


async def build(settings: Settings) -> Service:
    """AI Core with its real dependencies, none of which is touched yet. Call it on the loop that will serve."""
    runtime = ServiceRuntime("ai-core", settings)
    postgres = PostgresPart(runtime, settings)
    providers = ProvidersPart(runtime, settings)
    agents = Agents(postgres.agents, postgres.policy, runtime.clock)
    chat = Chat(postgres.agents, postgres.policy, providers.provider, settings.default_model, runtime.clock)
    memories = Memories(PostgresMemories(postgres.engine), postgres.policy, runtime.clock)
    language = Language(providers.provider, settings.default_model)
    outcome = Outcome(TokenVerifier(settings.jwt_secret.get_secret_value()), postgres.policy, providers.policy)
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
