"""What must hold of a history and the database after it: pure functions, each returning the violations it found.

A checker that cannot decide must not pass: unknown outcomes are counted, and an answer of a shape nobody expected is a
violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.harness.history import Event, Outcome, Write, writes_of

DEADLINE = 2.0  # s, REQUEST_TIMEOUT's default
TRANSPORT = 0.4  # s for the way there and back on a busy machine of two cores, the fault proxy included
ELSEWHERE = 1.5  # s until an instance shows what another one has queued


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


@dataclass(frozen=True, slots=True)
class Outage:
    """When the database was away, in the history's time. ``noticed``: all circuits were open; ``healing``: it was about
    to be mended; ``over``: all circuits were closed again."""

    start: float
    noticed: float
    healing: float
    over: float


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise and where it shows."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(events: Sequence[Event], before: Database, after: Database, outages: Sequence[Outage]) -> list[Violation]:
    """Everything at once."""
    return [
        *answered(events),
        *served(events),
        *in_time(events),
        *labelled(events, outages),
        *read_your_writes(events),
        *applied_once(events, before, after),
        *in_order(events, before, after),
        *no_dead_letters(after),
    ]


def answered(events: Iterable[Event]) -> Iterator[Violation]:
    """No request stays without an answer, and no answer is a crash or a timeout of the service itself."""
    for event in events:
        if event.status is None:
            yield Violation("answered", f"no answer: {event}")
        elif event.status >= 500 and event.status != 503:
            yield Violation("answered", str(event))


def served(events: Iterable[Event]) -> Iterator[Violation]:
    """Whatever was read once stays readable; a write is accepted, one way or the other."""
    for event in events:
        if event.status is None or event.status == 200:
            continue
        if event.kind != "write" or event.outcome() is not Outcome.OK:
            yield Violation("served", str(event))


def in_time(events: Iterable[Event]) -> Iterator[Violation]:
    """Every answer comes within the request's deadline."""
    for event in events:
        if event.seconds > DEADLINE + TRANSPORT:
            yield Violation("in time", str(event))


def labelled(events: Iterable[Event], outages: Sequence[Outage]) -> Iterator[Violation]:
    """An answer that a fallback served says so completely; one from the database says nothing of the kind."""
    for event in events:
        if event.status is None or event.kind == "health":
            continue
        if problem := _mislabelled(event, outages):
            yield Violation("labelled", f"{problem}: {event}")


def _mislabelled(event: Event, outages: Sequence[Outage]) -> str:
    queued = event.body.get("queued") is not None
    profile = event.kind in ("read", "write") and event.status == 200
    if bool(event.body.get("stale")) != (event.degraded and profile):
        return "header and body disagree on whether it is stale"
    if queued and not event.degraded and event.status in (202, 503):
        return "queued without a label"
    if event.degraded:
        return _incomplete(event) or _unfounded(event, outages)
    unlabelled = (
        event.kind in ("read", "write", "login")
        and event.status == 200
        and any(outage.noticed < event.start and event.end < outage.healing for outage in outages)
    )
    return "the database was away, and the answer does not say so" if unlabelled else ""


def _incomplete(event: Event) -> str:
    missing = [name for name in ("x-fallback-used", "x-circuit-state") if not event.headers.get(name)]
    if event.kind == "read":
        missing += [name for name in ("age",) if name not in event.headers]
        missing += [name for name in ("as_of",) if name not in event.body]
    if event.status == 503:
        missing += [name for name in ("retry-after", "x-retry-after") if name not in event.headers]
        missing += [name for name in ("operation_id", "status_url", "message") if name not in event.body]
    if event.status == 202 and event.headers.get("preference-applied") != "respond-async":
        missing.append("preference-applied")
    return f"without {', '.join(missing)}" if missing else ""


def _unfounded(event: Event, outages: Sequence[Outage]) -> str:
    if any(outage.start <= event.end and event.start <= outage.over for outage in outages):
        return ""
    return "degraded while nothing was wrong"


def read_your_writes(events: Sequence[Event]) -> Iterator[Violation]:
    """A read shows the user's last accepted write, or a later one; a stale copy at least the last queued one."""
    by_user: dict[str, list[Write]] = {}
    for write in writes_of(events):
        by_user.setdefault(write.user, []).append(write)
    for event in events:
        if event.kind == "read" and event.status == 200:
            possible = _visible(event, by_user.get(event.user, []))
            if possible and event.name not in possible:
                yield Violation("read your writes", f"expected one of {possible}: {event}")


def _visible(read: Event, writes: Sequence[Write]) -> list[str]:
    """Names that the read may show; empty when anything is right."""
    stale = bool(read.body.get("stale"))
    settled = [
        index
        for index, write in enumerate(writes)
        if write.outcome is Outcome.OK
        and (write.queued or not stale)
        and write.end + (ELSEWHERE if write.queued and write.instance != read.instance else 0.0) < read.start
    ]
    if not settled:
        return []
    return [write.name for write in writes[settled[-1] :] if write.start < read.end]


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


def no_dead_letters(after: Database) -> Iterator[Violation]:
    """Nothing ended in the dead letters."""
    for operation_id, error in after.operations.items():
        if error is not None:
            yield Violation("no dead letters", f"{operation_id}: {error}")
