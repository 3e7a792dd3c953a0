"""The platform that ``docker compose`` runs, with the verbs of a ``Stack``: those break processes, these containers.
Which file, project and settings: as for ``docker compose`` itself, from the folder and the environment.

A component is one service of the file, or all that share a network alias: ``dashboard`` is both its instances.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from devstack.demo.load import session
from devstack.errors import ChaosError, NoStackError
from devstack.stack import Healed

COMMAND_LIMIT = 60.0  # s
HEAL_LIMIT = 60.0  # s: a Kafka takes its time
POLL = 0.1  # s
PUBLISHED = {"dashboard": ("balancer", 8080), "ai-core": ("ai-core", 8081), "webrtc": ("webrtc", 8082)}
DEVICE = "eth0"
"""The interface of a container on one network."""


class Containers:
    """A running project. Made by ``find``."""

    def __init__(self, config: Mapping[str, Any], urls: Mapping[str, str]) -> None:
        self._services: Mapping[str, Mapping[str, Any]] = config["services"]
        self._aliases = {name: (name, *_shared(service)) for name, service in self._services.items()}
        self.units: Mapping[str, tuple[str, ...]] = _components(self._aliases)
        self._project: str = config["name"]
        self._network = f"{self._project}_default"
        self._urls = urls

    @classmethod
    async def find(cls) -> Containers:
        """The project of this folder.

        Raises:
            NoStackError: no engine, no compose file, or nothing runs.
        """
        try:
            config = json.loads(await _docker("compose", "config", "--format", "json"))
            urls = {name: await _published(*where) for name, where in PUBLISHED.items()}
        except (ChaosError, OSError, ValueError) as error:
            raise NoStackError(
                f"no platform in containers here; start one with `docker compose up --wait` ({error})"
            ) from None
        return cls(config, urls)

    def url(self, name: str) -> str:
        """Where a client on this machine finds a service: the Dashboard at its balancer."""
        return self._urls[name]

    def database_url(self, database: str) -> str:
        """Raises ChaosError: none is published."""
        raise ChaosError(f"the database {database} is not published by the containers")

    def settings(self, service: str) -> Mapping[str, str]:
        """A service's variables, as the file and the environment set them."""
        return {name: value or "" for name, value in self._services[service].get("environment", {}).items()}

    async def has(self, service: str, circuits: Collection[str]) -> bool:
        """Whether these circuits are on a service's health page: which there are depends on the settings."""
        async with session() as client, client.get(f"{self.url(service)}/health/detailed") as response:
            return set(circuits) <= set((await response.json())["dependencies"])

    # --- chaos -----------------------------------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the containers are down. Docker restarts none that was killed by its own command."""
        for container in await self._containers(name):
            if (await _inspect(container))["State"]["Paused"]:
                await _docker("unpause", container)  # the frozen cannot be killed
            await _docker("kill", container)
            await _docker("wait", container)

    async def freeze(self, name: str) -> None:
        """Paused: it holds its connections, accepts more, and never answers. Raises ChaosError: it does not run."""
        await _docker("pause", *await self._containers(name))

    async def cut(self, name: str) -> None:
        """Taken off the network: its name is gone, and what is sent to it is lost without an answer."""
        for container in await self._containers(name):
            await _docker("network", "disconnect", self._network, container)

    async def delay(self, name: str, ms: int = 5000) -> None:
        """All that it sends is ``ms`` milliseconds late, by the kernel's netem.

        Raises:
            ChaosError: without root on the engine's own machine, ``tc``, or netem in its kernel.
        """
        for container in await self._containers(name):
            await _tc(container, "replace", "netem", "delay", f"{ms}ms")

    async def heal(self, name: str, timeout: float = HEAL_LIMIT) -> Healed:
        """Undoes whatever was done. Waits until each container passes its own health check, at most ``timeout`` s."""
        begun, containers, actions = time.monotonic(), await self._containers(name), []
        for container in containers:
            actions += await self._mend(container)
        accepts = await _until_healthy(containers, begun + timeout)
        return Healed(name, tuple(dict.fromkeys(actions)), time.monotonic() - begun, accepts)

    async def _mend(self, container: str) -> list[str]:
        found, actions = await _inspect(container), []
        if self._network not in found["NetworkSettings"]["Networks"]:
            await _docker("network", "connect", *self._names(found), self._network, container)
            actions.append("connected")
        if found["State"]["Paused"]:
            await _docker("unpause", container)
            actions.append("thawed")
        elif not found["State"]["Running"]:
            await _docker("start", container)
            actions.append("started")
        elif await _is_late(found["State"]["Pid"]):
            await _tc(container, "del")
            actions.append("in time again")
        return actions

    def _names(self, found: Mapping[str, Any]) -> list[str]:
        """The options that give a container its names on the network back."""
        service = found["Config"]["Labels"]["com.docker.compose.service"]
        return [option for alias in self._aliases[service] for option in ("--alias", alias)]

    async def _containers(self, name: str) -> list[str]:
        """The component's containers, also the stopped. Raises ChaosError: there is none."""
        if name not in self.units:
            raise ChaosError(f"no component {name!r}; there are {', '.join(self.units)}")
        found = []
        for service in self.units[name]:
            labels = {"project": self._project, "service": service, "oneoff": "False"}
            filters = [f"--filter=label=com.docker.compose.{label}={value}" for label, value in labels.items()]
            found += (await _docker("ps", "--all", "--quiet", *filters)).split()
        if not found:
            raise ChaosError(f"{name} has no container; start it with `docker compose up --wait`")
        return found


def _shared(service: Mapping[str, Any]) -> tuple[str, ...]:
    """A service's further names on the network."""
    network = (service.get("networks") or {}).get("default") or {}
    return tuple(network.get("aliases") or ())


def _components(aliases: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    names = dict.fromkeys(name for known in aliases.values() for name in known)
    return {name: tuple(one for one, known in aliases.items() if name in known) for name in names}


async def _published(service: str, port: int) -> str:
    return f"http://{(await _docker('compose', 'port', service, str(port))).strip()}"


async def _inspect(container: str) -> dict[str, Any]:
    return dict(json.loads(await _docker("inspect", container))[0])


async def _until_healthy(containers: list[str], end: float) -> bool:
    """Asks for itself: the engine's own checks are seconds apart, and remember what was before the fault."""
    for container in containers:
        kind, *test = (await _inspect(container))["Config"]["Healthcheck"]["Test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        while not await _succeeds("docker", "exec", container, *command):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL)
    return True


async def _is_late(pid: int) -> bool:
    try:
        return "netem" in await _run("nsenter", "-t", str(pid), "-n", "tc", "qdisc", "show", "dev", DEVICE)
    except (ChaosError, OSError):
        return False  # then nobody here can have delayed it either


async def _tc(container: str, verb: str, *discipline: str) -> None:
    pid = str((await _inspect(container))["State"]["Pid"])
    try:
        await _run("nsenter", "-t", pid, "-n", "tc", "qdisc", verb, "dev", DEVICE, "root", *discipline)
    except (ChaosError, OSError) as error:
        raise ChaosError(
            f"a container can be delayed by root only, on the engine's own machine, with tc (iproute2) and a kernel "
            f"that has netem: {error}"
        ) from None


async def _succeeds(*command: str) -> bool:
    try:
        await _run(*command, limit=5.0)
    except ChaosError:
        return False
    return True


async def _docker(*arguments: str) -> str:
    return await _run("docker", *arguments)


async def _run(*command: str, limit: float = COMMAND_LIMIT) -> str:
    """What a command printed.

    Raises:
        ChaosError: it failed, with the last line of what it said, or took longer than ``limit`` seconds.
        OSError: there is no such command.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit)
    except TimeoutError:
        raise ChaosError(f"`{' '.join(command[:3])}` did not end within {limit:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ChaosError((err.decode().strip().splitlines() or [f"status {process.returncode}"])[-1])
    return out.decode()
