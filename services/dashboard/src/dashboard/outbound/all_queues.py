"""The service's write queues as an operator sees them: as one.

Positions are times, so the items of all queues have one order; an operation's id says by itself whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from resilience import QueueStats
from resilience.integrations.redis_queue import RedisQueueStore
from resilience.queue import Described


class AllQueues:
    """See resilience.queue.QueueAdmin. ``seen`` has the numbers of each queue, by name, as of the last ``stats``."""

    def __init__(self, name: str, queues: Sequence[RedisQueueStore]) -> None:
        self.name = name
        self._queues = queues
        self.seen = {queue.name: QueueStats(0, 0.0, 0) for queue in queues}

    async def stats(self) -> QueueStats:
        """All sizes together, and the oldest age."""
        found = await asyncio.gather(*(queue.stats() for queue in self._queues))
        self.seen = {queue.name: stats for queue, stats in zip(self._queues, found, strict=True)}
        oldest = max(stats.oldest_age for stats in found)
        return QueueStats(sum(stats.depth for stats in found), oldest, sum(stats.dead for stats in found))

    async def list(self, limit: int, after: str = "") -> Described:
        """Waiting operations, oldest first."""
        return _first(await asyncio.gather(*(queue.list(limit, after) for queue in self._queues)), limit)

    async def dead(self, limit: int, after: str = "") -> Described:
        """Dead letters, oldest first."""
        return _first(await asyncio.gather(*(queue.dead(limit, after) for queue in self._queues)), limit)

    async def replay(self, operation_id: str) -> bool:
        """Puts a dead letter back; False when no queue has it."""
        for queue in self._queues:
            if await queue.replay(operation_id):
                return True
        return False

    async def discard(self, operation_id: str) -> bool:
        """Deletes a dead letter; False when no queue has it."""
        for queue in self._queues:
            if await queue.discard(operation_id):
                return True
        return False

    async def clear(self) -> int:
        """Discards every dead letter; returns how many."""
        return sum([await queue.clear() for queue in self._queues])


def _first(found: Sequence[Described], limit: int) -> Described:
    """The oldest items; those of one position stay together, as the next page begins behind it."""
    items = sorted((item for some in found for item in some), key=lambda item: _order(item["position"]))
    end = limit
    while 0 < end < len(items) and items[end]["position"] == items[end - 1]["position"]:
        end += 1
    return items[:end]


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)
