"""TURN: whether it relays, and the ICE servers that are given accordingly (row W2, webrtc.turn)."""

from collections.abc import Callable

from service_kit import logs
from service_kit.runtime import ServiceRuntime
from webrtc.degradation import TURN
from webrtc.outbound.turn import TurnServers
from webrtc.settings import Settings
from webrtc.usecases.ice import IceServers
from webrtc.usecases.relay import Relay

log = logs.get_logger("turn")


class TurnPart:
    """``ice``: the servers. Where no TURN server is configured there is no row."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self._runtime = runtime
        secret = settings.turn_secret.get_secret_value()
        self.relay = self._relay(settings.turn_urls, secret) if settings.turn_urls else None
        seconds = int(settings.turn_credential_ttl)
        self.ice = IceServers(settings.stun_urls, self.relay, secret, seconds, runtime.clock)

    def tell(self, ice_changed: Callable[[bool], None]) -> None:
        """Have ``ice_changed(restart)`` called when participants need other servers: TURN is gone, is back (then ICE
        should be restarted), or credentials are about to expire."""
        if self.relay is not None:
            self.relay.on_change(ice_changed)
            self._runtime.background("renew ice servers", lambda: self.ice.renew(lambda: ice_changed(False)))

    def _relay(self, urls: tuple[str, ...], secret: str) -> Relay:
        runtime = self._runtime
        servers = TurnServers(urls, secret, runtime.clock)
        policy = runtime.policy(TURN, probe=lambda: relay.probe())
        relay = Relay(servers, policy, urls, runtime.clock)
        relay.on_change(lambda _: _log(relay))
        runtime.background("watch turn", relay.watch)
        return relay


def _log(relay: Relay) -> None:
    if relay.away:
        log.warning("TURN does not relay: ICE servers are STUN alone", row=TURN.id, why=relay.why)
    else:
        log.info("TURN relays", row=TURN.id, urls=relay.urls)
