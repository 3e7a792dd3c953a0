"""What is plugged in where: the one place that knows settings, use cases, both doors and every dependency.

A module per dependency; this one puts the parts together.
"""

from dataclasses import dataclass

import grpc
from fastapi import FastAPI

from ai_core.inbound import http, http_conversations, http_language, openai_api, openai_wire
from ai_core.inbound.grpc import AgentService, OperationService
from ai_core.inbound.grpc_language import LanguageService, MemoryService
from ai_core.inbound.outcome import Outcome
from ai_core.settings import Settings
from ai_core.usecases.chat import Chat
from ai_core.usecases.language import Language
from ai_core.wiring.memories import MemoriesPart
from ai_core.wiring.postgres import PostgresPart
from ai_core.wiring.providers import ProvidersPart
from ai_core.wiring.redis import RedisPart
from ai_core.wiring.speech import SpeechPart
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
    redis = RedisPart(runtime, settings)
    postgres = PostgresPart(runtime, settings, redis)
    providers = ProvidersPart(runtime, settings, redis.client, redis.policy.call)
    speech = SpeechPart(runtime, settings)
    memory = MemoriesPart(runtime, settings, postgres, redis)
    memories = memory.memories
    agents, conversations = postgres.agents, postgres.conversations
    chat = Chat(conversations, providers.chain, runtime.clock)
    language = Language(providers.chain)
    outcome = Outcome(TokenVerifier(settings.jwt_secret.get_secret_value()), postgres.policy, redis.policy)
    routers = [
        openai_api.create_router(providers.chain, memory.embeddings, outcome, chat_limit=settings.chat_limit),
        http.create_router(agents, chat, outcome, chat_limit=settings.chat_limit),
        http_conversations.create_router(conversations, postgres.operations, outcome),
        http_language.create_router(memories, language, speech.speeches, outcome, chat_limit=settings.chat_limit),
    ]
    shapes = {openai_api.PREFIX: openai_wire.error_response}
    app = create_app(runtime, routers=routers, title="AuraLink AI Core", error_shapes=shapes)

    def add(server: grpc.aio.Server) -> None:
        talking = AgentService(agents, chat, conversations, outcome, opening_limit=settings.times.chain + 0.2)
        ai_pb2_grpc.add_AgentServiceServicer_to_server(talking, server)
        ai_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(postgres.operations, outcome), server)
        ai_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(memories, outcome), server)
        ai_pb2_grpc.add_LanguageServiceServicer_to_server(LanguageService(language, speech.speeches, outcome), server)

    return Service(runtime, app, create_server(runtime, add))
