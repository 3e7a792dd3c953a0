"""The provider chain over HTTP: every fault at every place of it, against the simulated provider, which counts."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from ai_core.degradation import PROVIDERS, RESPONSE_CACHE
from ai_core.model import RequestRefused, TooLong
from ai_core.query import Completion, Link
from ai_core.settings import Settings
from ai_core.usecases.chain import AllProvidersGone, Stream, StreamBroken
from ai_core.wiring.providers import ProvidersPart
from resilience import Served
from service_kit.runtime import ServiceRuntime
from services.ai_core.tests.chain_fakes import query
from simulated_provider.app import App
from simulated_provider.faults import Fault
from simulated_provider.server import Server

KEY = "sk-a-key-that-nobody-may-see"
PROMPT = "a prompt that nobody may see"
CHAIN_SECONDS = 1.5
WHOLE_SECONDS = 0.6
SLACK = 0.5
"""Seconds by which a busy machine may be late."""
LINKS = (Link("openai", "gpt-4"), Link("openai", "gpt-3.5-turbo"), Link("anthropic", "claude-sonnet-5-5"))
RECOVERY = 5.0

FAILURES = ("refuse", "hang", "error", "overloaded", "unauthorized", "malformed", "empty", "html", "cut", "stall")
"""Each counts for the circuit, whole or streamed (there: before the first token)."""
NEUTRAL = ("rate_limit", "rate_limit_no_hint", "unknown_model")


@dataclass
class Setup:
    """A service's part with its chain, and the provider behind it."""

    app: App
    runtime: ServiceRuntime
    part: ProvidersPart
    server: Server

    def order(self, at: int, fault: str, **members: Any) -> None:
        self.app.faults.order(LINKS[at].name, Fault(fault, **{"seconds": 30.0, "after_tokens": 0, **members}))

    def calls(self, at: int) -> int:
        found: Mapping[str, Mapping[str, int]] = self.app.calls.shown()
        return int(found.get(LINKS[at].name, {}).get("calls", 0))

    def circuit(self, at: int) -> str:
        [policy] = self.runtime.find_policies(LINKS[at].name)
        return policy.breaker.state.header

    def places_taken(self) -> int:
        return sum(policy.bulkhead.active for policy in self.runtime.policies.values() if policy.bulkhead)

    async def complete(self, text: str = PROMPT, **more: Any) -> Served[Completion]:
        began = time.monotonic()
        try:
            return await self.part.chain.complete(query(text, **more))
        finally:
            assert time.monotonic() - began < CHAIN_SECONDS + SLACK

    async def stream(self, text: str = PROMPT, **more: Any) -> tuple[Served[Stream], str]:
        served = await self.part.chain.stream(query(text, **more))
        async with served.value as stream:
            return served, "".join([one.text async for batch in stream for one in batch])


def settings(port: int, **more: Any) -> Settings:
    base = f"http://127.0.0.1:{port}"
    known = {
        "database_url": "postgresql://nobody@127.0.0.1:1/none",
        "redis_url": "redis://127.0.0.1:1/0",
        "jwt_secret": "x" * 40,
        "admin_token": "y" * 40,
        "openai_api_key": KEY,
        "openai_base_url": f"{base}/v1",
        "anthropic_api_key": KEY,
        "anthropic_base_url": f"{base}/anthropic",
        "ai_provider_chain": ",".join(link.name for link in LINKS),
        "ai_chain_timeout": CHAIN_SECONDS,
        "ai_provider_timeout": WHOLE_SECONDS,
        "ai_stream_idle_timeout": 0.4,
        "access_log": "off",
    }
    return Settings.model_validate({**known, **more})


@pytest_asyncio.fixture
async def setup() -> AsyncIterator[Setup]:
    app = App()
    server = Server(app)
    port = await server.start("127.0.0.1", 0)
    runtime = ServiceRuntime("ai-core", settings(port))
    yield Setup(app, runtime, ProvidersPart(runtime, settings(port)), server)
    app.faults.clear()
    await runtime.close()
    await server.stop()


async def until(condition: Any, limit: float = RECOVERY) -> float:
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < limit, "it did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("fault", [*FAILURES, *NEUTRAL])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_every_fault_at_every_place(setup: Setup, at: int, fault: str) -> None:
    for place in range(at):
        setup.order(place, "refuse")
    setup.order(at, fault)
    if at == 2:
        with pytest.raises(AllProvidersGone):
            await setup.complete()
    else:
        served = await setup.complete()
        answer, link = served.value, LINKS[at + 1]
        assert (answer.provider, answer.model, answer.simulated) == (link.provider, link.model, True)
        assert (answer.fallback_from, answer.cached, answer.cost) == (LINKS[0].name, False, 0.0)
        assert answer.usage.prompt > 0 < answer.usage.completion
        assert [(one.row, one.fallback, one.circuit) for one in served.degradations] == [
            (PROVIDERS.id, link.name, "closed")
        ]
    assert [setup.calls(place) for place in range(3)] == [1 if place <= at + 1 else 0 for place in range(3)]
    [policy] = setup.runtime.find_policies(LINKS[at].name)
    slow_at_the_end = at == 2 and fault in ("hang", "stall")  # what is left for the last is no fair share
    assert slow_at_the_end or policy.status().failures == (1 if fault in FAILURES else 0)
    assert setup.places_taken() == 0


@pytest.mark.parametrize("fault", [*FAILURES, *NEUTRAL, "slow_first_token", "error_event", "unfinished"])
@pytest.mark.parametrize("at", [0, 1])
async def test_every_fault_of_a_stream_before_its_first_token(setup: Setup, at: int, fault: str) -> None:
    for place in range(at):
        setup.order(place, "refuse")
    setup.order(at, fault)
    served, text = await setup.stream()
    link = LINKS[at + 1]
    assert text.startswith("[simulated]")
    assert (served.value.provider, served.value.model, served.value.simulated) == (link.provider, link.model, True)
    assert [(one.row, one.fallback) for one in served.degradations] == [(PROVIDERS.id, link.name)]
    assert [setup.calls(place) for place in range(3)] == [1 if place <= at + 1 else 0 for place in range(3)]
    [policy] = setup.runtime.find_policies(LINKS[at].name)
    assert policy.status().failures == (0 if fault in NEUTRAL else 1)
    assert setup.places_taken() == 0


async def read_into(got: list[str], served: Served[Stream]) -> None:
    async with served.value as stream:
        async for batch in stream:
            got += [one.text for one in batch]


@pytest.mark.parametrize("fault", ["cut", "stall", "error_event", "unfinished"])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_every_fault_of_a_stream_after_its_first_token(setup: Setup, at: int, fault: str) -> None:
    for place in range(at):
        setup.order(place, "refuse")
    setup.order(at, fault, after_tokens=3)
    began = time.monotonic()
    got: list[str] = []
    with pytest.raises(StreamBroken) as broken:
        await read_into(got, await setup.part.chain.stream(query()))
    assert time.monotonic() - began < CHAIN_SECONDS + 0.4 + SLACK
    assert broken.value.sent == len("".join(got)) > 0
    assert [setup.calls(place) for place in range(3)] == [1 if place <= at else 0 for place in range(3)]
    [policy] = setup.runtime.find_policies(LINKS[at].name)
    assert policy.status().failures == 1
    assert setup.places_taken() == 0
    for place in range(3):
        setup.order(place, "error")
    with pytest.raises(AllProvidersGone):  # nothing of it was kept
        await setup.complete()


@pytest.mark.parametrize(("fault", "error"), [("bad_request", RequestRefused), ("policy", RequestRefused)])
async def test_a_bad_request_is_never_sent_on(setup: Setup, fault: str, error: type[Exception]) -> None:
    setup.order(0, fault)
    for number in range(4):
        with pytest.raises(error):
            await setup.complete(str(number))
        with pytest.raises(error):
            await setup.stream(str(number))
    assert [setup.calls(at) for at in range(3)] == [8, 0, 0]
    assert setup.circuit(0) == "closed"


async def test_too_long_goes_to_the_larger_windows(setup: Setup) -> None:
    setup.order(0, "too_long")
    assert (await setup.complete()).value.model == "gpt-3.5-turbo"
    setup.order(1, "too_long")
    setup.order(2, "too_long")
    with pytest.raises(TooLong):
        await setup.complete()


@pytest.mark.parametrize("fault", ["refuse", "hang", "error", "html"])
async def test_a_dead_provider_gets_three_calls_and_is_found_again(setup: Setup, fault: str) -> None:
    await setup.runtime.start()
    for at in (0, 1):
        setup.order(at, fault)
    if fault in ("refuse", "hang"):
        setup.app.faults.order("openai:models", Fault(fault, seconds=30.0))
    for number in range(12):
        assert (await setup.complete(str(number))).value.provider == "anthropic"
    began = time.monotonic()
    for number in range(20):
        await setup.complete(f"steady {number}")
    assert (time.monotonic() - began) / 20 < WHOLE_SECONDS / 2, "nobody waits for the dead ones any more"
    if fault in ("refuse", "hang"):
        assert [setup.calls(at) for at in (0, 1)] == [3, 3]
    assert [setup.circuit(at) for at in (0, 1)] == ["open", "open"]
    setup.app.faults.clear()

    async def back() -> bool:
        return [setup.circuit(at) for at in (0, 1)] == ["closed", "closed"]

    assert await until(back) < RECOVERY
    assert (await setup.complete("again")).value.model == "gpt-4"


async def test_retry_after_and_rate_limit_headers_are_honoured(setup: Setup) -> None:
    setup.order(0, "rate_limit", retry_after=30.0)
    for number in range(5):
        await setup.complete(str(number))
    assert (setup.calls(0), setup.circuit(0)) == (1, "closed")
    setup.order(1, "exhausted", retry_after=30.0)
    served = [await setup.complete(f"more {number}") for number in range(3)]
    assert [one.value.provider for one in served] == ["openai", "anthropic", "anthropic"], "without an error before"
    setup.order(2, "rate_limit", retry_after=20.0)
    with pytest.raises(AllProvidersGone) as gone:
        await setup.complete("last")
    assert 18.0 < gone.value.retry_after <= 20.0


async def test_all_down_the_identical_query_is_served_from_the_cache(setup: Setup) -> None:
    first = await setup.complete()
    for at in range(3):
        setup.order(at, "error")
    kept = await setup.complete()
    assert (kept.value.text, kept.value.cached) == (first.value.text, True)
    assert [one.fallback for one in kept.degradations] == [RESPONSE_CACHE]
    with pytest.raises(AllProvidersGone):
        await setup.complete(tenant="bob")
    for number in range(3):
        with pytest.raises(AllProvidersGone) as gone:
            await setup.complete(str(number))
    assert [setup.circuit(at) for at in range(3)] == ["open"] * 3
    assert PROVIDERS.open_seconds - 2 < gone.value.retry_after <= PROVIDERS.open_seconds
    served, text = await setup.stream()
    assert (text, served.value.cached) == (first.value.text, True)


async def test_a_hundred_identical_queries_are_one_call(setup: Setup) -> None:
    setup.order(0, "slow", seconds=0.1)
    answers = await asyncio.gather(*(setup.complete() for _ in range(100)))
    assert setup.calls(0) == 1
    assert len({one.value.text for one in answers}) == 1
    streams = await asyncio.gather(*(setup.stream("another") for _ in range(50)))
    assert setup.calls(0) == 2
    assert len({text for _, text in streams}) == 1


async def test_cancelled_callers_leak_nothing_and_are_neutral(setup: Setup) -> None:
    setup.order(0, "hang")
    for number in range(30):
        whole = asyncio.ensure_future(setup.part.chain.complete(query(str(number))))
        streamed = asyncio.ensure_future(setup.part.chain.stream(query(str(number))))
        await asyncio.sleep(0.01)
        whole.cancel()
        streamed.cancel()
        await asyncio.gather(whole, streamed, return_exceptions=True)

    async def free() -> bool:
        """The provider sees nobody waiting any more."""
        waiting = [one for one in setup.server._connections if one.task is not None]
        return setup.places_taken() == 0 and not waiting

    await until(free)
    assert setup.circuit(0) == "closed"
    setup.app.faults.clear()
    assert (await setup.complete()).value.model == "gpt-4"


async def test_metrics_tell_tokens_and_durations_and_nothing_shows_prompts_or_keys(
    setup: Setup, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    setup.order(0, "error")
    await setup.complete()
    await setup.stream("streamed")
    text = setup.runtime.metrics.render().decode()
    samples = {
        (sample.name, sample.labels.get("gen_ai_request_model"), sample.labels.get("error_type")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["gen_ai_client_operation_duration_seconds_count", "gpt-4", "ProviderFailed"] == 2
    assert samples["gen_ai_client_operation_duration_seconds_count", "gpt-3.5-turbo", ""] == 2
    assert samples["gen_ai_server_time_to_first_token_seconds_count", "gpt-3.5-turbo", None] == 1
    assert "gen_ai_client_token_usage_count{" in text
    assert 'gen_ai_token_type="output"' in text
    for at in range(3):
        setup.order(at, "error")
    with pytest.raises(AllProvidersGone) as gone:
        await setup.complete("x" + PROMPT)
    shown = [text, str(gone.value), repr(gone.value), caplog.text, *capsys.readouterr(), repr(setup.runtime.status())]
    assert not any(PROMPT in one or KEY in one for one in shown)


async def test_a_link_without_a_key_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(1, anthropic_api_key="", anthropic_base_url="https://api.anthropic.com")
    runtime = ServiceRuntime("ai-core", own)
    part = ProvidersPart(runtime, own)
    assert [link.name for link in part.chain.links()] == ["openai:gpt-4", "openai:gpt-3.5-turbo"]
    assert set(runtime.policies) == {f"{PROVIDERS.id}.{link.name}" for link in part.chain.links()}
    assert len(runtime.find_policies("A2")) == len(runtime.find_policies(PROVIDERS.id)) == 2
    await runtime.close()
    none = settings(
        1,
        openai_api_key="",
        openai_base_url="https://api.openai.com/v1",
        anthropic_api_key="",
        anthropic_base_url="https://api.anthropic.com",
    )
    runtime = ServiceRuntime("ai-core", none)
    with pytest.raises(AllProvidersGone):
        await ProvidersPart(runtime, none).chain.complete(query())
    await runtime.close()
