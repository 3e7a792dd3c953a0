"""Reads of rows: from the database, and while that is away from the standby and the copies (rows D1 and D6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from dashboard.ports import Standby
from resilience import RowPolicy, Rung, Served

S = TypeVar("S")
T = TypeVar("T")


class Reads(Generic[S]):
    """One kind of rows. ``replica`` reads from the standby what ``primary`` reads from the database."""

    def __init__(self, policy: RowPolicy, primary: S, standby: Standby | None = None, replica: S | None = None) -> None:
        self._policy = policy
        self._primary = primary
        self._standby = standby
        self._replica = replica

    async def serve(
        self,
        read: Callable[[S], Awaitable[T]],
        *rungs: Rung[T],
        from_standby: Callable[[S], Awaitable[T]] | None = None,
    ) -> Served[T]:
        """``read`` given the primary's rows, else the standby's, else what ``rungs`` serve.

        ``from_standby``: another way to read from the standby, when what is read from the database is also kept.
        """
        standby, replica = self._standby, self._replica
        if standby is not None and replica is not None:
            elsewhere = from_standby or read
            rungs = (standby.rung(lambda: elsewhere(replica)), *rungs)
        return await self._policy.serve(lambda: read(self._primary), *rungs)
