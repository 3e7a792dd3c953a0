"""All libraries under measurement, ours first."""

from benchmarks.resilience.libraries import (
    aioresilience,
    breakers,
    crashbytes,
    floors,
    grit,
    hyx,
    interlock,
    netrun,
    nopanic,
    others,
    pyresilience,
    resilix,
    retries,
)
from benchmarks.resilience.libraries.base import Library
from benchmarks.resilience.ours import Ours

OURS = Ours.name

LIBRARIES: dict[str, type[Library]] = {
    kind.name: kind
    for kind in (
        Ours,
        resilix.Resilix,
        grit.Grit,
        nopanic.Nopanic,
        crashbytes.Crashbytes,
        pyresilience.PyResilience,
        hyx.Hyx,
        interlock.Interlock,
        aioresilience.AioResilience,
        netrun.Netrun,
        breakers.CircuitBreaker,
        breakers.AioCircuitBreaker,
        breakers.AioBreaker,
        breakers.AsyncBreaker,
        breakers.Purgatory,
        breakers.PyBreaker,
        breakers.Fluxgate,
        breakers.Keel,
        retries.Tenacity,
        retries.Stamina,
        retries.Backoff,
        retries.AioRetry,
        retries.Tenaz,
        retries.Unbreak,
        others.Bulklink,
        others.AioLimiter,
        others.AsyncioLimiter,
        others.Limits,
        others.Throttled,
        others.AsyncLru,
        others.AioCache,
        others.Cashews,
        floors.Anyio,
        floors.Asyncio,
        floors.AsyncioWaitFor,
        floors.ByHand,
        floors.StaminaPurgatory,
    )
}
