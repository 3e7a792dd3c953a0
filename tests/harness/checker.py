"""What must hold of a history and the database after it: pure functions, each returning the violations it found.

A checker that cannot decide must not pass: unknown outcomes are counted, and an answer of a shape nobody expected is a
violation. What is promised for which request is the table in ``routes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.harness.history import Event, Outcome, Write, writes_of
from tests.harness.labels import mislabelled
from tests.harness.routes import MEMORY_ROOMS, REDIS, ROUTES, SHOWS_AFTER, WEBRTC

DEADLINE = 2.0  # s, REQUEST_TIMEOUT's default
TRANSPORT = 0.4  # s for the way there and back on a busy machine of two cores, the fault proxy included
ELSEWHERE = 1.5  # s until an instance shows what another one has queued
DOCUMENTED = frozenset({200, 201, 202, 204, 429, 503})


@dataclass(frozen=True, slots=True)
class Row:
    """A user in the database."""

    name: str
    revision: int


@dataclass(frozen=True, slots=True)
class Database:
    """What is in it: users by id, and the fate of every recorded operation (None: applied; else why it is dead)."""

    users: Mapping[str, Row]
    operations: Mapping[str, str | None] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)
    """Applied changes recorded per user."""
    made: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Things made: for a kind of request how many there are of each name. A kind that is not here is not checked."""


@dataclass(frozen=True, slots=True)
class Outage:
    """When a component was away, in the history's time. ``noticed``: all its circuits were open (infinity: they never
    were); ``healing``: it was about to be mended; ``over``: nothing of it was left, circuits, queue and mode."""

    start: float
    noticed: float
    healing: float
    over: float
    component: str = "postgres"

    def touches(self, event: Event) -> bool:
        """Whether the event may have met it."""
        return self.start <= event.end and event.start <= self.over

    def covers(self, event: Event) -> bool:
        """Whether the component was certainly away, and known to be, all the time."""
        return self.noticed + SHOWS_AFTER.get(self.component, 0.0) < event.start and event.end < self.healing


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise and where it shows."""

    rule: str
    problem: str
    event: Event | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.problem}{'' if self.event is None else f': {self.event}'}"


def check(events: Sequence[Event], before: Database, after: Database, outages: Sequence[Outage]) -> list[Violation]:
    """Everything at once."""
    return [
        *answered(events),
        *served(events, outages),
        *in_time(events),
        *ended(events),
        *labelled(events, outages),
        *read_your_writes(events, outages),
        *applied_once(events, before, after),
        *in_order(events, before, after),
        *made_once(events, after, outages),
        *no_dead_letters(after),
    ]


def broken(event: Event, outages: Sequence[Outage]) -> frozenset[str]:
    """Components that may have been away, or just back, while the event lasted."""
    return frozenset(outage.component for outage in outages if outage.touches(event))


def away(event: Event, outages: Sequence[Outage]) -> frozenset[str]:
    """Components that were away all the time, and known to be."""
    return frozenset(outage.component for outage in outages if outage.covers(event))


def answered(events: Iterable[Event]) -> Iterator[Violation]:
    """No request stays without an answer, and no answer is a crash, a timeout of the service itself, or a refusal that
    the caller did not deserve."""
    for event in events:
        if event.status is None:
            yield Violation("answered", "no answer", event)
        elif event.status not in DOCUMENTED:
            yield Violation("answered", f"{event.status} is not documented", event)


def useful(event: Event) -> bool:
    """The answer has what was asked for, or accepts the write, one way or the other."""
    if event.kind == "write":
        return event.outcome() is Outcome.OK
    return event.status in ROUTES[event.kind].good and event.body.get("ended", "end") == "end"


def served(events: Iterable[Event], outages: Sequence[Outage]) -> Iterator[Violation]:
    """Where the matrix promises something useful, that is what is answered."""
    for event in events:
        if event.status is not None and not useful(event) and ROUTES[event.kind].promised(broken(event, outages)):
            yield Violation("served", f"answered {event.status}", event)


def in_time(events: Iterable[Event]) -> Iterator[Violation]:
    """Every answer comes within the request's deadline."""
    for event in events:
        if event.seconds > DEADLINE + TRANSPORT:
            yield Violation("in time", "late", event)


def ended(events: Iterable[Event]) -> Iterator[Violation]:
    """An answer in pieces that has begun ends by saying how: whole, or broken off."""
    for event in events:
        if ROUTES[event.kind].pieces and event.status == 200 and event.body.get("ended") not in ("end", "error"):
            yield Violation("ended", "the stream stopped without an end", event)


def labelled(events: Iterable[Event], outages: Sequence[Outage]) -> Iterator[Violation]:
    """An answer that a fallback served says so completely; one from the real thing says nothing of the kind."""
    for event in events:
        if event.status is None or event.kind == "health":
            continue
        if problem := mislabelled(event, broken(event, outages), away(event, outages)):
            yield Violation("labelled", problem, event)


def read_your_writes(events: Sequence[Event], outages: Sequence[Outage] = ()) -> Iterator[Violation]:
    """A read shows the user's last accepted write, or a later one; a stale copy at least the last queued one.

    Instances hear of each other's queued writes from Redis: one that was cut off from it before it could hear of a
    write is not blamed before Redis is back (row D2: per instance).
    """
    by_user: dict[str, list[Write]] = {}
    for write in writes_of(events):
        by_user.setdefault(write.user, []).append(write)
    for event in events:
        if event.kind in ("read", "me") and event.status == 200:
            possible = _visible(event, by_user.get(event.user, []), outages)
            if possible and event.name not in possible:
                yield Violation("read your writes", f"expected one of {possible}", event)


def _visible(read: Event, writes: Sequence[Write], outages: Sequence[Outage]) -> list[str]:
    """Names that the read may show; empty when anything is right."""
    stale = bool(read.body.get("stale"))
    settled = [
        index
        for index, write in enumerate(writes)
        if write.outcome is Outcome.OK
        and (write.queued or not stale)
        and _known(write, read.instance, outages) < read.start
    ]
    if not settled:
        return []
    return [write.name for write in writes[settled[-1] :] if write.start < read.end]


def _known(write: Write, instance: str, outages: Sequence[Outage]) -> float:
    """From when on an instance must show an accepted write."""
    if not write.queued or write.instance == instance:
        return write.end
    heard = write.end + ELSEWHERE
    deaf = [one.over for one in outages if one.component == REDIS and one.start < heard and write.end < one.over]
    return max(heard, *deaf) if deaf else heard


def applied_once(events: Sequence[Event], before: Database, after: Database) -> Iterator[Violation]:
    """Every accepted write took effect exactly once, a refused one never, one of unknown outcome at most once."""
    by_user: dict[str, list[Write]] = {}
    for write in writes_of(events):
        by_user.setdefault(write.user, []).append(write)
        if (
            write.outcome is Outcome.OK
            and write.queued
            and after.operations.get(write.operation_id, "none") is not None
        ):
            fate = after.operations.get(write.operation_id, "not recorded")
            yield Violation("applied once", f"accepted write {write.name} ({write.operation_id}): {fate}")
    for user, writes in by_user.items():
        accepted = sum(write.outcome is Outcome.OK for write in writes)
        unknown = sum(write.outcome is Outcome.UNKNOWN for write in writes)
        effects = after.users[user].revision - before.users[user].revision
        if not accepted <= effects <= accepted + unknown:
            yield Violation("applied once", f"{user}: {accepted} accepted, {unknown} unknown, {effects} took effect")
        recorded = after.changes.get(user, 0) - before.changes.get(user, 0)
        if recorded != effects:
            yield Violation("applied once", f"{user}: {effects} took effect, {recorded} are recorded")


def in_order(events: Sequence[Event], before: Database, after: Database) -> Iterator[Violation]:
    """The last accepted write of a user is what the database holds; only an unknown one after it may have won."""
    by_user: dict[str, list[Write]] = {}
    for write in writes_of(events):
        by_user.setdefault(write.user, []).append(write)
    for user, writes in by_user.items():
        accepted = [index for index, write in enumerate(writes) if write.outcome is Outcome.OK]
        last = accepted[-1] if accepted else 0
        possible = [write.name for write in writes[last:] if write.outcome is not Outcome.FAIL]
        if not accepted:
            possible.append(before.users[user].name)
        if after.users[user].name not in possible:
            yield Violation("in order", f"{user} is {after.users[user].name!r}, expected one of {possible}")


def made_once(events: Iterable[Event], after: Database, outages: Sequence[Outage] = ()) -> Iterator[Violation]:
    """What was accepted is there once, what was refused is not, and what nobody answered at most once.

    A room that was made in memory is lost with its process (row W1), if that goes before Redis is back.
    """
    for event in events:
        if event.kind not in after.made:
            continue
        count, outcome = after.made[event.kind].get(event.name, 0), event.outcome()
        least, most = outcome is Outcome.OK and not _lost(event, outages), outcome is not Outcome.FAIL
        if not least <= count <= most:
            yield Violation("made once", f"{count} of it, though the outcome was {outcome}", event)


def _lost(event: Event, outages: Sequence[Outage]) -> bool:
    if MEMORY_ROOMS not in event.headers.get("x-fallback-used", ""):
        return False
    until = max((one.over for one in outages if one.component == REDIS and one.touches(event)), default=event.end)
    return any(one.component == WEBRTC and one.start <= until and event.start <= one.over for one in outages)


def no_dead_letters(after: Database) -> Iterator[Violation]:
    """Nothing ended in the dead letters."""
    for operation_id, error in after.operations.items():
        if error is not None:
            yield Violation("no dead letters", f"{operation_id}: {error}")
