"""The error table, its two wire forms, and degradation on the wire."""

from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc.aio import AioRpcError, Metadata

from auralink.common.v1 import error_pb2
from resilience.breaker import Verdict
from resilience.clock import FakeClock
from resilience.errors import CallTimeout, CircuitBreakerOpen
from resilience.outcome import Degradation
from resilience.row_policy import RowPolicy
from service_kit import errors, provenance
from service_kit.errors import BY_REASON, TABLE, ErrorReason, error_fields, to_problem, translate
from service_kit.rpc_client import is_dependency_failure
from service_kit.rpc_errors import from_grpc, to_grpc


def test_the_table_is_complete() -> None:
    proto = {name.removeprefix("ERROR_REASON_") for name in dict(error_pb2.ErrorReason.items())} - {"UNSPECIFIED"}
    assert proto == {reason.value for reason in ErrorReason} == set(TABLE) == set(BY_REASON)


def rpc_error(error: errors.ServiceError) -> AioRpcError:
    code, text, trailing = to_grpc(error)
    return AioRpcError(code, Metadata(), Metadata(*trailing), text)


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_every_reason_survives_the_hop(reason: ErrorReason) -> None:
    sent = BY_REASON[reason](
        "text", retry_after=1.25, row="ai_core.postgres", queued=True, operation_id="o", details={"f": "bad"}
    )
    got = from_grpc(rpc_error(sent))
    assert type(got) is type(sent)
    assert (got.message, got.retry_after, got.row, got.queued) == ("text", 1.25, "ai_core.postgres", True)
    assert (got.operation_id, got.details, got.answered) == ("o", {"f": "bad"}, True)


def test_retry_info_is_the_standard_one() -> None:
    _, _, trailing = to_grpc(errors.CircuitOpen("open", retry_after=2.5))
    status = Status.FromString(dict(trailing)["grpc-status-details-bin"])
    info = RetryInfo()
    assert any(item.Unpack(info) for item in status.details)
    assert info.retry_delay.ToTimedelta().total_seconds() == 2.5
    assert dict(trailing)["x-circuit-state"] == "open"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (grpc.StatusCode.UNAVAILABLE, Verdict.FAILURE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Verdict.FAILURE),
        (grpc.StatusCode.UNKNOWN, Verdict.FAILURE),
        (grpc.StatusCode.INTERNAL, Verdict.FAILURE),
        (grpc.StatusCode.NOT_FOUND, Verdict.SUCCESS),
        (grpc.StatusCode.INVALID_ARGUMENT, Verdict.SUCCESS),
        (grpc.StatusCode.CANCELLED, Verdict.NEUTRAL),
    ],
)
def test_a_bare_status(code: grpc.StatusCode, verdict: Verdict, sample: Any) -> None:
    row = sample.ROW
    failure = AioRpcError(code, Metadata(), Metadata(), "ipv4:10.0.0.1:9081: connection refused")
    assert is_dependency_failure(failure) is verdict
    if verdict is Verdict.FAILURE:
        mapped = from_grpc(failure, row)
        assert is_dependency_failure(mapped) is Verdict.FAILURE
        assert mapped.message == row.user_text
        assert "10.0.0.1" not in str(to_problem(mapped, "id"))


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.DependencyUnavailable("its own store is down"), Verdict.SUCCESS),
        (errors.CircuitOpen("its own circuit is open"), Verdict.SUCCESS),
        (errors.NotFound("no"), Verdict.SUCCESS),
        (errors.Internal("its defect"), Verdict.FAILURE),
        (errors.RequestTimeout("its timeout"), Verdict.FAILURE),
    ],
)
def test_an_answer_of_a_live_service(error: errors.ServiceError, verdict: Verdict) -> None:
    assert is_dependency_failure(rpc_error(error)) is verdict
    assert is_dependency_failure(from_grpc(rpc_error(error))) is verdict


def test_translate(sample: Any) -> None:
    row = sample.ROW
    opened = translate(CircuitBreakerOpen(row.id, 7.2), row)
    assert (opened.status, opened.circuit, opened.row) == (429, "open", row.id)
    assert dict(error_fields(opened)) == {"retry-after": "8", "x-retry-after": "8", "x-circuit-state": "open"}
    failed = translate(CallTimeout(row.id, 0.5), row)
    assert (failed.status, failed.message) == (503, row.user_text)
    assert dict(error_fields(failed)) == {"retry-after": "1", "x-retry-after": "1"}
    policy = RowPolicy(sample.ROW, clock=FakeClock())
    policy.breaker.acquire().failure(OSError())
    policy.breaker.acquire().failure(OSError())
    gone = errors.DependencyUnavailable("transport", retry_after=1.0, answered=False)
    assert translate(gone, policy).retry_after == sample.ROW.open_seconds  # the failure has opened the circuit
    own = errors.NotFound("no such user")
    assert translate(own, row) is own


@pytest.mark.parametrize(("seconds", "header"), [(None, 1), (0, 1), (0.1, 1), (1.0, 1), (1.01, 2), (59.2, 60)])
def test_retry_after_is_rounded_up(seconds: float | None, header: int) -> None:
    assert provenance.whole_seconds(seconds) == header


def test_degradation_round_trip_keeps_rows() -> None:
    sent = (Degradation("a.b", "redis-cache", "open", 3.5), Degradation("c.d", "stun-only", "closed", None))
    assert provenance.from_metadata(provenance.to_metadata(sent)) == sent
    assert dict(provenance.fields(sent)) == {
        "x-degraded-mode": "true",
        "x-fallback-used": "redis-cache, stun-only",
        "x-circuit-state": "open",
        "x-retry-after": "4",
    }
    assert provenance.fields(()) == []


def test_metadata_of_a_stranger() -> None:
    told = [
        ("x-degraded-mode", "true"),
        ("x-fallback-used", "a, b"),
        ("x-circuit-state", "open"),
        ("x-retry-after", "nan"),
    ]
    found = provenance.from_metadata(told)
    assert [one.fallback for one in found] == ["a", "b"]
    assert found[0].retry_after is None
    assert provenance.from_metadata([("x-degradation", "garbage"), ("x-degradation", b"\xff|x")]) == ()


def test_broken_details_are_no_answer() -> None:
    failure = AioRpcError(
        grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(("grpc-status-details-bin", b"\xff\xff")), "x"
    )
    assert not from_grpc(failure).answered
