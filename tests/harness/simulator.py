"""The admin API of the simulated providers, past the fault proxy: what is to go wrong, and who was called how often."""

from __future__ import annotations

from typing import Any

from tests.harness.platform import Platform


class Simulator:
    """Faults and counts by target, such as ``openai:gpt-4``."""

    def __init__(self, platform: Platform) -> None:
        self._session = platform.session
        self._url = f"{platform.stack.plan.components['providers'].url}/admin"

    async def order(self, target: str, fault: str, **members: Any) -> None:
        """Make something go wrong."""
        async with self._session.put(f"{self._url}/faults/{target}", json={"fault": fault, **members}) as answer:
            assert answer.status == 200, await answer.text()

    async def clear(self, what: str = "faults") -> None:
        """End all faults, or forget the ``calls``."""
        async with self._session.delete(f"{self._url}/{what}") as answer:
            assert answer.status == 200

    async def pace(self, seconds: float) -> None:
        """The time between two tokens of every answer, until the process ends."""
        async with self._session.put(f"{self._url}/settings", json={"token_delay": seconds}) as answer:
            assert answer.status == 200, await answer.text()

    async def calls(self, target: str, kind: str = "chat") -> int:
        """Calls that reached a model."""
        async with self._session.get(f"{self._url}/calls") as answer:
            counted: dict[str, dict[str, int]] = await answer.json()
        return counted.get(target, {}).get(kind, 0)
