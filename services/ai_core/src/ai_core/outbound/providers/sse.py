"""Splits a stream of server-sent events, as it comes from the network, into the events' data.

Source: WHATWG HTML, section 9.2 "Server-sent events". Only ``event`` and ``data`` are of use here. Works on bytes, so a
character that is cut by the network's reads is whole again before anybody decodes it.
"""

from collections.abc import Iterator

MAX_EVENT = 1_000_000
"""Bytes of one event that are kept while it is not complete."""

Event = tuple[bytes, bytes]
"""The event's name, empty when it has none, and its data."""

_BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """The event does not end."""


class Splitter:
    """One stream. Feed it what was read; an event is given once its blank line was seen, the last one never without."""

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._carriage = False
        self._started = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now. Raises EventTooLong."""
        if self._carriage or not self._started or b"\r" in data:
            data = self._lines(data)
        if b"\n" not in data:
            self._keep(data)
            return []
        if self._rest:
            data = bytes(self._rest) + data
            self._rest.clear()
        blocks = data.split(b"\n\n")
        if rest := blocks.pop():
            self._keep(rest)
        events: list[Event] = []
        for block in blocks:
            if block.startswith(b"data: {") and b"\n" not in block:  # nearly all of OpenAI's
                events.append((b"", block[6:]))
            else:
                events += _events(block)
        return events

    def _keep(self, rest: bytes) -> None:
        self._rest += rest
        if len(self._rest) > self._limit:
            raise EventTooLong

    def _lines(self, data: bytes) -> bytes:
        """With line feeds only; a carriage return at the end waits for what follows, without the byte order mark."""
        if self._carriage:
            data, self._carriage = b"\r" + data, False
        if b"\r" in data:
            if data.endswith(b"\r"):
                data, self._carriage = data[:-1], True
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._started and data:
            self._started, data = True, data.removeprefix(_BOM)
        return data


def _events(block: bytes) -> Iterator[Event]:
    """The event of a block of lines; none without data, which is how servers keep connections alive."""
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    if any(data):
        yield name, b"\n".join(data)
