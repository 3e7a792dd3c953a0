"""Answers of server-sent events (the format: WHATWG HTML, section 9.2) whose source ends as soon as nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Generic, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service_kit import context

S = TypeVar("S")

STREAM_SECONDS = 630.0
"""For a whole answer; sources that have a limit of their own have less, as only they can say why they end."""
STALL_SECONDS = 20.0
"""A reader that takes nothing for so long, at most twice that, has left."""
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(kind: str, data: Any) -> bytes:
    """One event, its data as JSON."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data, default=str))


def late_degradations() -> dict[str, Any]:
    """What the headers of a stream could not say any more: they had been sent when it happened."""
    fallbacks = list(dict.fromkeys(one.fallback for one in context.degradations()))
    return {"degraded": bool(fallbacks), "fallbacks": fallbacks}


class EventStream(Response, Generic[S]):
    """``events`` makes what is sent, one write each, from the ``source``, which is entered here and left at the end.

    A reader that leaves, or is stuck, has both cancelled at once, wherever they wait. A service that stops waits for
    such an answer, as it ends by itself; what is cut off all the same is cut off visibly, not ended.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AbstractAsyncContextManager[S],
        events: Callable[[S], AsyncGenerator[bytes, None]],
        *,
        limit: float = STREAM_SECONDS,
    ) -> None:
        super().__init__(None, headers=_HEADERS)
        del self.headers["content-length"]
        self._source = source
        self._events = events
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the interface
        """Send it all, or what the reader wants of it."""
        reader = _Reader(receive, self._limit)
        try:
            async with self._source as source, aclosing(self._events(source)) as events:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                context.allow(self._limit + STALL_SECONDS)
                async for data in events:
                    reader.sending = True
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    reader.sending = False
                    reader.taken += 1
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not reader.recalled():
                raise
        finally:
            reader.close()


class _Reader:
    """Cancels the current task when the reader has left, takes nothing, or has been served long enough."""

    def __init__(self, receive: Receive, limit: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ends = self._loop.time() + limit
        self._cancelled = False
        self._seen = 0
        self.sending = False
        self.taken = 0
        self._watch = self._loop.create_task(_until_gone(receive))
        self._watch.add_done_callback(self._left)
        self._timer = self._loop.call_later(min(STALL_SECONDS, limit), self._check)

    def recalled(self) -> bool:
        """Whether the cancellation that has just arrived is this one's, and nobody else wants the task to end."""
        return self._cancelled and self._task is not None and self._task.uncancel() == 0

    def close(self) -> None:
        self._timer.cancel()
        self._watch.cancel()

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            self._cancel()

    def _check(self) -> None:
        if (self.sending and self.taken == self._seen) or self._loop.time() >= self._ends:
            self._cancel()
            return
        self._seen = self.taken
        left = self._ends - self._loop.time()
        self._timer = self._loop.call_later(max(0.0, min(STALL_SECONDS, left)), self._check)

    def _cancel(self) -> None:
        if not self._cancelled and self._task is not None:
            self._cancelled = True
            self._task.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
