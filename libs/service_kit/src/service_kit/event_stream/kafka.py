"""What is particular to Kafka and its client: what an error means, and a bare connection that tells whether it lives.

aiokafka reconnects by itself and hides it, waits for several of its own limits in a row, and writes a dozen log lines a
second while the broker is away. So producers and consumers are watched from outside, by a connection of their own, and
replaced rather than waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import errors  # type: ignore[import-untyped] # the package has no type marker
from aiokafka.cluster import ClusterMetadata  # type: ignore[import-untyped]
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]

from resilience.breaker import Verdict
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import ABANDONED, hard_timeout
from resilience.errors import BulkheadFull, CallTimeout, CircuitBreakerOpen, RateLimited, TransientError

# Its lines repeat themselves many times a second during an outage, and quote whole records on level debug. What matters
# of them is logged here, once.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

RETRY_BACKOFF_MS = 100
STOP_LIMIT = 3.0  # seconds for a replaced client to end by itself
CLOSE_LIMIT = 0.5  # and then for its sockets
AWAY = (CircuitBreakerOpen, BulkheadFull, RateLimited, CallTimeout, TransientError)
"""Raised in place of an answer by the policy and the limits around a call."""

# Error answers that are not worth retrying at once, yet are about the broker or its set-up and not about a record.
_BROKER_FAULTS = (
    errors.BrokerNotAvailableError,
    errors.ReplicaNotAvailableError,
    errors.StaleControllerEpochError,
    errors.StaleLeaderEpochCodeError,
    errors.InvalidTopicError,
    errors.InvalidRequiredAcksError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedVersionError,
    errors.PolicyViolationError,
    errors.SecurityDisabled,
    errors.LogDirNotFound,
)
_RECORD_FAULTS = (errors.RecordTooLargeError, errors.UnsupportedCodecError, errors.IllegalArgumentError)


def is_outage(error: BaseException) -> bool:
    """Whether the stream is away, so that the same records are to be sent again later; else they were refused.

    An answer with an error code that the client does not know is a refusal: newer codes (87, INVALID_RECORD, for one)
    arrive as `UnknownError`, and a record refused by a schema must not hold up those behind it for ever.
    """
    if isinstance(error, errors.BrokerResponseError):
        return bool(error.retriable) or isinstance(error, _BROKER_FAULTS)
    if isinstance(error, errors.KafkaError):
        return not isinstance(error, _RECORD_FAULTS)
    return isinstance(error, (OSError, TimeoutError, *AWAY))


def classify(error: BaseException) -> Verdict:
    """How the circuit counts an error: the broker failed, or it answered that it does not take a record."""
    if not isinstance(error, Exception):
        return Verdict.NEUTRAL
    return Verdict.FAILURE if is_outage(error) else Verdict.SUCCESS


async def probe(bootstrap: str, topic: str, *, timeout: float) -> None:
    """A cheap real request on a connection of its own; raises if `topic` cannot be used now.

    On a broker that makes topics by itself this makes it, too.
    """
    watch = Watch(bootstrap, topic, timeout=timeout)
    try:
        await hard_timeout(watch.open(), timeout, name="event stream probe")
    finally:
        watch.close()


class Watch:
    """A connection on which nothing waits behind a long poll: it tells at once that the broker has died or frozen.

    Args:
        bootstrap: "host:port", or several with commas; the first that answers is watched.
        timeout: seconds for one answer; then the broker counts as frozen.
        every: seconds between questions.
    """

    def __init__(
        self, bootstrap: str, topic: str, *, timeout: float, every: float = 1.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._timeout = timeout
        self._every = every
        self._clock = clock
        self._connection: Any = None
        self._lost: Exception | None = None
        self.partitions: frozenset[int] = frozenset()

    async def open(self) -> None:
        """Connect and learn the topic's partitions; bounded by `timeout` per step and host, so limit it as a whole.

        Raises:
            KafkaError, OSError, TimeoutError: nobody answers, or the topic has no leader (yet).
        """
        failure: Exception = errors.NoBrokersAvailable()
        for host, port, _ in collect_hosts(self._bootstrap):
            try:
                self._connection = await create_conn(
                    host, port, request_timeout_ms=int(self._timeout * 1000), on_close=self._closed
                )
                self.partitions = await self._ask()
            except (errors.KafkaError, OSError, TimeoutError) as error:
                failure = error
                self.close()
            else:
                self._lost = None
                return
        raise failure

    async def run(self) -> None:
        """Ask again and again until the broker is lost; `check` raises from then on."""
        while self._lost is None:
            await self._clock.sleep(self._every)
            try:
                partitions = await hard_timeout(self._ask(), self._timeout, name="event stream watch")
                if partitions != self.partitions:
                    self._lost = errors.StaleMetadata("the topic has other partitions now")
            except Exception as error:  # noqa: BLE001 - a watch that has failed must not look like one that is content
                self._lost = self._lost or error

    def check(self) -> None:
        """Raise why the broker was lost, if it was."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Close the connection without waiting."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _closed(self, _connection: AIOKafkaConnection, _reason: object) -> None:
        self._lost = errors.KafkaConnectionError("the connection was closed")

    async def _ask(self) -> frozenset[int]:
        if self._connection is None:
            raise errors.KafkaConnectionError("not connected")
        metadata = ClusterMetadata()
        metadata.update_metadata(await self._connection.send(MetadataRequest([self._topic])))
        partitions = metadata.available_partitions_for_topic(self._topic)
        if not partitions:
            raise errors.LeaderNotAvailableError
        return frozenset(partitions)


class Retired:
    """Producers and consumers that were replaced: they end by themselves in the background, within a bounded time."""

    def __init__(self) -> None:
        self._ending: set[asyncio.Task[None]] = set()

    def add(self, stop: Callable[[], Awaitable[object]], client: Any, call: asyncio.Task[None] | None = None) -> None:
        """Run `stop`, and close the `client` in any case: with a frozen broker the first may not end.

        `call` may still be on its way. It is cancelled only when nothing answers it any more: before that, the client
        would leave a part of it behind, whose error asyncio then complains of.
        """
        task = asyncio.get_running_loop().create_task(_end(stop, client, call))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def wait(self, seconds: float) -> None:
        """Until all have ended, for `seconds` at most."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=seconds)


async def _end(stop: Callable[[], Awaitable[object]], client: Any, call: asyncio.Task[None] | None) -> None:
    # A consumer's stop() can end half-way in a CancelledError of its own making, and leave the client running.
    for step, limit in ((stop, STOP_LIMIT), (client.close, CLOSE_LIMIT)):
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await hard_timeout(step(), limit, name="event stream stop")
    if call is not None:
        ABANDONED.abandon(call)
