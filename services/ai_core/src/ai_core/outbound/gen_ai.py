"""Metrics and spans of provider calls by OpenTelemetry's semantic conventions for generative AI. Never a prompt.

Names and buckets: opentelemetry.io/docs/specs/semconv/gen-ai, "Metrics" and "Spans"; dots and units as Prometheus
writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ai_core.usecases.links import Attempt

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from prometheus_client import Counter, Histogram

    from service_kit.telemetry import Metrics

TOKENS = tuple(float(4**power) for power in range(14))
SECONDS = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OPERATION = "chat"


class GenAiMeter:
    """Counts every attempt, and makes a span of it where there is a tracer."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None) -> None:
        call = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._tracer = tracer
        self._tokens = metrics.histogram(
            "gen_ai_client_token_usage", "Tokens of a call.", *call, "gen_ai_token_type", buckets=TOKENS
        )
        self._duration = metrics.histogram(
            "gen_ai_client_operation_duration_seconds", "Calls of providers.", *call, "error_type", buckets=SECONDS
        )
        self._first_token = metrics.histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until the first token.", *call, buckets=FIRST_TOKEN
        )
        self._cost = metrics.counter("gen_ai_client_cost_usd", "US dollars by the table of prices.", *call)
        self._histograms: dict[tuple[Histogram, tuple[str, ...]], Histogram] = {}
        self._counters: dict[tuple[str, ...], Counter] = {}

    def __call__(self, attempt: Attempt) -> None:
        """One attempt ended."""
        labels = (OPERATION, attempt.link.provider, attempt.link.model)
        self._observe(self._duration, (*labels, attempt.error), attempt.seconds)
        if attempt.usage.prompt:
            self._observe(self._tokens, (*labels, "input"), attempt.usage.prompt)
        if attempt.usage.completion:
            self._observe(self._tokens, (*labels, "output"), attempt.usage.completion)
        if attempt.first_token is not None:
            self._observe(self._first_token, labels, attempt.first_token)
        if attempt.cost:
            self._counters.setdefault(labels, self._cost.labels(*labels)).inc(attempt.cost)
        if self._tracer is not None:
            self._span(self._tracer, attempt)

    def _observe(self, histogram: Histogram, labels: tuple[str, ...], value: float) -> None:
        child = self._histograms.get((histogram, labels))
        if child is None:
            child = self._histograms[histogram, labels] = histogram.labels(*labels)
        child.observe(value)

    @staticmethod
    def _span(tracer: Tracer, attempt: Attempt) -> None:
        from opentelemetry.trace import SpanKind, StatusCode  # only where spans are made

        link = attempt.link
        found = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": link.provider,
            "gen_ai.request.model": link.model,
            "gen_ai.request.stream": attempt.streamed or None,
            "gen_ai.response.model": attempt.model,
            "gen_ai.response.finish_reasons": [attempt.finish_reason] if attempt.finish_reason else None,
            "gen_ai.usage.input_tokens": attempt.usage.prompt,
            "gen_ai.usage.output_tokens": attempt.usage.completion,
            "error.type": attempt.error,
        }
        span = tracer.start_span(
            f"{OPERATION} {link.model}",
            kind=SpanKind.CLIENT,
            start_time=int(attempt.began * 1e9),
            attributes={name: value for name, value in found.items() if value},
        )
        if attempt.error:
            span.set_status(StatusCode.ERROR)
        span.end(int((attempt.began + attempt.seconds) * 1e9))
