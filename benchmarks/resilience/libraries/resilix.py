"""resilix."""

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
    substitute,
)
from benchmarks.resilience.shapes import DECORATED, Form


class Resilix(Library):
    name = "resilix"
    imports = "resilix"
    notes = "its failure window has no slow calls; a second decorator joins the first instead of nesting"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("resilix")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self._lib.CircuitBreaker(
            **given(reset_timeout=seconds, failures=threshold, on_state_change=ignoring(listener))
        )

    def forms(self, breaker: Any, function: Function) -> Forms:
        return decorated(breaker(function))

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.failure_count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def retry(self, function: Function) -> Forms:
        return decorated(self._lib.protect.when(Exception, retry=ATTEMPTS)(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return decorated(self._lib.protect.timeout(seconds)(function))

    def bulkhead(self, function: Function) -> Forms:
        return decorated(self._lib.protect.bulkhead(SLOTS, wait=False)(function))

    def fallback(self, function: Function) -> Forms:
        return decorated(self._lib.protect.when(Exception, fallback=substitute)(function))

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.protect.when(Exception, retry=ATTEMPTS)(self.breaker()(function)))

    def policy(self, function: Function) -> Forms:
        protect = self._lib.protect
        guarded = protect.timeout(SECONDS)(protect.bulkhead(SLOTS, wait=False)(self.breaker()(function)))
        return decorated(protect.when(Exception, retry=ATTEMPTS, fallback=substitute)(guarded))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, self._lib.protect.when(Exception, retry=2, delay=0.01)(function))
