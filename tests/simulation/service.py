"""A service instance: the library's real parts, wired as a service wires them, in a process that can die."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from resilience.breaker import CircuitBreaker, Verdict
from resilience.bulkhead import Bulkhead
from resilience.circuit import CircuitState
from resilience.deadline import deadline_scope
from resilience.matrix import Priority, Row
from resilience.outcome import Served
from resilience.prober import Prober
from resilience.queue import Drainer, Operation, Result
from resilience.row_policy import RowPolicy
from resilience.writer import Accepted, DurableWriter, Written
from tests.simulation.loop import OWNER, Process
from tests.simulation.network import Connection, Server
from tests.simulation.store import SimStore
from tests.simulation.target import SimTarget, is_disconnect, is_outage
from tests.simulation.text import name_of

if TYPE_CHECKING:
    from tests.simulation.world import World

REQUEST_SECONDS = 2.0
STOP_SECONDS = 10.0

Answer = Served[Written[str] | Accepted]


def _row(name: str, timeout: float, failures: int, seconds: float) -> Row:
    return Row(
        id=f"simulated.{name}",
        label=name,
        service="simulated",
        dependency=name,
        title=name,
        priority=Priority.P0,
        impact="high",
        max_failures=failures,
        open_seconds=seconds,
        call_timeout=timeout,
        fallbacks=(),
        promise="",
        recovery="",
        data_loss="",
        user_text="",
    )


def _verdict(error: BaseException) -> Verdict:
    return Verdict.FAILURE if is_outage(error) else Verdict.SUCCESS


class Instance:
    """Started, killed and started again; ``process`` is its present life."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.background: list[asyncio.Task[Any]] = []
        self.open_requests: list[asyncio.Future[Any]] = []
        self.process = Process("none")
        self.process.alive = False

    # -- life

    def start(self) -> None:
        """A new process with nothing in its memory, unless it runs."""
        if self.process.alive:
            return
        self.lives += 1
        self.process = Process(f"{self.name}.{self.lives}")
        context = contextvars.Context()
        context.run(OWNER.set, self.process)
        self._context = context
        context.run(self._wire)

    def _wire(self) -> None:
        world, scenario = self.world, self.world.scenario
        row = _row("store", 0.6, scenario.store_failures, 30.0)
        store_policy = self._policy(row, None)
        self.store = SimStore(world.store, self.process, store_policy, row.call_timeout)
        self.policy = self._policy(_row("database", 1.0, scenario.database_failures, 60.0), _verdict)
        self.drainer = Drainer(
            self.store,
            SimTarget(world.database, self.process),
            call=self.policy.call,
            settings=scenario.drain,
            clock=world.clock,
            on_applied=self._refresh,
        )
        self.writer = DurableWriter(
            self.policy,
            self.store,
            self.drainer,
            fallback="queue",
            settle_wait=scenario.settle_wait,
            clock=world.clock,
        )
        self.background = []
        self._run("prober of the store", self._prober(store_policy, world.store).run())
        self._run("prober", self._prober(self.policy, world.database, self.drainer.kick).run())
        self._run("drainer", self.drainer.run())
        self._run("watch", self.writer.watch())

    def _policy(self, row: Row, classify: Callable[[BaseException], Verdict] | None) -> RowPolicy:
        clock, scenario = self.world.clock, self.world.scenario
        extra: dict[str, Any] = {} if classify is None else {"classify": classify}
        breaker = CircuitBreaker(
            row.id,
            failure_threshold=row.max_failures,
            recovery_timeout=row.open_seconds,
            success_threshold=1,
            clock=clock,
            **extra,
        )
        breaker.subscribe(lambda change: self._on_transition(row.label, change.new))
        database = classify is not None
        return RowPolicy(
            row,
            breaker=breaker,
            bulkhead=Bulkhead(
                row.id, scenario.pool if database else scenario.store_pool, scenario.waiting, clock=clock
            ),
            retries=1 if database else 0,
            retry_on=is_disconnect,
            clock=clock,
        )

    def _on_transition(self, what: str, state: CircuitState) -> None:
        self.world.count(f"circuit of the {what} {state}")
        self.world.note(self.process.name, f"circuit of the {what}: {state}")

    def _prober(self, policy: RowPolicy, server: Server, on_closed: Callable[[], None] | None = None) -> Prober:
        process = self.process

        async def probe() -> None:
            await server.send(Connection(process), lambda _: None, "probe")

        return Prober(policy, probe, random=Random(self.world.random()), clock=self.world.clock, on_closed=on_closed)

    async def _refresh(self, results: Sequence[Result]) -> None:
        """The copies that a service refreshes: it takes a moment, in which anything may happen."""
        await self.world.clock.sleep(0.001 * len(results))

    def _run(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        task = self.world.loop.create_task(work, name=name)
        task.add_done_callback(partial(self._ended, self.process))
        self.background.append(task)

    def _ended(self, process: Process, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            self.world.violation(f"{process.name}: the {task.get_name()} ended by itself: {task.exception()!r}")

    def context(self) -> contextvars.Context:
        """For a task of this process that somebody else starts."""
        return self._context.copy()

    # -- death

    def kill(self) -> None:
        """The process is gone this instant, and what it had in memory."""
        process = self.process
        if not process.alive:
            return
        if process.running[len(self.background) :]:
            self.world.count("killed while busy")
        self.world.note(self.name, "killed")
        process.alive = False
        self.world.loop.resume(process)
        self.world.database.forget(process)
        for task in process.running:
            task.cancel()
        for answer in self.open_requests:
            if not answer.done():
                answer.set_exception(ConnectionResetError("killed"))
        self.open_requests = []
        self.world.loop.call_later(0.0, self._buried, process, context=self.world.context)

    def _buried(self, process: Process) -> None:
        for task in process.running:
            self.world.violation(f"{process.name}: still there after its end: {name_of(task.get_coro())}")

    def stop(self) -> None:
        """Asked to end: background work is cancelled and given time, requests are served to their end."""
        self.world.note(self.name, "stopping")
        for task in self.background:
            task.cancel()

    def stopped(self) -> bool:
        """Whether everything has ended by itself; it is killed then, or counted as a violation."""
        rest = [task.get_name() for task in self.background if not task.done()]
        if rest and self.process.alive:
            self.world.violation(f"{self.process.name}: does not stop: {rest}")
        return not rest

    # -- requests

    def request(self, operation: Operation) -> asyncio.Future[Answer]:
        """What a client gets when it sends a write here."""
        answer: asyncio.Future[Answer] = self.world.loop.create_future()
        delay = 0.0002 + 0.003 * self.world.random()
        self.world.loop.call_later(delay, self._accept, operation, answer, context=self.world.context)
        return answer

    def _accept(self, operation: Operation, answer: asyncio.Future[Answer]) -> None:
        process = self.process
        if answer.done():
            return
        if not process.alive or self.background[0].done():
            answer.set_exception(ConnectionRefusedError())
            return
        self.open_requests = [other for other in self.open_requests if not other.done()]
        self.open_requests.append(answer)
        task = self.world.loop.create_task(self._handle(operation), context=self.context())
        task.add_done_callback(partial(self._answer, process, answer))
        if self.world.scenario.cancels and self.world.random() < self.world.scenario.cancels:
            self.world.count("request cancelled")
            self.world.loop.call_later(self.world.random(), task.cancel, context=self.world.context)

    async def _handle(self, operation: Operation) -> Answer:
        with deadline_scope(REQUEST_SECONDS, clock=self.world.clock):
            return await self.writer.write(operation, lambda unordered: self._direct(operation, unordered))

    def _direct(self, operation: Operation, unordered: bool) -> Awaitable[str]:
        world = self.world
        if unordered:
            world.count("direct write while the store could not be asked")
        connection = Connection(self.process)
        unordered_at = world.clock.time() if unordered else 0.0
        work = partial(world.database.write, operation, world.loop.time(), unordered_at)
        sent = world.database.send(connection, work, f"write {operation.id}", operation.id)
        return self._tidied(connection, sent) if world.scenario.slow_clean_up else sent

    async def _tidied(self, connection: Connection, sent: asyncio.Future[str]) -> str:
        try:
            return await sent
        except asyncio.CancelledError:
            await self.world.clean_up(connection)
            raise

    def _answer(self, process: Process, answer: asyncio.Future[Answer], task: asyncio.Task[Answer]) -> None:
        error = None if task.cancelled() else task.exception()
        if answer.done() or not process.alive:
            return
        if task.cancelled():
            answer.set_exception(ConnectionResetError("cancelled"))
            return
        delay = 0.0002 + 0.003 * self.world.random()
        outcome = error if error is not None else task.result()
        self.world.loop.call_later(delay, self._deliver, answer, outcome, context=self.world.context)

    @staticmethod
    def _deliver(answer: asyncio.Future[Answer], outcome: Any) -> None:
        if answer.done():
            return
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
