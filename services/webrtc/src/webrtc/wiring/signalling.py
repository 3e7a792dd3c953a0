"""The signalling: the hub, its WebSocket, and what can be seen of it."""

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from resilience import CircuitState, Event, RowPolicy, Transitioned
from service_kit import logs
from service_kit.runtime import ServiceRuntime
from webrtc.inbound.websocket import Gate
from webrtc.model import DegradedRow
from webrtc.ports import CallLog, Cluster, IceSource, MediaBackend, QualityMeter, TokenSigner
from webrtc.settings import Settings
from webrtc.usecases.signalling.defaults import NoCalls, NoMeter
from webrtc.usecases.signalling.dispatch import LIMITED, MALFORMED, UNKNOWN, Dispatcher
from webrtc.usecases.signalling.hub import Hub, Parts
from webrtc.usecases.signalling.limits import Limits
from webrtc.usecases.signalling.messages import KINDS

log = logs.get_logger("signalling")

BURST_SECONDS = 4.0


class SignallingPart:
    """``hub`` is what the others are plugged into, ``gate`` what uvicorn hands upgraded connections to."""

    def __init__(
        self,
        runtime: ServiceRuntime,
        settings: Settings,
        tokens: TokenSigner,
        ice: IceSource,
        cluster: Cluster,
        *,
        media: MediaBackend | None = None,
        calls: CallLog | None = None,
        meter: Callable[[], QualityMeter] = NoMeter,
    ) -> None:
        self._runtime = runtime
        self.hub = Hub(
            Parts(
                cluster=cluster,
                tokens=tokens,
                ice=ice,
                meter=meter,
                calls=calls or NoCalls(),
                degraded=lambda: degraded_rows(list(runtime.policies.values())),
                note=_note,
                clock=runtime.clock,
                media=media,
                limits=_limits(settings),
            )
        )
        self._dispatcher = Dispatcher(self.hub)
        self.gate = Gate(self.hub, self._dispatcher)
        runtime.metrics.registry.register(Figures(runtime.name, self.hub, self._dispatcher))
        runtime.background("signalling", self.hub.tick_forever)
        runtime.events.subscribe(self._on_event)
        runtime.on_phase(self._on_phase)
        runtime.on_close(self.hub.media.close, "signalling's media")

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Transitioned):
            # A moment later: the row's other listeners may still be at it.
            asyncio.get_running_loop().call_soon(self.hub.degraded_changed)

    async def _on_phase(self, ready: bool) -> None:
        if self._runtime.draining.is_set() and not ready:
            self.hub.drain()


def _note(event: str, /, **fields: object) -> None:
    log.info(event, **fields)


def _limits(settings: Settings) -> Limits:
    return Limits(
        message_rate=settings.ws_message_rate,
        message_burst=settings.ws_message_rate * BURST_SECONDS,
        connections=settings.ws_connections,
        p2p_participants=settings.p2p_max_participants,
    )


def degraded_rows(policies: list[RowPolicy]) -> list[DegradedRow]:
    """The rows whose dependency is away, as clients are told."""
    return [
        DegradedRow(policy.row.label, policy.status().fallback or "", policy.row.user_text)
        for policy in policies
        if policy.status().circuit is not CircuitState.CLOSED
    ]


class Figures(Collector):
    """Read off the hub when somebody looks: relaying a message costs no metric."""

    def __init__(self, service: str, hub: Hub, dispatcher: Dispatcher) -> None:
        self._service = service
        self._hub = hub
        self._counts = dispatcher.counts

    def collect(self) -> Iterator[Metric]:
        """The present figures."""
        rooms, participants = self._hub.sizes
        labels = ["service"]
        yield self._gauge("webrtc_rooms", "Rooms with participants here.", rooms)
        yield self._gauge("webrtc_participants", "Participants here.", participants)
        yield self._gauge("webrtc_connections", "WebSockets here.", self._hub.connections)
        received = CounterMetricFamily("webrtc_messages", "Messages of clients.", labels=[*labels, "type"])
        for name, kind in KINDS.items():
            received.add_metric([self._service, name], self._counts[kind])
        for wrong in (LIMITED, UNKNOWN, MALFORMED):
            received.add_metric([self._service, wrong], self._counts[wrong])
        yield received
        closed = CounterMetricFamily("webrtc_closes", "WebSockets closed by the service.", labels=[*labels, "code"])
        for code, count in list(self._hub.closes.items()):
            closed.add_metric([self._service, str(code)], count)
        yield closed

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["service"])
        family.add_metric([self._service], value)
        return family
