"""An agent's answer over HTTP as server-sent events: ``start``, any number of ``delta``, then ``end`` or ``error``.

Only ``end`` says that the answer is whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Response

from ai_core.model import Reply
from ai_core.usecases.chain import StreamBroken
from ai_core.usecases.chat import ReplyStream
from service_kit import context
from service_kit.errors import ErrorReason
from service_kit.http import EventStream, event, late_degradations, stamp

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; as events: `start` (who answers), `delta` (text), then `end` or `error`.",
        "content": {"text/event-stream": {}},
    },
}
BROKEN_TEXT = "The answer broke off. Ask again after the given time."


def wants_events(accept: str) -> bool:
    """Whether the caller asks for a stream."""
    return "text/event-stream" in accept.lower()


def streamed(stream: ReplyStream) -> Response:
    """The answer as events."""
    return EventStream(stream, _events)


def reply_body(reply: Reply) -> dict[str, Any]:
    """What is known of an answer besides its text."""
    return {
        "provider": reply.provider,
        "model": reply.model,
        "cached": reply.cached,
        "as_of": None if reply.as_of is None else stamp(reply.as_of),
        "fallback_from": reply.fallback_from or None,
        "conversation_id": reply.conversation_id,
        "simulated": reply.simulated,
    }


def usage_body(reply: Reply) -> dict[str, Any]:
    """What is known at its end."""
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens, "cost": reply.cost}
    return {"usage": usage, "finish_reason": reply.finish_reason or None}


async def _events(stream: ReplyStream) -> AsyncGenerator[bytes, None]:
    yield event("start", reply_body(stream.reply))
    try:
        async for text in stream:
            yield event("delta", {"text": text})
    except StreamBroken as broken:
        yield event("error", _broken(broken))
        return
    context.degrade(*stream.degradations)
    yield event("end", {**reply_body(stream.reply), **usage_body(stream.reply), **late_degradations()})


def _broken(broken: StreamBroken) -> dict[str, Any]:
    return {
        "error": ErrorReason.DEPENDENCY_UNAVAILABLE.value,
        "message": BROKEN_TEXT,
        "sent_characters": broken.sent,
        "retry_after": broken.retry_after,
        "request_id": context.request_id(),
    }
