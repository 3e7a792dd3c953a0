"""What every route needs: who calls, the outcome of its use case, and its answer."""

from __future__ import annotations

import hmac
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path, Query, Request
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ConfigDict, Field

from dashboard.inbound.outcome import Outcome
from service_kit import context
from service_kit.errors import Forbidden, Unauthorized
from service_kit.tokens import Claims

COOKIE = "auralink_session"

# At least one character that can be seen, and no control characters.
VISIBLE = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=VISIBLE)]
AnyId = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]
UserId = Annotated[UUID, Path(description="The account's id.")]
Cursor = Annotated[str | None, Query(max_length=200)]
PageSize = Annotated[int, Query(alias="limit", ge=1, le=100)]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Prefer = Annotated[str | None, Header(alias="Prefer", max_length=200)]

bearer = HTTPBearer(auto_error=False, description="The access token of a login.")


class Body(BaseModel):
    """A request body: no conversions, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LoggedIn(SecurityBase):
    """The dependency of routes that need a user, and their security scheme in the OpenAPI document.

    Both in one, and without declared parameters, because every dependency of a route costs each of its requests.
    """

    model = bearer.model
    scheme_name = bearer.scheme_name

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    async def __call__(self, request: Request) -> Claims:
        """The logged-in user. Raises Unauthorized."""
        return await self._outcome.caller(_token(request))


class Doorman:
    """Tells who calls, from the bearer token or the session cookie."""

    def __init__(self, outcome: Outcome, admin_token: str) -> None:
        self._outcome = outcome
        self._admin_token = admin_token.encode()
        self.user = LoggedIn(outcome)

    async def user_if_any(self, request: Request) -> Claims | None:
        """The logged-in user, or None when no credentials came. Raises Unauthorized for bad ones."""
        if not context.bearer_token() and not request.cookies.get(COOKIE):
            return None
        return await self._outcome.caller(_token(request))

    async def admin(self, request: Request) -> None:
        """An administrator: the admin token, or a user of that role. Raises Unauthorized, Forbidden."""
        given = context.bearer_token()
        if given and hmac.compare_digest(given.encode(), self._admin_token):
            return
        claims = await self._outcome.caller(_token(request))
        if claims.role != "admin":
            raise Forbidden("Only administrators may do this.")


def whole(value: object) -> object:
    """For JSON a number such as 53.0 is an integer, whatever a strict model thinks."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _token(request: Request) -> str:
    """The bearer token, else the cookie's; the current request acts with it towards other services too."""
    state = context.current()
    token = context.bearer_token() or request.cookies.get(COOKIE)
    if not token:
        raise Unauthorized("Log in first.")
    if state is not None:
        state.bearer = token
    return token


def listed(items: list[dict[str, Any]], next_cursor: str | None) -> dict[str, Any]:
    """The body of every list."""
    return {"items": items, "next_cursor": next_cursor}
