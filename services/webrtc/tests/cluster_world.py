"""Instances in one process: each a hub with real WebSockets, its own circuit and its own connections to one Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from resilience import SYSTEM_CLOCK, CircuitBreaker, CircuitState, Prober, RowPolicy
from service_kit.redis_client import create_client
from services.webrtc.tests.signalling_world import LIMIT, ROOM, Client, World, world
from webrtc.degradation import REDIS, classify
from webrtc.model import Room
from webrtc.outbound.cluster_redis import RedisCluster, create_reader
from webrtc.outbound.redis import RedisRooms
from webrtc.ports import StoreDisconnected
from webrtc.usecases.cluster.shared import SharedCluster
from webrtc.usecases.memory_rooms import MemoryRooms
from webrtc.usecases.shared_rooms import SharedRooms
from webrtc.usecases.signalling.hub import Hub

BEAT = 0.2
"""s between renewals of a lease, in tests."""
GRACE = 2.0
"""s in which nobody is held dead: a busy machine is late."""


class Instance:
    """One of them. ``world`` has its hub and lets clients join."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.client, self.reader = create_client(url), create_reader(url)
        self.store = RedisRooms(self.client)
        breaker = CircuitBreaker(
            REDIS.id, failure_threshold=3, recovery_timeout=30, success_threshold=1, classify=classify
        )
        self.policy = RowPolicy(
            REDIS, breaker=breaker, retries=1, retry_on=lambda error: isinstance(error, StoreDisconnected)
        )
        self.memory = MemoryRooms()
        self.rooms = SharedRooms(self.store, self.memory, self.policy)
        self.notes: list[tuple[str, dict[str, object]]] = []
        self.cluster = SharedCluster(
            name,
            RedisCluster(self.client, self.reader),
            self.rooms,
            self.memory,
            self.policy,
            SYSTEM_CLOCK,
            lambda event, /, **fields: self.notes.append((event, fields)),
            slot=name.rstrip("'"),
            beat=BEAT,
            grace=GRACE,
        )
        self.world: World
        self.prober = Prober(self.policy, self.store.ping, interval=0.2)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def hub(self) -> Hub:
        return self.world.hub

    def start(self) -> None:
        work = (self.cluster.write_forever, self.cluster.read_forever, self.cluster.beat_forever, self.prober.run)
        self._tasks = [asyncio.create_task(one()) for one in work]

    async def die(self) -> None:
        """As a process that was killed: it says nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.die()
        await self.client.aclose()
        await self.reader.aclose()

    def roster(self, room_id: str = ROOM) -> set[str]:
        """Who is in the room as this instance sees it."""
        state = self.hub.rooms.get(room_id)
        return {member.id for member in state.members()} if state else set()

    async def in_state(self, state: CircuitState) -> None:
        await eventually(lambda: self.policy.breaker.state is state)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], limit: float = LIMIT) -> None:
    async with asyncio.timeout(limit):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def instance(name: str, url: str) -> AsyncIterator[Instance]:
    """A running one."""
    made = Instance(name, url)
    async with world(cluster=made.cluster) as made.world:
        made.start()
        try:
            yield made
        finally:
            await made.close()


def room(number: int, owner: str = "owner", most: int = 10) -> Room:
    return Room(f"00000000-0000-4000-8000-{number:012d}", f"Room {number}", most, owner, 1_700_000_000_000_000 + number)


async def said(client: Any, kind: str, **fields: Any) -> dict[str, Any]:
    """Reads up to a message of a kind with these fields."""
    while True:
        message: dict[str, Any] = await client.until(kind)
        if all(message.get(name) == value for name, value in fields.items()):
            return message


async def everything(client: Client) -> list[dict[str, Any]]:
    """All that it has been told so far."""
    await client.settled()
    return client.seen
