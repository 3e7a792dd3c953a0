"""The Dashboard over gRPC: ``auralink.dashboard.v1.UserService``."""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from __future__ import annotations

import uuid
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from auralink.dashboard.v1 import dashboard_pb2, dashboard_pb2_grpc
from dashboard.inbound.outcome import Outcome
from dashboard.usecases.accounts import Accounts
from service_kit import context as request_context
from service_kit.errors import ValidationFailed

Context = grpc.aio.ServicerContext[Any, Any]


class UserService(dashboard_pb2_grpc.UserServiceServicer):
    """Each method acts for the user of the bearer token."""

    def __init__(self, accounts: Accounts, outcome: Outcome) -> None:
        self._accounts = accounts
        self._outcome = outcome

    async def GetUser(self, request: dashboard_pb2.GetUserRequest, context: Context) -> dashboard_pb2.GetUserResponse:
        """One's own account; from a copy while the database is away."""
        claims = await self._outcome.caller(request_context.bearer_token())
        served = await self._outcome.of(self._accounts.read(_uuid(request.id), claims.user_id))
        user = served.value
        return dashboard_pb2.GetUserResponse(
            user=dashboard_pb2.User(
                id=user.id, email=user.email, display_name=user.display_name, created_at=_stamp(user.created_at)
            ),
            stale=served.degraded,
            as_of=None if served.as_of is None else _stamp(served.as_of),
            pending=served.pending,
        )


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise ValidationFailed("The request is not valid.", details={"id": "is not a UUID"}) from error


def _stamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
