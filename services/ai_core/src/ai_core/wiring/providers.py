"""Row A2: the providers of language models, and the chain that they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ai_core.degradation import classify_provider, link_row
from ai_core.outbound.gen_ai import GenAiMeter
from ai_core.outbound.providers import AnthropicModels, OpenAIModels
from ai_core.outbound.response_copies import ResponseCopies
from ai_core.query import Link
from ai_core.settings import ANTHROPIC, Settings
from ai_core.usecases.chain import Chain
from ai_core.usecases.links import GuardedLink
from ai_core.usecases.rest import Rest
from resilience import MemoryCache
from service_kit import logs

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from service_kit.runtime import ServiceRuntime

PLACES = 200
"""Calls of one link at once; who finds none goes on to the next link and does not wait."""

log = logs.get_logger("providers")


class ProvidersPart:
    """The chain. Make it on the loop that will serve. ``redis`` and ``call`` (its policy's) keep answers."""

    def __init__(
        self,
        runtime: ServiceRuntime,
        settings: Settings,
        redis: Redis | None = None,
        call: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._rests: dict[Link, Rest] = {}
        self._meter = GenAiMeter(runtime.metrics, runtime.tracing.tracer)
        usable = self._usable()
        share = Counter(link.provider for link in usable)
        self._providers = {name: self._provider(name, count * PLACES) for name, count in share.items()}
        links = [self._guarded(link) for link in usable]
        self.answers = self._answers(redis, call)
        self.chain = Chain(links, self.answers, clock=runtime.clock, times=settings.times, events=runtime.events)

    def _usable(self) -> list[Link]:
        """The links whose provider can be asked; the others are named once."""
        links = self._settings.links
        usable = [link for link in links if self._settings.usable(link)]
        for link in links:
            if link not in usable:
                log.warning("left out of the provider chain: no key", link=link.name)
        if not usable:
            log.error("no AI provider is configured: chat answers with an error until there is a key")
        return usable

    def _provider(self, name: str, connections: int) -> OpenAIModels | AnthropicModels:
        settings = self._settings
        url, key = settings.provider_urls[name], settings.provider_key(name)
        known: dict[str, Any] = {
            "connect_limit": settings.ai_connect_timeout,
            "connections": connections,
            "rested": self._rested,
            "now": self._runtime.clock.time,
        }
        provider: OpenAIModels | AnthropicModels
        if name == ANTHROPIC:
            provider = AnthropicModels(name, url, key, leave_out=settings.ai_anthropic_leave_out, **known)
        else:
            provider = OpenAIModels(name, url, key, **known)
        self._runtime.on_close(provider.close, f"provider {name}")
        return provider

    def _guarded(self, link: Link) -> GuardedLink:
        provider = self._providers[link.provider]
        rest = self._rests[link] = Rest(self._runtime.clock)
        policy = self._runtime.policy(
            link_row(link),
            classify=classify_provider,
            probe=provider.ping,
            trial=lambda: guarded.trial(),
            bulkhead_limit=PLACES,
            bulkhead_waiting=0,
            timeout=self._settings.times.whole,
        )
        guarded = GuardedLink(link, provider, policy, self._runtime.clock, rest=rest, meter=self._meter)
        return guarded

    def _answers(self, redis: Redis | None, call: Callable[..., Awaitable[Any]] | None) -> ResponseCopies:
        settings, runtime = self._settings, self._runtime
        memory = MemoryCache(settings.ai_response_cache_size, settings.ai_response_cache_ttl, runtime.clock)
        shared = redis if call is not None and settings.enable_cache_fallback else None
        answers = ResponseCopies(shared, call or _nowhere, memory, runtime.clock, ttl=settings.ai_response_cache_ttl)
        if shared is not None:
            runtime.background("answers", answers.write_forever)
            runtime.background("neighbours", answers.neighbours.watch)
        runtime.on_close(answers.close, "answers")
        return answers

    def _rested(self, link: Link, seconds: float) -> None:
        """A provider said that it grants nothing more for so long."""
        rest = self._rests.get(link)
        if rest is not None:
            rest.begin(seconds)


async def _nowhere(*_: Any) -> Any:
    """Where there is no store to be called."""
    raise ConnectionError
