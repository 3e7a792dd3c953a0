"""netrun-resilience."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import (
    ATTEMPTS,
    SECONDS,
    SLOTS,
    Forms,
    Function,
    Library,
    Listener,
    decorated,
    given,
    ignoring,
)
from benchmarks.resilience.shapes import DECORATED, Form


class Netrun(Library):
    name = "netrun-resilience"
    imports = "netrun.resilience"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("netrun.resilience")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        wrapped = given(timeout_seconds=seconds, failure_threshold=threshold, on_state_change=ignoring(listener))
        return _NetrunBreaker(self._lib.circuit_breaker(**wrapped))

    def forms(self, breaker: Any, function: Function) -> Forms:
        wrapped = breaker.decorate(function)
        breaker.made = wrapped.circuit_breaker
        return decorated(wrapped)

    def idle(self, _name: str) -> Any:
        types = import_module("netrun.resilience.types")
        return import_module("netrun.resilience.circuit_breaker").CircuitBreaker(types.CircuitBreakerConfig())

    def state_of(self, breaker: Any) -> Any:
        return breaker.made.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.made.failure_count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return self.forms(breaker, function)[0].target

    def retry(self, function: Function) -> Forms:
        return decorated(self._lib.retry(ATTEMPTS)(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return decorated(self._lib.timeout(seconds)(function))

    def bulkhead(self, function: Function) -> Forms:
        return decorated(self._lib.bulkhead(SLOTS, 0)(function))

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.retry(ATTEMPTS)(self._lib.circuit_breaker()(function)))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, self._lib.retry(2, base_delay_ms=10, jitter=False)(function))


class _NetrunBreaker:
    """Its breakers live inside decorated functions."""

    def __init__(self, decorate: Any) -> None:
        self.decorate = decorate
        self.made: Any = None
