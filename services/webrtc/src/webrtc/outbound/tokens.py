"""Join tokens: JSON Web Tokens (RFC 7519), signed with HS256; and what proves who somebody was before a reconnect.

The audience keeps join tokens apart from access tokens, which are signed with the same secret: a join token opens no
API, and an access token joins no room. PyJWT compares signatures in constant time (hmac.compare_digest), and so do we.
"""

import hashlib
import hmac
from dataclasses import asdict
from typing import Any

import jwt

from service_kit.tokens import ALGORITHM, ISSUER, MAX_TOKEN_LENGTH, decoded
from webrtc.model import BadToken, Grants, Pass

AUDIENCE = "webrtc"
_ALL = Grants()


class JwtSigner:
    """Signs and verifies with the platform's secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        # A key of its own: a resume secret must not be taken for the signature of anything else.
        self._resume_key = hmac.new(secret.encode(), b"webrtc resume", hashlib.sha256).digest()

    def sign(
        self, room_id: str, user_id: str, now: float, seconds: int, *, name: str = "", grants: Grants = _ALL
    ) -> str:
        """A token for one user and one room, valid for ``seconds`` from ``now`` (unix seconds)."""
        issued = int(now)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "room": room_id,
            "name": name,
            "grants": asdict(grants),
            "iat": issued,
            "exp": issued + seconds,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def verify(self, token: str) -> Pass:
        """What a token allows. Raises BadToken: forged, expired, malformed, or made for something else."""
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise BadToken("malformed")
        try:
            return _pass(decoded(token, self._secret, AUDIENCE, "aud", "iss"))
        except jwt.ExpiredSignatureError:
            raise BadToken("expired") from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise BadToken("not valid") from None

    def resume_secret(self, room_id: str, user_id: str, member_id: str) -> str:
        """What proves, to any instance, that its holder was this participant: the id, a dot, and an HMAC."""
        proof = hmac.new(self._resume_key, "\n".join((room_id, user_id, member_id)).encode(), hashlib.sha256)
        return f"{member_id}.{proof.hexdigest()[:32]}"

    def resumed(self, secret: str, room_id: str, user_id: str) -> str:
        """The participant's id if the secret is genuine and this user's in this room; else empty."""
        member_id = secret.partition(".")[0]
        genuine = self.resume_secret(room_id, user_id, member_id)
        return member_id if hmac.compare_digest(genuine.encode(), secret.encode()) else ""


def _pass(claims: dict[str, Any]) -> Pass:
    user, room, name = claims["sub"], claims["room"], claims.get("name", "")
    grants = claims.get("grants", {})
    if not (isinstance(user, str) and isinstance(room, str) and isinstance(name, str) and isinstance(grants, dict)):
        raise TypeError("claims")
    return Pass(user, room, name, Grants(**{key: bool(value) for key, value in grants.items()}), float(claims["exp"]))
