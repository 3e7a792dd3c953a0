"""A producer that is never waited for: after an outage or a cut-off call it is replaced by a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped] # the package has no type marker

from . import kafka
from .domain_event import HEADERS

ANSWER_SHARE = 0.8  # of the time limit: so that the client's own error, which says more, comes before it


class Record(NamedTuple):
    """What is written to a topic."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = HEADERS


class Sender:
    """Hands records to the broker. `timeout` in seconds for one `send`; the caller's hard limit should be the same.

    The producer is not idempotent in Kafka's sense: Tansu has no producer ids, and events carry their own.
    """

    def __init__(
        self, bootstrap: str, *, client_id: str, timeout: float, producer: Callable[..., Any] = AIOKafkaProducer
    ) -> None:
        self._make: Callable[[], Any] = lambda: producer(
            bootstrap_servers=bootstrap,
            client_id=client_id,
            acks="all",
            enable_idempotence=False,
            request_timeout_ms=int(timeout * ANSWER_SHARE * 1000),
            retry_backoff_ms=kafka.RETRY_BACKOFF_MS,
        )
        self._producer: Any = None
        self._starting = asyncio.Lock()
        self._retired = kafka.Retired()

    async def send(self, topic: str, records: Sequence[Record]) -> None:
        """Return when all records are safe: in order per key, some of them perhaps twice after an error.

        Raises:
            KafkaError: the broker is away or has refused a record; `is_outage` says which.
        """
        producer = await self._started()
        try:
            await _write(producer, topic, records)
        except BaseException as error:  # a cancelled call, too, says that the producer is stuck
            if kafka.is_outage(error) or not isinstance(error, Exception):
                self._retire(producer)
            raise

    async def close(self, seconds: float) -> None:
        """Stop what there is, for `seconds` at most."""
        if self._producer is not None:
            self._retire(self._producer)
        await self._retired.wait(seconds)

    async def _started(self) -> Any:
        async with self._starting:
            if self._producer is None:
                producer = self._make()
                try:
                    await producer.start()
                except BaseException:
                    self._retire(producer)
                    raise
                self._producer = producer
            return self._producer

    def _retire(self, producer: Any) -> None:
        if self._producer is producer:
            self._producer = None
        self._retired.add(producer.stop, producer.client)


async def _write(producer: Any, topic: str, records: Sequence[Record]) -> None:
    written: list[asyncio.Future[object]] = []
    failures: list[BaseException] = []
    try:
        for record in records:
            sending = producer.send(topic, key=record.key, value=record.value, headers=list(record.headers))
            written.append(await sending)
    except Exception as error:  # noqa: BLE001 - raised below, when those on the way have been heard of
        failures.append(error)
    results = await asyncio.gather(*written, return_exceptions=True)
    failures += [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise next((error for error in failures if kafka.is_outage(error)), failures[0])
