"""An agent's answer from AI Core over gRPC, as it comes (row D3, dashboard.ai_core)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from auralink.ai.v1 import ai_pb2
from dashboard.degradation import AI_CORE
from dashboard.model import AnswerBroken, Reply, Usage
from dashboard.outbound.peer import seconds
from resilience import Degradation
from service_kit.errors import ServiceError
from service_kit.rpc_client import PeerStream

STREAM_SECONDS = 620.0
"""For a whole answer; more than AI Core itself gives a provider."""
STREAM_IDLE_SECONDS = 30.0
"""For each piece of it: more than AI Core itself gives a provider that has fallen silent."""


class GrpcReplyStream:
    """See the port."""

    def __init__(self, stream: PeerStream) -> None:
        self.reply = reply_of(stream.first.started)
        self.degradations: tuple[Degradation, ...] = ()
        self._stream = stream
        self._sent = 0
        self._whole = False

    async def __aenter__(self) -> GrpcReplyStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.__aexit__(*_)

    async def __aiter__(self) -> AsyncIterator[str]:
        """The pieces of the text. Raises AnswerBroken, also when the stream ends without saying that it is whole."""
        try:
            async with aclosing(self._stream.rest()) as rest:
                async for response in rest:
                    if text := self._taken(response):
                        yield text
        except ServiceError as error:
            wait = AI_CORE.probe_interval if error.retry_after is None else error.retry_after
            raise AnswerBroken(error.message, self._sent, wait) from error
        self.degradations = self._stream.degradations
        if not self._whole:
            raise AnswerBroken(AI_CORE.user_text, self._sent, AI_CORE.probe_interval)

    def _taken(self, response: Any) -> str:
        """The piece of the text in it, if any. Raises AnswerBroken."""
        match response.WhichOneof("event"):
            case "delta":
                text: str = response.delta
                self._sent += len(text)
                return text
            case "finished":
                self.reply = reply_of(response.finished)
                self._whole = True
            case "broken":
                broken = response.broken
                raise AnswerBroken(broken.message, broken.sent_characters, broken.retry_after_seconds)
        return ""


def reply_of(answer: ai_pb2.ChatResponse) -> Reply:
    """The protocol's form of a reply in the Dashboard's."""
    return Reply(
        answer.reply,
        answer.provider,
        answer.model,
        answer.cached,
        answer.fallback_from,
        answer.conversation_id,
        answer.simulated,
        seconds(answer.as_of) if answer.HasField("as_of") else None,
        _usage(answer.usage) if answer.HasField("usage") else None,
        answer.finish_reason,
    )


def _usage(usage: ai_pb2.Usage) -> Usage:
    cost = usage.cost if usage.HasField("cost") else None
    return Usage(usage.prompt_tokens, usage.completion_tokens, cost)
