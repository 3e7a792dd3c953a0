"""The cluster: all instances over Redis, each with an id of its own for as long as its process lives."""

import secrets
import socket

from service_kit import durable, logs
from service_kit.runtime import ServiceRuntime
from webrtc.outbound.cluster_redis import RedisCluster, create_reader
from webrtc.usecases.cluster.shared import SharedCluster
from webrtc.wiring.redis import RedisPart

log = logs.get_logger("cluster")


class ClusterPart:
    """``cluster`` is for the signalling, which attaches itself to it."""

    def __init__(self, runtime: ServiceRuntime, redis: RedisPart, url: str) -> None:
        reader = create_reader(url)
        self.cluster = SharedCluster(
            secrets.token_hex(8),
            RedisCluster(redis.client, reader),
            redis.shared,
            redis.memory,
            redis.policy,
            runtime.clock,
            _note,
            slot=f"{socket.gethostname()}:{runtime.settings.http_port}",
        )
        runtime.background("cluster writer", self.cluster.write_forever)
        runtime.background("cluster reader", self.cluster.read_forever)
        runtime.background("cluster lease", self.cluster.beat_forever)
        runtime.buffers["cluster"] = self._state
        durable.say_when_away(
            redis.policy,
            "Redis is away: rooms and participants of this instance alone, in memory, where they may be lost",
            "Redis is back: rooms and participants are merged",
        )
        runtime.on_close(reader.aclose, "redis inbox")
        runtime.on_close(self.cluster.stop, "cluster")

    def _state(self) -> dict[str, object]:
        cluster = self.cluster
        return {
            "instance": cluster.instance,
            "alone": cluster.alone,
            "held_elsewhere": cluster.held_elsewhere,
            "depth": len(cluster.outbox),
        }


def _note(event: str, /, **fields: object) -> None:
    log.info(event, **fields)
