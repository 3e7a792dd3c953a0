"""Memories: keeping, listing, finding and forgetting one's own texts (row A1, ai_core.postgres).

Lists and searches show the reader's own writes that wait in the queue.
"""

from collections.abc import Callable, Sequence

from ai_core.model import (
    Cursor,
    Found,
    Match,
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
from ai_core.ports import MemoryCopies, MemoryStore
from ai_core.usecases.embedding_worker import EmbeddingWorker
from ai_core.usecases.embeddings import Embeddings
from ai_core.usecases.memory_search import MemorySearch
from ai_core.usecases.memory_writes import CREATE, DELETE, creation, entity_of, memories_changed, memory_made_by
from ai_core.usecases.waiting import overlaid
from ai_core.usecases.words import holding
from ai_core.usecases.writes import Made, Writes, made_id
from resilience import Clock, Operation, RowPolicy, Served


class Memories:
    """Each method acts for ``owner``, who sees no other memories than the own ones.

    ``postgres``: row A1, ``vectors``: row A6. ``worker`` hears of what waits to be embedded, ``repair`` that vectors
    cannot be compared: it may know what to do.
    """

    def __init__(
        self,
        store: MemoryStore,
        copies: MemoryCopies,
        writes: Writes,
        embeddings: Embeddings,
        worker: EmbeddingWorker,
        *,
        postgres: RowPolicy,
        vectors: RowPolicy,
        clock: Clock,
        repair: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._copies = copies
        self._writes = writes
        self._embeddings = embeddings
        self._worker = worker
        self._postgres = postgres
        self._clock = clock
        self._search = MemorySearch(store, copies, embeddings, postgres=postgres, vectors=vectors, repair=repair)

    async def create(
        self, owner: str, text: str, tags: Sequence[str], key: str = "", memory_id: str = ""
    ) -> Served[Made[Memory]]:
        """A new memory, under ``memory_id`` if given; a repeated ``key`` gives the one made the first time.

        It is ``ready`` at once when the local model has its vector in a moment.
        Raises Invalid, KeyReused, IdTaken, TooManyMemories, WriteFailed, WriteRefused.
        """
        checked({"text": text, "idempotency_key": key})
        labels = checked_tags(tags)
        chosen = chosen_id(memory_id) if memory_id else ""
        request = fingerprint({"text": text, "tags": labels, "id": memory_id})
        operation = self._writes.operation(CREATE, entity_of(owner), owner, {}, key=key, request=request)
        memory = Memory(chosen or made_id(operation.id), owner, text, labels, "pending", operation.payload["at"])
        operation.payload.update(creation(memory, key, await self._embeddings.soon(text)))
        served: Served[Made[Memory]] = await self._writes.make(operation, _promised)
        if not served.value.operation_id:
            await self._copies.change(owner, [served.value.value], ())
        self._worker.kick()
        return served

    async def abandon(self, owner: str, key: str) -> Served[None]:
        """No later creation with this key makes a memory; one made before stays. Raises Invalid."""
        known, now = checked_key(key), self._clock.time()
        return await self._postgres.serve(lambda: self._store.abandon(owner, known, now))

    async def delete(self, owner: str, memory_id: str) -> Served[Made[None]]:
        """Forgets a memory. Raises MemoryUnknown, WriteFailed, WriteRefused."""
        if not is_id(memory_id):
            raise MemoryUnknown
        operation = self._writes.operation(DELETE, entity_of(owner), owner, {"id": memory_id})
        served: Served[Made[None]] = await self._writes.make(operation, _nothing)
        if not served.value.operation_id:
            await self._copies.change(owner, (), [memory_id])
        return served

    async def page(self, owner: str, page_size: int = 0, cursor: str = "") -> Served[Page[Memory]]:
        """Newest first. Raises Invalid for a size out of range or a foreign cursor."""
        size, after = checked_page_size(page_size), Cursor.parse(cursor)
        waiting = await self._writes.pending(entity_of(owner))
        since = self._clock.time()

        async def read() -> Page[Memory]:
            found = await self._store.page(owner, size + 1, after)
            if after is None:
                self._copies.keep(owner, found[:size], complete=len(found) <= size, since=since)
            return page_of(found, size)

        found = await self._postgres.serve(read, *self._copies.rungs(owner, size, after))
        changes = memories_changed(found.value.items, waiting)
        shown = overlaid(found.value, changes, size, after)
        return Served(shown, found.degradations, found.as_of, bool(changes))

    async def search(self, owner: str, query: str, limit: int = 0) -> Served[Found]:
        """The memories that fit a query, best first; see ``Match`` for the score. Raises Invalid."""
        checked({"query": query})
        size = checked_page_size(limit)
        waiting = await self._writes.pending(entity_of(owner))
        found = await self._search.find(owner, query, size)
        changes = memories_changed([match.memory for match in found.value.matches], waiting)
        shown = _changed(found.value, [one for one in changes.values() if one], set(changes), query, size)
        return Served(shown, found.degradations, found.as_of, bool(changes))


async def _promised(operation: Operation) -> Memory:
    return memory_made_by(operation)


async def _nothing(_: Operation) -> None:
    return None


def _changed(found: Found, made: Sequence[Memory], changed: set[str], query: str, size: int) -> Found:
    """With the waiting creations that hold the query's words, without what is to be deleted."""
    kept = [match for match in found.matches if match.memory.id not in changed]
    matches = sorted([*kept, *holding(made, query)], key=_by_score, reverse=True)
    return Found(matches[:size], found.search)


def _by_score(match: Match) -> tuple[float, float]:
    return match.score, match.memory.created_at
