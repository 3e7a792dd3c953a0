"""pyresilience."""

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
    substitute,
)
from benchmarks.resilience.shapes import CALL, DECORATED, Form


class PyResilience(Library):
    name = "pyresilience"
    imports = "pyresilience"
    notes = "Retry-After through a function of the user's own (`delay_func`)"

    class Holder:
        """Its breakers live inside decorated functions."""

        def __init__(self, settings: dict[str, Any], listener: Listener | None) -> None:
            self.settings = settings
            self.listeners = [self._told] if listener else None
            self.made: Any = None
            self._listener = listener

        def _told(self, event: Any) -> None:
            """It tells of calls too, and of each rejection as of the opening, but without an error."""
            kind = event.event_type.value
            if self._listener and kind.startswith("circuit") and (kind != "circuit_open" or event.error):
                self._listener()

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("pyresilience")
        self._config = self._lib.CircuitBreakerConfig()

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self.Holder(given(recovery_timeout=seconds, failure_threshold=threshold), listener)

    def forms(self, breaker: Any, function: Function) -> Forms:
        config = self._lib.CircuitBreakerConfig(**breaker.settings)
        wrapped = self._lib.resilient(circuit_breaker=config, listeners=breaker.listeners)(function)
        breaker.made = wrapped._executor._circuit_breaker
        return decorated(wrapped)

    def idle(self, _name: str) -> Any:
        return self._lib.CircuitBreaker(self._config)

    def state_of(self, breaker: Any) -> Any:
        return breaker.made.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.made.failure_count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return self.forms(breaker, function)[0].target

    def window(self, function: Function) -> Forms:
        config = self._lib.CircuitBreakerConfig(
            sliding_window_size=100, failure_rate_threshold=0.5, slow_call_duration=1.0, slow_call_rate_threshold=0.5
        )
        return decorated(self._lib.resilient(circuit_breaker=config)(function))

    def retry(self, function: Function) -> Forms:
        return decorated(self._lib.resilient(retry=self._lib.RetryConfig(max_attempts=ATTEMPTS))(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return decorated(self._lib.resilient(timeout=self._lib.TimeoutConfig(seconds=seconds))(function))

    def bulkhead(self, function: Function) -> Forms:
        return decorated(self._lib.resilient(bulkhead=self._lib.BulkheadConfig(max_concurrent=SLOTS))(function))

    def rate(self, function: Function) -> Forms:
        config = self._lib.RateLimiterConfig(max_calls=LIMIT, period=PERIOD)
        return decorated(self._lib.resilient(rate_limiter=config)(function))

    def fallback(self, function: Function) -> Forms:
        return decorated(self._lib.resilient(fallback=self._lib.FallbackConfig(handler=substitute))(function))

    def cache(self, function: Function) -> Forms:
        return (Form(CALL, self._lib.resilient(cache=self._lib.CacheConfig(ttl=3600.0))(function), "key", "decorator"),)

    def pair(self, function: Function) -> Forms:
        lib = self._lib
        settings = {"retry": lib.RetryConfig(max_attempts=ATTEMPTS), "circuit_breaker": lib.CircuitBreakerConfig()}
        return decorated(lib.resilient(**settings)(function))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        settings = {
            "retry": lib.RetryConfig(max_attempts=ATTEMPTS),
            "circuit_breaker": lib.CircuitBreakerConfig(),
            "timeout": lib.TimeoutConfig(seconds=SECONDS),
            "bulkhead": lib.BulkheadConfig(max_concurrent=SLOTS),
            "fallback": lib.FallbackConfig(handler=substitute),
        }
        return decorated(lib.resilient(**settings)(function))

    def waits(self, function: Function) -> Form:
        retry = self._lib.RetryConfig(max_attempts=2, delay=0.01, jitter=False)
        return Form(DECORATED, self._lib.resilient(retry=retry)(function))
