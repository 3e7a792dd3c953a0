"""The running platform: ``async with Stack(...) as stack``. ``auralink up`` and the chaos tests use the same object."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from devstack import launch
from devstack.components import Component, Postgres
from devstack.errors import ChaosError, ComponentError, NotReadyError
from devstack.ports import DEFAULT_BASE, Ports
from devstack.process import Process, truncate_grown
from devstack.state import StateDir, clean_up
from devstack.topology import Plan, Topology, kind_of
from devstack.toxiproxy import ToxiproxyClient

Fault = Literal["killed", "frozen", "delayed", "cut"]
READY_POLL = 0.05  # s
WATCH_INTERVAL = 0.5  # s between looks at the components' health as processes
NEEDS_LIMIT = 60.0  # s that a start waits for what it needs: making a cluster on a slow disk
# The order of stopping. The primary waits for a standby that still listens, so that one goes first.
TIERS = (("dashboard",), ("ai-core", "webrtc"), ("providers", "standby", "turn"), ("postgres", "redis", "kafka"))


@dataclass
class Unit:
    """A component, its process when there is one, and what was done to it."""

    component: Component
    process: Process | None = None
    faults: set[Fault] = field(default_factory=set)
    problem: str = ""  # why it could not be started
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def state(self) -> str:
        """``running``, ``frozen``, ``not started``, ``failed``, ``killed`` (by us), ``stopped`` or ``exited``."""
        if self.process is None:
            return "failed" if self.problem else "not started"
        if self.process.alive:
            return "frozen" if self.process.frozen else "running"
        return "killed" if "killed" in self.faults else "stopped" if self.process.exit_code == 0 else "exited"


@dataclass(frozen=True)
class Healed:
    """What healing a component did, and how long it took until it accepted work (s)."""

    component: str
    actions: tuple[str, ...]
    seconds: float
    accepts: bool


class Stack:
    """A platform on one state directory.

    ``port_base``: the first port of the layout in ``ports.py``; ``None``: free ports. ``autostart=False`` opens the
    stack with the fault proxy only; the caller then starts components in any order with ``start``. ``say`` receives
    lines of progress.
    """

    def __init__(
        self,
        state_dir: Path | str = ".auralink",
        topology: Topology | None = None,
        *,
        port_base: int | None = DEFAULT_BASE,
        autostart: bool = True,
        ready_limit: float = 60.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state = StateDir(Path(state_dir))
        self.topology = topology or Topology()
        self.units: dict[str, Unit] = {}
        self.control: dict[str, str] = {}
        self._port_base = port_base
        self._autostart = autostart
        self._ready_limit = ready_limit
        self._say = say
        self._ports = Ports()
        self._exit = AsyncExitStack()
        self._delays: dict[str, int] = {}
        self._proxy: Unit | None = None
        self._toxiproxy: ToxiproxyClient | None = None

    # --- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Stack:
        try:
            await self.open()
            if self._autostart:
                await self.start()
                await self.wait_ready(self._ready_limit)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Takes the state directory, removes what a killed run left, reserves ports, starts the fault proxy.

        Raises:
            AlreadyRunningError, PortBusyError, AccountError, OSError: nothing was started, nothing is left.
        """
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        self.state.lock()
        self._exit.callback(self.state.unlock)
        self._clean_up()
        self._ports.known = {
            name: port for name, port in self.state.read("ports.json").items() if isinstance(port, int)
        }
        self._exit.callback(self._ports.release)
        self.plan = Plan(self.topology, self.state, self._ports, self._port_base)
        self.state.write("ports.json", dict(self._ports.known))
        self.units = {name: Unit(component) for name, component in self.plan.components.items()}
        self._exit.callback(self.state.stack_file.unlink, missing_ok=True)
        self._exit.push_async_callback(self._stop_all)
        if self.topology.proxied:
            self._toxiproxy = await self._exit.enter_async_context(ToxiproxyClient(self.plan.proxy.url))
            self._proxy = Unit(self.plan.proxy)
            await self._launch(self._proxy)
        self._write()
        watcher = asyncio.create_task(self._watch())
        self._exit.push_async_callback(_cancelled, watcher)

    async def close(self) -> None:
        """Stops everything in reverse order; bounded. The data stays."""
        await self._exit.aclose()

    def _clean_up(self) -> None:
        for found in clean_up(self.state):
            self._say(f"ended what a killed run had left: {found}")

    async def _proxy_ready(self) -> None:
        if self._proxy is not None and not await self._until_accepting(self._proxy, 20.0):
            raise NotReadyError(f"the fault proxy does not start: {self.log_tail('fault-proxy')}")

    # --- starting and stopping ---------------------------------------------------------------------------------------

    async def start(self, *names: str) -> None:
        """Starts components (all of the topology by default) at the same time, without waiting until they accept work;
        only one that needs another is started when that one accepts. One that cannot be started is reported by
        ``status`` and ``wait_ready``, and stops nobody else."""
        await asyncio.gather(self._proxy_ready(), *(self._start_one(self.unit(name)) for name in names or self.units))
        self._write()

    async def stop(self, *names: str) -> None:
        """Asks components to stop, in the order given, and waits; one that does not within its limit is killed."""
        for name in names:
            await self._stop_one(self.unit(name))
        self._write()

    async def wait_ready(self, timeout: float = 60.0, *names: str) -> None:
        """Waits until components (all of the topology by default) accept work.

        Raises:
            NotReadyError: some do not after ``timeout`` seconds, or have ended before.
        """
        units = [self.unit(name) for name in names or self.units]
        results = await asyncio.gather(*(self._until_accepting(unit, timeout) for unit in units))
        if late := [unit for unit, ready in zip(units, results, strict=True) if not ready]:
            raise NotReadyError("\n".join(self.explain(unit.component.name) for unit in late))

    async def accepts(self, name: str) -> bool:
        """Whether a component accepts work at this moment (asked directly, not through the fault proxy)."""
        return await self.unit(name).component.accepts()

    async def _start_one(self, unit: Unit) -> None:
        await asyncio.gather(*(self._needed(name) for name in unit.component.needs))
        async with unit.busy:
            if not unit.running:
                await self._launch(unit)

    async def _needed(self, name: str) -> None:
        """Waits until a component accepts work, as long as it is on its way: ``prepare`` says what its lack means."""
        unit = self.units.get(name)
        end = time.monotonic() + NEEDS_LIMIT
        while unit is not None and (unit.busy.locked() or unit.running) and time.monotonic() < end:
            if await unit.component.accepts():
                return
            await asyncio.sleep(READY_POLL)

    async def _launch(self, unit: Unit) -> None:
        component = unit.component
        unit.problem = ""
        try:
            await component.prepare(self.state)
            log, record = self.state.log(component.name), self.state.record(component.name)
            unit.process = Process.spawn(component.name, component.command(), log=log, record=record)
        except (ComponentError, OSError) as error:
            unit.process, unit.problem = None, str(error)

    async def _stop_one(self, unit: Unit) -> None:
        async with unit.busy:
            if unit.process is not None:
                component = unit.component
                if not await unit.process.stop(component.stop_signal, component.stop_limit):
                    self._say(f"{component.name} did not stop within {component.stop_limit:g} s and was killed")
                self.state.record(component.name).unlink(missing_ok=True)

    async def _stop_all(self) -> None:
        for tier in TIERS:
            await asyncio.gather(*(self._stop_one(unit) for name, unit in self.units.items() if kind_of(name) in tier))
        if self._proxy is not None:
            await self._stop_one(self._proxy)

    async def _until_accepting(self, unit: Unit, limit: float) -> bool:
        end = time.monotonic() + limit
        while unit.running and time.monotonic() < end:
            if await unit.component.accepts():
                return True
            await asyncio.sleep(READY_POLL)
        return False

    # --- chaos -----------------------------------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        """SIGKILL for the component and all its descendants; returns when they are gone."""
        unit = self.unit(name)
        async with unit.busy:
            if unit.process is not None:
                unit.faults.add("killed")
                await unit.process.kill()
                unit.process.frozen = False
                unit.faults.discard("frozen")
        self._write()

    async def freeze(self, name: str) -> None:
        """SIGSTOP for the component and all its descendants.

        Raises:
            ChaosError: it does not run.
        """
        unit = self.unit(name)
        async with unit.busy:
            if unit.process is None or not unit.process.alive:
                raise ChaosError(f"{name} does not run; heal it first")
            unit.process.freeze()
            unit.faults.add("frozen")

    async def delay(self, name: str, ms: int = 5000) -> None:
        """Answers of the component arrive ``ms`` milliseconds late, on every edge to it.

        Raises:
            ChaosError: the stack runs without proxies.
        """
        await self._poison(name, "latency", latency=ms)
        self._delays[name] = ms
        self.unit(name).faults.add("delayed")

    async def cut(self, name: str) -> None:
        """Every connection to the component is reset, the present ones and each new one.

        Raises:
            ChaosError: the stack runs without proxies.
        """
        await self._poison(name, "reset_peer", timeout=0)
        self.unit(name).faults.add("cut")

    async def heal(self, name: str, timeout: float = 30.0) -> Healed:
        """Undoes whatever was done to the component: toxics removed, thawed, started again on the same data and port
        when it is dead. Does no harm to a healthy one. Waits until it accepts work, at most ``timeout`` seconds."""
        unit = self.unit(name)
        begun = time.monotonic()
        actions = []
        if unit.faults & {"delayed", "cut"}:
            actions.append("connections mended")
        await self._unpoison(name)
        async with unit.busy:
            if unit.running and unit.process is not None:
                actions += ["thawed"] if unit.process.frozen else []
                unit.process.thaw()
            else:
                actions.append("started")
                await self._launch(unit)
            unit.faults.clear()
        self._write()
        accepts = await self._until_accepting(unit, timeout)
        return Healed(name, tuple(actions), time.monotonic() - begun, accepts)

    async def _poison(self, name: str, kind: str, **attributes: int) -> None:
        if self._toxiproxy is None:
            raise ChaosError("this stack runs without fault proxies: nothing can be delayed or cut")
        await self._proxy_ready()
        self.unit(name)
        if not (edges := self.plan.edges_to(name)):
            raise ChaosError(f"{name} is not reached through a fault proxy: it can be killed and frozen only")
        for edge in edges:
            await self._toxiproxy.add(edge, kind, attributes)

    async def _unpoison(self, name: str) -> None:
        self._delays.pop(name, None)
        if self._toxiproxy is not None:
            await self._proxy_ready()
            for edge in self.plan.edges_to(name):
                await self._toxiproxy.clear(edge)

    # --- looking -----------------------------------------------------------------------------------------------------

    def unit(self, name: str) -> Unit:
        """Raises:
        ChaosError: no such component.
        """
        if name not in self.units:
            raise ChaosError(f"no component {name!r}; there are {', '.join(self.units)}")
        return self.units[name]

    def url(self, name: str) -> str:
        """Where a client finds a component: a service's public HTTP address, a server's own URL."""
        if name in self.topology.services:
            return f"http://127.0.0.1:{self.plan.public(name, 'http')}"
        return self.unit(name).component.url

    def grpc(self, name: str) -> str:
        """``host:port`` where a client finds a service's gRPC."""
        return f"127.0.0.1:{self.plan.public(name, 'grpc')}"

    def database_url(self, database: str) -> str:
        """One of the databases, without the fault proxy."""
        return self.plan.postgres.url_at(self.plan.postgres.port, database)

    @property
    def admin_token(self) -> str:
        return self.state.secret("admin")

    def log_tail(self, name: str, lines: int = 12) -> str:
        """The last lines of a component's log."""
        try:
            with self.state.log(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def explain(self, name: str) -> str:
        """Why a component is not as it should be: its state and the end of its log."""
        unit = self.unit(name)
        code = unit.process.exit_code if unit.process is not None else None
        what = unit.problem or (
            f"ended with exit status {code}" if code is not None else "runs but does not accept work yet"
        )
        tail = self.log_tail(name).replace("\n", "\n    | ")
        return f"{name}: {what}" + (f"\n    | {tail}" if tail and not unit.problem else "")

    def describe(self) -> dict[str, Any]:
        """The content of stack.json."""
        return {
            "services": {name: self._describe_service(name) for name in self.topology.services if name in self.units},
            "components": {name: self._describe(name) for name in self.units if name not in self.topology.services},
            "admin_token": self.admin_token,
            "supervisor": {"pid": os.getpid(), "identity": launch.identity(os.getpid()) or ""},
            "control": self.control,
            "proxy_admin": self.plan.proxy.url if self.topology.proxied else None,
            "edges": {
                name: {"listen": f"127.0.0.1:{listen}", "upstream": f"127.0.0.1:{upstream}"}
                for name, (listen, upstream) in self.plan.edges.items()
            },
        }

    def _describe_service(self, name: str) -> dict[str, Any]:
        return {
            "http": self.url(name),
            "grpc": self.grpc(name),
            "pid": self._pid(name),
            "direct": self.unit(name).component.url,
        }

    def _describe(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"pid": self._pid(name), "url": self.unit(name).component.url}
        if isinstance(server := self.unit(name).component, Postgres):
            entry |= {"data_dir": str(server.home.data), "programs": str(server.home.programs)}
        return entry

    def _pid(self, name: str) -> int | None:
        unit = self.unit(name)
        return unit.process.pid if unit.process is not None and unit.process.alive else None

    def _write(self) -> None:
        self.state.write("stack.json", self.describe())

    # --- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Reports a component that ends unasked, bounds the logs, and keeps the fault proxy alive: it is our tool, not
        a part of the platform that may fail."""
        ended: set[int] = set()
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            for name, unit in self.units.items():
                truncate_grown(self.state.log(name))
                process = unit.process
                if (
                    unit.state == "exited"
                    and process is not None
                    and process.pid not in ended
                    and not unit.busy.locked()
                ):
                    ended.add(process.pid)
                    self._say(f"{name} (pid {process.pid}) ended unexpectedly: {self.explain(name)}")
                    self._write()
            if self._proxy is not None and not self._proxy.running:
                await self._revive_proxy(self._proxy)

    async def _revive_proxy(self, unit: Unit) -> None:
        self._say("the fault proxy ended; starting it again")
        await self._launch(unit)
        if await self._until_accepting(unit, 10.0):
            for name, faulty in self.units.items():
                if "cut" in faulty.faults:
                    await self.cut(name)
                if name in self._delays:
                    await self.delay(name, self._delays[name])


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=5)
