"""A provider chain on a clock that stands still, with providers that do as they are told."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ai_core.degradation import classify_provider, link_row
from ai_core.outbound.response_copies import ResponseCopies
from ai_core.query import Chunk, Completion, Link, Query, Usage
from ai_core.usecases.chain import Chain, Times
from ai_core.usecases.links import Attempt, GuardedLink
from resilience import Bulkhead, CircuitBreaker, FakeClock, MemoryCache, RowPolicy

LINKS = (Link("openai", "gpt-4"), Link("openai", "gpt-3.5-turbo"), Link("anthropic", "claude-sonnet-5-5"))
TIMES = Times(whole=0.9, chain=1.5, first_token=0.9, idle=2.0, stream=60.0)
HANG = "hang"
Step = Sequence[Chunk] | Exception | str
Answer = Callable[[], Completion] | Exception | str


def completion(model: str, provider: str = "openai", text: str = "", finish_reason: str = "stop") -> Completion:
    message = {"role": "assistant", "content": text or f"answer of {model}"}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
    return Completion(body, provider, model, Usage(10, 5))


def chunk(text: str = "", finish: str = "", usage: Usage | None = None, model: str = "gpt-4", **delta: Any) -> Chunk:
    found = {"content": text, **delta} if text else delta
    choices = [] if usage else [{"index": 0, "delta": found, "finish_reason": finish or None}]
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": choices}
    return Chunk(json.dumps(body).encode(), text, bool(text or delta.get("tool_calls")), finish, usage)


ROLE = chunk(role="assistant")
WHOLE: tuple[Step, ...] = ([ROLE], [chunk("Good "), chunk("day")], [chunk(finish="stop"), chunk(usage=Usage(7, 2))])


class FakeProvider:
    """Answers well unless told otherwise, by model; counts its calls and its open ones."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.answers: dict[str, Answer] = {}
        self.streams: dict[str, Sequence[Step]] = {}
        self.pings: Exception | str = ""
        self.calls: list[str] = []
        self.open = 0
        self.go = asyncio.Event()
        self.slow = False

    @property
    def name(self) -> str:
        return self._name

    async def complete(self, model: str, asked: Query) -> Completion:
        self.calls.append(model)
        self.open += 1
        try:
            answer = self.answers.get(model, lambda: completion(model, self._name))
            if answer == HANG:
                await asyncio.Event().wait()
            if isinstance(answer, Exception):
                raise answer
            if self.slow:
                await self.go.wait()
            assert callable(answer)
            return answer()
        finally:
            self.open -= 1

    @asynccontextmanager
    async def stream(self, model: str, asked: Query) -> AsyncGenerator[AsyncIterator[Sequence[Chunk]]]:
        self.calls.append(model)
        self.open += 1
        try:
            yield self._steps(model)
        finally:
            self.open -= 1

    async def _steps(self, model: str) -> AsyncGenerator[Sequence[Chunk]]:
        for step in self.streams.get(model, WHOLE):
            if step == HANG:
                await asyncio.Event().wait()
            if isinstance(step, str):
                await self.go.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield step

    async def ping(self) -> None:
        if self.pings == HANG:
            await asyncio.Event().wait()
        if isinstance(self.pings, Exception):
            raise self.pings

    async def close(self) -> None:
        return None


class World:
    """A chain of three links, and everything around it."""

    def __init__(self, times: Times = TIMES, places: int = 100, answers: ResponseCopies | None = None) -> None:
        self.clock = FakeClock()
        self.providers = {name: FakeProvider(name) for name in ("openai", "anthropic")}
        self.attempts: list[Attempt] = []
        self.guarded = [self._guarded(link, times, places) for link in LINKS]
        memory = MemoryCache(1_000_000, 3_600.0, self.clock)
        self.answers = answers or ResponseCopies(None, _nowhere, memory, self.clock, ttl=3_600.0)
        self.chain = Chain(self.guarded, self.answers, clock=self.clock, times=times)

    def _guarded(self, link: Link, times: Times, places: int) -> GuardedLink:
        row = link_row(link)
        breaker = CircuitBreaker(
            row.id,
            failure_threshold=row.max_failures,
            recovery_timeout=row.open_seconds,
            success_threshold=1,
            classify=classify_provider,
            clock=self.clock,
        )
        policy = RowPolicy(
            row, breaker=breaker, clock=self.clock, timeout=times.whole, bulkhead=Bulkhead(row.id, places, 0)
        )
        return GuardedLink(link, self.providers[link.provider], policy, self.clock, meter=self.attempts.append)

    def told(self, at: int, answer: Answer) -> None:
        """What the link at that place answers from now on."""
        link = LINKS[at]
        self.providers[link.provider].answers[link.model] = answer
        self.providers[link.provider].streams[link.model] = [answer] if not callable(answer) else WHOLE

    def streamed(self, at: int, *steps: Step) -> None:
        self.providers[LINKS[at].provider].streams[LINKS[at].model] = steps

    def calls(self, at: int) -> int:
        """Calls that reached the link at that place."""
        return self.providers[LINKS[at].provider].calls.count(LINKS[at].model)

    def circuit(self, at: int) -> str:
        return self.guarded[at].policy.breaker.state.header

    @property
    def open_calls(self) -> int:
        return sum(provider.open for provider in self.providers.values())

    @property
    def places_taken(self) -> int:
        return sum(one.policy.bulkhead.active for one in self.guarded if one.policy.bulkhead)


async def _nowhere(*_: Any) -> Any:
    raise ConnectionError


def query(text: str = "Hello", tenant: str = "alice", **more: Any) -> Query:
    return Query([{"role": "user", "content": text}], tenant, **more)
