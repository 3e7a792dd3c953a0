"""What forwards media of rooms that are too large for a mesh: the SFU in this process, or a LiveKit server."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service_kit.runtime import ServiceRuntime
from webrtc.outbound.sfu.backend import Sfu
from webrtc.outbound.sfu.fanout import Counts
from webrtc.ports import MediaBackend, Tell
from webrtc.settings import Settings


class MediaPart:
    """``backend`` is what the signalling hands rooms to."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self._to: Tell | None = None
        self.backend: MediaBackend = (
            self._livekit(runtime, settings) if settings.livekit_url else self._sfu(runtime, settings)
        )

    def tell(self, to: Tell) -> None:
        """Where what the backend has to say goes: to participants, through the signalling."""
        self._to = to

    def _tell(self, room_id: str, member_id: str, data: bytes) -> None:
        if self._to is not None:
            self._to(room_id, member_id, data)

    def _sfu(self, runtime: ServiceRuntime, settings: Settings) -> MediaBackend:
        sfu = Sfu(self._tell, settings.sfu_addresses, settings.sfu_port_range)
        runtime.on_close(sfu.aclose, "sfu")
        runtime.metrics.registry.register(SfuFigures(runtime.name, sfu.counts))
        return sfu

    def _livekit(self, runtime: ServiceRuntime, settings: Settings) -> MediaBackend:
        from webrtc.outbound.livekit import LiveKit  # its HTTP client is needed nowhere else

        secret = settings.livekit_api_secret.get_secret_value()
        livekit = LiveKit(self._tell, settings.livekit_url or "", settings.livekit_api_key, secret)
        runtime.on_close(livekit.aclose, "livekit")
        return livekit


class SfuFigures(Collector):
    """Read off the SFU when somebody looks: forwarding a frame costs no metric."""

    def __init__(self, service: str, counts: Counts) -> None:
        self._service = service
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """The present figures."""
        counts = self._counts
        yield self._family(GaugeMetricFamily, "tracks", "Tracks that participants publish.", counts.tracks)
        yield self._family(GaugeMetricFamily, "subscribers", "Participants that get media.", counts.subscribers)
        yield self._family(CounterMetricFamily, "frames", "Frames forwarded to participants.", counts.frames)
        yield self._family(CounterMetricFamily, "bytes", "Media forwarded to participants.", counts.octets)
        yield self._family(CounterMetricFamily, "frames_received", "Frames from participants.", counts.received)
        yield self._family(CounterMetricFamily, "frames_dropped", "Frames there was no room for.", counts.dropped)
        asked = counts.keyframe_requests
        yield self._family(CounterMetricFamily, "keyframe_requests", "Keyframes asked of publishers.", asked)

    def _family(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, value: float
    ) -> Metric:
        family = kind(f"webrtc_sfu_{name}", text, labels=["service"])
        family.add_metric([self._service], value)
        return family
