"""hyx."""

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
    substitute_async,
)
from benchmarks.resilience.shapes import BLOCK, DECORATED, NEW_BLOCK, Form


class Hyx(Library):
    name = "hyx"
    imports = "hyx.circuitbreaker hyx.retry hyx.timeout hyx.bulkhead hyx.fallback hyx.ratelimit"

    def breaker(self, seconds: float | None = None, threshold: int | None = None) -> Any:
        return import_module("hyx.circuitbreaker").consecutive_breaker(
            **given(recovery_time_secs=seconds, failure_threshold=threshold)
        )

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(DECORATED, breaker(function)), Form(BLOCK, breaker, function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.state.NAME

    def failures(self, breaker: Any) -> int:
        count: int = breaker.state.consecutive_exceptions
        return count

    def retry(self, function: Function) -> Forms:
        return decorated(import_module("hyx.retry").retry(attempts=ATTEMPTS)(function))

    def timeout(self, function: Function, seconds: float = SECONDS) -> Forms:
        timeout = import_module("hyx.timeout").timeout
        return Form(DECORATED, timeout(seconds)(function)), Form(NEW_BLOCK, lambda: timeout(seconds), function)

    def bulkhead(self, function: Function) -> Forms:
        bulkhead = import_module("hyx.bulkhead").bulkhead(SLOTS, SLOTS)
        return Form(DECORATED, bulkhead(function)), Form(BLOCK, bulkhead, function)

    def rate(self, function: Function) -> Forms:
        bucket = import_module("hyx.ratelimit").tokenbucket(LIMIT, PERIOD)
        return Form(DECORATED, bucket(function)), Form(BLOCK, bucket, function)

    def fallback(self, function: Function) -> Forms:
        return decorated(import_module("hyx.fallback").fallback(substitute_async)(function))

    def pair(self, function: Function) -> Forms:
        return decorated(import_module("hyx.retry").retry(attempts=ATTEMPTS)(self.breaker()(function)))

    def policy(self, function: Function) -> Forms:
        inner = import_module("hyx.timeout").timeout(SECONDS)(
            import_module("hyx.bulkhead").bulkhead(SLOTS, SLOTS)(function)
        )
        retried = import_module("hyx.retry").retry(attempts=ATTEMPTS)(self.breaker()(inner))
        return decorated(import_module("hyx.fallback").fallback(substitute_async)(retried))

    def waits(self, function: Function) -> Form:
        return Form(DECORATED, import_module("hyx.retry").retry(attempts=2, backoff=0.01)(function))
