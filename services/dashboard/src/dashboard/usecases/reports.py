"""Reports: made beside the requests, a few at a time, and finished whoever dies meanwhile (row D1).

A report is in the database before anybody hears of it. It is made in steps of some days; after each step what is there
is saved, so that whoever takes it over goes on from there. The database away: the work waits and goes on, and new
reports are refused. A request waits a moment for its report and otherwise says where to look for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, NamedTuple, TypeVar

from dashboard.model import Claim, Report
from dashboard.ports import Activity, Kept, ReportRows
from dashboard.usecases.failures import is_answer
from dashboard.usecases.reads import Reads
from resilience import (
    SYSTEM_CLOCK,
    Bulkhead,
    CallTimeout,
    CircuitState,
    Clock,
    RowPolicy,
    Served,
    WriteRefused,
    current_deadline,
    hard_timeout,
)

T = TypeVar("T")

STEP_DAYS = 7
POLL_SECONDS = 1.0
"""How often reports are looked for that wait, or that somebody has left."""
PAUSE_SECONDS = 0.2
"""Between two tries while the database is away."""
SETTLE_SECONDS = 5.0
ANSWER_SECONDS = 0.1
"""Of a request's own time, kept for its answer."""


class ReportLimits(NamedTuple):
    """Times in seconds."""

    direct: float = 0.8  # that a request waits for its report
    places: int = 2  # reports that are made at a time
    lease: float = 8.0  # of silence, after which another instance takes over
    working: float = 30.0  # that the database may spend on one report
    attempts: int = 5  # times that a report is begun
    kept: int = 100  # reports of one user


class _TakenOver(Exception):
    """Another instance makes this report now, or it was removed."""


class _TooLong(Exception):
    """The time that the database may spend is used up."""


class _Spending:
    """Time spent waiting for the database; while its circuit is open nothing is spent."""

    def __init__(self, limit: float) -> None:
        self.left = limit


class Reports:
    """``on_defect`` is told of errors that should not be."""

    def __init__(
        self,
        rows: ReportRows,
        activity: Activity,
        reads: Reads[ReportRows],
        copies: Kept[Report],
        policy: RowPolicy,
        *,
        limits: ReportLimits = ReportLimits(),  # noqa: B008 - immutable
        clock: Clock = SYSTEM_CLOCK,
        on_defect: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._rows = rows
        self._activity = activity
        self._reads = reads
        self._copies = copies
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._on_defect = on_defect
        self._places = Bulkhead("reports", limits.places, clock=clock)
        self._running: set[asyncio.Task[Report | None]] = set()
        self._wake = asyncio.Event()

    # -- for requests

    async def generate(self, owner_id: str, kind: str, first: date, last: date) -> Served[Report]:
        """The report, if it is done soon, or as far as it is. Raises WriteRefused: nothing was accepted."""
        placed = self._places.try_acquire()
        now = self._clock.time()
        status = "running" if placed else "queued"
        days = first.isoformat(), last.isoformat()
        report = Report(str(uuid.uuid4()), owner_id, kind, *days, status, 0.0, created_at=now, updated_at=now)
        try:
            await self._create(report, self._limits.lease if placed else None)
        except BaseException:
            if placed:
                self._places.release()
            raise
        self._keep(report)
        if not placed:
            return Served(report)
        return Served(await self._soon(self._start(Claim(report, 1, [], report.first))) or report)

    async def read(self, report_id: str, owner_id: str) -> Served[Report]:
        """Raises ReportUnknown."""
        return await self._reads.serve(
            lambda rows: self._fresh(rows, report_id, owner_id),
            *self._copies.rungs(_key(owner_id, report_id)),
            from_standby=lambda rows: rows.get(report_id, owner_id),
        )

    async def _fresh(self, rows: ReportRows, report_id: str, owner_id: str) -> Report:
        report = await rows.get(report_id, owner_id)
        self._keep(report)
        return report

    def _keep(self, report: Report) -> None:
        self._copies.keep(_key(report.owner_id, report.id), report)

    async def _create(self, report: Report, lease: float | None) -> None:
        unanswered = False

        async def insert() -> None:
            nonlocal unanswered
            before, unanswered = unanswered, True
            try:
                await self._rows.create(report, lease=lease, keep=self._limits.kept)
            except ConnectionRefusedError:  # it has not even been sent
                unanswered = before
                raise

        try:
            await self._policy.call(insert)
        except Exception as error:
            if is_answer(self._policy, error):
                raise
            wait = self._policy.breaker.retry_after() or self._policy.row.probe_interval
            raise WriteRefused(full=False, retry_after=wait, certain=not unanswered) from error

    async def _soon(self, task: asyncio.Task[Report | None]) -> Report | None:
        """The finished report, if it is finished in time; the work goes on either way."""
        deadline, patience = current_deadline(), self._limits.direct
        if deadline is not None:
            patience = min(patience, deadline.remaining(self._clock) - ANSWER_SECONDS)
        with contextlib.suppress(CallTimeout):
            return await hard_timeout(asyncio.shield(task), patience, name="report", clock=self._clock)
        return None

    # -- the work

    async def work(self) -> None:
        """Makes reports that wait, and takes over those that nobody makes any more; until cancelled."""
        try:
            while True:
                await self._take()
                with contextlib.suppress(CallTimeout):
                    await hard_timeout(self._wake.wait(), POLL_SECONDS, name="wake", clock=self._clock)
                self._wake.clear()
        finally:
            await self._give_up()

    async def _give_up(self) -> None:
        """Leaves what is being made to whoever finds it without a lease."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)

    async def _take(self) -> None:
        while self._policy.breaker.state is CircuitState.CLOSED and self._places.try_acquire():
            claim = await self._claimed()
            if claim is None:
                return
            self._start(claim)

    async def _claimed(self) -> Claim | None:
        claim = None
        try:
            claim = await self._policy.call(lambda: self._rows.claim(self._limits.lease))
        except Exception as error:
            if is_answer(self._policy, error):
                raise
        finally:
            if claim is None:
                self._places.release()
        return claim

    def _start(self, claim: Claim) -> asyncio.Task[Report | None]:
        # In a context of its own: neither the deadline nor the degradations are the request's that asked for it.
        task = asyncio.get_running_loop().create_task(self._run(claim), context=Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, claim: Claim) -> Report | None:
        """The finished report; None when it is somebody else's now. The place is given back."""
        try:
            return await self._make(claim)
        except Exception as error:  # noqa: BLE001 - told; the report is found again when its lease has ended
            self._on_defect(error)
            return None
        finally:
            self._places.release()
            self._wake.set()

    async def _make(self, claim: Claim) -> Report | None:
        if claim.attempt > self._limits.attempts:
            return await self._settle(claim, error=f"It was begun {self._limits.attempts} times and never finished.")
        try:
            result = await self._worked_out(claim, _Spending(self._limits.working))
        except _TakenOver:
            return None
        except _TooLong:
            return await self._settle(claim, error="It took too long.")
        except Exception as error:  # noqa: BLE001 - trying again would end the same way
            self._on_defect(error)
            return await self._settle(claim, error="It could not be made.")
        return await self._settle(claim, result=result)

    async def _worked_out(self, claim: Claim, spending: _Spending) -> dict[str, Any]:
        report, days = claim.report, list(claim.days)
        first, last = date.fromisoformat(report.first), date.fromisoformat(report.last)
        begin = date.fromisoformat(claim.next_day)
        while begin <= last:
            end = min(last, begin + timedelta(days=STEP_DAYS - 1))
            days += await self._days(spending, report, begin, end)
            begin = end + timedelta(days=1)
            if begin <= last:
                progress = (begin - first) / (last - first + timedelta(days=1))
                await self._save(spending, claim, days, begin.isoformat(), progress)
        return {"days": days, "totals": _totals(days)}

    async def _days(self, spending: _Spending, report: Report, begin: date, end: date) -> list[dict[str, Any]]:
        return await self._insist(spending, lambda: self._activity.days(report.kind, report.owner_id, begin, end))

    async def _save(
        self, spending: _Spending, claim: Claim, days: list[dict[str, Any]], next_day: str, progress: float
    ) -> None:
        lease = self._limits.lease
        if not await self._insist(spending, lambda: self._rows.save(claim, days, next_day, progress, lease)):
            raise _TakenOver

    async def _settle(
        self, claim: Claim, *, result: dict[str, Any] | None = None, error: str | None = None
    ) -> Report | None:
        """Writes how it ended; None when the claim was taken over, or the database takes too long even for that."""
        with contextlib.suppress(_TooLong):
            spending = _Spending(SETTLE_SECONDS)
            if await self._insist(spending, lambda: self._rows.finish(claim, result=result, error=error)):
                return self._ended(claim.report, result, error)
        return None

    def _ended(self, report: Report, result: dict[str, Any] | None, error: str | None) -> Report:
        status, progress = ("failed", report.progress) if error else ("done", 1.0)
        ended = replace(
            report, status=status, progress=progress, result=result, error=error, updated_at=self._clock.time()
        )
        self._keep(ended)
        return ended

    async def _insist(self, spending: _Spending, action: Callable[[], Awaitable[T]]) -> T:
        """Repeats the call until the database answers. What is repeated changes nothing the second time."""
        while True:
            begun = self._clock.monotonic()
            try:
                return await self._policy.call(action)
            except Exception as error:
                if is_answer(self._policy, error):
                    raise
            finally:
                spending.left -= self._clock.monotonic() - begun
            if spending.left <= 0:
                raise _TooLong
            await self._clock.sleep(PAUSE_SECONDS)


def _key(owner_id: str, report_id: str) -> str:
    return f"{owner_id}:{report_id}"


def _totals(days: list[dict[str, Any]]) -> dict[str, float]:
    names = {name: None for day in days for name in day if name != "day"}
    return {name: round(sum(day.get(name, 0) for day in days), 1) for name in names}
