"""Our side, in one file: `resilience` from this tree, in whichever of its forms is the fastest."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import (
    ATTEMPTS,
    LIMIT,
    PERIOD,
    SECONDS,
    SLOTS,
    Forms,
    Function,
    Library,
    Listener,
    given,
    ignoring,
    substitute,
)
from benchmarks.resilience.shapes import BLOCK, CALL, DECORATED, KEYED_CALL, SYNC_GATE, Form

NAMES = ("CircuitBreaker", "Retry", "Timeout", "Bulkhead", "RateLimiter", "Fallback", "StaleCache", "Policy")


class Ours(Library):
    name = "resilience (ours)"
    imports = "resilience"

    def __init__(self) -> None:
        super().__init__()
        self._lib: Any = import_module("resilience")

    @classmethod
    def statement(cls) -> str:
        package = import_module("resilience")
        return f"from resilience import {', '.join(name for name in NAMES if hasattr(package, name))}"

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        settings = given(recovery_timeout=seconds, failure_threshold=threshold)
        breaker = self._lib.CircuitBreaker("dependency", **settings)
        if listener:
            breaker.subscribe(ignoring(listener))
        return breaker

    def idle(self, name: str) -> Any:
        return self._lib.CircuitBreaker(name)

    def forms(self, guard: Any, function: Function) -> Forms:
        """`await guard.call(function)`, `@guard`, and `async with guard` where it can guard a block."""
        block = (Form(BLOCK, guard, function),) if hasattr(guard, "__aenter__") else ()
        return Form(CALL, guard.call, function), Form(DECORATED, guard(function)), *block

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.counts.failed
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return functools.partial(breaker.call_sync, function)

    def window(self, function: Function) -> Forms:
        settings = {"window": 100, "failure_rate": 0.5, "slow_call_seconds": 1.0, "slow_rate": 0.5}
        return self.forms(self._lib.CircuitBreaker("dependency", **settings), function)

    def retry(self, function: Function) -> Forms:
        return self.forms(self._lib.Retry(attempts=ATTEMPTS), function)

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return self.forms(self._lib.Timeout(seconds), function)

    def bulkhead(self, function: Function) -> Forms:
        return self.forms(self._lib.Bulkhead("dependency", SLOTS, 0), function)

    def rate(self, function: Function) -> Forms:
        limiter = self._lib.RateLimiter("dependency", LIMIT, PERIOD)
        return (*self.forms(limiter, function), Form(SYNC_GATE, limiter.acquire, function))

    def fallback(self, function: Function) -> Forms:
        return self.forms(self._lib.Fallback(substitute), function)

    def cache(self, function: Function) -> Forms:
        cache = self._lib.StaleCache("dependency", max_age=3600.0)
        return (Form(KEYED_CALL, cache.get, ("key", functools.partial(function, "key"))),)

    def pair(self, function: Function) -> Forms:
        retry, breaker = self._lib.Retry(attempts=ATTEMPTS), self.breaker()
        policy = self._lib.Policy("dependency", retry=retry, breaker=breaker)
        nested = self.forms(retry, breaker(function))
        return (*self.forms(policy, function), *(form._replace(label=f"nested {form.name}") for form in nested))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        policy = lib.Policy(
            "dependency",
            timeout=SECONDS,
            retry=lib.Retry(attempts=ATTEMPTS),
            breaker=self.breaker(),
            bulkhead=lib.Bulkhead("dependency", SLOTS, 0),
            fallback=lib.Fallback(substitute),
        )
        return self.forms(policy, function)

    def waits(self, function: Function) -> Form:
        return Form(CALL, self._lib.Retry(attempts=2, backoff=self._lib.Backoff(0.01)).call, function)
