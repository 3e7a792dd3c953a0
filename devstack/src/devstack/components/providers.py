"""The simulated LLM provider: serves when no key of a real one is configured."""

from __future__ import annotations

import sys

from devstack.components.base import Component, http_ok
from devstack.process import Command


class Providers(Component):
    """One process that speaks OpenAI's wire format; every answer is labelled as simulated."""

    name = "providers"

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self) -> Command:
        return Command([sys.executable, "-m", "simulated_provider", "--host", "127.0.0.1", "--port", str(self.port)])

    async def accepts(self) -> bool:
        return await http_ok(f"{self.url}/health")
