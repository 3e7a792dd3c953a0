"""Prices of a call minute: ``/api/v1/pricing`` (rows D2 and D1)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.inbound.http.doors import AnyId, Doorman
from dashboard.inbound.outcome import Outcome
from dashboard.usecases.pricing import CURRENCY, Pricing, Quote
from service_kit.http import problem_responses, served_json, stamp


class PriceView(BaseModel):
    """The price of a call minute, and how much it is worth: ``confidence`` from 0 to 1."""

    zone: str
    price: float
    currency: str
    base_fare: float
    multiplier: Annotated[float, Field(ge=1, le=3)]
    active_participants: int | None
    capacity: int
    confidence: Annotated[float, Field(ge=0, le=1)]
    source: Literal["redis", "database", "stale_cache", "default"]
    freshness: Literal["real-time", "stale", "very_stale", "unknown"]
    timestamp: Annotated[datetime, Field(description="When supply and demand were as the price says.")]
    fallback_reason: str | None
    warning: str | None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: datetime | None = None


def price_body(quote: Quote) -> dict[str, Any]:
    """The public form."""
    zone, tier = quote.zone, quote.tier
    return {
        "zone": zone.zone,
        "price": quote.price,
        "currency": CURRENCY,
        "base_fare": zone.base_fare,
        "multiplier": quote.multiplier,
        "active_participants": None if tier.source == "default" else zone.active,
        "capacity": zone.capacity,
        "confidence": tier.confidence,
        "source": tier.source,
        "freshness": tier.freshness,
        "timestamp": stamp(quote.as_of),
        "fallback_reason": quote.reason,
        "warning": tier.warning,
    }


def create_router(pricing: Pricing, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(
        prefix="/api/v1/pricing",
        tags=["pricing"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 429),
    )

    @router.get("/{zone}", response_model=PriceView)
    async def price(zone: AnyId) -> Response:
        """The price of a call minute in a zone; any zone has one, at the least the usual one."""
        served = await outcome.of(pricing.quote(zone))
        return served_json(served, price_body(served.value))

    return router
