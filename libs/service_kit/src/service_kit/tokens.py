"""Access tokens: JSON Web Tokens (RFC 7519) signed with HS256, shared by all services of the platform.

A token is verified on every request, so verified ones are remembered in a small bounded table; the expiry is
checked each time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import jwt

from .errors import Unauthorized

Role = Literal["user", "admin"]

ALGORITHM = "HS256"
ISSUER = "auralink"
AUDIENCE = "auralink"
LEEWAY = 5  # seconds by which the clocks of two hosts may differ
MAX_REMEMBERED = 4096
MAX_TOKEN_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a token speaks for; `expires_at` in Unix seconds."""

    user_id: str
    session_id: str
    role: Role
    expires_at: float


class TokenIssuer:
    """Signs access tokens that are valid for `lifetime` seconds."""

    def __init__(self, secret: str, *, lifetime: float = 3600.0) -> None:
        self._secret = secret
        self.lifetime = lifetime

    def issue(self, user_id: str, session_id: str, role: Role = "user", *, lifetime: float | None = None) -> str:
        """A token for the user's session; `lifetime` in seconds, the issuer's own when None."""
        now = time.time()
        claims = {
            "sub": user_id,
            "sid": session_id,
            "role": role,
            "iat": int(now),
            "exp": int(now + (self.lifetime if lifetime is None else lifetime)),
            "iss": ISSUER,
            "aud": AUDIENCE,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)


class TokenVerifier:
    """Checks tokens that any service of the platform issued."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._known: OrderedDict[str, Claims] = OrderedDict()

    def verify(self, token: str) -> Claims:
        """The token's claims. Raises Unauthorized when it is forged, malformed or expired."""
        claims = self._known.get(token)
        if claims is None:
            claims = self._checked(token)
            self._remember(token, claims)
        if claims.expires_at + LEEWAY <= time.time():
            self._known.pop(token, None)
            raise Unauthorized("The access token has expired.")
        return claims

    def _remember(self, token: str, claims: Claims) -> None:
        self._known[token] = claims
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def _checked(self, token: str) -> Claims:
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise Unauthorized("The access token is not valid.")
        try:
            return _claims(decoded(token, self._secret, AUDIENCE))
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The access token has expired.") from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise Unauthorized("The access token is not valid.") from None


def decoded(token: str, secret: str, audience: str, *required: str) -> dict[str, Any]:
    """The claims of a token of the platform's, with those `required` beside `exp`, `iat` and `sub` in it.

    Raises jwt.InvalidTokenError (jwt.ExpiredSignatureError among them).
    """
    return jwt.decode(
        token,
        secret,
        algorithms=[ALGORITHM],
        audience=audience,
        issuer=ISSUER,
        leeway=LEEWAY,
        options={"require": ["exp", "iat", "sub", *required]},
    )


def _claims(payload: dict[str, Any]) -> Claims:
    role = payload.get("role")
    if role not in ("user", "admin"):
        raise ValueError("unknown role")
    return Claims(str(payload["sub"]), str(payload.get("sid", "")), role, float(payload["exp"]))
