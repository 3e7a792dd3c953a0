"""Copies of one kind of value, under keys of their own in the store of all copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from resilience import Rung
from service_kit.copies import CopyStore

T = TypeVar("T")


class KeptCopies(Generic[T]):
    """See ports.Kept. ``read`` makes a value of a copy's plain data, or None when it cannot be used; ``version`` of a
    value never falls, and while it stays the copy in Redis is good enough for a while."""

    def __init__(
        self, store: CopyStore, kind: str, read: Callable[[Any], T | None], version: Callable[[T], int]
    ) -> None:
        self._store = store
        self._kind = kind
        self._read = read
        self._version = version

    def keep(self, key: str, value: T) -> None:
        """See the port."""
        self._store.keep(f"{self._kind}:{key}", value, self._version(value))

    def rungs(self, key: str) -> tuple[Rung[T], Rung[T]]:
        """See the port."""
        return self._store.rungs(f"{self._kind}:{key}", self._read)
