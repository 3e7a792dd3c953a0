"""Leaving a provider alone when it asked for that (429), without its circuit being concerned."""

from resilience import Clock

LONGEST_REST = 600.0
"""Seconds that a provider's Retry-After is honoured at most."""
SHORTEST_REST = 1.0
"""Seconds of rest after a 429 that says nothing."""
UNKNOWN_REST = 60.0
"""Seconds for which a model that its provider does not have is not asked for again."""


class Rest:
    """When one link of the chain may be asked again."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0

    @property
    def remaining(self) -> float:
        """Seconds that it still lasts; 0 when there is none."""
        return max(0.0, self._until - self._clock.monotonic())

    def begin(self, seconds: float) -> None:
        """Rest from now on; one that lasts longer already is not cut short."""
        self._until = max(self._until, self._clock.monotonic() + min(seconds, LONGEST_REST))
