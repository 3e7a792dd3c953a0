"""What happened, for whoever wants to log, count or trace it.

The core imports no telemetry; it emits typed events, and listeners turn them into whatever the platform uses.
The events of a single mechanism stand beside it; here are those of a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from resilience.breaker import Transition
    from resilience.fallback import RungOutcome

CallOutcome = Literal["success", "failure", "timeout", "rejected", "neutral"]


class CallFinished(NamedTuple):
    """A call through a policy ended. A plain tuple underneath: one is made per call."""

    row: str
    dependency: str
    outcome: CallOutcome
    seconds: float


class Transitioned(NamedTuple):
    """A row's circuit changed its state."""

    row: str
    dependency: str
    transition: Transition


class FallbackUsed(NamedTuple):
    """A rung of a row's ladder was tried."""

    row: str
    fallback: str
    outcome: RungOutcome


Event = tuple[Any, ...]
"""Every event is a NamedTuple; a listener asks `isinstance` for those that it knows, and leaves the others alone."""
EventListener = Callable[[Event], None]


class Events:
    """Synchronous fan-out: nothing is queued, `emit` never raises, and listeners are bounded in number."""

    __slots__ = ("_listeners", "listener_errors")

    MAX_LISTENERS = 100

    def __init__(self) -> None:
        self.listener_errors = 0
        self._listeners: tuple[EventListener, ...] = ()

    def __bool__(self) -> bool:
        """Whether anybody listens: lets a hot path skip making an event."""
        return bool(self._listeners)

    def subscribe(self, listener: EventListener) -> Callable[[], None]:
        """Tell `listener` of every event; returns a function that ends it.

        Raises:
            RuntimeError: there are `MAX_LISTENERS` already, so somebody subscribes without ever unsubscribing.
        """
        if len(self._listeners) >= self.MAX_LISTENERS:
            raise RuntimeError(f"more than {self.MAX_LISTENERS} event listeners")
        self._listeners = (*self._listeners, listener)
        return lambda: self._unsubscribe(listener)

    def emit(self, event: Event) -> None:
        """Tell every listener; one that raises is counted in `listener_errors` and hurts nobody else."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001
                self.listener_errors += 1

    def _unsubscribe(self, listener: EventListener) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)
