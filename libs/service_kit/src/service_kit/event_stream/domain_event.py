"""What happened in the platform, as a CloudEvent (CloudEvents 1.0, JSON format, Kafka binding in structured mode).

Reading is tolerant: unknown attributes are ignored and optional ones may be missing; what lacks an attribute that the
specification requires is `UnreadableEvent`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import orjson

SPEC_VERSION = "1.0"
HEADERS: tuple[tuple[str, bytes], ...] = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)


class UnreadableEvent(ValueError):
    """A record that is no CloudEvent of ours. The text names the fault and never quotes the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvent:
    """One fact. `source` and `id` together are its identity; `subject` is the entity it is about and orders it."""

    type: str  # "auralink.user.changed"
    subject: str  # "user:<id>"
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    source: str = ""  # "auralink/dashboard"; the publisher's own if empty
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def new(cls, type: str, *, subject: str, data: Mapping[str, Any] | None = None, id: str | None = None) -> Self:
        """An event that has just happened; `id` is that of the operation that caused it, where there is one.

        Raises:
            ValueError: type, subject or id is empty.
        """
        event = cls(type=type, subject=subject, data=data or {}, id=uuid.uuid4().hex if id is None else id)
        if not (event.type and event.subject and event.id):
            raise ValueError("type, subject and id of an event must not be empty")
        return event

    @property
    def key(self) -> bytes:
        """The record's key: events of one subject go to one partition and so stay in order."""
        return self.subject.encode()

    def encode(self, source: str = "") -> bytes:
        """The record's value; `source` is used where the event names none.

        Raises:
            TypeError: `data` is not JSON.
        """
        return orjson.dumps(
            {
                "specversion": SPEC_VERSION,
                "id": self.id,
                "source": self.source or source,
                "type": self.type,
                "subject": self.subject,
                "time": self.time,
                "datacontenttype": "application/json",
                "data": self.data,
            },
            option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z,
        )

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """The event in a record's value.

        Raises:
            UnreadableEvent: there is none.
        """
        found = _object(value)
        if found.get("specversion") != SPEC_VERSION:
            raise UnreadableEvent("not a CloudEvent of version 1.0")
        data = found.get("data")
        if data is not None and not isinstance(data, dict):
            raise UnreadableEvent("data is not an object")
        subject = found.get("subject")
        return cls(
            type=_text(found, "type"),
            subject=subject if isinstance(subject, str) else "",
            data=data or {},
            id=_text(found, "id"),
            source=_text(found, "source"),
            time=_time(found.get("time")),
        )


def _object(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise UnreadableEvent("not JSON") from None  # the error's text would quote the record
    if not isinstance(found, dict):
        raise UnreadableEvent("not a JSON object")
    return found


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise UnreadableEvent(f"{name} is missing")
    return value


def _time(value: object) -> datetime:
    """The time if it is one (RFC 3339); an event without is taken as happening now."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else datetime.now(UTC)
    except ValueError:
        return datetime.now(UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
