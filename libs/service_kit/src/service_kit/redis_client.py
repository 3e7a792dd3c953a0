"""The one way the services talk to Redis: every wait bounded, one retry for a stale pooled connection.

The options are measured ones: the client's defaults need seconds to notice a dead server and most of a minute to notice
a frozen one. A command that is retried may run twice, so whatever is sent must be harmless when repeated.

Behind Sentinel (`sentinel_url`) every new connection asks all sentinels at once for the master, takes the first answer,
and has the server confirm it (https://redis.io/docs/latest/develop/reference/sentinel-clients/). So one sentinel that
is dead or frozen costs nothing, and after a failover nothing has to be told: connections to the old master break or
are refused their writes, and are made anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from resilience.breaker import Verdict
from resilience.errors import POLICY_FAILURES

from . import sentinel_url

MAX_CONNECTIONS = 16
SOCKET_LIMIT = 0.5
"""Seconds for connecting, for an answer, and for a place in the pool; the policy's own limit is the hard one."""
LOOKUP_LIMIT = 0.25
"""Seconds in which one sentinel of all has to name the master."""

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


class _Sentinels:
    """Who knows which server is the master. Keeps no connection: it is asked once per connection to the server."""

    def __init__(
        self, address: sentinel_url.SentinelUrl, kind: Callable[..., Connection], options: dict[str, Any]
    ) -> None:
        self._address = address
        self._kind = kind
        self._options: Final = {
            **options,
            "socket_timeout": LOOKUP_LIMIT,
            "socket_connect_timeout": LOOKUP_LIMIT,
            "username": address.username,
            "password": address.password,
            "retry": Retry(NoBackoff(), 0),
        }

    async def master(self) -> tuple[str, int]:
        """Host and port. Raises ConnectionError of the client."""
        asked = [asyncio.create_task(self._ask(host, port)) for host, port in self._address.sentinels]
        try:
            async with asyncio.timeout(LOOKUP_LIMIT):
                return await _first(asked)
        except TimeoutError:
            raise RedisConnectionError("no sentinel answers in time") from None
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        connection = self._kind(host=host, port=port, **self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
            found = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        if not found:
            raise RedisConnectionError("a sentinel does not know the service")
        return found[0].decode(), int(found[1])


async def _first(asked: Iterable[asyncio.Task[tuple[str, int]]]) -> tuple[str, int]:
    for answer in asyncio.as_completed(asked):
        try:
            return await answer
        except (RedisError, OSError):
            continue
    raise RedisConnectionError("no sentinel knows the master")


class _ToMaster:
    """A connection to the server that is the master when it is made; a server that is none any more is left."""

    def __init__(self, *, sentinels: _Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.master()
        await super()._connect()  # type: ignore[misc]

    async def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        await super().on_connect_check_health(*args, **kwargs)  # type: ignore[misc]
        await self.send_command("ROLE", check_health=False)  # type: ignore[attr-defined]
        role = await self.read_response(disable_decoding=True)
        if role[0] != b"master":
            raise RedisConnectionError("the sentinels name a server that is not the master yet, or no more")

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError("the server is not the master any more") from error


class _MasterConnection(_ToMaster, _Connection):
    pass


class _SSLMasterConnection(_ToMaster, _SSLConnection):
    pass


_TO_MASTER: dict[Any, Any] = {_Connection: _MasterConnection, _SSLConnection: _SSLMasterConnection}


def create_client(
    url: str,
    *,
    max_connections: int = MAX_CONNECTIONS,
    answer_limit: float = SOCKET_LIMIT,
    retries: int = 1,
    **options: Any,
) -> Redis:
    """A client that connects at first use; ``url`` is redis://, rediss:// or unix://, or names sentinels.

    ``answer_limit``: seconds for an answer, longer than `SOCKET_LIMIT` only for commands that wait; ``options`` are the
    client's. Raises ValueError.
    """
    address = sentinel_url.parse(url) if sentinel_url.is_sentinel(url) else None
    pool = BlockingConnectionPool.from_url(
        address.server if address else url,
        max_connections=max_connections,
        timeout=SOCKET_LIMIT,
        socket_timeout=answer_limit,
        socket_connect_timeout=SOCKET_LIMIT,
        retry=Retry(NoBackoff(), retries, supported_errors=(RedisConnectionError,)),
        **options,
    )
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    if address:
        _follow(pool, address)
    return Redis.from_pool(pool)


def _follow(pool: BlockingConnectionPool, address: sentinel_url.SentinelUrl) -> None:
    tls = {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl")}
    kind: Any = pool.connection_class
    pool.connection_kwargs["sentinels"] = _Sentinels(address, kind, tls)
    pool.connection_class = _TO_MASTER[kind]
