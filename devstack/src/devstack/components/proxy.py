"""The fault proxy: in the middle of every edge. Could be the real Toxiproxy: same options, same file, same API."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from devstack.components.base import Component, http_ok
from devstack.process import Command
from devstack.state import StateDir


class FaultProxy(Component):
    """``edges`` maps a proxy's name to (port it listens on, port it passes on to)."""

    name = "fault-proxy"

    def __init__(self, port: int, edges: dict[str, tuple[int, int]], config: Path) -> None:
        self.port = port
        self._edges = edges
        self._config = config

    async def prepare(self, state: StateDir) -> None:  # noqa: ARG002
        proxies = [
            {"name": name, "listen": f"127.0.0.1:{listen}", "upstream": f"127.0.0.1:{upstream}", "enabled": True}
            for name, (listen, upstream) in self._edges.items()
        ]
        self._config.write_text(json.dumps(proxies, indent=2), encoding="utf-8")

    def command(self) -> Command:
        options = ["-host", "127.0.0.1", "-port", str(self.port), "-config", str(self._config)]
        return Command([sys.executable, "-m", "devstack.faultproxy", *options])

    async def accepts(self) -> bool:
        return await http_ok(f"{self.url}/version")
