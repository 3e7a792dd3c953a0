"""What a mode lets through: in emergency only the essential (matrix, "Modes").

Essential are health, login, the reads (which have defaults and copies), one's own account with the writes that are
never lost (row D1), and the admin surface: those routes have no gate. Behind it only reads pass.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request

from dashboard.degradation import Effects
from service_kit.errors import DependencyUnavailable

_READS = frozenset({"GET", "HEAD"})


class Gate:
    """A dependency of routes that are not essential. ``retry_after``: seconds until something may have changed."""

    def __init__(self, effects: Callable[[], Effects], retry_after: Callable[[], float]) -> None:
        self._effects = effects
        self._retry_after = retry_after

    async def __call__(self, request: Request) -> None:
        """Raises DependencyUnavailable."""
        if self._effects().essential_only and request.method not in _READS:
            raise DependencyUnavailable(
                "The service is in emergency mode and does only what is essential.",
                retry_after=self._retry_after(),
                queued=False,
            )
