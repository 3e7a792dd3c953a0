"""Which providers AI Core is given: the simulated ones without a key, what is configured with one."""

from __future__ import annotations

import pytest

from devstack.components import providers
from devstack.topology import Topology

NAMES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ELEVENLABS_API_KEY", "AI_PROVIDER_CHAIN", "AI_EMBEDDING_MODEL")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_a_key_all_are_simulated() -> None:
    env = providers.environment(1234)
    assert env["OPENAI_BASE_URL"] == "http://127.0.0.1:1234/v1"
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1234/anthropic"
    assert env["ELEVENLABS_BASE_URL"] == "http://127.0.0.1:1234/elevenlabs"
    assert {env[name] for name in NAMES[:3]} == {"simulated"}
    assert [link.partition(":")[0] for link in env["AI_PROVIDER_CHAIN"].split(",")] == ["openai", "openai", "anthropic"]
    assert env["AI_EMBEDDING_MODEL"] == "local"
    assert "providers" in Topology().components


@pytest.mark.parametrize(("key", "provider"), [("OPENAI_API_KEY", "openai"), ("ANTHROPIC_API_KEY", "anthropic")])
def test_with_a_key_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch, key: str, provider: str) -> None:
    monkeypatch.setenv(key, "a real one")
    env = providers.environment(1234)
    assert env.keys() == {"AI_PROVIDER_CHAIN"}
    assert {link.partition(":")[0] for link in env["AI_PROVIDER_CHAIN"].split(",")} == {provider}
    assert "providers" not in Topology().components


def test_a_real_voice_beside_simulated_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELEVENLABS_API_KEY", "a real one")
    env = providers.environment(1234)
    assert not [name for name in env if name.startswith("ELEVENLABS")]
    assert env["OPENAI_API_KEY"] == "simulated"


def test_a_chosen_chain_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_PROVIDER_CHAIN", "openai:gpt-4")
    assert providers.environment(1234)["AI_PROVIDER_CHAIN"] == "openai:gpt-4"
