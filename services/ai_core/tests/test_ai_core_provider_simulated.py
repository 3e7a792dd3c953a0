"""The adapters against the simulated provider: each of its faults, plain and streamed, in both protocols."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from ai_core.model import RequestRefused, TooLong
from ai_core.outbound.providers import AnthropicModels, OpenAIModels
from ai_core.ports import ModelProvider, ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Chunk, Link, Query
from simulated_provider.app import App
from simulated_provider.faults import Fault
from simulated_provider.server import Server

ASKED = Query(messages=[{"role": "user", "content": "Hi"}], tenant="t1")
PATIENCE = 0.3
"""Seconds until the caller gives up."""


@dataclass
class Simulated:
    """A simulated provider, and the adapter for one of its protocols."""

    app: App
    models: ModelProvider
    link: Link
    rested: list[tuple[Link, float]]

    async def ask(self, shape: str) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        async with asyncio.timeout(PATIENCE):
            if shape == "plain":
                completion = await self.models.complete(self.link.model, ASKED)
                assert completion.simulated
                assert completion.text.startswith("[simulated]")
                return chunks
            async with self.models.stream(self.link.model, ASKED) as stream:
                async for some in stream:
                    chunks += some
        return chunks


@pytest.fixture(params=[Link("openai", "gpt-4"), Link("anthropic", "claude-sonnet-5-5")], ids=lambda link: link.name)
async def simulated(request: pytest.FixtureRequest) -> AsyncIterator[Simulated]:
    app = App()
    server = Server(app)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    rested: list[tuple[Link, float]] = []
    link: Link = request.param
    models: OpenAIModels | AnthropicModels
    if link.provider == "openai":
        models = OpenAIModels("openai", url + "/v1", "simulated", rested=lambda *told: rested.append(told))
    else:
        models = AnthropicModels("anthropic", url + "/anthropic", "simulated", rested=lambda *told: rested.append(told))
    yield Simulated(app, models, link, rested)
    await models.close()
    await server.stop()


FAULTS: dict[str, tuple[Fault, type[Exception], type[Exception]]] = {
    "hang": (Fault("hang", seconds=30), TimeoutError, TimeoutError),
    "slow": (Fault("slow", seconds=30), TimeoutError, TimeoutError),
    "slow_first_token": (Fault("slow_first_token", seconds=30), TimeoutError, TimeoutError),
    "refuse": (Fault("refuse"), ProviderFailed, ProviderFailed),
    "rate_limit": (Fault("rate_limit", retry_after=7), ProviderBusy, ProviderBusy),
    "rate_limit_no_hint": (Fault("rate_limit_no_hint"), ProviderBusy, ProviderBusy),
    "quota": (Fault("quota"), ProviderFailed, ProviderFailed),
    "error": (Fault("error"), ProviderFailed, ProviderFailed),
    "overloaded": (Fault("overloaded"), ProviderFailed, ProviderFailed),
    "unauthorized": (Fault("unauthorized"), ProviderFailed, ProviderFailed),
    "bad_request": (Fault("bad_request"), RequestRefused, RequestRefused),
    "too_long": (Fault("too_long"), TooLong, TooLong),
    "policy": (Fault("policy"), RequestRefused, RequestRefused),
    "unknown_model": (Fault("unknown_model"), ModelUnknown, ModelUnknown),
    "malformed": (Fault("malformed"), ProviderFailed, ProviderFailed),
    "empty": (Fault("empty"), ProviderFailed, ProviderFailed),
    "html": (Fault("html"), ProviderFailed, ProviderFailed),
    "cut": (Fault("cut", after_tokens=3), ProviderFailed, ProviderFailed),
    "stall": (Fault("stall", after_tokens=3, seconds=30), TimeoutError, TimeoutError),
    "error_event": (Fault("error_event", after_tokens=3), ProviderFailed, ProviderFailed),
    "unfinished": (Fault("unfinished", after_tokens=3), ProviderFailed, ProviderFailed),
}


@pytest.mark.parametrize("shape", ["plain", "streamed"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_what_it_is(simulated: Simulated, name: str, shape: str) -> None:
    fault, plain, streamed = FAULTS[name]
    expected = plain if shape == "plain" else streamed
    simulated.app.faults.order(simulated.link.name, fault)
    with pytest.raises(expected) as raised:
        await simulated.ask(shape)
    assert type(raised.value) is expected
    if name == "rate_limit":
        assert isinstance(raised.value, ProviderBusy)
        assert raised.value.retry_after == 7
    if name == "policy":
        assert "policy" in str(raised.value)
    simulated.app.faults.clear(simulated.link.name)
    await simulated.ask(shape)


async def test_a_well_stream(simulated: Simulated) -> None:
    chunks = await simulated.ask("streamed")
    assert "".join(chunk.text for chunk in chunks).startswith("[simulated]")
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usage) == 1
    assert usage[0].prompt > 0
    assert usage[0].completion > 0
    assert b'"simulated":true' in chunks[0].data


@pytest.mark.parametrize("shape", ["plain", "streamed"])
async def test_a_limit_that_is_used_up_is_told(simulated: Simulated, shape: str) -> None:
    simulated.app.faults.order(simulated.link.name, Fault("exhausted", retry_after=20))
    await simulated.ask(shape)
    ((link, seconds),) = simulated.rested
    assert link == simulated.link
    assert 15 < seconds < 22


async def test_the_probe(simulated: Simulated) -> None:
    await simulated.models.ping()
    simulated.app.faults.order(simulated.link.provider, Fault("error"))
    with pytest.raises(ProviderFailed):
        await simulated.models.ping()
