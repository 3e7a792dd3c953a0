"""Reading from PostgreSQL's streaming standby (row D6, dashboard.standby), and how old what it says is.

The age is stated from the replication position. While the database lives, its write-ahead log's position is noted twice
a second; the standby, which has replayed up to some position, holds everything up to the newest noted moment that is
not beyond it, and everything committed up to the last commit it has replayed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from dashboard.degradation import POSTGRES_STANDBY
from dashboard.model import DomainError
from dashboard.outbound.postgres import Database
from resilience import MISSING, CircuitState, Clock, Missing, RowPolicy, Rung, Served
from service_kit import logs

T = TypeVar("T")
log = logs.get_logger("standby")

WATCH_SECONDS = 0.5
REMEMBERED = 7200
"""Noted positions: a standby that is further behind is as old as its last replayed commit."""

_WRITTEN = "SELECT pg_current_wal_lsn() - '0/0'"
_REPLAYED = """SELECT pg_last_wal_replay_lsn() - '0/0',
    extract(epoch FROM pg_last_xact_replay_timestamp())::float8"""


class Position(NamedTuple):
    """How far the database had written at a moment (unix seconds)."""

    moment: float
    bytes: int


class Standby:
    """See the port. ``primary`` and ``replica`` are read under their rows' policies."""

    def __init__(
        self, primary: Database, primary_policy: RowPolicy, replica: Database, policy: RowPolicy, clock: Clock
    ) -> None:
        self._primary = primary
        self._primary_policy = primary_policy
        self._replica = replica
        self._policy = policy
        self._clock = clock
        self._written: deque[Position] = deque(maxlen=REMEMBERED)
        self.as_of: float | None = None
        """The moment (unix seconds) from which on the standby may lack something; None: not known yet."""

    def lag(self) -> float:
        """Seconds by which the standby may be behind; infinity when nobody knows."""
        return math.inf if self.as_of is None else max(0.0, self._clock.time() - self.as_of)

    def rung(self, read: Callable[[], Awaitable[T]]) -> Rung[T]:
        """See the port. What is not there may be too new for the standby, so it is no answer."""

        async def serve(_: BaseException) -> Served[T] | Missing:
            try:
                value = await self._policy.call(read)
            except DomainError:
                return MISSING
            if self.as_of is None:
                await self._policy.call(self._look)
            return Served(value, as_of=self.as_of)

        return Rung(POSTGRES_STANDBY, serve)

    async def watch(self) -> None:
        """Keeps the position up to date, and the row's circuit informed while nobody reads here; until cancelled."""
        while True:
            if self._primary_policy.breaker.state is CircuitState.CLOSED:
                await self._note()
            if self._policy.breaker.state is CircuitState.CLOSED:
                await _quietly(self._policy.call, self._look)
            await self._clock.sleep(WATCH_SECONDS)

    async def _note(self) -> None:
        moment = self._clock.time()  # before the question: what is committed while it is asked may be in or not
        row = await _quietly(self._primary_policy.call, lambda: self._primary.fetchrow(_WRITTEN))
        if row is not None:
            if self._written and self._written[-1].bytes > row[0]:  # another database than before
                self._written.clear()
            self._written.append(Position(moment, int(row[0])))

    async def _look(self) -> None:
        row = await self._replica.fetchrow(_REPLAYED)
        if row is None or row[0] is None:
            raise ConnectionError("this is no standby")
        self.as_of = self._age(int(row[0]), row[1])

    def _age(self, replayed: int, last_commit: float | None) -> float:
        """Never later than now, and when nothing is known as old as can be."""
        known = [position.moment for position in self._written if position.bytes <= replayed]
        return min(self._clock.time(), max(last_commit or 0.0, known[-1] if known else 0.0))


async def _quietly(call: Callable[..., Awaitable[Any]], read: Callable[[], Awaitable[Any]]) -> Any:
    """None when it fails: the circuit has taken note."""
    try:
        return await call(read)
    except Exception as error:  # noqa: BLE001 - whatever it is, watching goes on
        log.debug("not reachable", error=type(error).__name__)
        return None
