"""grit-toolkit."""

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
from benchmarks.resilience.shapes import DECORATED, Form


class Grit(Library):
    name = "grit-toolkit"
    imports = "grit"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("grit")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        breaker = self._lib.breaker(**given(reset_after=seconds, fails=threshold))
        if listener:
            breaker.on_change(ignoring(listener))
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        return decorated(breaker(function))

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def retry(self, function: Function) -> Forms:
        return decorated(self._lib.retry(tries=ATTEMPTS)(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        return decorated(self._lib.timeout(seconds)(function))

    def bulkhead(self, function: Function) -> Forms:
        return decorated(self._lib.bulkhead(SLOTS)(function))

    def rate(self, function: Function) -> Forms:
        return decorated(self._lib.limiter(LIMIT, PERIOD)(function))

    def fallback(self, function: Function) -> Forms:
        return decorated(self._lib.fallback(fn=substitute)(function))

    def pair(self, function: Function) -> Forms:
        return decorated(self._lib.retry(tries=ATTEMPTS)(self._lib.breaker()(function)))

    def policy(self, function: Function) -> Forms:
        lib = self._lib
        layers = (
            lib.fallback(fn=substitute),
            lib.retry(tries=ATTEMPTS),
            lib.breaker(),
            lib.timeout(SECONDS),
            lib.bulkhead(SLOTS),
        )
        return decorated(lib.policy(*layers)(function))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, self._lib.retry(tries=2, wait=lambda _attempt: 0.01)(function))
