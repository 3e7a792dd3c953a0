"""A streamed answer, as the port ``ModelProvider.stream`` promises it, whatever protocol its events are in."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import aiohttp

from ai_core.model import RequestRefused
from ai_core.outbound.providers import payload
from ai_core.outbound.providers.errors import Sorted, empty, failure_inside
from ai_core.outbound.providers.sse import Event, EventTooLong, Splitter
from ai_core.outbound.providers.wire import TRANSPORT, whole
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Chunk

MAX_STREAM = 64_000_000
"""Bytes of a streamed answer, its envelopes included."""
TAIL_LIMIT = 1.0
"""Seconds that the rest of a stream may take once the answer is complete: the count of tokens, and the end itself."""
DRAIN_LIMIT = 0.05
"""Seconds in which a stream that has said it is at its end must end, for its connection to be used again."""
_PORT_ERRORS = (ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused)


class Events(Protocol):
    """Makes OpenAI's chunks of one stream's events."""

    finished: bool
    """Every choice has its finish reason."""
    done: bool
    """The protocol's own end was seen."""

    def chunks(self, event: Event) -> Sequence[Chunk]:
        """The chunks of one event. Raises the port's errors."""
        ...


class ChunkStream:
    """Async context manager: entering opens the answer, leaving it early closes its connection."""

    def __init__(self, opening: Callable[[], Awaitable[aiohttp.ClientResponse]], events: Events) -> None:
        self._opening = opening
        self._events = events
        self._reading: AsyncGenerator[list[Chunk], None] | None = None
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> AsyncGenerator[list[Chunk], None]:
        self._response = await self._opening()
        self._reading = self._chunks(self._response)
        return self._reading

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        response, reading = self._response, self._reading
        if response is None or reading is None:
            return
        try:
            await reading.aclose()
            if self._events.done and kind is None:
                await _drained(response)
        finally:
            response.release()

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[list[Chunk], None]:
        """The chunks by network reads. What came before an error is given before it is raised."""
        splitter, left, committed, reason = Splitter(), MAX_STREAM, False, ""
        while not self._events.done and (data := await self._next(response)):
            left -= len(data)
            chunks, problem = self._sorted(splitter, data)
            for chunk in chunks:
                committed = committed or chunk.commits
                reason = chunk.finish_reason or reason
            if chunks:
                yield chunks
            if left < 0:
                problem = problem or ProviderFailed("a stream without end")
            if problem and self._events.finished:
                break
            if problem:
                raise problem
        _check_end(self._events.finished, committed, reason)

    def _sorted(self, splitter: Splitter, data: bytes) -> tuple[list[Chunk], Exception | None]:
        chunks: list[Chunk] = []
        make = self._events.chunks
        try:
            for event in splitter.feed(data):
                chunks += make(event)
                if self._events.done:
                    break
        except EventTooLong:
            return chunks, ProviderFailed("an event without end")
        except _PORT_ERRORS as problem:
            return chunks, problem
        return chunks, None

    async def _next(self, response: aiohttp.ClientResponse) -> bytes:
        """What the network has; empty at the end, and for a broken one when the answer was complete before."""
        if not self._events.finished:
            try:
                return await response.content.readany()
            except TRANSPORT as error:
                raise ProviderFailed(type(error).__name__) from None
        with suppress(*TRANSPORT):
            async with asyncio.timeout(TAIL_LIMIT):
                return await response.content.readany()
        return b""


def _check_end(finished: bool, committed: bool, reason: str) -> None:
    if not finished:
        raise ProviderFailed("a stream that was cut")
    if not committed:
        raise empty(reason)


async def _drained(response: aiohttp.ClientResponse) -> None:
    with suppress(*TRANSPORT):
        async with asyncio.timeout(DRAIN_LIMIT):
            while await response.content.readany():
                pass


async def no_stream(provider: str, model: str, response: aiohttp.ClientResponse) -> Sorted:
    """What an answer of 200 that is no stream means: an error object at best, else a page or a useless answer."""
    body = await whole(response)
    with suppress(ProviderFailed):
        data: Mapping[str, Any] = payload.read(body)
        if "error" in data:
            return failure_inside(provider, model, data)
    return ProviderFailed("an answer that is no stream")
