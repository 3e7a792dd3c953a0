"""nopanic."""

from __future__ import annotations

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
    decorated,
    given,
    ignoring,
    substitute,
)
from benchmarks.resilience.shapes import CALL, DECORATED, Form


class Nopanic(Library):
    name = "nopanic"
    imports = "nopanic"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("nopanic")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self._lib.circuit_breaker(
            **given(reset_timeout=seconds, min_calls=threshold, on_state_change=ignoring(listener))
        )

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(DECORATED, breaker(function)), Form(CALL, breaker.acall, function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.metrics.failures
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def window(self, function: Function) -> Forms:
        return self.forms(self._lib.circuit_breaker(slow_call_duration=1.0, slow_call_threshold=0.5), function)

    def retry(self, function: Function) -> Forms:
        return self.forms(self._lib.retry(attempts=ATTEMPTS), function)

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return self.forms(self._lib.timeout(seconds), function)

    def bulkhead(self, function: Function) -> Forms:
        return self.forms(self._lib.bulkhead(SLOTS, max_wait=0), function)

    def rate(self, function: Function) -> Forms:
        return self.forms(self._lib.rate_limit(LIMIT, PERIOD), function)

    def fallback(self, function: Function) -> Forms:
        return self.forms(self._lib.fallback(substitute), function)

    def cache(self, function: Function) -> Forms:
        return (Form(CALL, self._lib.cache(3600.0, stale_ttl=3600.0)(function), "key", "decorator"),)

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.retry(attempts=ATTEMPTS)(self._lib.circuit_breaker()(function)))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        layers = (
            lib.fallback(substitute),
            lib.retry(attempts=ATTEMPTS),
            lib.circuit_breaker(),
            lib.timeout(SECONDS),
            lib.bulkhead(SLOTS, max_wait=0),
        )
        return decorated(lib.compose(*layers)(function))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, self._lib.retry(attempts=2, backoff=0.01)(function))
