"""What waits in the write queue, as one instance last saw it.

So authors go on seeing their writes while the queue's store cannot be asked.
"""

from __future__ import annotations

from resilience.queue import Operation, QueueStore


class Pending(tuple[Operation, ...]):
    """Accepted writes of an entity, in order. Not ``certain``: as last seen, for the queue cannot be asked now; those
    that the target has applied meanwhile are still among them, and the target's own times tell which. Not ``asked``:
    none is assumed, as the target works and nothing was seen to wait; whoever then finds the target failing asks again.
    """

    certain: bool = True
    asked: bool = True


class Mirror:
    """What waits in the queue, as last seen: for the time in which it cannot be asked. Bounded; the first stay."""

    LIMIT = 2_000
    BATCH = 500

    def __init__(self) -> None:
        self._by_entity: dict[str, dict[str, Operation]] = {}
        self._size = 0
        self._position = ""
        self.added = 0
        """How many have been added so far."""

    def add(self, operation: Operation) -> None:
        """One that waits; again and again if need be."""
        known = self._by_entity.setdefault(operation.entity, {})
        if operation.id not in known and self._size < self.LIMIT:
            known[operation.id] = operation
            self._size += 1
            self.added += 1

    def of(self, entity: str) -> Pending:
        """What is known of the entity's waiting writes."""
        found = Pending(sorted(self._by_entity.get(entity, {}).values(), key=lambda one: one.accepted_at))
        found.certain = False
        return found

    async def look(self, store: QueueStore, depth: int, added: int) -> None:
        """Reads what has come since the last look. ``depth`` is how many wait, ``added`` was read before they were
        counted. Raises QueueUnavailable."""
        if not depth:
            if added == self.added:  # or one was accepted after the store had counted
                self._by_entity.clear()
                self._size, self._position = 0, ""
            return
        more = True
        while more and self._size < self.LIMIT:
            entries, _ = await store.read(self.BATCH, self._position)
            for entry in entries:
                self._position = entry.position
                if entry.operation is not None:
                    self.add(entry.operation)
            more = len(entries) == self.BATCH
