"""The home page: parts that are worked out side by side, each with its own time and its own failure.

The rule: no part takes longer than its time, and none takes another one with it. Whatever is slow or away is missing
from the page, and the page is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dashboard.model import DomainError
from resilience import SYSTEM_CLOCK, CallTimeout, Clock, Served, deadline_scope, hard_timeout

INNER_SHARE = 0.8
"""Share of a part's time after which the calls it makes are over, so that what serves instead still fits in."""


class PartLeftOut(DomainError):
    """The part is not worked out while the service is degraded."""


class PartTooSlow(DomainError):
    """The part was given up when its time was over."""


@dataclass(frozen=True, slots=True)
class Part:
    """``read`` is given the user's id; an ``optional`` part is expensive, and left out while that is not wanted."""

    read: Callable[[str], Awaitable[Served[Any]]]
    optional: bool = False


class Home:
    """``seconds`` for each part; ``optional_parts`` says whether those are wanted at the moment."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        seconds: float,
        optional_parts: Callable[[], bool] = lambda: True,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._parts = parts
        self._seconds = seconds
        self._optional_parts = optional_parts
        self._clock = clock

    async def show(self, user_id: str) -> dict[str, Served[Any] | Exception]:
        """What each part serves, or why it does not."""
        outcomes = await asyncio.gather(*(self._outcome(part, user_id) for part in self._parts.values()))
        return dict(zip(self._parts, outcomes, strict=True))

    async def _outcome(self, part: Part, user_id: str) -> Served[Any] | Exception:
        if part.optional and not self._optional_parts():
            return PartLeftOut()
        work = self._within(part, user_id)
        try:
            return await hard_timeout(work, self._seconds, name=_OWN, clock=self._clock)
        except CallTimeout as error:
            return PartTooSlow() if error.name == _OWN else error
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are shown
            return error

    async def _within(self, part: Part, user_id: str) -> Served[Any]:
        with deadline_scope(self._seconds * INNER_SHARE, clock=self._clock):
            return await part.read(user_id)


_OWN = "part of the home page"
