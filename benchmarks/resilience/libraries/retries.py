"""Libraries that retry."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import (
    ATTEMPTS,
    WINDOW,
    Forms,
    Function,
    Library,
    Listener,
    given,
    ignoring,
)
from benchmarks.resilience.shapes import CALL, DECORATED, Form


class Tenacity(Library):
    name = "tenacity"
    imports = "tenacity"
    notes = "Retry-After through a wait function of the user's own"

    def retry(self, function: Function) -> Forms:
        lib = import_module("tenacity")
        retrying = lib.AsyncRetrying(stop=lib.stop_after_attempt(ATTEMPTS), reraise=True)
        return Form(DECORATED, retrying.wraps(function)), Form(CALL, retrying, function)

    def waits(self, function: Function) -> Form:
        lib = import_module("tenacity")
        return Form(CALL, lib.AsyncRetrying(stop=lib.stop_after_attempt(2), wait=lib.wait_fixed(0.01)), function)


class Stamina(Library):
    name = "stamina"
    imports = "stamina"
    notes = "Retry-After through an `on=` function of the user's own"

    def retry(self, function: Function) -> Forms:
        lib = import_module("stamina")
        caller = lib.AsyncRetryingCaller(attempts=ATTEMPTS)
        return (
            Form(DECORATED, lib.retry(on=Exception, attempts=ATTEMPTS)(function)),
            Form(CALL, caller.on(Exception), function),
        )

    def waits(self, function: Function) -> Form:
        retry = import_module("stamina").retry(on=Exception, attempts=2, wait_initial=0.01, wait_jitter=0)
        return Form(DECORATED, retry(function))


class Backoff(Library):
    name = "backoff"
    imports = "backoff"

    def retry(self, function: Function) -> Forms:
        lib = import_module("backoff")
        return (Form(DECORATED, lib.on_exception(lib.expo, Exception, max_tries=ATTEMPTS)(function)),)

    def waits(self, function: Function) -> Form:
        lib = import_module("backoff")
        return Form(
            DECORATED, lib.on_exception(lib.constant, Exception, max_tries=2, interval=0.01, jitter=None)(function)
        )


class AioRetry(Library):
    name = "aioretry"
    imports = "aioretry"

    def retry(self, function: Function) -> Forms:
        return (Form(DECORATED, import_module("aioretry").retry(lambda info: (info.fails >= ATTEMPTS, 0))(function)),)

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, import_module("aioretry").retry(lambda info: (info.fails >= 2, 0.01))(function))


class Tenaz(Library):
    name = "tenaz"
    imports = "tenaz"
    notes = "its breaker is a part of its retry: measured with one attempt"

    class Holder:
        """Its breakers live inside decorated functions."""

        def __init__(self, settings: dict[str, Any]) -> None:
            self.settings = settings
            self.made: Any = None

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self.Holder(
            {"circuit_threshold": threshold or 5, **given(circuit_timeout=seconds, on_circuit_open=ignoring(listener))}
        )

    def forms(self, breaker: Any, function: Function) -> Forms:
        retry = import_module("tenaz").retry(1, **breaker.settings)
        breaker.made = inspect.getclosurevars(retry).nonlocals["breaker"]
        return (Form(DECORATED, retry(function)),)

    def sync(self, breaker: Any, function: Any) -> Any:
        return self.forms(breaker, function)[0].target

    def idle(self, _name: str) -> Any:
        return import_module("tenaz")._CircuitBreaker(5, 30.0)

    def state_of(self, breaker: Any) -> Any:
        return breaker.made._state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.made._failures
        return count

    def retry(self, function: Function) -> Forms:
        return (Form(DECORATED, import_module("tenaz").retry(ATTEMPTS)(function)),)

    def pair(self, function: Function) -> Forms:
        return (Form(DECORATED, import_module("tenaz").retry(ATTEMPTS, circuit_threshold=5)(function)),)

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, import_module("tenaz").retry(2, backoff=0.01)(function))


class Unbreak(Library):
    name = "unbreak"
    imports = "unbreak"
    notes = "its breaker is a part of its retry: measured with one attempt"

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        window = {} if threshold is None else {"window_size": min(threshold, WINDOW)}
        breaker = import_module("unbreak").CircuitBreaker(
            **given(recovery_timeout=seconds, failure_threshold=threshold), **window
        )
        breaker.told = listener
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        def told(event: Any) -> None:
            if breaker.told and event.type.value.startswith("circuit") and event.attempt == 0:
                breaker.told()

        settings = {"circuit": breaker, "on_event": told if breaker.told else None}
        return (Form(DECORATED, import_module("unbreak").retry(max=1, wrap_result=False, **settings)(function)),)

    def sync(self, breaker: Any, function: Any) -> Any:
        return self.forms(breaker, function)[0].target

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.stats.total_failures
        return count

    def retry(self, function: Function) -> Forms:
        return (Form(DECORATED, import_module("unbreak").retry(max=ATTEMPTS, wrap_result=False)(function)),)

    def pair(self, function: Function) -> Forms:
        retry = import_module("unbreak").retry(max=ATTEMPTS, circuit=True, wrap_result=False)
        return (Form(DECORATED, retry(function)),)

    def waits(self, function: Function) -> Form:
        retry = import_module("unbreak").retry(max=2, base=0.01, on=(Exception,), wrap_result=False)
        return Form(DECORATED, retry(function))
