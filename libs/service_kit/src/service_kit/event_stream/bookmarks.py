"""Where to read on in a log that may have been replaced by another one behind the consumer's back.

A broker that lost its data starts every partition at offset 0 again, and not every broker says that an offset is beyond
the end (Tansu does not): a consumer that just reads on would wait in silence, or miss what was written in between. So
each partition's last record is remembered by what is in it and read once more after a reconnection. Is it another one,
or gone, then so is the log, and reading starts from its beginning.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StoredRecord(Protocol):
    """What is needed of a record."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class _Mark(NamedTuple):
    offset: int
    print: int | None  # None: whatever is there now


class Bookmarks:
    """The last record of each partition. `begin`, seek there, and ask `admit` about every record that comes."""

    def __init__(self) -> None:
        self._marks: dict[int, _Mark] = {}
        self._begun = False

    def begin(self, ends: dict[int, int]) -> dict[int, int]:
        """Offsets to seek, given the partitions' ends: the first time all that is written from now on."""
        starts = {partition: self._start(partition, end) for partition, end in ends.items()}
        self._begun = True
        return starts

    @property
    def settled(self) -> bool:
        """Whether all last records are known; before that, another log could not be told from this one."""
        return all(mark.print is not None for mark in self._marks.values())

    def admit(self, record: StoredRecord) -> bool | None:
        """Whether the record is a new one; `None`: the log is another one, seek its beginning."""
        mark = self._marks.get(record.partition)
        print = hash((record.timestamp, record.key, record.value))
        if mark is not None and record.offset <= mark.offset:
            if record.offset == mark.offset and mark.print not in (None, print):
                del self._marks[record.partition]
                return None
            self._marks[record.partition] = _Mark(mark.offset, print if record.offset == mark.offset else mark.print)
            return False
        self._marks[record.partition] = _Mark(record.offset, print)
        return True

    def _start(self, partition: int, end: int) -> int:
        mark = self._marks.get(partition)
        if mark is None and not self._begun and end > 0:
            mark = self._marks[partition] = _Mark(end - 1, None)
        if mark is None:
            return 0
        if mark.offset >= end:
            del self._marks[partition]
            return 0
        return mark.offset
