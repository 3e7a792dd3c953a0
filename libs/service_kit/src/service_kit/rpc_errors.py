"""The error table on gRPC: google.rpc.Status with our ErrorDetail and the standard RetryInfo, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # the package has no stubs
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from auralink.common.v1 import error_pb2
from resilience.matrix import Row
from resilience.outcome import Degradation

from . import errors
from .errors import BY_REASON, TABLE, ErrorReason, ServiceError, error_fields
from .provenance import Metadata, from_metadata, to_metadata

DETAILS_KEY = "grpc-status-details-bin"
MAX_FIELDS = 50
_PREFIX = "ERROR_REASON_"

# What a status without our detail means: the peer did not come to answer, or it is no service of ours.
_BARE: Mapping[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.ValidationFailed,
    grpc.StatusCode.OUT_OF_RANGE: errors.ValidationFailed,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthorized,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.RateLimited,
}
NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DATA_LOSS,
    }
)
_DEFAULT_TEXT = "A part of the platform that this needs is not available."


def to_grpc(
    error: ServiceError, reported: Sequence[Degradation] = ()
) -> tuple[grpc.StatusCode, str, list[tuple[str, str | bytes]]]:
    """Status code, text, and trailing metadata of a failed call."""
    code = TABLE[error.reason].grpc
    status = Status(code=code.value[0], message=error.message)
    _add(status, _detail(error))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        _add(status, RetryInfo(retry_delay=delay))
    trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    plain = {key: value for key, value in error_fields(error, reported) if key.startswith("x-")}
    entries = [item for item in to_metadata([*error.degradations, *reported]) if item[0] not in plain]
    return code, error.message, [*trailing, *plain.items(), *entries]


def _add(status: Status, detail: error_pb2.ErrorDetail | RetryInfo) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)


def _detail(error: ServiceError) -> error_pb2.ErrorDetail:
    details = list((error.details or {}).items())[:MAX_FIELDS]
    return error_pb2.ErrorDetail(
        reason=error_pb2.ErrorReason.Value(_PREFIX + error.reason.value),
        message=error.message,
        retry_after_seconds=error.retry_after,
        row=error.row,
        queued=bool(error.queued),
        operation_id=error.operation_id or "",
        fields={str(key): str(value) for key, value in details},
    )


def from_grpc(failure: grpc.RpcError, row: Row | None = None) -> ServiceError:
    """The error that a failed call means to our own caller.

    With an ErrorDetail it is the other service's own answer. Without one the call did not reach a working service:
    the error has `answered=False`, and `row` says which row of ours that is.
    """
    code, metadata = _status(failure)
    detail = _find_detail(metadata)
    if detail is not None:
        return _answer(detail, metadata)
    if code in NO_ANSWER or code is grpc.StatusCode.CANCELLED or code is grpc.StatusCode.UNIMPLEMENTED:
        return no_answer(row)
    return _BARE.get(code, errors.Internal)("The request was refused.")


def no_answer(row: Row | None) -> ServiceError:
    """The error of a call that did not reach a working service, or was broken off by it."""
    return errors.DependencyUnavailable(
        (row.user_text if row else "") or _DEFAULT_TEXT,
        row=row.id if row else "",
        retry_after=row.probe_interval if row else None,
        answered=False,
    )


def _status(failure: grpc.RpcError) -> tuple[grpc.StatusCode, Metadata]:
    if isinstance(failure, grpc.aio.AioRpcError):
        return failure.code(), list(failure.trailing_metadata() or ())
    return grpc.StatusCode.UNKNOWN, ()


def _find_detail(metadata: Metadata) -> error_pb2.ErrorDetail | None:
    packed = next((value for key, value in metadata if key == DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return None
    try:
        for item in Status.FromString(packed).details:
            detail = error_pb2.ErrorDetail()
            if item.Unpack(detail):
                return detail
    except DecodeError:
        return None
    return None


def _answer(detail: error_pb2.ErrorDetail, metadata: Metadata) -> ServiceError:
    name = error_pb2.ErrorReason.Name(detail.reason) if detail.reason in error_pb2.ErrorReason.values() else ""
    try:
        reason = ErrorReason(name.removeprefix(_PREFIX))
    except ValueError:
        reason = ErrorReason.INTERNAL_ERROR
    known = dict(metadata)
    return BY_REASON[reason](
        detail.message,
        retry_after=detail.retry_after_seconds if detail.HasField("retry_after_seconds") else None,
        row=detail.row,
        queued=True if detail.queued else None,
        operation_id=detail.operation_id or None,
        details=dict(detail.fields) or None,
        circuit=str(known.get("x-circuit-state", "")) if reason is ErrorReason.CIRCUIT_OPEN else "",
        degradations=from_metadata(metadata),
    )
