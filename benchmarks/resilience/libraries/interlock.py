"""interlock-cb."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import (
    ATTEMPTS,
    SECONDS,
    SLOTS,
    WINDOW,
    Forms,
    Function,
    Library,
    Listener,
    decorated,
    given,
    ignoring,
    substitute,
)
from benchmarks.resilience.shapes import CALL, DECORATED, NEW_BLOCK, Form


class Interlock(Library):
    name = "interlock-cb"
    imports = "interlock interlock.integrations.tenacity"
    notes = "its breaker always has the rate window and slow calls; its retry is tenacity's"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("interlock")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        lib = self._lib
        settings = given(wait_duration_in_open=seconds, minimum_number_of_calls=threshold)
        if threshold:
            settings["window_size"] = min(threshold, WINDOW)
        config = lib.Config(**settings)
        told = None
        if listener:
            told = type("Told", (lib.LoggingEventListener,), {"on_state_change": ignoring(listener)})()
        return lib.CircuitBreaker(name="dependency", config=config, listener=told)

    def idle(self, name: str) -> Any:
        return self._lib.CircuitBreaker(name=name)

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(DECORATED, breaker(function)), Form(CALL, breaker.call_async, function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.snapshot().failed_calls
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def window(self, function: Function) -> Forms:
        config = self._lib.Config(slow_call_duration_threshold=1.0, slow_call_rate_threshold=0.5)
        return self.forms(self._lib.CircuitBreaker(name="dependency", config=config), function)

    def _through(self, function: Function, *strategies: Any) -> Forms:
        return decorated(self._lib.Pipeline(*strategies)(function))

    def retry(self, function: Function) -> Forms:
        return self._through(
            function, import_module("interlock.integrations.tenacity").RetryStrategy(attempts=ATTEMPTS)
        )

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        lib = self._lib
        block = Form(NEW_BLOCK, lambda: lib.timeout(seconds), function)
        return (*self._through(function, lib.TimeoutStrategy(seconds)), block)

    def bulkhead(self, function: Function) -> Forms:
        return self._through(function, self._lib.BulkheadStrategy(SLOTS))

    def fallback(self, function: Function) -> Forms:
        return self._through(function, self._lib.FallbackStrategy(substitute))

    def pair(self, function: Function) -> Forms:
        retry = import_module("interlock.integrations.tenacity").RetryStrategy(attempts=ATTEMPTS)
        return self._through(function, retry, self._lib.CircuitBreakerStrategy(self.breaker()))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        retry = import_module("interlock.integrations.tenacity").RetryStrategy(attempts=ATTEMPTS)
        guards = (lib.CircuitBreakerStrategy(self.breaker()), lib.BulkheadStrategy(SLOTS), lib.TimeoutStrategy(SECONDS))
        return self._through(function, lib.FallbackStrategy(substitute), retry, *guards)

    def waits(self, function: Function) -> Form:
        tenacity = import_module("interlock.integrations.tenacity")
        wait = import_module("tenacity").wait_fixed(0.01)
        return self._through(function, tenacity.RetryStrategy(attempts=2, wait=wait))[0]
