"""Memories: keeping, listing, finding and forgetting one's own texts (row A1, ai_core.postgres).

No embedding is made yet: every memory is stored as pending and found by its words.
"""

from collections.abc import Sequence

from ai_core.model import (
    Cursor,
    Found,
    Memory,
    MemoryUnknown,
    Page,
    checked,
    checked_key,
    checked_page_size,
    checked_tags,
    chosen_id,
    fingerprint,
    is_id,
    page_of,
)
from ai_core.ports import MemoryStore
from resilience import Clock, RowPolicy, Served


class Memories:
    """Each method acts for ``owner``, who sees no other memories than the own ones."""

    def __init__(self, store: MemoryStore, postgres: RowPolicy, clock: Clock) -> None:
        self._store = store
        self._postgres = postgres
        self._clock = clock

    async def create(
        self, owner: str, text: str, tags: Sequence[str], key: str = "", memory_id: str = ""
    ) -> Served[Memory]:
        """A new memory, under ``memory_id`` if given; a repeated ``key`` gives the one made the first time.

        Raises Invalid, KeyReused, IdTaken, TooManyMemories.
        """
        checked({"text": text, "idempotency_key": key})
        labels = checked_tags(tags)
        memory = Memory(chosen_id(memory_id), owner, text, labels, "pending", self._clock.time())
        request = fingerprint({"text": text, "tags": labels, "id": memory_id})
        return await self._postgres.serve(lambda: self._store.create(memory, key, request))

    async def abandon(self, owner: str, key: str) -> Served[None]:
        """No later creation with this key makes a memory; one made before stays. Raises Invalid."""
        known, now = checked_key(key), self._clock.time()
        return await self._postgres.serve(lambda: self._store.abandon(owner, known, now))

    async def page(self, owner: str, page_size: int = 0, cursor: str = "") -> Served[Page[Memory]]:
        """Newest first. Raises Invalid for a size out of range or a foreign cursor."""
        size, after = checked_page_size(page_size), Cursor.parse(cursor)
        found = await self._postgres.serve(lambda: self._store.page(owner, size + 1, after))
        return found.map(lambda memories: page_of(memories, size))

    async def search(self, owner: str, query: str, limit: int = 0) -> Served[Found]:
        """The memories that fit a query, best first. Raises Invalid."""
        checked({"query": query})
        size = checked_page_size(limit)
        matches = await self._postgres.serve(lambda: self._store.search(owner, query, size))
        return matches.map(lambda found: Found(found, "full-text"))

    async def delete(self, owner: str, memory_id: str) -> Served[None]:
        """Forgets a memory. Raises MemoryUnknown."""
        if not is_id(memory_id):
            raise MemoryUnknown
        return await self._postgres.serve(lambda: self._store.delete(owner, memory_id))
