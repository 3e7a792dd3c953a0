"""crashbytes-resilience."""

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
    decorated,
    given,
    substitute,
)
from benchmarks.resilience.shapes import DECORATED, Form


class Crashbytes(Library):
    name = "crashbytes-resilience"
    imports = "crashbytes_resilience"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("crashbytes_resilience")

    def breaker(self, seconds: float | None = None, threshold: int | None = None) -> Any:
        return self._lib.CircuitBreaker(**given(recovery_timeout=seconds, failure_threshold=threshold))

    def forms(self, breaker: Any, function: Function) -> Forms:
        return decorated(breaker(function))

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker._failure_count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def retry(self, function: Function) -> Forms:
        return decorated(self._lib.retry(ATTEMPTS)(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return decorated(self._lib.timeout(seconds)(function))

    def bulkhead(self, function: Function) -> Forms:
        return decorated(self._lib.bulkhead(SLOTS)(function))

    def rate(self, function: Function) -> Forms:
        return decorated(self._lib.rate_limiter(LIMIT, PERIOD)(function))

    def fallback(self, function: Function) -> Forms:
        return decorated(self._lib.fallback(substitute)(function))

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.retry(ATTEMPTS)(self._lib.circuit_breaker()(function)))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        layers = (
            lib.bulkhead(SLOTS),
            lib.timeout(SECONDS),
            lib.circuit_breaker(),
            lib.retry(ATTEMPTS),
            lib.fallback(substitute),
        )
        return decorated(lib.pipeline(*layers)(function))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, self._lib.retry(2, delay=0.01)(function))
