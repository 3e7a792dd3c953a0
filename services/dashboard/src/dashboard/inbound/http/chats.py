"""An agent's answer as JSON, or as server-sent events: ``start``, any number of ``delta``, then ``end`` or ``error``.

Only ``end`` says that the answer is whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel, Field

from dashboard.model import AnswerBroken, Reply
from dashboard.ports import ReplyStream
from resilience import Served
from service_kit import context
from service_kit.errors import ErrorReason
from service_kit.http import EventStream, event, late_degradations, problem_responses, served_json, stamp

Accept = Annotated[str | None, Header(max_length=500, include_in_schema=False)]


class UsageView(BaseModel):
    """What the answer cost."""

    prompt_tokens: int
    completion_tokens: int
    cost: Annotated[float | None, Field(description="US dollars, when the price is known.")]


class ReplyView(BaseModel):
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str | None
    conversation_id: str
    simulated: bool
    as_of: Annotated[datetime | None, Field(description="When a cached answer was given.")]
    usage: UsageView | None
    finish_reason: str | None


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; as events: `start` (who answers), `delta` (text), then `end` or `error`.",
        "content": {"text/event-stream": {}},
    },
    **problem_responses(404, 409),
}


def wants_events(accept: str | None) -> bool:
    """Whether the caller asks for a stream."""
    return accept is not None and "text/event-stream" in accept.lower()


def whole(served: Served[Reply]) -> Response:
    """The answer as JSON."""
    reply = served.value
    return served_json(Served(None, served.degradations, reply.as_of), _body(reply))


def streamed(served: Served[AbstractAsyncContextManager[ReplyStream]]) -> Response:
    """The answer as events."""
    return EventStream(served.value, _events)


async def _events(stream: ReplyStream) -> AsyncGenerator[bytes, None]:
    yield event("start", _without(stream.reply, "reply", "usage", "finish_reason"))
    try:
        async for text in stream:
            yield event("delta", {"text": text})
    except AnswerBroken as broken:
        yield event("error", _broken(broken))
        return
    context.degrade(*stream.degradations)
    yield event("end", {**_without(stream.reply, "reply"), **late_degradations()})


def _without(reply: Reply, *names: str) -> dict[str, Any]:
    """What is known of an answer besides its text."""
    return {name: value for name, value in _body(reply).items() if name not in names}


def _body(reply: Reply) -> dict[str, Any]:
    return {
        **asdict(reply),
        "fallback_from": reply.fallback_from or None,
        "as_of": None if reply.as_of is None else stamp(reply.as_of),
        "finish_reason": reply.finish_reason or None,
    }


def _broken(broken: AnswerBroken) -> dict[str, Any]:
    return {
        "error": ErrorReason.DEPENDENCY_UNAVAILABLE.value,
        "message": broken.message,
        "sent_characters": broken.sent,
        "retry_after": broken.retry_after,
        "request_id": context.request_id(),
    }
