"""An agent's answer over gRPC as it comes: ``auralink.ai.v1.AgentService/ChatStream``."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from google.protobuf.timestamp_pb2 import Timestamp

from ai_core.inbound.outcome import Outcome
from ai_core.inbound.streams import BROKEN_TEXT
from ai_core.model import Reply
from ai_core.usecases.chain import StreamBroken
from ai_core.usecases.chat import Chat
from auralink.ai.v1 import ai_pb2
from resilience.deadline import deadline_scope
from service_kit import context


async def chat_stream(
    chat: Chat, outcome: Outcome, request: ai_pb2.ChatStreamRequest, limit: float
) -> AsyncGenerator[ai_pb2.ChatStreamResponse, None]:
    """The events of an answer; ``limit``: seconds until it has begun."""
    user = outcome.caller()
    with deadline_scope(limit):
        stream = await outcome.of(chat.stream(user, request.agent_id, request.message, request.conversation_id))
    async with stream:
        yield ai_pb2.ChatStreamResponse(started=chat_response(stream.reply))
        try:
            async for text in stream:
                yield ai_pb2.ChatStreamResponse(delta=text)
        except StreamBroken as broken:
            yield ai_pb2.ChatStreamResponse(broken=_broken(broken))
            return
        context.degrade(*stream.degradations)
        yield ai_pb2.ChatStreamResponse(finished=chat_response(stream.reply))


def _broken(broken: StreamBroken) -> ai_pb2.ChatBroken:
    return ai_pb2.ChatBroken(message=BROKEN_TEXT, sent_characters=broken.sent, retry_after_seconds=broken.retry_after)


def chat_response(reply: Reply) -> ai_pb2.ChatResponse:
    """An answer, or who gives it, in the protocol's form."""
    usage = ai_pb2.Usage(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens, cost=reply.cost)
    return ai_pb2.ChatResponse(
        reply=reply.reply,
        provider=reply.provider,
        model=reply.model,
        cached=reply.cached,
        fallback_from=reply.fallback_from,
        conversation_id=reply.conversation_id,
        simulated=reply.simulated,
        usage=usage if reply.finish_reason else None,
        as_of=None if reply.as_of is None else _timestamp(reply.as_of),
        finish_reason=reply.finish_reason,
    )


def _timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(round(seconds * 1_000_000))
    return made
