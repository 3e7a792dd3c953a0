"""What the clients of other services share: calls under the row's policy, the row's probe, and the live matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auralink.common.v1 import status_pb2, status_pb2_grpc
from resilience import RowPolicy, Served
from service_kit.rpc_client import Caller

STATUS_SECONDS = 0.5


class Peer:
    """Calls of one service under its row's policy."""

    def __init__(self, policy: RowPolicy) -> None:
        self.policy = policy
        self._caller = Caller(policy.row)

    async def call(self, method: Callable[..., Any], request: object, timeout: float | None = None) -> Served[Any]:
        """``timeout`` in seconds when a call may take longer than the row's calls usually do."""
        timeout = timeout or self.policy.row.call_timeout
        return await self.policy.serve(lambda: self._caller.unary(method, request, timeout=timeout))


async def check(channel: grpc.aio.Channel) -> None:
    """Raises unless the peer says that it is serving: the probe of its row."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs leave the methods out
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=STATUS_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConnectionError("the peer is not serving")


async def status(channel: grpc.aio.Channel) -> status_pb2.GetStatusResponse:
    """The peer's live matrix, for the console; past its circuit, as a look at a sick peer is the point."""
    stub = status_pb2_grpc.StatusServiceStub(channel)
    return await stub.GetStatus(status_pb2.GetStatusRequest(), timeout=STATUS_SECONDS)


def seconds(stamp: Timestamp) -> float:
    """Unix seconds."""
    return stamp.seconds + stamp.nanos / 1e9
