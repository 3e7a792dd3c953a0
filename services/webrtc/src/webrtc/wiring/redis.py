"""Redis: the rooms that all instances share (row W1, webrtc.redis)."""

from resilience import RowPolicy
from service_kit.redis_client import MAX_CONNECTIONS, create_client
from service_kit.runtime import ServiceRuntime
from webrtc.degradation import REDIS, classify
from webrtc.outbound.redis import RedisRooms
from webrtc.ports import StoreDisconnected
from webrtc.usecases.memory_rooms import MemoryRooms
from webrtc.usecases.shared_rooms import SharedRooms


class RedisPart:
    """The client, the policy of its row, and the rooms: in Redis, or in ``memory`` while that is away."""

    def __init__(self, runtime: ServiceRuntime, url: str) -> None:
        self.client = create_client(url)
        self.rooms = RedisRooms(self.client)
        self.policy: RowPolicy = runtime.policy(
            REDIS,
            classify=classify,
            probe=self.rooms.ping,
            bulkhead_limit=MAX_CONNECTIONS,
            retries=1,
            retry_on=lambda error: isinstance(error, StoreDisconnected),
        )
        self.memory = MemoryRooms()
        self.shared = SharedRooms(self.rooms, self.memory, self.policy)
        runtime.on_close(self.client.aclose, "redis")
