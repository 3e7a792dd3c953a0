"""A real broker, really broken: what it acknowledged is kept, and faults act on every client through one edge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from devstack import Stack, Topology
from devstack.broker import TOPICS
from devstack.components.kafka import Kafka
from devstack.topology import KAFKA_EDGE

BROKER = Topology(only=frozenset({"kafka"}))
EVENTS = TopicPartition(TOPICS[0], 0)
GROUP = "audit"
SEND_LIMIT = 10.0  # s; ten times what the slowest send here may take
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("kafka"), BROKER, port_base=None) as running:
        yield running


def address(stack: Stack) -> str:
    """The broker as every service finds it."""
    return f"127.0.0.1:{stack.plan.listen(KAFKA_EDGE)}"


@asynccontextmanager
async def producer(stack: Stack) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=address(stack), acks="all", request_timeout_ms=500)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@asynccontextmanager
async def reader(stack: Stack) -> AsyncIterator[AIOKafkaConsumer]:
    """Reads partition 0 from the place that was committed for the group."""
    client = AIOKafkaConsumer(
        bootstrap_servers=address(stack), group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await client.start()
    client.assign([EVENTS])
    try:
        yield client
    finally:
        await client.stop()


async def send(client: AIOKafkaProducer, *values: str) -> None:
    async with asyncio.timeout(SEND_LIMIT):
        for value in values:
            await client.send_and_wait(EVENTS.topic, value.encode())


async def receive(client: AIOKafkaConsumer, count: int) -> list[str]:
    async with asyncio.timeout(SEND_LIMIT):
        return [(await client.getone()).value.decode() for _ in range(count)]


async def test_its_topics_exist_with_one_order_of_events(stack: Stack) -> None:
    async with reader(stack) as client:
        assert {name: client.partitions_for_topic(name) for name in TOPICS} == {name: {0} for name in TOPICS}


async def test_a_killed_broker_keeps_records_and_positions(stack: Stack) -> None:
    values = [f"event {number}" for number in range(100)]
    async with producer(stack) as client:
        await send(client, *values[:60])
        async with reader(stack) as consumer:
            assert await receive(consumer, 40) == values[:40]
            await consumer.commit({EVENTS: 40})
        await stack.kill("kafka")
        with pytest.raises(KafkaError):
            await send(client, "lost")
        healed = await stack.heal("kafka")
        assert (healed.accepts, healed.actions) == (True, ("started",))
        await send(client, *values[60:])
    async with reader(stack) as consumer:
        assert await receive(consumer, 60) == values[40:]
        await consumer.commit({EVENTS: await consumer.position(EVENTS)})


async def test_frozen_accepts_and_never_answers_until_healed(stack: Stack) -> None:
    async with producer(stack) as client:
        await stack.freeze("kafka")
        assert not await stack.accepts("kafka")
        with pytest.raises(KafkaError):
            await send(client, "late")
        assert (await stack.heal("kafka")).accepts
        await send(client, "thawed")


async def test_delay_and_cut_act_on_every_client(stack: Stack) -> None:
    async with producer(stack) as client:
        await stack.delay("kafka", 100)
        begun = time.monotonic()
        await send(client, "delayed")
        assert time.monotonic() - begun > 0.1
        await stack.heal("kafka")
        await stack.cut("kafka")
        with pytest.raises(KafkaError):
            await send(client, "cut off")
        assert await stack.accepts("kafka")  # itself it is well
        await stack.heal("kafka")
        await send(client, "mended")


async def test_without_proxies_it_advertises_its_own_port(tmp_path: Path) -> None:
    async with Stack(tmp_path, Topology(only=BROKER.only, proxied=False), port_base=None) as bare:
        assert address(bare) == bare.url("kafka")
        async with producer(bare) as client:
            await send(client, "direct")
        await bare.stop("kafka")
        assert bare.unit("kafka").state == "stopped"
        assert not bare.state.record("kafka-broker").exists()


async def test_a_server_of_another_kind_is_no_broker() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        assert not await Kafka(port, port, Path("unused"), Path("unused")).accepts()
    finally:
        server.close()
        await server.wait_closed()
