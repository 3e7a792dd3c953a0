"""The one table of errors: reason -> HTTP problem (RFC 9457) and gRPC status (google.rpc.Status).

    ServiceError
    ├── ValidationFailed        VALIDATION_ERROR        422
    │   ├── BadRequest                                  400
    │   └── PayloadTooLarge                             413
    ├── Unauthorized            UNAUTHORIZED            401
    ├── Forbidden               FORBIDDEN               403
    ├── NotFound                NOT_FOUND               404
    ├── Conflict                CONFLICT                409
    ├── RateLimited             RATE_LIMITED            429
    ├── CircuitOpen             CIRCUIT_OPEN            429  the dependency was not tried
    ├── DependencyUnavailable   DEPENDENCY_UNAVAILABLE  503  the dependency was tried and failed
    ├── DatabaseError           DATABASE_ERROR          503
    ├── RequestTimeout          REQUEST_TIMEOUT         504
    ├── QueueFull               QUEUE_FULL              503
    └── Internal                INTERNAL_ERROR          500

The rule: what is in an error's message may be shown to anybody. Causes stay in `__cause__` and in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, ClassVar

from grpc import StatusCode

from resilience.errors import CircuitBreakerOpen
from resilience.matrix import Row
from resilience.outcome import Degradation
from resilience.row_policy import RowPolicy

from .provenance import fields, whole_seconds


class ErrorReason(StrEnum):
    """The codes of the contract; the same names as auralink.common.v1.ErrorReason."""

    VALIDATION_ERROR = "VALIDATION_ERROR"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    RATE_LIMITED = "RATE_LIMITED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    DATABASE_ERROR = "DATABASE_ERROR"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    QUEUE_FULL = "QUEUE_FULL"
    INTERNAL_ERROR = "INTERNAL_ERROR"


@dataclass(frozen=True, slots=True)
class Mapped:
    """How a reason leaves the process."""

    http: int
    grpc: StatusCode
    suggestion: str = ""


_LATER = "Try again after the time given in Retry-After."

TABLE: Mapping[ErrorReason, Mapped] = {
    ErrorReason.VALIDATION_ERROR: Mapped(422, StatusCode.INVALID_ARGUMENT),
    ErrorReason.UNAUTHORIZED: Mapped(401, StatusCode.UNAUTHENTICATED, "Log in and send the access token."),
    ErrorReason.FORBIDDEN: Mapped(403, StatusCode.PERMISSION_DENIED),
    ErrorReason.NOT_FOUND: Mapped(404, StatusCode.NOT_FOUND),
    ErrorReason.CONFLICT: Mapped(409, StatusCode.ALREADY_EXISTS),
    ErrorReason.RATE_LIMITED: Mapped(429, StatusCode.RESOURCE_EXHAUSTED, _LATER),
    ErrorReason.CIRCUIT_OPEN: Mapped(429, StatusCode.UNAVAILABLE, _LATER),
    ErrorReason.DEPENDENCY_UNAVAILABLE: Mapped(503, StatusCode.UNAVAILABLE, _LATER),
    ErrorReason.DATABASE_ERROR: Mapped(503, StatusCode.UNAVAILABLE, _LATER),
    ErrorReason.REQUEST_TIMEOUT: Mapped(504, StatusCode.DEADLINE_EXCEEDED, "Try again."),
    ErrorReason.QUEUE_FULL: Mapped(503, StatusCode.UNAVAILABLE, _LATER),
    ErrorReason.INTERNAL_ERROR: Mapped(500, StatusCode.INTERNAL),
}


class ServiceError(Exception):
    """A failure that callers may see. `retry_after` in seconds; `status` overrides the table's HTTP status."""

    default_reason: ClassVar[ErrorReason] = ErrorReason.INTERNAL_ERROR
    default_status: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: ErrorReason | None = None,
        retry_after: float | None = None,
        row: str = "",
        queued: bool | None = None,
        operation_id: str | None = None,
        status_url: str | None = None,
        suggestion: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
        degradations: Sequence[Degradation] = (),
        circuit: str = "",
        answered: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.status = status or self.default_status or TABLE[self.reason].http
        self.retry_after = retry_after
        self.row = row
        self.queued = queued
        self.operation_id = operation_id
        self.status_url = status_url
        self.suggestion = suggestion if suggestion is not None else TABLE[self.reason].suggestion
        self.details = details
        self.headers = headers or {}
        self.degradations = tuple(degradations)
        self.circuit = circuit
        self.answered = answered
        """False when a call to another service got no answer from it at all (see rpc_client)."""


class ValidationFailed(ServiceError):
    """The request is well-formed and wrong; `details` names the fields."""

    default_reason = ErrorReason.VALIDATION_ERROR


class BadRequest(ValidationFailed):
    """The request cannot be understood."""

    default_status = 400


class PayloadTooLarge(ValidationFailed):
    """The body is larger than the service takes."""

    default_status = 413


class Unauthorized(ServiceError):
    """No valid credentials came with the request."""

    default_reason = ErrorReason.UNAUTHORIZED


class Forbidden(ServiceError):
    """The caller is known and may not do this."""

    default_reason = ErrorReason.FORBIDDEN


class NotFound(ServiceError):
    """There is no such thing, or the caller may not know of it."""

    default_reason = ErrorReason.NOT_FOUND


class Conflict(ServiceError):
    """The request contradicts the present state."""

    default_reason = ErrorReason.CONFLICT


class RateLimited(ServiceError):
    """Too many requests from this caller."""

    default_reason = ErrorReason.RATE_LIMITED


class CircuitOpen(ServiceError):
    """The circuit of a dependency is open: it was not tried, and nothing could serve instead."""

    default_reason = ErrorReason.CIRCUIT_OPEN

    def __init__(self, message: str, *, circuit: str = "open", **fields: Any) -> None:
        super().__init__(message, circuit=circuit, **fields)


class DependencyUnavailable(ServiceError):
    """A dependency was tried and failed, and nothing could serve instead."""

    default_reason = ErrorReason.DEPENDENCY_UNAVAILABLE


class DatabaseError(ServiceError):
    """The database was tried and failed, and nothing could serve instead."""

    default_reason = ErrorReason.DATABASE_ERROR


class RequestTimeout(ServiceError):
    """The request's own time ran out."""

    default_reason = ErrorReason.REQUEST_TIMEOUT


class QueueFull(ServiceError):
    """A write could be neither done nor saved for later."""

    default_reason = ErrorReason.QUEUE_FULL


class Internal(ServiceError):
    """A defect of the service; the message never says which."""

    default_reason = ErrorReason.INTERNAL_ERROR


BY_REASON: Mapping[ErrorReason, type[ServiceError]] = {
    kind.default_reason: kind for kind in ServiceError.__subclasses__()
}
RETRYABLE = frozenset(
    {
        ErrorReason.RATE_LIMITED,
        ErrorReason.CIRCUIT_OPEN,
        ErrorReason.DEPENDENCY_UNAVAILABLE,
        ErrorReason.DATABASE_ERROR,
        ErrorReason.QUEUE_FULL,
    }
)
"""Reasons whose answers carry Retry-After."""

DATABASES = frozenset({"postgres", "standby"})
"""Dependencies whose failure is a DATABASE_ERROR."""

INTERNAL_MESSAGE = "An unexpected error occurred. It has been recorded under this request id."


def to_problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The body of an application/problem+json answer."""
    optional = {
        "suggestion": error.suggestion or None,
        "details": dict(error.details) if error.details else None,
        "retry_after": whole_seconds(error.retry_after) if _retries(error) else None,
        "queued": error.queued,
        "operation_id": error.operation_id,
        "status_url": error.status_url,
        "row": error.row or None,
    }
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "error": error.reason.value,
        "message": error.message,
        "request_id": request_id,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **{key: value for key, value in optional.items() if value is not None},
    }


def error_fields(error: ServiceError, reported: Sequence[Degradation] = ()) -> list[tuple[str, str]]:
    """Headers (or gRPC trailing metadata) of a failed answer, with the degradations the request met on its way."""
    found = dict(fields([*error.degradations, *(one for one in reported if one not in error.degradations)]))
    if _retries(error):
        seconds = str(whole_seconds(error.retry_after))
        found |= {"retry-after": seconds, "x-retry-after": seconds}
    if error.circuit:
        found["x-circuit-state"] = error.circuit
    if error.status == 401:
        found["www-authenticate"] = "Bearer"
    return [*found.items(), *((name.lower(), value) for name, value in error.headers.items())]


def _retries(error: ServiceError) -> bool:
    return error.retry_after is not None or error.reason in RETRYABLE


def translate(failure: BaseException, row: Row | RowPolicy | None = None) -> ServiceError:
    """What a caller sees when a dependency's failure could not be covered by a fallback.

    With the row's policy the remaining time is the circuit's own; with the row alone it is the time to the next
    probe. A ServiceError that names its own row, such as an answer of another service, passes untouched.
    """
    if isinstance(failure, ServiceError) and failure.answered:
        return failure
    declared = row.row if isinstance(row, RowPolicy) else row
    text = (declared.user_text if declared else "") or "A part of the platform that this needs is not available."
    known: dict[str, Any] = {"row": declared.id if declared else "", "retry_after": _remaining(failure, row)}
    if not isinstance(failure, Exception):
        raise failure
    error = _kind(failure, declared)(text, **known)
    error.__cause__ = failure
    return error


def _kind(failure: Exception, row: Row | None) -> type[ServiceError]:
    if isinstance(failure, CircuitBreakerOpen):
        return CircuitOpen
    return DatabaseError if row is not None and row.dependency in DATABASES else DependencyUnavailable


def _remaining(failure: BaseException, row: Row | RowPolicy | None) -> float | None:
    """Seconds until a retry makes sense: the circuit's own time, else what the failure says, else the next probe's."""
    told = getattr(failure, "retry_after", None)
    if isinstance(failure, CircuitBreakerOpen) and told is not None:
        return float(told)
    if isinstance(row, RowPolicy):
        told, row = row.breaker.retry_after() or told, row.row
    if isinstance(told, int | float):
        return float(told)
    return row.probe_interval if row else None
