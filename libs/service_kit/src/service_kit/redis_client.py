"""The one way the services talk to Redis: every wait bounded, one retry for a stale pooled connection.

The options are measured ones: the client's defaults need seconds to notice a dead server and most of a minute to notice
a frozen one. A command that is retried may run twice, so whatever is sent must be harmless when repeated.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from resilience.breaker import Verdict
from resilience.errors import POLICY_FAILURES

MAX_CONNECTIONS = 16
SOCKET_LIMIT = 0.5
"""Seconds for connecting, for an answer, and for a place in the pool; the policy's own limit is the hard one."""

AWAY = (RedisError, OSError, *POLICY_FAILURES)
"""What a call under the policy of Redis raises when Redis did not serve it."""


def classify(error: BaseException) -> Verdict:
    """How the circuit counts an error: Redis failed, or the caller's own code did."""
    if not isinstance(error, Exception):
        return Verdict.NEUTRAL
    return Verdict.FAILURE if isinstance(error, (RedisError, OSError, TimeoutError)) else Verdict.SUCCESS


class _LostWrites:
    """uvloop refuses to write to a reset connection with a RuntimeError, which the client would let through."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError("the connection was reset") from error


class _Connection(_LostWrites, Connection):
    pass


class _SSLConnection(_LostWrites, SSLConnection):
    pass


class _UnixConnection(_LostWrites, UnixDomainSocketConnection):
    pass


_CONNECTIONS = {Connection: _Connection, SSLConnection: _SSLConnection, UnixDomainSocketConnection: _UnixConnection}


def create_client(url: str) -> Redis:
    """A client that connects at first use; ``url`` is redis://, rediss:// or unix://."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=SOCKET_LIMIT,
        socket_timeout=SOCKET_LIMIT,
        socket_connect_timeout=SOCKET_LIMIT,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Redis.from_pool(pool)
