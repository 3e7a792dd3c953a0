"""Which ICE servers a user gets, with TURN credentials that end by themselves (no dependency, no row)."""

import base64
import hashlib
import hmac

from resilience import Clock
from webrtc.model import IceServer


def turn_credentials(secret: str, user: str, expires_at: int) -> tuple[str, str]:
    """Username and password that a TURN server sharing ``secret`` accepts until ``expires_at`` (unix seconds).

    Source of the scheme: draft-uberti-behave-turn-rest-00, section 2.2, as coturn's ``use-auth-secret`` keeps it:
    the username is ``expiry:user``, the password the Base64 of its HMAC-SHA1 under the shared secret.
    """
    username = f"{expires_at}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


class IceServers:
    """``seconds`` is how long TURN credentials stay valid."""

    def __init__(
        self, stun_urls: tuple[str, ...], turn_urls: tuple[str, ...], turn_secret: str, seconds: int, clock: Clock
    ) -> None:
        self._stun = (IceServer(stun_urls),) if stun_urls else ()
        self._turn_urls = turn_urls
        self._turn_secret = turn_secret
        self._seconds = seconds
        self._clock = clock

    def for_user(self, user: str) -> tuple[IceServer, ...]:
        """The servers, with credentials made for this user now."""
        if not self._turn_urls:
            return self._stun
        username, credential = turn_credentials(self._turn_secret, user, int(self._clock.time()) + self._seconds)
        return (*self._stun, IceServer(self._turn_urls, username, credential))
