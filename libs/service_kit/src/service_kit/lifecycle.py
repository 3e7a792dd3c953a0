"""From start to exit: one event loop, both servers, signals, drain.

    start   ports bound (a taken one is said by name, exit 1) -> servers answer, not ready -> background work ->
            on_start -> ready
    stop    SIGTERM or SIGINT -> not ready -> requests in flight finish (bounded by DRAIN_TIMEOUT) -> servers closed ->
            background work stopped -> closers, in reverse order -> exit 0

No dependency is awaited on the way: a service starts with all of them down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import grpc
import uvicorn
import uvloop
from starlette.types import ASGIApp

from resilience.deadline import hard_timeout

from . import logs
from .errors import DependencyUnavailable
from .runtime import InFlight, Phase, ServiceRuntime

log = logs.get_logger("lifecycle")

START_LIMIT = 30.0  # seconds for on_start
POLL = 0.02
FORCE_AFTER = 1.0  # seconds that cancelled requests get
# Full collections over the imported libraries cost 50 to 100 ms each; measured with these there are none to notice.
GC_THRESHOLDS = (20_000, 20, 100)
BACKLOG = 2048
KEEP_ALIVE = 75  # seconds an idle HTTP connection is kept


class StartError(Exception):
    """The service cannot start; the text says why, for the operator."""


async def serve(
    runtime: ServiceRuntime,
    app: ASGIApp,
    grpc_server: grpc.aio.Server | None = None,
    *,
    on_start: Callable[[], Awaitable[None]] | None = None,
    websocket: Callable[..., asyncio.BaseProtocol] | None = None,
) -> None:
    """Run the service until SIGTERM or SIGINT, then drain it. Raises StartError.

    `websocket` makes the protocol that an upgraded connection is handed to; it ends its connections by itself when the
    service drains (`ServiceRuntime.on_phase`). Without it an upgrade is not offered: the request is answered as HTTP.
    """
    settings = runtime.settings
    logs.configure(runtime.name, level=settings.log_level, form=settings.log_format)
    async with _closing(runtime):
        http = _bind(runtime)
        with contextlib.closing(http):
            await _start_grpc(runtime, grpc_server)
            server = _HttpServer(_http_config(app, websocket, settings.drain_timeout))
            task = asyncio.create_task(server.serve(sockets=[http]), name="http server")
            with _signals() as stop:
                await _unless(stop, _begin(runtime, on_start, server, task))
                await _first(stop.wait(), task)
                await _drain(runtime, server, task, grpc_server)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's `main` on uvloop and exit: 0 after an orderly stop, 1 when it could not start."""
    try:
        uvloop.run(main())
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


# -- start


def _bind(runtime: ServiceRuntime) -> socket.socket:
    host, port = runtime.settings.http_host, runtime.settings.http_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(_cannot_bind("HTTP", host, port, error)) from error
    listener.setblocking(False)
    runtime.http_port = listener.getsockname()[1]
    return listener


def _cannot_bind(kind: str, host: str, port: int, error: OSError | None) -> str:
    reason = error.strerror if error is not None and error.strerror else "it is probably in use"
    return f"{kind} port {port} on {host} cannot be opened: {reason} (set {kind}_PORT to another one)"


async def _start_grpc(runtime: ServiceRuntime, server: grpc.aio.Server | None) -> None:
    if server is None:
        return
    host, port = runtime.settings.http_host, runtime.settings.grpc_port
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        runtime.grpc_port = server.add_insecure_port(target)
    except RuntimeError:
        runtime.grpc_port = 0
    if runtime.grpc_port == 0:
        raise StartError(_cannot_bind("GRPC", host, port, None))
    await server.start()


def _http_config(
    app: ASGIApp, websocket: Callable[..., asyncio.BaseProtocol] | None, drain_timeout: float
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        # Uvicorn only ever calls it, so what makes the protocol will do.
        ws="auto" if websocket is None else websocket,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody here asks for the client's address
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(drain_timeout + FORCE_AFTER),  # draining is ours, and ends before it
    )


class _HttpServer(uvicorn.Server):
    """Uvicorn without its own handling of signals, because draining is ours; says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _begin(
    runtime: ServiceRuntime,
    on_start: Callable[[], Awaitable[None]] | None,
    server: _HttpServer,
    task: asyncio.Task[None],
) -> None:
    await _first(server.listening.wait(), task)
    if task.done():
        raise StartError("the HTTP server did not start") from task.exception()
    await runtime.start()
    if on_start is not None:
        await _call(on_start)
    gc.freeze()  # uncollected: less than a megabyte of it is garbage, and looking for that takes 0.1 s
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()  # services switch it off for the time of their imports
    await runtime.enter(Phase.READY)
    log.info(
        "ready", http_port=runtime.http_port, grpc_port=runtime.grpc_port, environment=runtime.settings.environment
    )


async def _call(on_start: Callable[[], Awaitable[None]]) -> None:
    try:
        await hard_timeout(on_start(), START_LIMIT, name="on_start")
    except Exception as error:
        log.error("start failed", error=type(error).__name__, exc_info=error)
        raise StartError(f"starting failed: {type(error).__name__} (the log has the details)") from error


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def received(name: str) -> None:
        if stop.is_set():
            log.warning("second signal, leaving at once", signal=name)
            raise SystemExit(1)
        log.info("stopping", signal=name)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, received, number.name)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or give it up when told to stop meanwhile."""
    task = asyncio.create_task(work)
    await _first(stop.wait(), task)
    if task.done():
        task.result()
    else:
        task.cancel()
        await asyncio.wait((task,), timeout=FORCE_AFTER)


async def _first(event: Coroutine[Any, Any, Any], task: asyncio.Task[None]) -> None:
    """Wait for the event or the end of the task, whichever comes first."""
    waiting = asyncio.ensure_future(event)
    try:
        await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


# -- stop


async def _drain(
    runtime: ServiceRuntime, server: uvicorn.Server, task: asyncio.Task[None], grpc_server: grpc.aio.Server | None
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + runtime.settings.drain_timeout
    await runtime.enter(Phase.DRAINING)
    rpc = asyncio.ensure_future(_stop_grpc(grpc_server, runtime.settings.drain_timeout))
    # The listener stays open meanwhile, so that a probe sees 503 and not a refused connection.
    await _finished(runtime, [one for one in runtime.in_flight if not one.open_ended], end)
    server.should_exit = True
    await _finished(runtime, [one for one in runtime.in_flight if not one.open_ended], end)
    left = list(runtime.in_flight)
    if left:
        log.info("ending what is left", requests=len(left))
    for one in left:
        one.give_up(DependencyUnavailable("The service is stopping.", retry_after=1.0))
    await _finished(runtime, left, loop.time() + FORCE_AFTER)
    await asyncio.wait((task, rpc), timeout=FORCE_AFTER + max(0.0, end - loop.time()))
    for pending in (task, rpc):
        pending.cancel()


async def _finished(runtime: ServiceRuntime, awaited: list[InFlight], end: float) -> None:
    loop = asyncio.get_running_loop()
    # Polled: an event per request would cost every request something, and this runs once in a process's life.
    while any(one in runtime.in_flight for one in awaited) and loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(POLL)


async def _stop_grpc(server: grpc.aio.Server | None, grace: float) -> None:
    if server is not None:
        await server.stop(grace)


@contextlib.asynccontextmanager
async def _closing(runtime: ServiceRuntime) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await runtime.close()
        log.info("stopped")
