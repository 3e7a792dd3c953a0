"""Reports: ``/api/v1/reports`` (row D1, dashboard.postgres)."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dashboard.inbound.http.doors import Body, Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.model import Report
from dashboard.usecases.reports import Reports
from service_kit.errors import ValidationFailed
from service_kit.http import problem_responses, served_json, stamp
from service_kit.tokens import Claims

MAX_DAYS = 366
USUAL_DAYS = 30
EARLIEST, LATEST = date(2000, 1, 1), date(2100, 12, 31)
CHECK_AGAIN = 1
"""Seconds after which looking at an unfinished report makes sense."""


def _day(value: object) -> date:
    if isinstance(value, str) and len(value) == len("2026-01-31"):
        return date.fromisoformat(value)
    raise ValueError("expected a date, such as 2026-01-31")


Day = Annotated[date, BeforeValidator(_day)]
ReportId = Annotated[UUID, Path(description="The report's id.")]
Status = Literal["queued", "running", "done", "failed"]


class ReportRequest(Body):
    """The days from ``from`` to ``to``, both included, in UTC; the last 30 days unless said otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_by_name=False)

    kind: Literal["calls", "activity"]
    first: Annotated[Day | None, Field(alias="from")] = None
    last: Annotated[Day | None, Field(alias="to")] = None

    def days(self) -> tuple[date, date]:
        """The first and the last day. Raises ValidationFailed."""
        for field, day in (("from", self.first), ("to", self.last)):
            if day is not None and not EARLIEST <= day <= LATEST:
                raise _invalid(field, f"must be from {EARLIEST} to {LATEST}")
        last = self.last or self._usual_last(datetime.now(UTC).date())
        first = self.first or max(EARLIEST, last - timedelta(days=USUAL_DAYS - 1))
        if not timedelta() <= last - first < timedelta(days=MAX_DAYS):
            raise _invalid("to", f"must be from 0 to {MAX_DAYS - 1} days after from")
        return first, last

    def _usual_last(self, today: date) -> date:
        """Today, if that is not too far from the first day."""
        return today if self.first is None else max(self.first, min(today, self.first + timedelta(days=MAX_DAYS - 1)))


class ReportView(BaseModel):
    """A report and how far it is; ``result`` when it is done, ``error`` when it failed."""

    id: str
    kind: str
    first: Annotated[str, Field(alias="from")]
    last: Annotated[str, Field(alias="to")]
    status: Status
    progress: Annotated[float, Field(ge=0, le=1)]
    result: dict[str, Any] | None
    error: str | None
    check_url: str
    created_at: datetime
    updated_at: datetime
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: datetime | None = None


def report_body(report: Report) -> dict[str, Any]:
    """The public form."""
    return {
        "id": report.id,
        "kind": report.kind,
        "from": report.first,
        "to": report.last,
        "status": report.status,
        "progress": round(report.progress, 3),
        "result": report.result,
        "error": report.error,
        "check_url": f"/api/v1/reports/{report.id}",
        "created_at": stamp(report.created_at),
        "updated_at": stamp(report.updated_at),
    }


def create_router(reports: Reports, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1/reports", tags=["reports"], responses=problem_responses(401, 429, 503))
    user = Annotated[Claims, Depends(doorman.user)]
    later: dict[int | str, dict[str, Any]] = {202: {"model": ReportView, "description": "Accepted; look at check_url."}}

    @router.post("/generate", response_model=ReportView, responses=later)
    async def generate(body: ReportRequest, caller: user) -> Response:
        """Have a report made: 200 if it is done at once, else 202 and where to look for it."""
        first, last = body.days()
        served = await outcome.of(reports.generate(caller.user_id, body.kind, first, last))
        found = report_body(served.value)
        if served.value.status in ("done", "failed"):
            return served_json(served, found)
        headers = {"location": found["check_url"], "retry-after": str(CHECK_AGAIN)}
        return served_json(served, found, status=202, headers=headers)

    # Only what looks like an id: "generate" is none, and takes no GET.
    @router.get("/{report_id:uuid}", response_model=ReportView, responses=problem_responses(404))
    async def read(report_id: ReportId, caller: user) -> Response:
        """One's own report and how far it is; from a copy while the database is away."""
        served = await outcome.of(reports.read(str(report_id), caller.user_id))
        return served_json(served, report_body(served.value))

    return router


def _invalid(field: str, text: str) -> ValidationFailed:
    return ValidationFailed("The request is not valid.", details={field: text})
