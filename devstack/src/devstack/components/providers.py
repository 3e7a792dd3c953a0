"""The simulated providers of language models, embeddings and speech: serve when no key of a real one is configured."""

from __future__ import annotations

import os
import sys

from devstack.components.base import Component, http_ok
from devstack.process import Command

CHAIN = {
    "OPENAI_API_KEY": ("openai:gpt-4", "openai:gpt-3.5-turbo"),
    "ANTHROPIC_API_KEY": ("anthropic:claude-sonnet-5-5",),
}
"""The default provider chain: which key its links need."""
KEY = "simulated"


class Providers(Component):
    """One process that speaks OpenAI's, Anthropic's and ElevenLabs' protocols; every answer is labelled as simulated.

    Its admin API, for faults and counts, is below ``url``.
    """

    name = "providers"

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self) -> Command:
        return Command([sys.executable, "-m", "simulated_provider", "--host", "127.0.0.1", "--port", str(self.port)])

    async def accepts(self) -> bool:
        return await http_ok(f"{self.url}/health")


def real() -> bool:
    """Whether there is a key for a language model; then nothing is simulated."""
    return any(os.environ.get(key) for key in CHAIN)


def environment(port: int) -> dict[str, str]:
    """AI Core's settings for its providers, the simulated ones on ``port``. Real keys and addresses are inherited."""
    links = [link for key, links in CHAIN.items() if not real() or os.environ.get(key) for link in links]
    chain = {"AI_PROVIDER_CHAIN": os.environ.get("AI_PROVIDER_CHAIN") or ",".join(links)}
    return chain if real() else {**chain, **_simulated(f"http://127.0.0.1:{port}")}


def _simulated(url: str) -> dict[str, str]:
    # Memories are found by meaning out of the box, which simulated embeddings cannot do.
    env = {"AI_EMBEDDING_MODEL": os.environ.get("AI_EMBEDDING_MODEL") or "local"}
    for provider, path in (("OPENAI", "/v1"), ("ANTHROPIC", "/anthropic"), ("ELEVENLABS", "/elevenlabs")):
        if not os.environ.get(f"{provider}_API_KEY"):
            env |= {f"{provider}_API_KEY": KEY, f"{provider}_BASE_URL": url + path}
    return env
