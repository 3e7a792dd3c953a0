"""For administrators: ``/api/v1/diagnostics``. Measured in this process, so it answers while the database is away."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from dashboard.inbound.http.doors import Doorman, bearer
from dashboard.model import SlowStatement
from dashboard.ports import QueryTimes
from service_kit.http import json_response, problem_responses, stamp

Times = Mapping[str, QueryTimes]


class SlowView(BaseModel):
    """A slow execution."""

    at: datetime
    ms: float


class StatementView(BaseModel):
    """A statement that was slow: all its executions in numbers, and the latest slow ones."""

    database: str
    statement: str
    count: int
    slow: int
    total_ms: float
    max_ms: float
    mean_ms: float
    last_at: datetime
    latest: list[SlowView]


class SlowQueries(BaseModel):
    """Since the instance was started; those that were slow most often first."""

    threshold_ms: float
    executions: int
    items: list[StatementView]


def create_router(times: Times, doorman: Doorman) -> APIRouter:
    """``times`` by the name of the database."""
    router = APIRouter(prefix="/api/v1/diagnostics", tags=["diagnostics"])

    @router.get(
        "/queries/slow",
        response_model=SlowQueries,
        dependencies=[Depends(bearer), Depends(doorman.admin)],
        responses=problem_responses(401, 403, 429, 503),
    )
    async def slow(limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Response:
        """Statements of the database that were slow on this instance."""
        found = [_body(name, statement) for name, one in times.items() for statement in one.slow()]
        found.sort(key=lambda item: (-item["slow"], -item["max_ms"]))
        thresholds = [one.threshold for one in times.values()]
        return json_response(
            {
                "threshold_ms": _ms(min(thresholds, default=0.0)),
                "executions": sum(one.count for one in times.values()),
                "items": found[:limit],
            }
        )

    return router


def _body(database: str, statement: SlowStatement) -> dict[str, Any]:
    return {
        "database": database,
        "statement": statement.text,
        "count": statement.count,
        "slow": statement.slow,
        "total_ms": _ms(statement.total),
        "max_ms": _ms(statement.longest),
        "mean_ms": _ms(statement.total / statement.count),
        "last_at": stamp(statement.latest[0][0]),
        "latest": [{"at": stamp(at), "ms": _ms(seconds)} for at, seconds in statement.latest],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
