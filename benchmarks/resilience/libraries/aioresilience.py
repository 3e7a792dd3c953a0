"""aioresilience."""

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
    substitute,
)
from benchmarks.resilience.shapes import BLOCK, CALL, DECORATED, Form


class AioResilience(Library):
    name = "aioresilience"
    imports = "aioresilience"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("aioresilience")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        lib = self._lib
        config = lib.CircuitConfig(**given(recovery_timeout=seconds, failure_threshold=threshold))
        breaker = lib.CircuitBreaker("dependency", config)
        if listener:

            async def told(_event: Any) -> None:
                listener()

            breaker.events.on("state_change")(told)
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(CALL, breaker.call, function), Form(DECORATED, self._lib.with_circuit_breaker(breaker)(function))

    def state_of(self, breaker: Any) -> Any:
        return breaker.state.name

    def failures(self, breaker: Any) -> int:
        count: int = breaker.metrics.failed_requests
        return count

    def _retry(self) -> Any:
        return self._lib.RetryPolicy(self._lib.RetryConfig(max_attempts=ATTEMPTS))

    def _timeout(self, seconds: float) -> Any:
        return self._lib.TimeoutManager(self._lib.TimeoutConfig(timeout=seconds))

    def _bulkhead(self) -> Any:
        return self._lib.Bulkhead("dependency", self._lib.BulkheadConfig(max_concurrent=SLOTS))

    def _fallback(self) -> Any:
        return self._lib.FallbackHandler(self._lib.FallbackConfig(fallback=substitute))

    def retry(self, function: Function) -> Forms:
        return (Form(CALL, self._retry().execute, function),)

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return (Form(CALL, self._timeout(seconds).execute, function),)

    def bulkhead(self, function: Function) -> Forms:
        bulkhead = self._bulkhead()
        return Form(CALL, bulkhead.execute, function), Form(BLOCK, bulkhead, function)

    def fallback(self, function: Function) -> Forms:
        return (Form(CALL, self._fallback().execute, function),)

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.with_retry(self._retry())(self._lib.with_circuit_breaker(self.breaker())(function)))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        inner = lib.with_timeout_manager(self._timeout(SECONDS))(lib.with_bulkhead(self._bulkhead())(function))
        retried = lib.with_retry(self._retry())(lib.with_circuit_breaker(self.breaker())(inner))
        return decorated(lib.with_fallback_handler(self._fallback())(retried))

    def waits(self, function: Function) -> Form:
        config = self._lib.RetryConfig(max_attempts=2, initial_delay=0.01)
        return Form(CALL, self._lib.RetryPolicy(config).execute, function)
