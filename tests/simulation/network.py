"""A server as its clients know it: requests travel, are carried out at one instant, and their answers travel back.

What goes wrong on the way is decided when a request is sent. A request whose sender has given up is carried out all
the same when it arrives, or when the server thaws: that is what a frozen statement does when it wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

WAITS: Final = object()
"""Returned by a request's work that has to wait for a lock: it will be tried again."""


class ServerError(Exception):
    """The server answers that it cannot do its work, whatever it was asked."""


class Connection:
    """One connection of a process; what is sent over it arrives in order."""

    __slots__ = ("cut", "doom", "last", "owner", "transaction")

    def __init__(self, owner: Process | None) -> None:
        self.owner = owner
        self.cut = False  # the server knows that the other side is gone
        self.doom = ""  # what is to happen to its commit: "lost" or "late"
        self.last = 0.0  # when what was sent last arrives
        self.transaction: Any = None


class Request:
    """Something to be done at the server."""

    __slots__ = ("about", "connection", "epoch", "future", "label", "lost", "work")

    def __init__(
        self,
        connection: Connection,
        work: Callable[[Request], Any],
        future: asyncio.Future[Any],
        label: str,
        about: str,
    ) -> None:
        self.connection = connection
        self.work = work
        self.future = future
        self.label = label
        self.about = about  # the id of the operation that it may bring into effect
        self.lost = ""  # "before" or "after" its work is done
        self.epoch = 0


class Server:
    """State of health, and delivery. ``calls`` are the requests that have not been answered or dropped yet."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.loop = world.loop
        self.calls = 0
        self.epoch = 0
        self.up = True
        self.frozen = False
        self._backlog: list[Callable[[], None]] = []
        self.calm()

    def calm(self) -> None:
        """No faults on the way."""
        self.slow = 1.0
        self.lose = 0.0
        self.stall = 0.0
        self.sick = 0.0

    # -- faults

    def freeze(self) -> None:
        """Accept everything, answer nothing, until `thaw`."""
        self.frozen = True

    def thaw(self) -> None:
        """Do all that has come meanwhile."""
        self.frozen = False
        backlog, self._backlog = self._backlog, []
        for work in backlog:
            work()

    def crash(self) -> None:
        """Connections die, and what was not carried out never will be. What was is durable, answered or not."""
        self.up = self.frozen = False
        self.epoch += 1
        backlog, self._backlog = self._backlog, []
        for work in backlog:
            work()
        self.crashed()

    def crashed(self) -> None:
        """What else a crash does to this server."""

    def start(self) -> None:
        """Accept connections again."""
        self.up = True

    # -- requests

    def send(
        self, connection: Connection, work: Callable[[Request], Any], label: str, about: str = ""
    ) -> asyncio.Future[Any]:
        """The future of the answer. Raises ConnectionResetError for a process that is no more."""
        owner = connection.owner
        if owner is not None and not owner.alive:
            raise ConnectionResetError("killed")
        future: asyncio.Future[Any] = self.loop.create_future()
        request = Request(connection, work, future, label, about)
        request.epoch = self.epoch
        world = self.world
        if about:
            world.history.sent(about)
        delay = self.latency()
        if self.lose and world.random() < self.lose:
            request.lost = "before" if world.random() < 0.5 else "after"
        if self.stall and world.random() < self.stall:
            world.count("stalled on the network")
            delay += 0.3 + 6 * world.random()
        if connection.doom and label == "commit":
            request.lost, delay = "after", delay + (world.random() * 3 if connection.doom == "late" else 0.0)
        connection.last = at = max(self.loop.time() + delay, connection.last)
        self.calls += 1
        self.loop.call_at(at, self._arrive, request, context=world.context)
        return future

    def latency(self) -> float:
        """One way, in seconds."""
        return (0.0002 + 0.002 * self.world.random()) * self.slow

    def hang_up(self, connection: Connection) -> None:
        """The client closes: the server hears of it after what was sent before."""
        at = max(self.loop.time() + self.latency(), connection.last)
        self.loop.call_at(at, self._hear_of, connection, context=self.world.context)

    def _hear_of(self, connection: Connection) -> None:
        if self.frozen:
            self._backlog.append(lambda: self._hear_of(connection))
        else:
            self.cut(connection)

    def cut(self, connection: Connection) -> None:
        """The server finds the connection closed."""
        connection.cut = True

    def _arrive(self, request: Request) -> None:
        if self.frozen:
            self._backlog.append(lambda: self.carry_out(request))
        else:
            self.carry_out(request)

    def carry_out(self, request: Request) -> None:
        """The instant at which a request takes effect, if it does."""
        if request.epoch != self.epoch:
            self._reply(request, None, ConnectionResetError())
            return
        if not self.up:
            self._reply(request, None, ConnectionRefusedError())
            return
        if request.connection.cut:
            self._reply(request, None, ConnectionResetError())
            return
        if request.lost == "before":
            self.world.count(f"{self.name}: connection lost before")
            self.cut(request.connection)
            self._reply(request, None, ConnectionResetError())
            return
        if self.sick and self.world.random() < self.sick:
            self._reply(request, None, ServerError("not now"))
            return
        self._work(request)

    def _work(self, request: Request) -> None:
        error: Exception | None = None
        result: Any = None
        try:
            result = request.work(request)
        except Exception as answer:  # noqa: BLE001 - goes to whoever asked
            error = answer
        if result is WAITS:
            return
        if request.lost == "after":
            self.world.count(f"{self.name}: connection lost after")
            self.cut(request.connection)
            error = ConnectionResetError()
        if request.future.done():
            self.world.count(f"{self.name}: carried out after its caller gave up")
        self._reply(request, result, error)

    def _reply(self, request: Request, result: Any, error: Exception | None) -> None:
        gone = " (gone)" if request.future.done() else ""
        self.world.note(self.name, f"{request.label}{gone}", result if error is None else error)
        self.loop.call_later(
            self.latency(), self._deliver, request, result, error, self.epoch, context=self.world.context
        )

    def _deliver(self, request: Request, result: Any, error: Exception | None, epoch: int) -> None:
        self.calls -= 1
        future = request.future
        owner = request.connection.owner
        if future.done() or (owner is not None and not owner.alive):
            return
        if epoch != self.epoch and error is None and self.world.random() < 0.7:
            self.world.count(f"{self.name}: answer lost in a crash")
            error = ConnectionResetError()
        clear = error is None or not isinstance(error, ConnectionResetError | ServerError)
        if request.about and clear and not (owner is not None and owner.paused):
            self.world.history.answered(request.about)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
