"""Slow statements are known, without their values, and at next to no cost (row D1, dashboard.postgres)."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import pytest

from dashboard.outbound import query_times
from dashboard.outbound.postgres import Database
from dashboard.outbound.query_times import KEPT_SLOW, MAX_STATEMENTS, OTHERS, QueryTimes
from resilience import FakeClock

pytestmark = pytest.mark.asyncio(loop_scope="session")

SLEEP = "SELECT pg_sleep($1)"


@pytest.fixture
def database(database: Database) -> Database:
    """Nothing is known yet, whatever it took to clear the tables."""
    database.times = QueryTimes()
    return database


async def test_a_slow_statement_is_noted_and_a_fast_one_is_not(database: Database) -> None:
    database.times.threshold = 0.25
    for seconds in (0.0, 0.26, 0.3):
        await database.fetchrow(SLEEP, seconds)
    await database.fetch("SELECT 1")
    (found,) = database.times.slow()
    assert (found.text, found.count, found.slow) == (SLEEP, 3, 2)
    assert found.longest == max(seconds for _, seconds in found.latest)
    assert 0.3 <= found.longest < found.total
    assert database.times.count >= 4


async def test_a_statement_that_was_given_up_counts_as_long_as_it_was_waited_for(database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await database.fetch(SLEEP, 5.0)
    (found,) = database.times.slow()
    assert found.count == 1
    assert 0.1 < found.longest < 1.0


async def test_statements_inside_a_transaction_are_noted(database: Database) -> None:
    database.times.threshold = 0.25
    async with database.transaction() as connection:
        assert connection.is_in_transaction()
        await connection.execute("SET LOCAL jit = off")
        await connection.fetchrow(SLEEP, 0.26)
        await connection.fetch(SLEEP, 0.26)
    assert [one.slow for one in database.times.slow()] == [2]


async def test_what_is_kept_is_bounded() -> None:
    times = QueryTimes(threshold=0.0)
    for number in range(2 * MAX_STATEMENTS):
        times.note(f"SELECT {number} {'x' * 1000}", perf_counter())
    found = {one.text: one for one in times.slow()}
    assert len(found) == MAX_STATEMENTS + 1
    assert found[OTHERS].count == MAX_STATEMENTS
    assert len(found[OTHERS].latest) == KEPT_SLOW
    assert max(map(len, found)) <= query_times.TEXT_LENGTH
    assert times.count == 2 * MAX_STATEMENTS


async def test_a_slow_statement_is_logged_once_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def warning(self, _: str, **fields: Any) -> None:
            lines.append(fields)

    monkeypatch.setattr(query_times, "log", Log())
    clock = FakeClock()
    times = QueryTimes(threshold=0.0, clock=clock)
    for _ in range(3):
        times.note("SELECT\n   1", perf_counter())
    times.note("SELECT 2", perf_counter())
    clock.move(1.0)
    times.note("SELECT\n   1", perf_counter())
    assert [(line["statement"], line["times"]) for line in lines] == [("SELECT 1", 1), ("SELECT 2", 1), ("SELECT 1", 4)]
