"""Recording what a mechanism told, to ask for it afterwards."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from resilience.events import Event, Events

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
K = TypeVar("K")

_SHOWN = 20
"""Events written out in a message."""


class Source(Protocol[E_co]):
    """What can be listened to: `Events`, or a breaker."""

    def subscribe(self, listener: Callable[[E_co], None], /) -> Callable[[], None]: ...


class Recorder(list[E], Generic[E]):
    """The events told since it began, oldest first; ends with `stop()` or its `with` block.

    Holds `MAX_EVENTS` of them; those after that are only counted, in `dropped`.
    """

    MAX_EVENTS = 10_000

    def __init__(self, source: Source[E]) -> None:
        super().__init__()
        self.dropped = 0
        self.stop = source.subscribe(self._add)
        """Ends the recording; what was recorded stays."""

    def of(self, kind: type[K]) -> list[K]:
        """Those of that type."""
        return [event for event in self if isinstance(event, kind)]

    def one(self, kind: type[K]) -> K:
        """The only one of that type.

        Raises:
            AssertionError: none, or several; the text lists what was recorded.
        """
        __tracebackhide__ = True
        found = self.of(kind)
        if len(found) == 1:
            return found[0]
        raise AssertionError(f"expected one {kind.__name__}, recorded {len(found)}\n{self.describe()}")

    def clear(self) -> None:
        """Forget what was recorded, and go on."""
        super().clear()
        self.dropped = 0

    def describe(self) -> str:
        """The latest events, one a line."""
        if not self:
            return "  nothing was told"
        earlier = len(self) - _SHOWN
        lines = [f"  ... {earlier} earlier ones"] if earlier > 0 else []
        lines += [f"  {event!r}" for event in self[-_SHOWN:]]
        if self.dropped:
            lines.append(f"  ... and {self.dropped} more that were not recorded")
        return "\n".join(lines)

    def __enter__(self) -> "Recorder[E]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _add(self, event: E) -> None:
        if len(self) < self.MAX_EVENTS:
            self.append(event)
        else:
            self.dropped += 1


def record_events(events: Source[E]) -> Recorder[E]:
    """A list of what `events` (an `Events`, or a breaker for its transitions) tells from now on."""
    return Recorder(events)


class RecordedEvents(Events):
    """An `Events` that keeps what it tells in `recorded`."""

    __slots__ = ("recorded",)

    def __init__(self) -> None:
        super().__init__()
        self.recorded: Recorder[Event] = Recorder[Any](self)
