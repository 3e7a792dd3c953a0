"""The standard library, anyio, and the best of all peers composed by hand."""

from __future__ import annotations

import asyncio
import functools
from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import ATTEMPTS, SECONDS, SLOTS, Forms, Function, Library
from benchmarks.resilience.shapes import BLOCK, DECORATED, NEW_BLOCK, SYNC_BLOCK, Form


class Asyncio(Library):
    """The standard library's own, as floors."""

    name = "asyncio"
    imports = "asyncio"

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return (Form(NEW_BLOCK, functools.partial(asyncio.timeout, seconds), function, "asyncio.timeout"),)

    def bulkhead(self, function: Function) -> Forms:
        return (Form(BLOCK, asyncio.Semaphore(SLOTS), function, "Semaphore"),)


class AsyncioWaitFor(Library):
    """The older one."""

    name = "asyncio (wait_for)"
    imports = "asyncio"

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        async def limited() -> Any:
            return await asyncio.wait_for(function(), seconds)

        return (Form(DECORATED, limited, None, "wait_for"),)


class Anyio(Library):
    name = "anyio"
    imports = "anyio"

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return (
            Form(SYNC_BLOCK, functools.partial(import_module("anyio").fail_after, seconds), function, "fail_after"),
        )

    def bulkhead(self, function: Function) -> Forms:
        lib = import_module("anyio")
        semaphore = lib.Semaphore(SLOTS, fast_acquire=True)
        return Form(BLOCK, semaphore, function), Form(BLOCK, lib.CapacityLimiter(SLOTS), function)


class ByHand(Library):
    """What somebody would write who took the best of each: grit's retry around resilix's breaker, asyncio's timeout
    and semaphore, and a try statement."""

    name = "by hand"
    imports = "grit resilix keel_circuit_breaker"
    composed = True
    floors = frozenset({"fallback", "fallback-taken"})

    def fallback(self, function: Function) -> Forms:
        async def served() -> Any:
            try:
                return await function()
            except Exception:  # noqa: BLE001
                return None

        return (Form(DECORATED, served, None, "try statement"),)

    def pair(self, function: Function) -> Forms:
        retry = import_module("grit").retry(tries=ATTEMPTS)
        breaker = import_module("resilix").CircuitBreaker()
        keyed = import_module("keel_circuit_breaker").CircuitBreaker()

        async def guarded() -> Any:
            return await keyed.call(function, "dependency")

        return (
            Form(DECORATED, retry(breaker(function)), None, "grit + resilix"),
            Form(DECORATED, retry(guarded), None, "grit + keel"),
        )

    def policy(self, function: Function) -> Forms:
        semaphore = asyncio.Semaphore(SLOTS)

        async def limited() -> Any:
            async with semaphore, asyncio.timeout(SECONDS):
                return await function()

        retried = import_module("grit").retry(tries=ATTEMPTS)(import_module("resilix").CircuitBreaker()(limited))

        async def served() -> Any:
            try:
                return await retried()
            except Exception:  # noqa: BLE001
                return None

        return (Form(DECORATED, served, None, "grit + resilix + asyncio"),)


class StaminaPurgatory(Library):
    """The two best known ones, by hand."""

    name = "stamina + purgatory"
    imports = "stamina purgatory"
    composed = True

    async def _breaker(self) -> Any:
        return await import_module("purgatory").AsyncCircuitBreakerFactory().get_breaker("dependency")

    async def pair(self, function: Function) -> Forms:
        breaker = await self._breaker()

        async def guarded() -> Any:
            async with breaker:
                return await function()

        return (Form(DECORATED, import_module("stamina").retry(on=Exception, attempts=ATTEMPTS)(guarded)),)

    async def policy(self, function: Function) -> Forms:
        breaker = await self._breaker()
        semaphore = asyncio.Semaphore(SLOTS)

        async def guarded() -> Any:
            async with breaker, semaphore, asyncio.timeout(SECONDS):
                return await function()

        retried = import_module("stamina").retry(on=Exception, attempts=ATTEMPTS)(guarded)

        async def served() -> Any:
            try:
                return await retried()
            except Exception:  # noqa: BLE001
                return None

        return (Form(DECORATED, served, None, "with asyncio's timeout and semaphore"),)
