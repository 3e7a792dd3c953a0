"""Connection quality as metrics, and the meters that the signalling gives its participants."""

from collections.abc import Callable

from prometheus_client import Counter, Histogram

from service_kit.runtime import ServiceRuntime
from webrtc.usecases.quality import EXCELLENT, GOOD, LOST, POOR, Meter

RATINGS = (10, 20, 30, 40, 50, 60, 70, 80, 85, 90)


def meters(runtime: ServiceRuntime) -> Callable[[], Meter]:
    """Makes meters whose scores are counted together."""
    name, registry = runtime.name, runtime.metrics.registry
    labels = ["service", "quality"]
    reports = Counter("webrtc_quality", "Reports of participants by the quality they show.", labels, registry=registry)
    text = "R (ITU-T G.107) of participants' connections, by report."
    ratings = Histogram("webrtc_rating", text, ["service"], registry=registry, buckets=RATINGS).labels(name)
    counts = {quality: reports.labels(name, quality) for quality in (EXCELLENT, GOOD, POOR, LOST)}

    def heard(quality: str, r: float) -> None:
        counts[quality].inc()
        ratings.observe(r)

    return lambda: Meter(heard)
