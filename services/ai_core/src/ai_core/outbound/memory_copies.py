"""Copies of lists of memories for the time without the database (row A1), each under its owner."""

from collections.abc import Mapping, Sequence
from typing import Any

from ai_core.model import Cursor, Memory, Page
from ai_core.outbound.list_copies import ListCopies
from resilience import Clock, Rung
from service_kit.copies import CopyStore

_TEXTS = ("id", "owner_id", "text")


class StoredMemoryCopies:
    """See ports.MemoryCopies."""

    def __init__(self, store: CopyStore, clock: Clock) -> None:
        self._lists = ListCopies(store, clock, memory_of)

    def keep(self, owner_id: str, items: Sequence[Memory], *, complete: bool, since: float) -> None:
        """See the port."""
        self._lists.keep(_key(owner_id), items, complete=complete, since=since)

    async def change(self, owner_id: str, made: Sequence[Memory], gone: Sequence[str]) -> None:
        """See the port."""
        await self._lists.change(_key(owner_id), made, gone)

    def rungs(self, owner_id: str, size: int, after: Cursor | None) -> Sequence[Rung[Page[Memory]]]:
        """See the port."""
        return self._lists.rungs(_key(owner_id), size, after)


def memory_of(value: Any) -> Memory | None:
    """A memory from the plain data of a copy; None when it is none."""
    fields = value if isinstance(value, Mapping) else {}
    texts = [text for field in _TEXTS if isinstance(text := fields.get(field), str)]
    tags, created, model = fields.get("tags"), fields.get("created_at"), fields.get("embedding_model")
    if len(texts) != len(_TEXTS) or not isinstance(tags, list) or not isinstance(created, int | float):
        return None
    known = model if isinstance(model, str) else ""
    labels = tuple(tag for tag in tags if isinstance(tag, str))
    one, owner, content = texts
    return Memory(one, owner, content, labels, "ready" if known else "pending", float(created), known)


def _key(owner_id: str) -> str:
    return f"ai:memories:{owner_id}"
