"""Bounded memory: a cache of encoded values in this process, and the shelf on which `StaleCache` keeps its entries.

`MemoryCache` is the last copy there is when everything else is gone. It holds bytes, so that a hit is served without
encoding and its size is known. In both, the least recently used goes first.
"""

import sys
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.outcome import Served

# Beside key and value an entry costs an OrderedDict node, a dict slot, a tuple and a float
# (measured with tracemalloc on CPython 3.11: about 230 bytes).
ENTRY_OVERHEAD = 240


class MemoryCache:
    """At most `max_bytes` of real memory, each entry for at most `ttl` seconds. Safe between threads."""

    __slots__ = ("_bytes", "_clock", "_entries", "_lock", "max_bytes", "ttl")

    def __init__(self, max_bytes: int, ttl: float, clock: Clock = SYSTEM_CLOCK) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, not {max_bytes!r}")
        if not ttl > 0:
            raise ValueError(f"ttl must be a positive number of seconds, not {ttl!r}")
        self.max_bytes = max_bytes
        self.ttl = ttl
        self._clock = clock
        self._bytes = 0
        self._lock = Lock()
        self._entries: OrderedDict[str, tuple[bytes, float, int]] = OrderedDict()  # value, expires at, size

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_used(self) -> int:
        """Memory held by entries, their bookkeeping included."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        """The value, or `None` when there is none or it is too old."""
        now = self._clock.monotonic()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if now >= entry[1]:
                self._remove(key)
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        """Store `value`, making room for it. One that is larger than the whole cache is not stored."""
        expires = self._clock.monotonic() + (self.ttl if ttl is None else ttl)
        size = sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_OVERHEAD
        with self._lock:
            self._remove(key)
            if size > self.max_bytes:
                return
            self._entries[key] = (value, expires, size)
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, _, freed) = self._entries.popitem(last=False)
                self._bytes -= freed

    def delete(self, key: str) -> bool:
        """Forget `key`; whether it was there."""
        with self._lock:
            return self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _remove(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= entry[2]
        return True


class CacheEntry:
    """A value on the shelf: `served` is a copy ready to be handed out. Or the source's answer was an `error`.

    `began` is when the source was asked, on the monotonic clock; `max_age` for how long it is fresh. Before
    `retry_at` it is not to be fetched again in the background.
    """

    __slots__ = ("began", "error", "max_age", "retry_at", "served", "size", "value")

    def __init__(self, served: Served[Any] | None, error: Exception | None, began: float, max_age: float) -> None:
        self.served = served
        self.value: Any = None if served is None else served.value
        self.error = error
        self.began = began
        self.max_age = max_age
        self.retry_at = began
        self.size = 0


class Shelf:
    """Entries by key, at most `max_entries`, and at most `max_bytes` by their own account.

    `find` and `touch` need no lock: each is a single operation of the dictionary. Others are called with the lock of
    their owner, and give back what they dropped: it must die outside of the lock, as its end may run anybody's code.
    """

    __slots__ = ("_entries", "bytes", "evicted", "find", "max_bytes", "max_entries", "touch")

    def __init__(self, max_entries: int, max_bytes: int | None) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0
        self._entries: OrderedDict[Hashable, CacheEntry] = OrderedDict()
        self.find = self._entries.get
        self.touch = self._entries.move_to_end

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Hashable, entry: CacheEntry) -> list[CacheEntry | None]:
        """Put it in the place of an older one. One that is larger than the whole shelf only takes that away."""
        gone = [self.remove(key)]
        if self.max_bytes is not None and entry.size > self.max_bytes:
            return gone
        self._entries[key] = entry
        self.bytes += entry.size
        while self._over:
            gone.append(self.remove(next(iter(self._entries))))
            self.evicted += 1
        return gone

    def remove(self, key: Hashable) -> CacheEntry | None:
        """Take it away, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size
        return entry

    def clear(self) -> list[CacheEntry]:
        """Take everything away."""
        gone = list(self._entries.values())
        self._entries.clear()
        self.bytes = 0
        return gone

    @property
    def _over(self) -> bool:
        return len(self) > self.max_entries or (self.max_bytes is not None and self.bytes > self.max_bytes)
