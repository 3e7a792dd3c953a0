"""One of our own services (a Dashboard instance, AI Core, WebRTC)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from devstack.components.base import Component, http_ok
from devstack.process import Command


class Service(Component):
    """Runs ``python -m MODULE`` with its settings in the environment."""

    stop_limit = 13.0  # a little more than the services' own limit for draining (10 s)

    def __init__(self, name: str, module: str, *, port: int, env: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self._module = module
        self._env = env

    def command(self) -> Command:
        return Command([sys.executable, "-m", self._module], env=self._env)

    async def accepts(self) -> bool:
        return await http_ok(f"{self.url}/health/ready")
