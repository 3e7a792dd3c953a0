"""What rows D3 and D4 share: the policy of another service of ours."""

from __future__ import annotations

import grpc

from dashboard.outbound import peer
from resilience import Row, RowPolicy
from service_kit.rpc_client import is_dependency_failure
from service_kit.runtime import ServiceRuntime

CONCURRENCY = 64
"""Calls to one service at a time."""
WAITING = 64
"""Calls that wait for a place; others are refused at once: what is dead or slow must not pile up here."""


def peer_policy(
    runtime: ServiceRuntime, row: Row, channel: grpc.aio.Channel, *, timeout: float | None = None, patient: int = 0
) -> RowPolicy:
    """``timeout``: seconds for one call, the row's own when None; ``patient``: further places, for calls that have
    bounds of their own."""
    return runtime.policy(
        row,
        classify=is_dependency_failure,
        probe=lambda: peer.check(channel),
        bulkhead_limit=CONCURRENCY + patient,
        bulkhead_waiting=WAITING,
        timeout=timeout,
    )
