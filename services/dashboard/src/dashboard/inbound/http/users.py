"""Accounts: ``/api/v1/users`` and ``/api/v1/operations`` (row D1, dashboard.postgres)."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import EmailStr, Field, SecretStr, StringConstraints

from dashboard.degradation import POSTGRES, QUEUED_TEXT
from dashboard.inbound.http.doors import (
    AnyId,
    Body,
    Cursor,
    Doorman,
    IdempotencyKey,
    Name,
    PageSize,
    Prefer,
    UserId,
    bearer,
    listed,
)
from dashboard.inbound.outcome import Outcome
from dashboard.model import AI_CORE_ENTITY, User
from dashboard.ports import Sessions
from dashboard.usecases.accounts import Accounts, Queued
from dashboard.usecases.creations import CREATIONS, made_id
from dashboard.usecases.operations import Operations
from resilience import OperationRecord, Served
from service_kit import context
from service_kit.http import json_response, problem_responses, queued_answer, served_json, stamp
from service_kit.tokens import Claims

Email = Annotated[EmailStr, StringConstraints(max_length=254)]
Password = Annotated[SecretStr, Field(min_length=8, max_length=128)]


class NewUser(Body):
    """A registration; the address is the login, its case does not matter."""

    email: Email
    password: Password
    display_name: Name


class UserChange(Body):
    """The fields to change."""

    display_name: Name


class UserView(Body):
    """An account as its owner sees it."""

    id: str
    email: str
    display_name: str
    role: str
    created_at: datetime
    updated_at: datetime
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was read from the database.")] = None
    pending: Annotated[bool | None, Field(description="Shows own changes that are not applied yet.")] = None


class UnreadableView(Body):
    """An item that is stored and had to be left out; ``position`` on this page."""

    position: int
    error: str
    id: str | None = None


class UserList(Body):
    """A page of accounts, in order of creation."""

    items: list[UserView]
    next_cursor: str | None
    unreadable: list[UnreadableView] | None = None


class OperationView(Body):
    """What became of a queued write."""

    id: str
    status: Annotated[str, Field(pattern="^(queued|applying|applied|dead)$")]
    kind: str
    entity: str
    error: str | None = None
    accepted_at: datetime | None = None
    result: dict[str, Any] | None = None


def user_body(user: User) -> dict[str, Any]:
    """The public form of an account."""
    return {
        "id": user.id,
        "email": user.email,
        "display_name": user.display_name,
        "role": user.role,
        "created_at": stamp(user.created_at),
        "updated_at": stamp(user.updated_at),
    }


def create_router(
    accounts: Accounts, operations: Operations, sessions: Sessions, outcome: Outcome, doorman: Doorman
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/v1", tags=["users"], responses=problem_responses(429, 503))
    user = Annotated[Claims, Depends(doorman.user)]
    known: Any = {"responses": problem_responses(401, 403, 404)}
    # A write that is queued answers 202 when the client prefers that, else 503; repeating a key wrongly 409.
    written: Any = {202: {"description": "Accepted; will be applied."}, **problem_responses(409)}

    @router.post(
        "/users",
        status_code=201,
        response_model=UserView,
        responses=written,
        dependencies=[Depends(doorman.newcomer)],
    )
    async def register(body: NewUser, key: IdempotencyKey = None, prefer: Prefer = None) -> Response:
        """Make an account."""
        password = body.password.get_secret_value()
        work = accounts.register(body.email.lower(), password, body.display_name, key)
        return _written(await outcome.of(work), 201, prefer)

    @router.get("/users/{user_id}", response_model=UserView, **known)
    async def read(user_id: UserId, caller: user) -> Response:
        """Read one's own account; from a copy while the database is away."""
        served = await outcome.of(accounts.read(str(user_id), caller.user_id))
        return served_json(served, user_body(served.value))

    @router.patch("/users/{user_id}", response_model=UserView, **_with(known, written))
    async def change(
        user_id: UserId, body: UserChange, caller: user, key: IdempotencyKey = None, prefer: Prefer = None
    ) -> Response:
        """Change one's own account; queued while the database is away."""
        work = accounts.change(str(user_id), caller.user_id, body.model_dump(), key)
        return _written(await outcome.of(work), 200, prefer)

    @router.delete("/users/{user_id}", status_code=204, **_with(known, written))
    async def delete(user_id: UserId, caller: user, key: IdempotencyKey = None, prefer: Prefer = None) -> Response:
        """Delete one's own account and end its sessions; queued while the database is away."""
        served = await outcome.of(accounts.delete(str(user_id), caller.user_id, key))
        if not isinstance(served.value, Queued):
            context.report(await sessions.end_all(caller.user_id))
        return _written(served, 204, prefer)

    @router.get(
        "/users",
        response_model=UserList,
        dependencies=[Depends(bearer), Depends(doorman.admin)],
        responses=problem_responses(401, 403),
    )
    async def page(limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List all accounts (administrators)."""
        served = await outcome.of(accounts.page(limit, cursor))
        found = served.value
        return json_response(listed([user_body(one) for one in found.items], found.next_cursor, found.unreadable))

    @router.get("/operations/{operation_id}", response_model=OperationView, dependencies=[Depends(bearer)], **known)
    async def operation(
        operation_id: AnyId, caller: Annotated[Claims | None, Depends(doorman.user_if_any)]
    ) -> Response:
        """What became of a queued write. A registration's is shown to whoever knows its id."""
        work = operations.status(operation_id, caller.user_id if caller else None)
        served = await outcome.of(work)
        return json_response(_operation_body(operation_id, served.value))

    return router


def _with(route: dict[str, Any], responses: dict[Any, Any]) -> dict[str, Any]:
    return {**route, "responses": {**route["responses"], **responses}}


def _written(served: Served[Any], status: int, prefer: str | None) -> Response:
    if isinstance(served.value, Queued):
        return queued_answer(served, served.value.operation_id, POSTGRES, QUEUED_TEXT, prefer=prefer)
    if served.value is None:
        return Response(status_code=status)
    return served_json(served, user_body(served.value), status=status)


def _operation_body(operation_id: str, record: OperationRecord) -> dict[str, Any]:
    operation = record.operation
    body: dict[str, Any] = {"id": operation_id, "status": record.status.value}
    if operation:
        body |= {"kind": operation.kind, "entity": operation.entity}
        if operation.accepted_at:
            body["accepted_at"] = stamp(operation.accepted_at)
        if record.status == "applied":
            body["result"] = {"entity": operation.entity}
            if operation.kind in CREATIONS and operation.entity != AI_CORE_ENTITY:
                body["result"]["id"] = made_id(operation_id)
    if record.error:
        body["error"] = record.error
    return body
