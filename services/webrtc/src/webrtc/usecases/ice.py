"""Which ICE servers a user gets, with TURN credentials that end by themselves (row W2, webrtc.turn)."""

import base64
import hashlib
import hmac
from collections.abc import Callable

from resilience import Clock, Served
from webrtc.model import IceGrant, IceServer
from webrtc.usecases.relay import Relay

RENEW_SHARE = 0.8
"""Of the credentials' time, after which participants get new ones."""


def turn_credentials(secret: str, user: str, expires_at: int) -> tuple[str, str]:
    """Username and password that a TURN server sharing ``secret`` accepts until ``expires_at`` (unix seconds).

    Source of the scheme: draft-uberti-behave-turn-rest-00, section 2.2, as coturn's ``use-auth-secret`` keeps it:
    the username is ``expiry:user``, the password the Base64 of its HMAC-SHA1 under the shared secret.
    """
    username = f"{expires_at}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


class IceServers:
    """``relay`` is None where no TURN server is configured; ``seconds`` is how long TURN credentials stay valid."""

    def __init__(
        self, stun_urls: tuple[str, ...], relay: Relay | None, turn_secret: str, seconds: int, clock: Clock
    ) -> None:
        self._stun = (IceServer(stun_urls),) if stun_urls else ()
        self._relay = relay
        self._turn_secret = turn_secret
        self._seconds = seconds
        self._clock = clock

    def for_user(self, user: str) -> Served[tuple[IceServer, ...]]:
        """The servers, with credentials made for this user now; while TURN is away, STUN alone, and marked so."""
        if self._relay is None:
            return Served(self._stun)
        if not (urls := self._relay.urls):
            return Served(self._stun, (self._relay.fallback(),))
        username, credential = turn_credentials(self._turn_secret, user, int(self._clock.time()) + self._seconds)
        return Served((*self._stun, IceServer(urls, username, credential)))

    def grant(self, user_id: str) -> IceGrant:
        """See ports.IceSource."""
        served = self.for_user(user_id)
        relayed = self._relay is not None and not served.degraded
        return IceGrant(served.value, self._seconds if relayed else 0, served.degraded)

    async def renew(self, push: Callable[[], None]) -> None:
        """Calls ``push`` often enough that no credential given out becomes older than ``RENEW_SHARE`` of its time;
        until cancelled."""
        while True:
            await self._clock.sleep(self._seconds * RENEW_SHARE)
            push()
