"""Join tokens: JSON Web Tokens (RFC 7519), signed with HS256.

The audience keeps them apart from access tokens, which are signed with the same secret: a join token opens no API, and
an access token joins no room.
"""

import jwt

AUDIENCE = "webrtc"
ISSUER = "auralink"


class JwtSigner:
    """Signs with the platform's secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def sign(self, room_id: str, user_id: str, now: float, seconds: int) -> str:
        """A token for one user and one room, valid for ``seconds`` from ``now`` (unix seconds)."""
        issued = int(now)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "room": room_id,
            "iat": issued,
            "exp": issued + seconds,
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")
