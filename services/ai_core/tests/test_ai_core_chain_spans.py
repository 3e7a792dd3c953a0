"""Spans of provider calls, by OpenTelemetry's conventions for generative AI."""

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ai_core.outbound.gen_ai import GenAiMeter
from ai_core.query import Link, Usage
from ai_core.usecases.links import Attempt
from service_kit.telemetry import Metrics

LINK = Link("anthropic", "claude-sonnet-5-5")


def test_one_span_per_attempt_with_who_how_long_how_much_and_why_not() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics = Metrics("ai-core")
    meter = GenAiMeter(metrics, provider.get_tracer("test"))
    meter(Attempt(LINK, False, 1_700_000_000.0, 0.25, error="ProviderFailed"))
    meter(Attempt(LINK, True, 1_700_000_001.0, 0.5, 0.1, "claude-sonnet-5-5-x", Usage(7, 3), "stop", 0.002))
    failed, good = exporter.get_finished_spans()
    assert failed.name == good.name == "chat claude-sonnet-5-5"
    assert failed.kind is good.kind is SpanKind.CLIENT
    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet-5-5",
        "error.type": "ProviderFailed",
    }
    found = dict(good.attributes or {})
    assert found["gen_ai.response.model"] == "claude-sonnet-5-5-x"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (7, 3)
    assert (found["gen_ai.response.finish_reasons"], found["gen_ai.request.stream"]) == (("stop",), True)
    assert good.status.status_code is StatusCode.UNSET
    assert good.start_time is not None
    assert good.end_time is not None
    assert (good.start_time, good.end_time - good.start_time) == (1_700_000_001_000_000_000, 500_000_000)
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="anthropic",gen_ai_request_model="claude-sonnet-5-5"'
    assert f"gen_ai_client_cost_usd_total{{{labels}}} 0.002" in metrics.render().decode()
