"""What every route needs: who calls, the outcome of its use case, and its answer."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path, Query, Request
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ConfigDict, Field

from dashboard.inbound.http.limits import RequestLimits
from dashboard.inbound.outcome import Outcome
from dashboard.model import Unreadable
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

    def __init__(self, outcome: Outcome, limits: RequestLimits) -> None:
        self._outcome = outcome
        self._limits = limits

    async def __call__(self, request: Request) -> Claims:
        """The logged-in user. Raises Unauthorized, RateLimited."""
        claims = await self._outcome.caller(_token(request))
        await self._limits.request(request, claims.user_id)
        return claims


class Doorman:
    """Tells who calls, from the bearer token or the session cookie, and turns away who calls too often."""

    def __init__(self, outcome: Outcome, admin_token: str, limits: RequestLimits | None = None) -> None:
        self._admin_token = admin_token.encode()
        self._limits = limits or RequestLimits()
        self.user = LoggedIn(outcome, self._limits)

    async def newcomer(self, request: Request) -> None:
        """Whoever logs in or registers. Raises RateLimited."""
        await self._limits.login(request)

    async def user_if_any(self, request: Request) -> Claims | None:
        """The logged-in user, or None when no credentials came. Raises Unauthorized for bad ones, RateLimited."""
        if not context.bearer_token() and not request.cookies.get(COOKIE):
            return None
        return await self.user(request)

    async def admin(self, request: Request) -> None:
        """An administrator: the admin token, or a user of that role. Raises Unauthorized, Forbidden, RateLimited."""
        given = context.bearer_token()
        if given and hmac.compare_digest(given.encode(), self._admin_token):
            return
        claims = await self.user(request)
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


def listed(
    items: list[dict[str, Any]], next_cursor: str | None, unreadable: Sequence[Unreadable] = ()
) -> dict[str, Any]:
    """The body of every list; what is stored and cannot be read is named beside it."""
    body: dict[str, Any] = {"items": items, "next_cursor": next_cursor}
    return {**body, "unreadable": [_unreadable(one) for one in unreadable]} if unreadable else body


def _unreadable(item: Unreadable) -> dict[str, Any]:
    where = {"position": item.position} if item.id is None else {"id": item.id, "position": item.position}
    return {**where, "error": item.error}
