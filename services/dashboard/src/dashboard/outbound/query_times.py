"""How long the statements sent to PostgreSQL take, and which of them were slow (row D1, dashboard.postgres).

Measured in this process, so it can be asked while the database is away. Statements are known by their text, which
carries no values: those are sent beside it. The usual call costs a look-up and a few additions; only a slow one pays
for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from dashboard.model import SlowStatement
from resilience import SYSTEM_CLOCK, Clock
from service_kit import logs

log = logs.get_logger("postgres")

MAX_STATEMENTS = 200
OTHERS = "(other statements)"
KEPT_SLOW = 20
TEXT_LENGTH = 300
LOG_SECONDS = 1.0
"""A statement that is slow all the time is logged once in so many seconds."""

now = perf_counter


class _Statement:
    """Everything known of one statement; times in seconds."""

    __slots__ = ("count", "latest", "logged", "longest", "slow", "text", "total")

    def __init__(self, text: str) -> None:
        self.text = text
        self.count = self.slow = 0
        self.total = self.longest = 0.0
        self.latest: deque[tuple[float, float]] = deque(maxlen=KEPT_SLOW)
        self.logged = -LOG_SECONDS

    def seen(self) -> SlowStatement:
        return SlowStatement(self.text, self.count, self.slow, self.total, self.longest, [*self.latest])


class QueryTimes:
    """See the port. An execution that failed or was given up counts as long as it was waited for."""

    def __init__(self, threshold: float = 0.1, clock: Clock = SYSTEM_CLOCK) -> None:
        self.threshold = threshold
        self._clock = clock
        self._statements: dict[str, _Statement] = {}

    def note(self, query: str, begun: float) -> None:
        """The execution that began at ``begun`` (see ``now``) has ended."""
        seconds = perf_counter() - begun
        found = self._statements.get(query)
        if found is None:
            found = self._new(query)
        found.count += 1
        found.total += seconds
        if seconds > found.longest:
            found.longest = seconds
        if seconds >= self.threshold:
            self._note_slow(found, seconds)

    def slow(self) -> list[SlowStatement]:
        """Statements that were slow at least once."""
        return [statement.seen() for statement in self._statements.values() if statement.slow]

    @property
    def count(self) -> int:
        """Executions in all."""
        return sum(statement.count for statement in self._statements.values())

    def _new(self, query: str) -> _Statement:
        full = len(self._statements) >= MAX_STATEMENTS
        return self._statements.setdefault(OTHERS if full else query, _Statement(OTHERS if full else _short(query)))

    def _note_slow(self, statement: _Statement, seconds: float) -> None:
        statement.slow += 1
        statement.latest.appendleft((self._clock.time(), seconds))
        moment = self._clock.monotonic()
        if moment - statement.logged >= LOG_SECONDS:
            statement.logged = moment
            log.warning("slow query", statement=statement.text, ms=round(seconds * 1000, 1), times=statement.slow)


class MeasuredConnection:
    """A connection whose statements are noted, for the inside of a transaction."""

    def __init__(self, connection: Any, note: Callable[[str, float], None]) -> None:
        self._connection = connection
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, query: str, *args: Any) -> Any:
        """All rows."""
        return await self._measured(self._connection.fetch, query, args)

    async def fetchrow(self, query: str, *args: Any) -> Any:
        """The first row, or None."""
        return await self._measured(self._connection.fetchrow, query, args)

    async def execute(self, query: str, *args: Any) -> Any:
        """Its status."""
        return await self._measured(self._connection.execute, query, args)

    async def _measured(self, run: Callable[..., Any], query: str, args: tuple[Any, ...]) -> Any:
        begun = now()
        try:
            return await run(query, *args)
        finally:
            self._note(query, begun)


def _short(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
