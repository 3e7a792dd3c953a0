"""Live updates as server-sent events: ``/api/v1/events`` (the format: WHATWG HTML, section 9.2)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header
from fastapi.responses import StreamingResponse

from dashboard.inbound.http.doors import Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.model import SessionUnknown
from dashboard.ports import Sessions
from dashboard.usecases.live import LiveEvent, LiveFeed, Stream
from service_kit import context
from service_kit.http import problem_responses
from service_kit.tokens import Claims

HEARTBEAT_SECONDS = 15.0
"""A comment after so long without an event; the session is looked at again then, and before every event."""
RETRY_MS = 2000

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)]
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events as they happen.", "content": {"text/event-stream": {}}}
}


def create_router(
    feed: LiveFeed,
    sessions: Sessions,
    outcome: Outcome,
    doorman: Doorman,
    *,
    now: Callable[[], Iterable[LiveEvent]],
) -> APIRouter:
    """``now``: what a new reader is told first, the state of things."""
    router = APIRouter(prefix="/api/v1", tags=["events"])
    user = Annotated[Claims, Depends(doorman.user)]

    @router.get("/events", response_class=StreamingResponse, responses={**_STREAM, **problem_responses(401, 429, 503)})
    async def events(caller: user, last_id: LastEventId = None) -> StreamingResponse:
        """Changes of circuits, mode, queue, and of one's own rooms, calls, agents and account."""
        stream = outcome.guard(lambda: feed.open(caller.user_id, last_id))
        context.allow(None)
        body = _body(stream, now(), lambda: _is_open(sessions, caller))
        return StreamingResponse(body, media_type="text/event-stream", headers=_HEADERS)

    return router


async def _is_open(sessions: Sessions, caller: Claims) -> bool:
    try:
        await sessions.check(caller.session_id, caller.user_id)
    except SessionUnknown:
        return False
    return True


async def _body(
    stream: Stream, first: Iterable[LiveEvent], is_open: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    try:
        yield b"retry: %d\n\n" % RETRY_MS
        for event in first:
            yield _encoded(event, with_id=False)
        while True:
            try:
                event_or_none = await stream.next(HEARTBEAT_SECONDS)
            except StopAsyncIteration:
                return
            if not await is_open():
                return
            yield b": alive\n\n" if event_or_none is None else _encoded(event_or_none)
    finally:
        stream.end()


def _encoded(event: LiveEvent, *, with_id: bool = True) -> bytes:
    place = f"id: {event.id}\n".encode() if with_id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (place, event.kind.encode(), orjson.dumps(event.data, default=str))
