"""The platform as data: which components there are, who depends on whom, and where each finds the others.

The same topology serves ``auralink up``, the chaos tests and the benchmarks; they differ in the options of ``Topology``
only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from devstack import privileges
from devstack.components import (
    Component,
    FaultProxy,
    Kafka,
    Postgres,
    Providers,
    Service,
    Standby,
    Turn,
    Valkey,
    providers,
    turn,
)
from devstack.ports import DEFAULT_BASE, GRPC_OFFSET, Ports
from devstack.state import StateDir

SERVERS = ("postgres", "redis", "kafka", "providers")
# One for all: a broker tells its clients one address, and they leave the one they were configured with for it.
KAFKA_EDGE = "services-kafka"
PortKind = Literal["http", "grpc", "tcp"]
STUN = "stun:stun.l.google.com:19302"


def kind_of(name: str) -> str:
    """``dashboard`` for ``dashboard-2``."""
    return name.rstrip("0123456789").rstrip("-")


@dataclass(frozen=True)
class Edge:
    """``source`` reaches ``target`` through the proxy called ``name``; the source ``client`` is everybody outside, and
    ``services`` all services together."""

    name: str
    source: str
    target: str
    kind: PortKind = "tcp"


@dataclass(frozen=True)
class Topology:
    """What to run.

    ``dashboards``, ``webrtcs``: instances; the second is called ``dashboard-2``, ``webrtc-2``. ``proxied``: with a
    fault proxy on every edge (without it nothing can be delayed or cut). ``standby``: with a streaming standby of
    PostgreSQL, from which the Dashboards may read. ``turn``: with TURN; where coturn is not installed nobody answers
    at its address. ``only``: a subset of the components; the addresses of the others are still configured, and nobody
    answers there. ``env``: settings for all services; ``service_env``: for one component, by name.
    """

    dashboards: int = 1
    webrtcs: int = 1
    proxied: bool = True
    standby: bool = False
    turn: bool = False
    only: frozenset[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    service_env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def dashboard_names(self) -> tuple[str, ...]:
        return ("dashboard", *(f"dashboard-{number}" for number in range(2, self.dashboards + 1)))

    @property
    def webrtc_names(self) -> tuple[str, ...]:
        return ("webrtc", *(f"webrtc-{number}" for number in range(2, self.webrtcs + 1)))

    @property
    def services(self) -> tuple[str, ...]:
        return (*self.dashboard_names, "ai-core", *self.webrtc_names)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of everything that is to run, in the order in which it is started."""
        wanted = [*SERVERS, "ai-core", *self.webrtc_names, *self.dashboard_names]
        if providers.real():
            wanted.remove("providers")
        if self.standby:
            wanted.insert(SERVERS.index("postgres") + 1, "standby")
        if self.turn and turn.installed():
            wanted.insert(wanted.index("kafka") + 1, "turn")
        return tuple(name for name in wanted if self.only is None or name in self.only)

    def edges(self) -> Iterator[Edge]:
        """Every edge of the platform, services to dependencies and clients to services."""
        for dashboard in self.dashboard_names:
            yield Edge(f"{dashboard}-postgres", dashboard, "postgres")
            yield Edge(f"{dashboard}-redis", dashboard, "redis")
            yield Edge(f"{dashboard}-ai-core", dashboard, "ai-core", "grpc")
            yield Edge(f"{dashboard}-webrtc", dashboard, "webrtc", "grpc")
            if self.standby:
                yield Edge(f"{dashboard}-standby", dashboard, "standby")
        yield Edge("ai-core-postgres", "ai-core", "postgres")
        yield Edge("ai-core-redis", "ai-core", "redis")
        yield Edge("ai-core-providers", "ai-core", "providers")
        for webrtc in self.webrtc_names:
            yield Edge(f"{webrtc}-postgres", webrtc, "postgres")
            yield Edge(f"{webrtc}-redis", webrtc, "redis")
        yield Edge(KAFKA_EDGE, "services", "kafka")
        for service in self.services:
            yield Edge(f"client-{service}", "client", service, "http")
            yield Edge(f"client-{service}-grpc", "client", service, "grpc")


class Plan:
    """A topology with its ports and secrets: every address is known before anything runs.

    Raises:
        PortBusyError: a port that was asked for is taken.
        AccountError, OSError: see ``privileges.home``.
    """

    def __init__(self, topology: Topology, state: StateDir, ports: Ports, base: int | None = DEFAULT_BASE) -> None:
        self.topology = topology
        self.ports = ports
        self._state = state
        self._base = base
        self._by_name = {edge.name: edge for edge in topology.edges()}
        self.edges = {
            name: (self.listen(name), self._own(edge.target, edge.kind)) for name, edge in self._by_name.items()
        }
        self.components: dict[str, Component] = {}
        self._build()

    def edges_to(self, component: str) -> list[str]:
        """Names of the proxies in front of ``component``."""
        return [name for name, edge in self._by_name.items() if edge.target == component]

    def listen(self, edge: str) -> int:
        """The port on which the source of an edge finds its target."""
        one = self._by_name[edge]
        if not self.topology.proxied:
            return self._own(one.target, one.kind)
        return self.public(one.target, one.kind) if one.source == "client" else self.ports.free(f"edge {edge}")

    def public(self, service: str, kind: PortKind) -> int:
        """The port on which clients find a service."""
        name = f"{service} {kind}"
        if self._base is None:
            return self.ports.free(name)
        order = ["dashboard", "ai-core", "webrtc", *self.topology.dashboard_names[1:], *self.topology.webrtc_names[1:]]
        return self.ports.fixed(name, self._base + order.index(service) + (GRPC_OFFSET if kind == "grpc" else 0))

    def _own(self, target: str, kind: PortKind) -> int:
        """The port on which the process itself listens."""
        if target in self.topology.services and not self.topology.proxied:
            return self.public(target, kind)
        return self.ports.free(f"{target} behind {kind}" if target in self.topology.services else target)

    def _build(self) -> None:
        state, secret = self._state, self._state.secret
        self.postgres = Postgres(self._own("postgres", "tcp"), secret("postgres"), privileges.home(state))
        self.redis = Valkey(self._own("redis", "tcp"), secret("redis"), state.path / "redis")
        self.kafka = self._kafka()
        known: list[Component] = [self.postgres, self.redis, self.kafka, Providers(self._own("providers", "tcp"))]
        if self.topology.standby:
            self.standby = Standby(self._own("standby", "tcp"), self.postgres, secret("postgres"))
            known.append(self.standby)
        if self.topology.turn:
            self.turn = Turn(self._own("turn", "tcp"), secret("turn"), state.path / "turn")
            known.append(self.turn)
        known += [self._service(name) for name in self.topology.services]
        by_name = {component.name: component for component in known}
        self.components = {name: by_name[name] for name in self.topology.components}
        if self.topology.proxied:
            self.proxy = FaultProxy(self.ports.free("fault-proxy"), self.edges, state.path / "edges.json")

    def _kafka(self) -> Kafka:
        own, advertised = self._own("kafka", "tcp"), self.listen(KAFKA_EDGE)
        return Kafka(own, advertised, self._state.path / "kafka", self._state.record("kafka-broker"))

    def _service(self, name: str) -> Service:
        module = kind_of(name).replace("-", "_")
        env = {
            **self._common(name),
            **self._dependencies(name, module),
            **self.topology.env,
            **self.topology.service_env.get(name, {}),
        }
        return Service(name, module, port=self._own(name, "http"), env=env)

    def _common(self, name: str) -> dict[str, str]:
        return {
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self._own(name, "http")),
            "GRPC_PORT": str(self._own(name, "grpc")),
            "ADMIN_TOKEN": self._state.secret("admin"),
            "JWT_SECRET": self._state.secret("jwt"),
            "LOG_FORMAT": os.environ.get("LOG_FORMAT", "json"),
        }

    def _dependencies(self, name: str, module: str) -> dict[str, str]:
        env = {"REDIS_URL": self.redis.url_at(self.listen(f"{name}-redis"))}
        env["DATABASE_URL"] = self.postgres.url_at(self.listen(f"{name}-postgres"), module)
        if module != "ai_core":
            env["KAFKA_BOOTSTRAP_SERVERS"] = f"127.0.0.1:{self.listen(KAFKA_EDGE)}"
        if module == "dashboard":
            if self.topology.standby:
                env["DATABASE_REPLICA_URL"] = self.standby.url_at(self.listen(f"{name}-standby"), module)
            env["AI_CORE_GRPC"] = f"127.0.0.1:{self.listen(f'{name}-ai-core')}"
            env["WEBRTC_GRPC"] = f"127.0.0.1:{self.listen(f'{name}-webrtc')}"
        if module == "ai_core":
            env |= providers.environment(self.listen("ai-core-providers"))
        if module == "webrtc":
            env["STUN_URLS"] = os.environ.get("STUN_URLS", STUN)
            if self.topology.turn:
                env |= self._turn()
            env["PUBLIC_WS_URL"] = f"ws://127.0.0.1:{self.public(name, 'http')}/ws"
        return env

    def _turn(self) -> dict[str, str]:
        """Over UDP, and over TCP for networks without it; not through the fault proxy, which knows TCP only."""
        urls = f"{self.turn.url}?transport=udp,{self.turn.url}?transport=tcp"
        return {"TURN_URLS": urls, "TURN_SECRET": self._state.secret("turn")}
