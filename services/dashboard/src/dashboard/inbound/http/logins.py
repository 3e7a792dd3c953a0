"""Logging in and out: ``/api/v1/auth``."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import Field, SecretStr, StringConstraints

from dashboard.inbound.http.doors import COOKIE, Body, Doorman
from dashboard.inbound.http.users import UserView, user_body
from dashboard.inbound.outcome import Outcome
from dashboard.usecases.accounts import Accounts
from dashboard.usecases.logins import Logins
from service_kit.http import json_response, problem_responses, served_json
from service_kit.tokens import Claims


class Credentials(Body):
    """Address and password."""

    email: Annotated[str, StringConstraints(min_length=1, max_length=254, pattern=r"^[^\x00]*$")]
    password: Annotated[SecretStr, Field(min_length=1, max_length=128)]


class LoginView(Body):
    """The access token, valid for ``expires_in`` seconds; the same is in the session cookie."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: int
    user: UserView


def create_router(
    logins: Logins, accounts: Accounts, outcome: Outcome, doorman: Doorman, *, secure_cookie: bool
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1/auth", tags=["auth"], responses=problem_responses(401, 429, 503))
    user = Annotated[Claims, Depends(doorman.user)]

    @router.post("/login", response_model=LoginView, dependencies=[Depends(doorman.newcomer)])
    async def login(body: Credentials) -> Response:
        """Log in. Attempts are limited per address, failed ones per account."""
        made = (await outcome.of(logins.login(body.email.lower(), body.password.get_secret_value()))).value
        answer = json_response(
            {
                "access_token": made.token,
                "token_type": "bearer",
                "expires_in": made.expires_in,
                "user": user_body(made.user),
            }
        )
        answer.set_cookie(
            COOKIE, made.token, max_age=made.expires_in, httponly=True, samesite="strict", secure=secure_cookie
        )
        return answer

    @router.post("/logout", status_code=204)
    async def logout(caller: user) -> Response:
        """End the session."""
        await outcome.of(logins.logout(caller.session_id))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=secure_cookie)
        return answer

    @router.get("/me", response_model=UserView, responses=problem_responses(404))
    async def me(caller: user) -> Response:
        """The account of the session."""
        served = await outcome.of(accounts.read(caller.user_id, caller.user_id))
        return served_json(served, user_body(served.value))

    return router
