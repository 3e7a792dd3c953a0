"""A bounded cache of encoded values in this process: the last copy there is when everything else is gone.

Holds bytes, so that a hit is served without encoding and its size is known. Least recently used goes first.
"""

import sys
from collections import OrderedDict

from resilience.clock import SYSTEM_CLOCK, Clock

# Beside key and value an entry costs an OrderedDict node, a dict slot, a tuple and a float
# (measured with tracemalloc on CPython 3.11: about 230 bytes).
ENTRY_OVERHEAD = 240


class MemoryCache:
    """At most `max_bytes` of real memory, each entry for at most `ttl` seconds."""

    __slots__ = ("_bytes", "_clock", "_entries", "max_bytes", "ttl")

    def __init__(self, max_bytes: int, ttl: float, clock: Clock = SYSTEM_CLOCK) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, not {max_bytes!r}")
        if not ttl > 0:
            raise ValueError(f"ttl must be a positive number of seconds, not {ttl!r}")
        self.max_bytes = max_bytes
        self.ttl = ttl
        self._clock = clock
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[bytes, float, int]] = OrderedDict()  # value, expires at, size

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_used(self) -> int:
        """Memory held by entries, their bookkeeping included."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        """The value, or `None` when there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock.monotonic() >= entry[1]:
            self.delete(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        """Store `value`, making room for it. One that is larger than the whole cache is not stored."""
        self.delete(key)
        size = sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_OVERHEAD
        if size > self.max_bytes:
            return
        self._entries[key] = (value, self._clock.monotonic() + (self.ttl if ttl is None else ttl), size)
        self._bytes += size
        while self._bytes > self.max_bytes:
            _, (_, _, freed) = self._entries.popitem(last=False)
            self._bytes -= freed

    def delete(self, key: str) -> bool:
        """Forget `key`; whether it was there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= entry[2]
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0
