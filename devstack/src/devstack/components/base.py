"""What every component answers; the process itself belongs to the supervisor."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod

import aiohttp

from devstack.process import Command
from devstack.state import StateDir


class Component(ABC):
    """One process of the platform."""

    name: str
    port: int
    stop_signal: signal.Signals = signal.SIGTERM
    stop_limit: float = 5.0  # s from the signal to SIGKILL
    needs: tuple[str, ...] = ()  # components whose work ``prepare`` needs; waited for while they start

    @abstractmethod
    def command(self) -> Command:
        """What to run."""

    @abstractmethod
    async def accepts(self) -> bool:
        """Whether it takes work at this moment: one attempt of at most about a second."""

    async def prepare(self, state: StateDir) -> None:  # noqa: ARG002  (most have nothing to do)
        """What must be done before it can start. Also called before each restart.

        Raises:
            ComponentError: it cannot start.
        """
        return

    @property
    def url(self) -> str:
        """Where it is reached without the fault proxy."""
        return f"http://127.0.0.1:{self.port}"


async def http_ok(url: str, limit: float = 1.0) -> bool:
    """Whether a GET is answered with 200 within ``limit`` seconds."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit)) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False
