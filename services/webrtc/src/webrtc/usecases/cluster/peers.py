"""The other instances, as the beats find them: who is alive, what they hold, which of their frames have been seen."""

from resilience import Clock
from webrtc.usecases.cluster.store import Entry, Pulse

BEAT_SECONDS = 3.0
LEASE_SECONDS = 10.0
GRACE_SECONDS = LEASE_SECONDS + 2.0
"""After an outage everybody's lease has ended: only who has not renewed it after this time is dead."""
MOST_ENDED = 1_000


class Peers:
    """``beat``: seconds between beats; ``grace``: seconds after an outage in which nobody is held dead."""

    def __init__(self, instance: str, clock: Clock, beat: float, grace: float) -> None:
        self._instance = instance
        self._clock = clock
        self._beat = beat
        self._grace = grace
        self._held: dict[str, frozenset[str]] = {}
        self._heard: dict[str, float] = {}
        self._numbers: dict[str, dict[type, int]] = {}
        self._ended: dict[str, None] = {}
        self._era = ""
        self._lossy_since = float("-inf")
        self.steady()

    def steady(self) -> None:
        """From now on leases mean something."""
        self._steady_since = self._clock.monotonic()

    def era(self, era: str) -> None:
        """Of the data in Redis. Until the others have written theirs again, who is missing there has not left."""
        if era != self._era:
            if self._era:
                self._lossy_since = self._clock.monotonic()
            self._era = era

    @property
    def complete(self) -> bool:
        """Whether everybody had the time to write what they have."""
        return self._clock.monotonic() - self._lossy_since >= self._grace

    def found(self, pulse: Pulse) -> None:
        """What a beat has found."""
        self.era(pulse.era)
        self._held = dict(pulse.alive)
        if not pulse.kept:  # perhaps Redis has lost the others' leases as well
            self.steady()
        old = self._clock.monotonic() - 2 * GRACE_SECONDS
        for sender in [one for one, at in self._heard.items() if one not in self._held and at < old]:
            del self._heard[sender]
            self._numbers.pop(sender, None)

    def is_new(self, entry: Entry) -> bool:
        """Whether an entry of the inbox was not seen before: a batch whose answer got lost is sent again.

        Changes and messages are counted apart, as changes may be written past messages that wait. What has no number
        (0) was not sent in a batch.
        """
        self._heard[entry.sender] = self._clock.monotonic()
        content, number = entry.content, entry.number
        if content is None or number == 0:
            return content is not None
        kind, numbers = type(content), self._numbers.setdefault(entry.sender, {})
        last = numbers.get(kind, 0)
        if number < last or (number == last and kind is bytes):
            return False
        numbers[kind] = number
        return True

    def end(self, instance: str) -> None:
        """Its process is gone, its lease perhaps not yet."""
        self._ended[instance] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def reachable(self, instance: str) -> bool:
        """Whether a message for it makes sense."""
        return instance not in ("", self._instance) and instance not in self._ended

    def dead(self, instance: str) -> bool:
        """Whether its lease has ended, as far as that can be told now."""
        if instance in ("", self._instance) or instance in self._held:
            return False
        now = self._clock.monotonic()
        if now - self._steady_since < self._grace:
            return False
        return now - self._heard.get(instance, float("-inf")) > self._beat  # a new one may not have been seen yet

    def holds(self, room_id: str) -> bool:
        """Whether any of them had participants in the room at last sight."""
        return any(room_id in rooms for rooms in self._held.values())

    @property
    def alive(self) -> frozenset[str]:
        """Who they are."""
        return frozenset(self._held)

    @property
    def held(self) -> int:
        """Rooms with participants on other instances, at last sight."""
        return len(frozenset().union(*self._held.values()))
