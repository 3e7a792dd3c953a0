"""The price of a call minute in a zone, from supply and demand, and what is served while those cannot be asked.

The formula is peak-load pricing as for other capacity that cannot be stored (Vickrey, "Pricing in urban and suburban
transport", 1963; Boiteux, "Peak-load pricing", 1960): who uses scarce capacity pays for the scarcity, linearly, within
bounds that a customer can know beforehand.

    utilisation = active participants / capacity
    multiplier  = 1                                        while at least half of the capacity is free
                = 1 + 2 × (utilisation - 0.5) / 0.5        above that, up to 3 when nothing is free
    price       = base fare × multiplier

The tiers, best first: Redis has the participants of this moment; the database those of some seconds before Redis went
away; this process remembers what it saw last; and at the end the base fare alone, which is nobody's surprise.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import NamedTuple

from dashboard.degradation import DATABASE_PRICE, DEFAULT_PRICE, MEMORY_CACHE, STALE_PRICE
from dashboard.model import Zone
from dashboard.ports import Demand, Zones
from dashboard.usecases.failures import is_answer
from dashboard.usecases.reads import Reads
from resilience import (
    MISSING,
    CallTimeout,
    CircuitBreakerOpen,
    CircuitState,
    Clock,
    Missing,
    RowPolicy,
    Rung,
    Served,
    deadline_scope,
)

BASE_FARE = 12.50
CURRENCY = "EUR"
FREE_UNTIL = 0.5
"""Utilisation up to which nothing is added."""
MAX_MULTIPLIER = 3.0

SECONDS = 1.2
"""For all tiers together."""
TARIFF_SECONDS = 60.0
"""For so long a zone's fare and capacity are used without being read again."""
NOTE_SECONDS = 10.0
"""Between two notes of a zone in the database."""
STALE_SECONDS = 3600.0
"""How long what was seen last is good enough for the third tier."""
MAX_ZONES = 1000
"""Zones that one process remembers."""
WRITE_SECONDS = 0.5


class Tier(NamedTuple):
    """Where a price comes from, and how much it is worth (``confidence`` from 0 to 1)."""

    source: str
    freshness: str
    confidence: float
    warning: str | None = None


REDIS_TIER = Tier("redis", "real-time", 1.0)
DATABASE_TIER = Tier("database", "stale", 0.7, "The price may be outdated.")
STALE_TIER = Tier("stale_cache", "very_stale", 0.4, "The price may be badly outdated.")
DEFAULT_TIER = Tier("default", "unknown", 0.1, "The usual price: supply and demand are not known.")


@dataclass(frozen=True, slots=True)
class Quote:
    """A price and where it comes from; ``as_of``: the moment (unix seconds) of what it was worked out from."""

    zone: Zone
    multiplier: float
    price: float
    tier: Tier
    as_of: float
    reason: str | None


class _Known(NamedTuple):
    """What this process saw of a zone last. Moments are monotonic; None: never."""

    zone: Zone
    tariff_read: float | None
    note_due: float


def multiplier(active: int, capacity: int) -> float:
    """From 1 to MAX_MULTIPLIER; see the module."""
    scarcity = (active / max(1, capacity) - FREE_UNTIL) / (1 - FREE_UNTIL)
    return round(1 + min(1.0, max(0.0, scarcity)) * (MAX_MULTIPLIER - 1), 2)


class Pricing:
    """``redis`` and ``database`` are the policies of their rows; ``capacity`` is that of a zone without a row."""

    def __init__(
        self,
        demand: Demand,
        redis: RowPolicy,
        zones: Zones,
        reads: Reads[Zones],
        database: RowPolicy,
        *,
        capacity: int,
        clock: Clock,
    ) -> None:
        self._demand = demand
        self._redis = redis
        self._zones = zones
        self._reads = reads
        self._database = database
        self._capacity = capacity
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._due: OrderedDict[str, int] = OrderedDict()

    async def quote(self, zone: str) -> Served[Quote]:
        """The price at this moment; never an error."""

        async def live() -> int | Quote:
            return await self._demand.active(zone)

        with deadline_scope(SECONDS, clock=self._clock):
            served = await self._redis.serve(live, *self._tiers(zone))
            if isinstance(served.value, Quote):
                quote = served.value
                return served.map(lambda _: quote)
            return await self._live(zone, served.value)

    # -- the tiers

    def _tiers(self, zone: str) -> tuple[Rung[int | Quote], ...]:
        """What serves while Redis does not."""
        return (
            Rung(DATABASE_PRICE, lambda failure: self._from_database(zone, failure)),
            Rung(STALE_PRICE, lambda failure: self._from_memory(zone, failure)),
            Rung(DEFAULT_PRICE, lambda failure: self._default(zone, failure)),
        )

    async def _live(self, zone: str, active: int) -> Served[Quote]:
        tariff = await self._tariff(zone)
        now = self._clock.time()
        seen = replace(tariff.value, active=active, updated_at=now)
        self._see(seen, read=not tariff.degraded)
        return tariff.map(lambda _: _quote(seen, REDIS_TIER, None))

    async def _from_database(self, zone: str, failure: BaseException) -> Served[Quote] | Missing:
        served = await self._reads.serve(lambda zones: zones.get(zone))
        row = served.value
        if row is None:
            return MISSING
        known = self._known.get(zone)
        if known is None or known.zone.updated_at < row.updated_at:
            self._remember(zone, _Known(row, None, 0.0))
        quote = _quote(row, DATABASE_TIER, _reason(failure))
        return Served(quote, served.degradations, as_of=row.updated_at)

    def _from_memory(self, zone: str, failure: BaseException) -> Served[Quote] | Missing:
        known = self._known.get(zone)
        if known is None or self._clock.time() - known.zone.updated_at > STALE_SECONDS:
            return MISSING
        reason = f"{_reason(failure)}, and the database has no price either"
        return Served(_quote(known.zone, STALE_TIER, reason), as_of=known.zone.updated_at)

    def _default(self, zone: str, failure: BaseException) -> Quote:
        return _quote(self._unknown(zone), DEFAULT_TIER, f"{_reason(failure)}, and nothing is remembered of this zone")

    def _unknown(self, zone: str) -> Zone:
        return Zone(zone, BASE_FARE, self._capacity, 0, self._clock.time())

    # -- fare and capacity

    async def _tariff(self, zone: str) -> Served[Zone]:
        known = self._known.get(zone)
        if known and known.tariff_read is not None and self._age(known.tariff_read) < TARIFF_SECONDS:
            return Served(known.zone)

        async def read(zones: Zones) -> Zone:
            return await zones.get(zone) or self._unknown(zone)

        def remembered(_: BaseException) -> Served[Zone] | Missing:
            if known is None or known.tariff_read is None:
                return MISSING
            return Served(known.zone, as_of=self._clock.time() - self._age(known.tariff_read))

        usual = Rung(DEFAULT_PRICE, lambda _: self._unknown(zone))
        return await self._reads.serve(read, Rung(MEMORY_CACHE, remembered), usual)

    # -- what is remembered, and noted in the database

    def _see(self, zone: Zone, *, read: bool) -> None:
        now, known = self._clock.monotonic(), self._known.get(zone.zone)
        tariff_read, due = (known.tariff_read, known.note_due) if known else (None, 0.0)
        if read and (tariff_read is None or self._age(tariff_read) >= TARIFF_SECONDS):
            tariff_read = now
        if now >= due:
            due = now + NOTE_SECONDS
            self._note(zone.zone, zone.active)
        self._remember(zone.zone, _Known(zone, tariff_read, due))

    def _remember(self, zone: str, known: _Known) -> None:
        self._known[zone] = known
        self._known.move_to_end(zone)
        if len(self._known) > MAX_ZONES:
            self._known.popitem(last=False)

    def _note(self, zone: str, active: int) -> None:
        self._due[zone] = active
        if len(self._due) > MAX_ZONES:
            self._due.popitem(last=False)

    async def write_behind(self) -> None:
        """Notes prices in the database, until cancelled."""
        while True:
            await self._clock.sleep(WRITE_SECONDS)
            if self._due and self._database.breaker.state is CircuitState.CLOSED:
                await self._write()

    async def _write(self) -> None:
        batch, self._due = dict(self._due), OrderedDict()
        try:
            await self._database.call(lambda: self._zones.note(batch))
        except Exception as error:
            if is_answer(self._database, error):
                raise
            for zone in batch.keys() - self._due.keys():
                self._note(zone, batch[zone])

    def _age(self, moment: float) -> float:
        return self._clock.monotonic() - moment


def _quote(zone: Zone, tier: Tier, reason: str | None) -> Quote:
    factor = 1.0 if tier is DEFAULT_TIER else multiplier(zone.active, zone.capacity)
    return Quote(zone, factor, round(zone.base_fare * factor, 2), tier, zone.updated_at, reason)


def _reason(failure: BaseException) -> str:
    match failure:
        case CircuitBreakerOpen():
            return "real-time data is not available (circuit open)"
        case CallTimeout():
            return "real-time data is not available (no answer in time)"
        case _:
            return "real-time data is not available (not reachable)"
