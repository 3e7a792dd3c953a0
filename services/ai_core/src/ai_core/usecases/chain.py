"""The provider chain (row A2): one query, several providers, one answer.

The links are asked in order, each under its own circuit and within its share of the time, until one answers. Identical
queries at the same time share one call. When all are gone, the kept answer to the identical query serves. What is
served instead of what should have been says so.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ai_core.degradation import PROVIDERS, RESPONSE_CACHE
from ai_core.model import ModelNotOffered, RequestRefused, TooLong
from ai_core.ports import Answers, CannotCarry
from ai_core.query import Completion, Link, Query
from ai_core.usecases.failover import Move, move_after, window
from ai_core.usecases.links import GuardedLink
from ai_core.usecases.single_flight import SingleFlight
from ai_core.usecases.streams import Live, Recorded, StreamTimes, open_stream, whole
from ai_core.usecases.streams import Stream as Stream
from ai_core.usecases.streams import StreamBroken as StreamBroken
from resilience import (
    BulkheadFull,
    CallTimeout,
    Clock,
    Degradation,
    LoadCancelled,
    Rung,
    Served,
    current_deadline,
    descend,
)
from resilience.events import Events

T = TypeVar("T")

COMPLETE_REASONS = frozenset({"stop", "tool_calls", "function_call"})
"""Finish reasons of answers that are whole: others are not kept."""
LEAST_SECONDS = 0.02
"""An attempt with less time than that is not begun."""
HELD_RETRY = 30.0
"""Seconds to the next try when an operator holds every circuit open."""


@dataclass(frozen=True, slots=True)
class Times:
    """Limits in seconds. ``whole``: one attempt at a whole answer; ``chain``: all attempts of a query together.

    ``first_token``, ``idle`` (between chunks), ``stream`` (all of it): for streamed answers.
    """

    whole: float
    chain: float
    first_token: float
    idle: float
    stream: float = 600.0

    @property
    def reserve(self) -> float:
        """What an attempt leaves for each link behind it."""
        return min(self.whole, self.chain / 5)


class AllProvidersGone(Exception):
    """No provider answered, and no answer to this query is kept. ``retry_after`` in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("no provider of the chain could answer")
        self.retry_after = retry_after


class Chain:
    """``links`` in the order in which they are asked; there may be none."""

    def __init__(
        self,
        links: Sequence[GuardedLink],
        answers: Answers,
        *,
        clock: Clock,
        times: Times,
        events: Events | None = None,
    ) -> None:
        self._links = tuple(links)
        self._answers = answers
        self._clock = clock
        self._times = times
        self._events = events or Events()
        self._whole = SingleFlight(PROVIDERS.id, times.chain, answers, clock)
        self._openings = SingleFlight(f"{PROVIDERS.id}.stream", times.chain, answers, clock)
        self._streams: dict[str, Live] = {}

    def links(self) -> Sequence[Link]:
        """The chain, in order."""
        return [one.link for one in self._links]

    def retry_after(self) -> float:
        """Seconds until some link may be tried again; 0: now."""
        soonest = min((one.wait() for one in self._links), default=HELD_RETRY)
        return min(soonest, HELD_RETRY) if soonest == float("inf") else soonest

    async def complete(self, asked: Query, *rungs: Rung[Completion]) -> Served[Completion]:
        """The answer of the first link that has one; else the kept one; else what the first of ``rungs`` serves.

        Raises AllProvidersGone, ModelNotOffered, RequestRefused, TooLong.
        """
        order, key = self._order(asked.prefer), asked.key()
        if asked.fresh_seconds > 0 and (fresh := await self._fresh(key, asked.fresh_seconds)):
            return Served(fresh, as_of=fresh.as_of)
        try:
            answer = await self._shared(self._whole, key, lambda: self._ask(key, asked, order))
        except AllProvidersGone as gone:
            return await self._without_providers(key, order, gone, rungs)
        return Served(answer, self._substitution(order, answer.fallback_from, answer.provider, answer.model))

    async def stream(self, asked: Query) -> Served[Stream]:
        """The same as a stream, from its first token on. Close it in any case.

        Raises AllProvidersGone, ModelNotOffered, RequestRefused, TooLong.
        """
        order, key = self._order(asked.prefer), asked.key()
        if asked.fresh_seconds > 0 and (fresh := await self._fresh(key, asked.fresh_seconds)):
            return Served(self._replayed(fresh), as_of=fresh.as_of)
        try:
            live = self._streams.get(key)
            if live is None:
                live = await self._shared(self._openings, key, lambda: self._open(key, asked, order))
        except AllProvidersGone as gone:
            return (await self._without_providers(key, order, gone, ())).map(self._replayed)
        link = live.guarded.link
        instead_of = "" if live.guarded is order[0] else order[0].name
        stream = Stream(
            live,
            provider=link.provider,
            model=live.model,
            fallback_from=instead_of,
            simulated=live.simulated,
            retry_after=self.retry_after,
        )
        return Served(stream, self._substitution(order, instead_of, link.provider, link.model))

    # -- asking

    async def _ask(self, key: str, asked: Query, order: Sequence[GuardedLink]) -> Completion:
        async def ask() -> Completion:
            by, answer = await self._walk(order, lambda one, limit: one.complete(asked, limit), self._times.whole)
            return answer if by is order[0] else answer.also(fallback_from=order[0].name)

        if not asked.keep:
            return await ask()
        return await self._whole.among_processes(key, ask, _is_whole)

    async def _open(self, key: str, asked: Query, order: Sequence[GuardedLink]) -> Live:
        def ended(live: Live) -> None:
            if self._streams.get(key) is live:
                del self._streams[key]
            if asked.keep and live.error is None and live.finish_reason in COMPLETE_REASONS:
                self._keep_stream(key, asked, live, order)

        times = StreamTimes(self._times.first_token, self._times.idle, self._times.stream)

        async def opened(one: GuardedLink, limit: float) -> Live:
            return await open_stream(one, asked, times, limit, self._events, ended)

        _, live = await self._walk(order, opened, times.first_token)
        if not live.ended:
            self._streams[key] = live
        return live

    def _keep_stream(self, key: str, asked: Query, live: Live, order: Sequence[GuardedLink]) -> None:
        several = asked.parameters.get("n") not in (None, 1)
        answer = None if several or asked.parameters.get("logprobs") else whole(live)
        if answer is not None:
            instead_of = "" if live.guarded is order[0] else order[0].name
            self._answers.keep(key, answer.also(fallback_from=instead_of, cost=live.cost))

    async def _shared(self, flight: SingleFlight, key: str, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await flight.share(key, load, AllProvidersGone)
        except (CallTimeout, LoadCancelled, BulkheadFull) as error:
            raise AllProvidersGone(self.retry_after()) from error

    async def _walk(
        self, order: Sequence[GuardedLink], attempt: Callable[[GuardedLink, float], Awaitable[T]], most: float
    ) -> tuple[GuardedLink, T]:
        """The first link that answers, and its answer; each has at most ``most`` seconds."""
        trouble = _Trouble()
        for at, one in enumerate(order):
            limit = self._share(order[at + 1 :], most)
            if trouble.rules_out(one):
                continue
            if limit < LEAST_SECONDS:
                break
            try:
                return one, await attempt(one, limit)
            except Exception as error:
                if move_after(error) is Move.BACK:
                    raise
                trouble.note(one, error)
        raise trouble.verdict(self.retry_after) from trouble.last

    def _share(self, behind: Sequence[GuardedLink], most: float) -> float:
        """Seconds for one attempt, so that those links ``behind`` it that can be asked still get theirs."""
        deadline = current_deadline()
        left = self._times.chain if deadline is None else deadline.remaining(self._clock)
        usable = sum(1 for one in behind if not one.wait())
        return min(most, max(left - usable * self._times.reserve, left / (usable + 1)))

    def _order(self, prefer: str) -> Sequence[GuardedLink]:
        """The links in the order in which this query asks them. Raises ModelNotOffered."""
        if not prefer or not self._links:
            return self._links
        for one in self._links:
            if prefer in (one.name, one.link.model, f"{one.link.provider}/{one.link.model}"):
                return [one, *(other for other in self._links if other is not one)]
        raise ModelNotOffered

    # -- what serves instead

    async def _fresh(self, key: str, seconds: float) -> Completion | None:
        kept = await self._answers.get(key, seconds)
        young = kept is not None and kept.as_of is not None and self._clock.time() - kept.as_of <= seconds
        return kept if young else None

    async def _without_providers(
        self, key: str, order: Sequence[GuardedLink], gone: AllProvidersGone, rungs: Sequence[Rung[Completion]]
    ) -> Served[Completion]:
        kept = await self._answers.get(key)
        if kept is not None:
            instead_of = order[0].name if order else ""
            return Served(kept.also(fallback_from=instead_of), (self._mark(order, RESPONSE_CACHE),), kept.as_of)
        return await descend(gone, rungs, degradation=lambda name: self._mark(order, name))

    @staticmethod
    def _replayed(answer: Completion) -> Stream:
        return Stream(
            Recorded(answer),
            provider=answer.provider,
            model=answer.model,
            fallback_from=answer.fallback_from,
            as_of=answer.as_of,
            simulated=answer.simulated,
        )

    def _substitution(
        self, order: Sequence[GuardedLink], instead_of: str, provider: str, model: str
    ) -> tuple[Degradation, ...]:
        if not instead_of:
            return ()
        fitting = [one.link for one in order if one.link.provider == provider and model.startswith(one.link.model)]
        link = max(fitting, key=lambda found: len(found.model), default=Link(provider, model))
        return (self._mark(order, link.name),)

    def _mark(self, order: Sequence[GuardedLink], fallback: str) -> Degradation:
        """The mark of an answer that ``fallback`` gives instead of the first link."""
        if not order:
            return Degradation(PROVIDERS.id, fallback, "open", HELD_RETRY)
        policy, wait = order[0].policy, order[0].wait()
        policy.note_fallback(fallback)
        retry = None if wait == float("inf") else wait or PROVIDERS.probe_interval
        return Degradation(PROVIDERS.id, fallback, policy.breaker.state.header, retry)


class _Trouble:
    """What went wrong on the way through the chain."""

    def __init__(self) -> None:
        self.last: Exception | None = None
        self._too_long: TooLong | None = None
        self._window = 0  # the largest of those that the query was too long for
        self._lacking: set[str] = set()
        self._unavailable: list[int] = []  # windows of links that might have answered

    def note(self, one: GuardedLink, error: Exception) -> None:
        self.last = error
        if isinstance(error, TooLong):
            self._too_long = error
            self._window = max(self._window, window(one.link))
        elif isinstance(error, CannotCarry):
            self._lacking.update(error.parameters)
        else:
            self._unavailable.append(window(one.link))

    def rules_out(self, one: GuardedLink) -> bool:
        """Whether the query is known to be too long for this link."""
        return self._too_long is not None and window(one.link) <= self._window

    def verdict(self, retry_after: Callable[[], float]) -> Exception:
        """The request's own fault, unless a link that is only away could have taken it."""
        if self._too_long is not None and not any(one > self._window for one in self._unavailable):
            return self._too_long
        if self._lacking and not self._unavailable:
            return RequestRefused(f"No AI provider here supports: {', '.join(sorted(self._lacking))}.")
        return AllProvidersGone(retry_after())


def _is_whole(answer: Completion) -> bool:
    return answer.finish_reason in COMPLETE_REASONS
