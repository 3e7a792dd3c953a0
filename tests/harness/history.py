"""What clients did and saw, one event per request: the only thing the checker believes besides the database.

A write ends as one of three outcomes (the discipline of Jepsen's histories): ``ok`` (accepted: it must take effect
once), ``fail`` (refused: it must not), ``unknown`` (nobody said: it may, at most once).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What a client may believe of its write."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Event:
    """One request and its answer. Times are seconds of the monotonic clock, which all processes of a host share."""

    kind: str
    """One of ``routes.ROUTES``."""
    instance: str
    start: float
    end: float
    status: int | None
    """None: no answer; then ``error`` says why."""
    user: str = ""
    name: str = ""
    """The name that was written, which no other write uses, or the display name that was read."""
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    begun: float = 0.0
    """Of an answer that comes in pieces: when the first of them was there."""

    @property
    def seconds(self) -> float:
        """From the first byte sent to the last byte received; of an answer in pieces to the first."""
        return (self.begun or self.end) - self.start

    @property
    def degraded(self) -> bool:
        """The answer says that a fallback served it."""
        return self.headers.get("x-degraded-mode") == "true"

    def outcome(self) -> Outcome:
        """Of a write; anything that is neither acceptance nor refusal is unknown."""
        queued = self.body.get("queued")
        if "It is not known" in str(self.body.get("message")):
            return Outcome.UNKNOWN
        if self.status in (200, 201, 202) or (self.status == 503 and queued is True):
            return Outcome.OK
        if self.status is not None and (self.status < 500 or (self.status == 503 and queued is False)):
            return Outcome.FAIL
        return Outcome.UNKNOWN

    def __str__(self) -> str:
        what = f"{self.kind} {self.name or self.user} at {self.instance}, t={self.start:.3f}+{self.seconds:.3f}"
        return f"{what} -> {self.status or self.error} {self.headers} {self.body}"


@dataclass(frozen=True, slots=True)
class Write:
    """One logical write: all attempts under one idempotency key, or the only one."""

    user: str
    name: str
    start: float
    end: float
    outcome: Outcome
    instance: str
    queued: bool
    operation_id: str


def writes_of(events: Iterable[Event]) -> list[Write]:
    """Logical writes in order of their beginning. One accepted attempt makes the write accepted."""
    attempts: dict[tuple[str, str], list[Event]] = {}
    for event in sorted((one for one in events if one.kind == "write"), key=lambda one: one.start):
        attempts.setdefault((event.user, event.name), []).append(event)
    return [_write(tries) for tries in attempts.values()]


def _write(attempts: list[Event]) -> Write:
    outcomes = {attempt.outcome() for attempt in attempts}
    outcome = next(one for one in (Outcome.OK, Outcome.UNKNOWN, Outcome.FAIL) if one in outcomes)
    queued = [attempt for attempt in attempts if attempt.body.get("queued")]
    return Write(
        user=attempts[0].user,
        name=attempts[0].name,
        start=attempts[0].start,
        end=attempts[-1].end,
        outcome=outcome,
        instance=attempts[-1].instance,
        queued=bool(queued),
        operation_id=next((one.body["operation_id"] for one in queued), ""),
    )


def dumps(event: Event) -> str:
    """One line of a history file."""
    return json.dumps(asdict(event), separators=(",", ":"))


def read(path: Path) -> list[Event]:
    """A history file, in order of the requests' beginning."""
    events = [Event(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(events, key=lambda event: event.start)
