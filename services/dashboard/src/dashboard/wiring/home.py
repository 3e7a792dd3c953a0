"""The home page and what stands beside it: numbers, reports, prices and diagnostics (rows D1 and D2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter

from dashboard.inbound.http import analytics, diagnostics, home, pricing, reports
from dashboard.inbound.http.doors import Doorman, listed
from dashboard.inbound.http.users import user_body
from dashboard.inbound.outcome import Outcome
from dashboard.model import Page, User
from dashboard.outbound.analytics import PostgresActivity, analytics_of, analytics_version
from dashboard.outbound.kept import KeptCopies
from dashboard.outbound.postgres import Database
from dashboard.outbound.pricing import PostgresZones, RedisDemand
from dashboard.outbound.reports import PostgresReports, report_of, report_version
from dashboard.settings import Settings
from dashboard.usecases.analytics import UserAnalytics
from dashboard.usecases.home import Home, Part
from dashboard.usecases.pricing import BASE_FARE, Pricing
from dashboard.usecases.reports import ReportLimits, Reports
from dashboard.wiring.postgres import PostgresPart
from dashboard.wiring.redis import RedisPart
from resilience import Operation, Served
from service_kit import logs
from service_kit.runtime import ServiceRuntime

log = logs.get_logger("home")

FirstPage = Callable[[str], Awaitable[Served[Page[Any]]]]
"""Of a user's things, given the user's id."""
ItemBody = Callable[[Any], dict[str, Any]]
Waiting = Callable[[str], Awaitable[Sequence[Operation]]]

PART_SHARE = 0.6
"""Share of a request's time limit that each part of the home page may take."""
SHOWN = 10
"""Waiting writes that the home page names."""


class HomePart:
    """``account`` is given a user's id; ``lists``: parts of the home page by name, as their first page and the form of
    an item; ``waiting``: a user's writes that are not applied yet; ``optional_parts``: whether they are wanted now."""

    def __init__(
        self,
        runtime: ServiceRuntime,
        settings: Settings,
        redis: RedisPart,
        postgres: PostgresPart,
        *,
        account: Callable[[str], Awaitable[Served[User]]],
        lists: Mapping[str, tuple[FirstPage, ItemBody]],
        waiting: Waiting,
        optional_parts: Callable[[], bool] = lambda: True,
    ) -> None:
        self._lists = lists
        self._waiting = waiting
        self._times = {"primary": postgres.database.times}
        if postgres.replica is not None:
            self._times["standby"] = postgres.replica.times
        for times in self._times.values():
            times.threshold = settings.slow_query
        self.analytics = UserAnalytics(
            postgres.reads(PostgresActivity), KeptCopies(redis.copies, "analytics", analytics_of, analytics_version)
        )
        self.reports = _reports(runtime, settings, redis, postgres)
        self.demand, self.pricing = _pricing(runtime, settings, redis, postgres)
        parts = {
            "user": Part(account),
            **{name: Part(page) for name, (page, _) in lists.items()},
            "analytics": Part(lambda user_id: self.analytics.read(user_id, user_id), optional=True),
            "operations": Part(self._operations),
        }
        seconds = settings.request_timeout * PART_SHARE
        self.home = Home(parts, seconds=seconds, optional_parts=optional_parts, clock=runtime.clock)

    def routers(self, outcome: Outcome, doorman: Doorman) -> list[APIRouter]:
        """Its routes."""
        bodies: home.Bodies = {
            "user": lambda served: user_body(served.value),
            **{name: _list_body(body) for name, (_, body) in self._lists.items()},
            "analytics": analytics.analytics_body,
            "operations": lambda served: {"waiting": len(served.value), "items": _waiting_items(served.value)},
        }
        return [
            home.create_router(self.home, bodies, outcome, doorman),
            pricing.create_router(self.pricing, outcome, doorman),
            analytics.create_router(self.analytics, outcome, doorman),
            reports.create_router(self.reports, outcome, doorman),
            diagnostics.create_router(self._times, doorman),
        ]

    async def _operations(self, user_id: str) -> Served[Sequence[Operation]]:
        return Served([one for one in await self._waiting(user_id) if one.owner == user_id])


def _reports(runtime: ServiceRuntime, settings: Settings, redis: RedisPart, postgres: PostgresPart) -> Reports:
    made = Reports(
        PostgresReports(postgres.database),
        PostgresActivity(postgres.database),
        postgres.reads(PostgresReports),
        KeptCopies(redis.copies, "report", report_of, report_version),
        postgres.policy,
        limits=ReportLimits(direct=settings.report_direct, places=settings.report_places, lease=settings.report_lease),
        clock=runtime.clock,
        on_defect=lambda error: log.error("a report failed", error=type(error).__name__, exc_info=error),
    )
    runtime.background("reports", made.work)
    return made


def _pricing(
    runtime: ServiceRuntime, settings: Settings, redis: RedisPart, postgres: PostgresPart
) -> tuple[RedisDemand, Pricing]:
    capacity = settings.pricing_capacity

    def zones(database: Database) -> PostgresZones:
        return PostgresZones(database, base_fare=BASE_FARE, capacity=capacity)

    demand = RedisDemand(redis.client, redis.policy, runtime.clock)
    made = Pricing(
        demand,
        redis.policy,
        zones(postgres.database),
        postgres.reads(zones),
        postgres.policy,
        capacity=capacity,
        clock=runtime.clock,
    )
    runtime.background("demand", demand.flush_forever)
    runtime.background("prices", made.write_behind)
    return demand, made


def _list_body(body: ItemBody) -> Callable[[Served[Any]], dict[str, Any]]:
    def of(served: Served[Page[Any]]) -> dict[str, Any]:
        page = served.value
        return listed([body(item) for item in page.items], page.next_cursor, page.unreadable)

    return of


def _waiting_items(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "kind": one.kind, "status_url": f"/api/v1/operations/{one.id}"} for one in operations[:SHOWN]
    ]
