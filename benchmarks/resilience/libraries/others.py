"""Libraries with one mechanism that is neither a breaker nor a retry."""

from __future__ import annotations

import functools
from datetime import timedelta
from importlib import import_module

from benchmarks.resilience.libraries.base import LIMIT, PERIOD, SLOTS, Forms, Function, Library
from benchmarks.resilience.shapes import BLOCK, CALL, GATE, NEW_BLOCK, Form


class Bulklink(Library):
    name = "bulklink"
    imports = "bulklink"

    def bulkhead(self, function: Function) -> Forms:
        bulkhead = import_module("bulklink").AsyncBulkhead(label="dependency", parallelism=SLOTS)
        return Form(CALL, bulkhead.execute_now, function), Form(NEW_BLOCK, bulkhead.slot_now, function)


class AioLimiter(Library):
    name = "aiolimiter"
    imports = "aiolimiter"

    def rate(self, function: Function) -> Forms:
        limiter = import_module("aiolimiter").AsyncLimiter(LIMIT, PERIOD)
        return Form(BLOCK, limiter, function), Form(GATE, limiter.acquire, function)


class AsyncioLimiter(Library):
    name = "asynciolimiter"
    imports = "asynciolimiter"

    def rate(self, function: Function) -> Forms:
        lib = import_module("asynciolimiter")
        return (Form(GATE, lib.LeakyBucketLimiter(LIMIT / PERIOD, capacity=LIMIT).wait, function),)


class Limits(Library):
    name = "limits"
    imports = "limits limits.aio.strategies"

    def rate(self, function: Function) -> Forms:
        aio = import_module("limits.aio")
        limiter = aio.strategies.FixedWindowRateLimiter(aio.storage.MemoryStorage())
        item = import_module("limits").RateLimitItemPerSecond(LIMIT, PERIOD)
        return (Form(GATE, functools.partial(limiter.hit, item), function),)


class Throttled(Library):
    name = "throttled-py"
    imports = "throttled.asyncio"

    def rate(self, function: Function) -> Forms:
        lib = import_module("throttled.asyncio")
        quota = lib.rate_limiter.per_duration(timedelta(seconds=PERIOD), LIMIT, LIMIT)
        limiter = lib.Throttled(key="dependency", using="gcra", quota=quota)
        return (Form(GATE, limiter.limit, function),)


class AsyncLru(Library):
    name = "async-lru"
    imports = "async_lru"
    notes = "nothing stale is ever served"

    def cache(self, function: Function) -> Forms:
        return (Form(CALL, import_module("async_lru").alru_cache(ttl=3600.0)(function), "key", "decorator"),)


class AioCache(Library):
    name = "aiocache"
    imports = "aiocache"
    notes = "nothing stale is ever served"

    def cache(self, function: Function) -> Forms:
        return (Form(CALL, import_module("aiocache").cached(ttl=3600)(function), "key", "decorator"),)


class Cashews(Library):
    name = "cashews"
    imports = "cashews"

    def cache(self, function: Function) -> Forms:
        cache = import_module("cashews").Cache()
        cache.setup("mem://")
        return (Form(CALL, cache.soft(ttl="2h", soft_ttl="1h", key="k:{name}")(function), "key", "decorator"),)
