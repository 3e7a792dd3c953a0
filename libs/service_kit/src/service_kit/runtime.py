"""What a running service consists of: its policies, its background work, what must be closed, and its state.

Everything that is started here can be stopped: background tasks are supervised, cancelled and awaited for a bounded
time, and closers run in reverse order, each within its own limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from resilience.breaker import CircuitBreaker, Classify, default_classify
from resilience.bulkhead import Bulkhead
from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.deadline import hard_timeout
from resilience.events import Event, Events, Transitioned
from resilience.matrix import Row
from resilience.modes import Mode, ModeTracker, RowStatus
from resilience.prober import Prober
from resilience.queue import QueueAdmin, QueueStats
from resilience.row_policy import RowPolicy, never

from . import logs
from .errors import ServiceError
from .settings import ServiceSettings
from .telemetry import TRACER_SHUTDOWN, Metrics, Tracing

REFRESH_EVERY = 1.0  # seconds between refreshes of mode and queue metrics
QUEUE_TIMEOUT = 0.8  # for one look at the queue's store
CLOSE_TIMEOUT = 2.0  # for one closer
STOP_TIMEOUT = 2.0  # for all background tasks to end
RESTART_WAITS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BULKHEAD_WAITING_FACTOR = 50

log = logs.get_logger("runtime")
Work = Callable[[], Awaitable[object]]


class Phase(StrEnum):
    """A service's life, as /health/ready sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class InFlight(Protocol):
    """A request being answered; an open-ended one (an event stream) is not waited for when the service drains."""

    open_ended: bool

    def give_up(self, error: ServiceError) -> None:
        """Answer with the error, or end the answer if it has begun, and cancel the work."""
        ...


@dataclass(frozen=True, slots=True)
class QueueView:
    """The write queue as last seen; `error` is set when the last look failed."""

    stats: QueueStats
    error: str = ""


class ServiceRuntime:
    """One service in one process. Made by the service's wiring, run by `lifecycle.serve`."""

    def __init__(self, name: str, settings: ServiceSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock
        self.started_at = clock.time()
        self.phase = Phase.STARTING
        self.draining = asyncio.Event()
        self.http_port = settings.http_port
        self.grpc_port = settings.grpc_port
        self.in_flight: set[InFlight] = set()

        self.events = Events()
        self.policies: dict[str, RowPolicy] = {}
        self.queue: QueueAdmin | None = None
        self.queue_row = ""  # id of the row whose writes wait in the queue
        self.queue_view = QueueView(QueueStats(0, 0.0, 0))
        self._queue_listeners: list[Callable[[QueueView], None]] = []
        self._mode_listeners: list[Callable[[Mode, Mode], None]] = []
        self.tracker = ModeTracker(clock, on_change=self._mode_changed, leave_after=settings.mode_leave_after)

        self.metrics = Metrics(name)
        self.tracing = Tracing(name, settings.otel_exporter_otlp_endpoint)
        self.access_log = logs.AccessLog(name, settings.access_log)

        self.buffers: dict[str, Callable[[], dict[str, Any]]] = {}
        """Further queues of this process alone, for the health page: what each has to say, by name."""
        self._background: list[tuple[str, Work]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._closers: list[tuple[str, Work]] = []
        self._phase_listeners: list[Callable[[bool], Awaitable[None]]] = []
        self.events.subscribe(self.metrics.listen)
        self.events.subscribe(self._on_event)
        if self.tracing.listener is not None:
            self.events.subscribe(self.tracing.listener)
        self._watch_hands()
        self.background("refresh", self._refresh_forever)
        self._show_mode()

    # -- wiring

    def policy(
        self,
        row: Row,
        *,
        classify: Classify | None = None,
        probe: Callable[[], Awaitable[object]] | None = None,
        bulkhead_limit: int | None = None,
        bulkhead_waiting: int | None = None,
        retries: int = 0,
        retry_on: Callable[[Exception], bool] = never,
        timeout: float | None = None,
        on_closed: Callable[[], None] | None = None,
        trial: Callable[[], Awaitable[object]] | None = None,
    ) -> RowPolicy:
        """The row's policy, with the configured thresholds; shown in health, metrics and status, and probed while open.

        `timeout` in seconds for one call, the row's own when None. `trial`: see `Prober`.

        Raises ValueError when the row is there already.
        """
        if row.id in self.policies:
            raise ValueError(f"row {row.id!r} has a policy already")
        failures, open_seconds = self.settings.circuit(row)
        breaker = CircuitBreaker(
            row.id,
            failure_threshold=failures,
            recovery_timeout=open_seconds,
            success_threshold=1,
            classify=classify or default_classify,
            clock=self.clock,
        )
        policy = RowPolicy(
            row,
            breaker=breaker,
            events=self.events,
            timeout=timeout,
            bulkhead=_bulkhead(row, bulkhead_limit, bulkhead_waiting),
            retries=retries,
            retry_on=retry_on,
            clock=self.clock,
        )
        self.policies[row.id] = policy
        self.metrics.circuit(row.dependency, breaker.state)
        if probe is not None:
            prober = Prober(
                policy, probe, interval=row.probe_interval, clock=self.clock, on_closed=on_closed, trial=trial
            )
            self.background(f"prober {row.id}", prober.run)
        elif on_closed is not None:
            breaker.subscribe(lambda change: on_closed() if change.new is CircuitState.CLOSED else None)
        return policy

    def background(self, name: str, work: Work) -> None:
        """Run `work()` while the service runs; when it raises it is logged and started again, later each time."""
        self._background.append((name, work))
        if self._started:
            self._spawn(name, work)

    def on_close(self, closer: Work, name: str = "") -> None:
        """Call `closer()` when the service stops; the last one registered is called first."""
        self._closers.append((name or getattr(closer, "__qualname__", repr(closer)), closer))

    # -- state

    def rows(self) -> list[RowStatus]:
        """Every row as it is now."""
        return sorted((policy.status() for policy in self.policies.values()), key=lambda row: row.label)

    def status(self) -> list[dict[str, Any]]:
        """Every row as plain data: for the status service and the CLI."""
        return [
            {
                "row": row.row,
                "label": row.label,
                "dependency": row.dependency,
                "priority": row.priority.value,
                "circuit": row.circuit.value,
                "state_seconds": row.state_seconds,
                "failures": row.failures,
                "last_error": row.last_error or "",
                "fallback": row.fallback,
                "retry_after_seconds": row.retry_after or 0.0,
                "queue_depth": self.queue_view.stats.depth if row.row == self.queue_row else 0,
                "latency_ms": None if row.last_latency is None else row.last_latency * 1000,
                "held": row.held,
            }
            for row in self.rows()
        ]

    @property
    def mode(self) -> Mode:
        """The mode the service is in, held or worked out."""
        return self.tracker.mode

    def on_mode(self, listener: Callable[[Mode, Mode], None]) -> None:
        """Call ``listener(old, new)`` after every change of the mode; it must neither wait nor raise."""
        self._mode_listeners.append(listener)

    def on_queue(self, listener: Callable[[QueueView], None]) -> None:
        """Call ``listener(view)`` when a look at the write queue finds other numbers of writes in it than before."""
        self._queue_listeners.append(listener)

    def hold_mode(self, mode: Mode | None) -> None:
        """Stay in `mode` until told otherwise; None gives the choice back to the rows."""
        if mode is None:
            self.tracker.release()
            self.settle_mode()
        else:
            self.tracker.hold(mode)
            self._show_mode()

    def settle_mode(self) -> None:
        """The mode that the rows ask for, at once: for what an operator has done."""
        self.tracker.update(self.rows(), at_once=True)
        self._show_mode()

    def find_policies(self, dependency: str) -> list[RowPolicy]:
        """The policies of a dependency, a row id or a row label; all those of a row that has several circuits."""
        return [
            policy
            for policy in self.policies.values()
            if dependency in (policy.row.dependency, policy.row.id, policy.row.label)
            or ("." in dependency and policy.row.id.startswith(f"{dependency}."))
        ]

    # -- running

    def on_phase(self, listener: Callable[[bool], Awaitable[None]]) -> None:
        """Tell `listener` whether the service is ready, now and at every change of its phase."""
        self._phase_listeners.append(listener)

    async def enter(self, phase: Phase) -> None:
        """Begin a phase of the service's life."""
        self.phase = phase
        if phase is Phase.DRAINING:
            self.draining.set()
        for listener in self._phase_listeners:
            await listener(phase is Phase.READY)

    async def start(self) -> None:
        """Start the background work."""
        self._started = True
        for name, work in self._background:
            self._spawn(name, work)

    async def close(self) -> None:
        """Stop background work, then close what was registered, in reverse order; every step is bounded."""
        self._started = False
        await self._stop_tasks()
        for name, closer in reversed(self._closers):
            await self._close_one(name, closer)
        self._closers.clear()
        if self.tracing.tracer is not None:
            await self._close_one("tracing", lambda: asyncio.to_thread(self.tracing.close), TRACER_SHUTDOWN + 1)
        self.access_log.close()

    def _spawn(self, name: str, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._supervise(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, name: str, work: Work) -> None:
        restarts = 0
        while True:
            begun = self.clock.monotonic()
            try:
                await work()
            except Exception:
                log.error("background work failed", work=name, restarts=restarts, exc_info=True)
            else:
                return
            if self.clock.monotonic() - begun > RESTART_WAITS[-1]:
                restarts = 0
            await self.clock.sleep(RESTART_WAITS[min(restarts, len(RESTART_WAITS) - 1)])
            restarts += 1

    async def _stop_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
            for task in late:
                log.warning("background work did not stop in time", work=task.get_name())

    async def _close_one(self, name: str, closer: Work, limit: float | None = None) -> None:
        try:
            await hard_timeout(closer(), limit or CLOSE_TIMEOUT, name=name)
        except Exception as error:  # noqa: BLE001 - the other closers still have to run
            log.warning("closing failed", what=name, error=type(error).__name__)

    # -- watching

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, Transitioned):
            return
        change = event.transition
        log.warning(
            "circuit changed",
            row=event.row,
            dependency=event.dependency,
            old=change.old.value,
            new=change.new.value,
            reason=change.reason,
            failures=change.failures,
        )
        self._update_mode()

    def _mode_changed(self, old: Mode, new: Mode) -> None:
        log.warning("mode changed", old=old.value, new=new.value, held=self.tracker.held)
        self.metrics.mode_changed(old, new)
        self._show_mode()
        for listener in self._mode_listeners:
            listener(old, new)

    def _update_mode(self) -> None:
        self.tracker.update(self.rows())
        self._show_mode()

    def _show_mode(self) -> None:
        outside = sum(spent for mode, spent in self.tracker.seconds.items() if mode is not Mode.NORMAL)
        self.metrics.mode(self.tracker.mode, outside)

    def _watch_hands(self) -> None:
        """What an operator holds is a metric: it is easily forgotten."""
        watch = self.metrics.watch
        watch("service_mode_held", "1 while an operator holds the mode.", lambda: self.tracker.held)
        watch("circuit_breakers_held", "Circuits that an operator holds.", self._held)

    def _held(self) -> int:
        return sum(policy.status().held for policy in self.policies.values())

    async def _refresh_forever(self) -> None:
        while True:
            self._update_mode()
            await self._refresh_queue()
            await self.clock.sleep(REFRESH_EVERY)

    async def _refresh_queue(self) -> None:
        if self.queue is None:
            return
        try:
            stats = await hard_timeout(self.queue.stats(), QUEUE_TIMEOUT, name="queue stats")
        except Exception as error:  # noqa: BLE001 - the store may be down: the last numbers stay, marked
            self.queue_view = QueueView(self.queue_view.stats, type(error).__name__)
        else:
            before, self.queue_view = self.queue_view.stats, QueueView(stats)
            if (before.depth, before.dead) != (stats.depth, stats.dead):
                for listener in self._queue_listeners:
                    listener(self.queue_view)
            self.metrics.queue(stats.depth, stats.oldest_age, stats.dead)


def _bulkhead(row: Row, limit: int | None, waiting: int | None) -> Bulkhead | None:
    if limit is None:
        return None
    return Bulkhead(row.id, limit, limit * BULKHEAD_WAITING_FACTOR if waiting is None else waiting)
