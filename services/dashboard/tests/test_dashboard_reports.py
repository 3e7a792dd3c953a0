"""Reports: made beside the requests, and finished whoever dies meanwhile (row D1, dashboard.postgres)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dashboard.degradation import MEMORY_CACHE, POSTGRES
from dashboard.model import Report, ReportUnknown
from dashboard.outbound import postgres
from dashboard.outbound.analytics import PostgresActivity
from dashboard.outbound.kept import KeptCopies
from dashboard.outbound.postgres import Database
from dashboard.outbound.reports import PostgresReports, report_of, report_version
from dashboard.ports import ReportRows
from dashboard.usecases.reads import Reads
from dashboard.usecases.reports import ReportLimits, Reports
from resilience import SYSTEM_CLOCK, CircuitBreaker, CircuitBreakerOpen, MemoryCache, RowPolicy, WriteRefused
from service_kit.copies import CopyStore

pytestmark = pytest.mark.asyncio(loop_scope="session")

FIRST, LAST = date(2026, 3, 1), date(2026, 3, 31)
CALLS = """INSERT INTO calls (id, room_id, started_at, ended_at, participants) VALUES
    ('a', 'r', '2026-03-01 10:00Z', '2026-03-01 10:30Z', '[{}, {}]'), ('b', 'r', '2026-03-01 23:59Z', NULL, '{}'),
    ('c', 'r', '2026-03-31 10:00Z', '2026-03-31 10:15Z', '[{}]'), ('d', 'r', '2026-04-01 00:00Z', NULL, '[]')"""
MEMBERS = "INSERT INTO call_members (user_id, call_id, started_at) SELECT 'ann', id, started_at FROM calls"
ROOM = "INSERT INTO rooms (id, owner_id, name, max_participants, created_at) VALUES ('r', 'ann', '', 2, '2026-03-09Z')"
RESULT = {
    "days": [
        {"day": "2026-03-01", "calls": 2, "minutes": 30.0, "participants": 2},
        {"day": "2026-03-31", "calls": 1, "minutes": 15.0, "participants": 1},
    ],
    "totals": {"calls": 3, "minutes": 45.0, "participants": 3},
}
WAITING = Report("waiting", "ann", "calls", "2026-03-01", "2026-03-31", "queued", 0.0, 0.0, 0.0)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - a database row has no event
            await asyncio.sleep(0.02)


class Gated:
    """The real activity, which can be made to wait or to fail; ``asked``: the first day of each step."""

    def __init__(self, database: Database) -> None:
        self._real = PostgresActivity(database)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waits_from: date | None = None
        self.asked: list[date] = []
        self.error: Exception | None = None

    async def days(self, kind: str, user_id: str, first: date, last: date) -> list[dict[str, Any]]:
        self.asked.append(first)
        if self.error:
            raise self.error
        if self.waits_from is not None and first >= self.waits_from:
            await self.gate.wait()
        return await self._real.days(kind, user_id, first, last)

    async def analytics(self, user_id: str) -> Any:
        raise NotImplementedError

    def hold(self, first: date = FIRST) -> None:
        """From that day on."""
        self.gate.clear()
        self.waits_from = first


class Instance:
    """Reports on one instance; the database's circuit is in the test's hand."""

    def __init__(self, database: Database, client: Redis, **limits: Any) -> None:
        self.policy = RowPolicy(POSTGRES, breaker=CircuitBreaker(POSTGRES.id, classify=postgres.classify), timeout=5.0)
        self.rows = PostgresReports(database)
        self.activity = Gated(database)
        self.defects: list[Exception] = []
        memory = MemoryCache(1_000_000, 300.0)
        store = CopyStore(client, asyncio.wait_for, memory, SYSTEM_CLOCK, shared=False)  # type: ignore[arg-type]
        reads: Reads[ReportRows] = Reads(self.policy, self.rows)
        self.reports = Reports(
            self.rows,
            self.activity,
            reads,
            KeptCopies(store, "report", report_of, report_version),
            self.policy,
            limits=ReportLimits(**limits),
            on_defect=self.defects.append,
        )

    async def generate(self, kind: str = "calls", first: date = FIRST, last: date = LAST) -> Report:
        return (await self.reports.generate("ann", kind, first, last)).value

    async def read(self, report: Report) -> Report:
        return (await self.reports.read(report.id, "ann")).value

    async def ended(self, report: Report) -> Report:
        await until(lambda: self._has_ended(report))
        return await self.read(report)

    async def _has_ended(self, report: Report) -> bool:
        return (await self.read(report)).status in ("done", "failed")

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reports.work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def die(self) -> None:
        """As by SIGKILL: nothing is said to anybody."""
        await self.reports._give_up()


@pytest_asyncio.fixture(loop_scope="session")
async def instance(database: Database, redis_client: Redis) -> AsyncIterator[Callable[..., Instance]]:
    for statement in (CALLS, MEMBERS, ROOM):
        await database.fetch(statement)
    made: list[Instance] = []

    def make(**limits: Any) -> Instance:
        made.append(Instance(database, redis_client, **limits))
        return made[-1]

    yield make
    for one in made:
        await one.die()


Make = Callable[..., Instance]


async def test_a_report_that_is_quick_is_answered_at_once(instance: Make) -> None:
    one = instance()
    report = await one.generate()
    assert (report.status, report.progress, report.result) == ("done", 1.0, RESULT)
    stored = await one.read(report)
    assert (stored.status, stored.progress, stored.result) == ("done", 1.0, RESULT)
    assert (stored.kind, stored.first, stored.last) == ("calls", "2026-03-01", "2026-03-31")


async def test_a_report_of_activity(instance: Make) -> None:
    report = await instance().generate("activity", first=date(2026, 3, 9), last=date(2026, 4, 1))
    assert report.result == {
        "days": [
            {"day": "2026-03-09", "calls": 0, "rooms": 1},
            {"day": "2026-03-31", "calls": 1, "rooms": 0},
            {"day": "2026-04-01", "calls": 1, "rooms": 0},
        ],
        "totals": {"calls": 2, "rooms": 1},
    }


async def test_days_without_anything(instance: Make) -> None:
    report = await instance().generate(first=date(2020, 1, 1), last=date(2020, 1, 1))
    assert report.result == {"days": [], "totals": {}}


async def test_a_slow_report_shows_its_progress_and_is_done_later(instance: Make) -> None:
    one = instance(direct=0.05)
    one.activity.hold(FIRST + timedelta(days=7))
    report = await one.generate()
    assert (report.status, report.result) == ("running", None)

    async def begun() -> bool:
        return (await one.read(report)).progress > 0

    await until(begun)
    assert (await one.read(report)).progress == pytest.approx(7 / 31)
    one.activity.gate.set()
    assert (await one.ended(report)).result == RESULT


async def test_somebody_elses_report_is_not_there(instance: Make) -> None:
    one = instance()
    report = await one.generate()
    for report_id, owner in ((report.id, "bob"), ("unknown", "ann")):
        with pytest.raises(ReportUnknown):
            await one.reports.read(report_id, owner)
    one.policy.breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await one.reports.read(report.id, "bob")


async def test_more_than_there_are_places_for_wait_in_the_database(instance: Make) -> None:
    one = instance(direct=0.01, places=1)
    one.activity.hold()
    first = await one.generate()
    second = await one.generate("activity")
    assert (first.status, second.status) == ("running", "queued")
    assert (await one.read(second)).status == "queued"
    async with one.working():
        one.activity.gate.set()
        assert (await one.ended(first)).status == (await one.ended(second)).status == "done"


async def test_what_a_dead_instance_began_another_finishes_from_where_it_was(instance: Make) -> None:
    dead, other = instance(direct=0.01, lease=0.4), instance(lease=0.4)
    step = FIRST + timedelta(days=14)
    dead.activity.hold(step)
    report = await dead.generate()

    async def saved() -> bool:
        return (await other.read(report)).progress > 0.4

    await until(saved)
    await dead.die()
    async with other.working():
        assert (await other.ended(report)).result == RESULT
    assert other.activity.asked[0] == step
    assert not set(dead.activity.asked[:-1]) & set(other.activity.asked)


async def test_who_was_taken_for_dead_and_comes_back_writes_nothing(instance: Make, database: Database) -> None:
    late, other = instance(direct=0.01, lease=0.2), instance(lease=5.0)
    late.activity.hold()
    report = await late.generate()
    other.activity.hold()
    async with other.working():

        async def taken() -> bool:
            return bool(await database.fetchrow("SELECT 1 FROM reports WHERE attempts = 2"))

        await until(taken)
        late.activity.gate.set()
        async with asyncio.timeout(5):
            await asyncio.wait(late.reports._running)
        assert (await other.read(report)).status == "running"
        assert (await other.read(report)).progress == 0
        other.activity.gate.set()
        assert (await other.ended(report)).result == RESULT


async def test_two_instances_make_each_report_once(instance: Make, database: Database) -> None:
    full = instance(places=1, direct=0.01)
    full.activity.hold()
    blocking = await full.generate()
    waiting = [await full.generate() for _ in range(6)]
    workers = [instance(), instance()]
    async with workers[0].working(), workers[1].working():
        for report in waiting:
            assert (await workers[0].ended(report)).result == RESULT
    rows = await database.fetch("SELECT attempts FROM reports WHERE id <> $1", blocking.id)
    assert [row[0] for row in rows] == [1] * 6


async def test_a_report_that_kills_whoever_makes_it_is_given_up(instance: Make, database: Database) -> None:
    one = instance(attempts=2)
    await one.rows.create(WAITING, lease=None, keep=9)
    await database.fetch("UPDATE reports SET attempts = 2, status = 'running', lease_until = NULL")
    async with one.working():
        found = await one.ended(WAITING)
    assert (found.status, found.error) == ("failed", "It was begun 2 times and never finished.")


async def test_a_report_that_cannot_be_made_fails_and_is_told(instance: Make) -> None:
    one = instance()
    one.activity.error = ValueError("odd")
    report = await one.generate()
    assert (report.status, report.error, report.result) == ("failed", "It could not be made.", None)
    assert one.defects == [one.activity.error]
    assert (await one.read(report)).status == "failed"
    one.activity.error = None
    assert (await one.generate()).status == "done", "the place was given back"


async def test_a_report_that_takes_too_long_fails(instance: Make) -> None:
    one = instance(working=0.0)
    one.activity.error = OSError()
    assert (await one.generate()).error == "It took too long."


async def test_nothing_is_accepted_while_the_database_is_away(instance: Make, database: Database) -> None:
    one = instance()
    one.policy.breaker.open_for(30.0)
    with pytest.raises(WriteRefused) as refused:
        await one.generate()
    assert refused.value.certain
    assert 0 < refused.value.retry_after <= 30.0
    assert await database.fetch("SELECT 1 FROM reports") == []
    one.policy.breaker.reset()
    assert [(await one.generate()).status for _ in range(3)] == ["done"] * 3


async def test_work_waits_for_the_database_and_goes_on(instance: Make) -> None:
    one = instance(direct=0.01)
    one.activity.hold(FIRST + timedelta(days=7))
    report = await one.generate()

    async def begun() -> bool:
        return (await one.read(report)).progress > 0

    await until(begun)
    one.policy.breaker.force_open()
    one.activity.gate.set()
    copy = await one.reports.read(report.id, "ann")
    assert [step.fallback for step in copy.degradations] == [MEMORY_CACHE]
    assert copy.value.status == "running"
    assert one.reports._running
    one.policy.breaker.reset()
    assert (await one.ended(report)).result == RESULT


async def test_a_users_reports_are_bounded_and_unfinished_ones_go_last(instance: Make, database: Database) -> None:
    one = instance(kept=3, direct=0.05)
    one.activity.hold()
    unfinished = await one.generate()
    one.activity.waits_from = None
    done = [await one.ended(await one.generate()) for _ in range(4)]
    rows = {row[0] for row in await database.fetch("SELECT id FROM reports")}
    assert rows == {unfinished.id, done[-2].id, done[-1].id}
    one.activity.gate.set()
    assert (await one.ended(unfinished)).status == "done"


@pytest.mark.parametrize(
    "state", [None, [], {"days": None, "next_day": "2026-03-08"}, {"days": [1], "next_day": "x"}, {"days": []}]
)
async def test_a_state_that_cannot_be_read_begins_anew(instance: Make, database: Database, state: object) -> None:
    one = instance()
    await one.rows.create(WAITING, lease=None, keep=9)
    await database.fetch("UPDATE reports SET state = $1", orjson.dumps(state).decode())
    async with one.working():
        assert (await one.ended(WAITING)).result == RESULT


@pytest.mark.parametrize("kind", ["unknown", ""])
async def test_a_kind_of_another_version_fails(instance: Make, kind: str) -> None:
    assert (await instance().generate(kind)).error == "It could not be made."


async def test_a_copy_never_goes_back() -> None:
    steps = [("queued", 0.0), ("running", 0.0), ("running", 0.5), ("running", 0.97), ("failed", 0.97), ("done", 1.0)]
    versions = [report_version(replace(WAITING, status=status, progress=progress)) for status, progress in steps]
    assert versions == sorted(set(versions))


async def test_a_copy_that_cannot_be_read_is_none() -> None:
    assert report_of(None) is report_of({"id": "x"}) is report_of([]) is None
    odd = report_of({"id": "x", "owner_id": "y", "status": "more", "progress": 9, "result": 3, "error": 4})
    assert odd is not None
    assert (odd.status, odd.progress, odd.result, odd.error) == ("queued", 1.0, None, None)
