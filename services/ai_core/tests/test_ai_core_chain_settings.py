"""What of the provider chain can be set, and that a mistake is told without its value."""

import asyncio
import os
from typing import Any

import pytest

from ai_core.degradation import POSTGRES, PROVIDERS, link_row
from ai_core.query import Link
from ai_core.settings import DEFAULT_CHAIN, SIMULATED_KEY, Settings
from ai_core.usecases.chain import AllProvidersGone
from resilience import deadline_scope
from service_kit.settings import load
from services.ai_core.tests.chain_fakes import HANG, LINKS, World, query

NEEDED = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "JWT_SECRET": "x" * 40,
    "ADMIN_TOKEN": "y" * 40,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of this machine's own environment."""
    for name in tuple(os.environ):
        if name.startswith(("AI_", "OPENAI_", "ANTHROPIC_", "ELEVENLABS_", "CIRCUIT_")):
            monkeypatch.delenv(name)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def set_to(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return Settings()  # type: ignore[call-arg] # the environment has the rest


def test_the_defaults_suit_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set_to(monkeypatch)
    assert tuple(link.name for link in found.links) == DEFAULT_CHAIN
    assert not any(found.usable(link) for link in found.links), "without keys nobody can be asked"
    assert (found.times.chain, found.times.whole, found.times.first_token) == (30.0, 18.0, 10.0)
    assert (found.chat_limit, found.speech_timeout) == (30.5, 15.0)


@pytest.mark.parametrize("real", ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ELEVENLABS_API_KEY", "AI_PROVIDERS"])
def test_while_all_is_simulated_they_fit_into_the_usual_request(monkeypatch: pytest.MonkeyPatch, real: str) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ELEVENLABS_API_KEY"):
        monkeypatch.setenv(name, SIMULATED_KEY)
    found = set_to(monkeypatch)
    assert (found.times.chain, round(found.times.whole, 6), round(found.times.first_token, 6)) == (1.5, 0.9, 0.9)
    assert (found.chat_limit, found.speech_timeout) == (None, None)
    if real == "AI_PROVIDERS":
        found = set_to(monkeypatch, AI_PROVIDERS="local=http://127.0.0.1:1234/v1", AI_PROVIDER_CHAIN="local:m,gpt-4")
    else:
        found = set_to(monkeypatch, **{real: "sk-real"})
    assert (found.times.chain, found.chat_limit, found.speech_timeout) == (30.0, 30.5, 15.0)


def test_links_are_written_in_three_ways_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = "openai:gpt-4, openai/gpt-4, gpt-4, ft:gpt-4o:acme::x, anthropic:claude, local:llama3:8b"
    found = set_to(monkeypatch, AI_PROVIDER_CHAIN=chain, AI_PROVIDERS="local=http://127.0.0.1:1234/v1")
    assert found.links == (
        Link("openai", "gpt-4"),
        Link("openai", "ft:gpt-4o:acme::x"),
        Link("anthropic", "claude"),
        Link("local", "llama3:8b"),
    )


def test_further_providers_have_an_address_and_perhaps_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set_to(
        monkeypatch,
        AI_PROVIDERS="local=http://127.0.0.1:1234/v1,my-own=https://example.org/v1",
        AI_PROVIDER_MY_OWN_API_KEY="sk-own",
        AI_PROVIDER_CHAIN="local:llama3,my-own:m,openai:gpt-4",
        OPENAI_API_KEY="sk-openai",
    )
    assert [found.provider_key(name) for name in ("local", "my-own", "openai")] == ["", "sk-own", "sk-openai"]
    assert all(found.usable(link) for link in found.links)
    assert found.provider_urls["my-own"] == "https://example.org/v1"
    assert "sk-own" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AI_PROVIDER_CHAIN", "secretcorp:model"),
        ("AI_PROVIDER_CHAIN", "openai:"),
        ("AI_PROVIDER_CHAIN", " , "),
        ("AI_PROVIDERS", "secret"),
        ("AI_PROVIDERS", "openai=http://secret/v1"),
        ("AI_PROVIDERS", "a=http://secret/v1,a=http://secret/v1"),
        ("ANTHROPIC_BASE_URL", "secret"),
        ("AI_CHAIN_TIMEOUT", "-1s"),
        ("AI_FIRST_TOKEN_TIMEOUT", "secret"),
        ("AI_RESPONSE_CACHE_SIZE", "0"),
    ],
)
def test_mistakes_are_told_by_name_all_at_once_and_without_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("AI_CONNECT_TIMEOUT", "soon")
    with pytest.raises(SystemExit):
        load(Settings)
    told = capsys.readouterr().err
    assert f"{name}:" in told
    assert "AI_CONNECT_TIMEOUT:" in told
    assert "secret" not in told.replace("JWT_SECRET", "")


def test_longer_times_are_given_to_requests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set_to(monkeypatch, AI_PROVIDER_TIMEOUT="20s")
    assert (found.times.whole, found.times.chain, found.chat_limit) == (20.0, 30.0, 30.5)
    found = set_to(monkeypatch, AI_PROVIDER_TIMEOUT="45s")
    assert (found.times.whole, found.times.chain, found.times.first_token) == (45.0, 45.0, 10.0)
    monkeypatch.delenv("AI_PROVIDER_TIMEOUT")
    found = set_to(monkeypatch, AI_CHAIN_TIMEOUT="60s")
    assert (found.times.whole, found.times.chain, found.chat_limit) == (36.0, 60.0, 60.5)
    found = set_to(monkeypatch, AI_PROVIDER_TIMEOUT="20s", AI_FIRST_TOKEN_TIMEOUT="5s")
    assert (found.times.whole, found.times.first_token, found.times.chain) == (20.0, 5.0, 60.0)


def test_thresholds_are_for_all_links_or_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [link_row(Link("openai", model)) for model in ("gpt-4", "gpt-3.5-turbo")]
    assert [set_to(monkeypatch).circuit(row) for row in rows] == [(3, 30.0)] * 2
    found = set_to(
        monkeypatch,
        CIRCUIT_BREAKER_PROVIDERS_MAX_FAILURES="7",
        CIRCUIT_BREAKER_OPENAI_GPT_3_5_TURBO_MAX_FAILURES="2",
        CIRCUIT_BREAKER_OPENAI_GPT_3_5_TURBO_TIMEOUT="9s",
    )
    assert [found.circuit(row) for row in rows] == [(7, 30.0), (2, 9.0)]
    assert found.circuit(POSTGRES)[0] == POSTGRES.max_failures


def test_the_row_of_a_link_is_the_rows_with_its_own_name() -> None:
    row = link_row(Link("openai", "gpt-4"))
    assert (row.id, row.dependency, row.label) == ("ai_core.providers.openai:gpt-4", "openai:gpt-4", PROVIDERS.label)
    assert (row.max_failures, row.open_seconds, row.priority) == (3, 30, PROVIDERS.priority)


async def ask(world: World, text: str, *, streamed: bool) -> tuple[float, str]:
    """Seconds that an answer took, or a stream to begin, and instead of whom; time moves as it has to."""
    began = world.clock.monotonic()
    chain = world.chain
    work: Any = chain.stream(query(text)) if streamed else chain.complete(query(text))
    with deadline_scope(30.25, clock=world.clock):  # what a chat's request has for it
        task = asyncio.ensure_future(work)
    while not task.done():
        await world.clock.advance(0.5)
    seconds = world.clock.monotonic() - began
    try:
        answer = task.result().value
    except AllProvidersGone:
        return seconds, ""
    if streamed:
        async with answer:
            pass
    return seconds, answer.fallback_from


@pytest.mark.parametrize(("streamed", "most"), [(False, 18.0), (True, 10.0)])
async def test_with_real_models_three_callers_wait_for_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch, streamed: bool, most: float
) -> None:
    world = World(set_to(monkeypatch, OPENAI_API_KEY="sk-real").times)
    world.told(0, HANG)
    waits = [await ask(world, f"Hello {number}", streamed=streamed) for number in range(5)]
    for number, (seconds, instead_of) in enumerate(waits):
        assert instead_of == LINKS[0].name
        assert seconds <= (most + 0.5 if number < 3 else 0.5)


@pytest.mark.parametrize(("streamed", "shares"), [(False, [18, 6, 6]), (True, [10, 10, 10])])
async def test_with_real_models_each_link_has_its_share_when_those_before_it_hang(
    monkeypatch: pytest.MonkeyPatch, streamed: bool, shares: list[float]
) -> None:
    world = World(set_to(monkeypatch, OPENAI_API_KEY="sk-real").times)
    for place in range(3):
        world.told(place, HANG)
    seconds, _ = await ask(world, "Hello", streamed=streamed)
    assert seconds <= 30.5
    assert [attempt.seconds for attempt in world.attempts] == pytest.approx(shares, abs=0.6)
