"""The SFU's own event loop on a thread of its own, so that handshakes and bursts of packets do not sit between two
messages of the signalling. Started with the first call.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from typing import Any

MAX_UNSENT = 256 * 1024  # bytes of one socket
CANCEL_TIMEOUT = 1.0  # s, for what is still going on when the loop ends
STOP_TIMEOUT = 3.0  # s


class MediaLoop(asyncio.SelectorEventLoop):
    """A loop whose UDP sockets are bound to ports of a range, where a firewall or a container wants that, and drop what
    a network that is too slow has not taken: a datagram that is late is worth nothing.
    """

    def __init__(self, ports: range) -> None:
        super().__init__()
        self._ports = ports
        self._turn = itertools.cycle(range(len(ports))) if ports else None

    async def create_datagram_endpoint(self, protocol_factory: Any, local_addr: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """As asyncio's; port 0 means any free one of the range. Raises OSError when all are taken."""
        if self._turn is None or local_addr is None or local_addr[1] != 0:
            return await self._bounded(protocol_factory, local_addr, **options)
        error: OSError | None = None
        for _ in self._ports:
            address = (local_addr[0], self._ports[next(self._turn)])
            try:
                return await self._bounded(protocol_factory, address, **options)
            except OSError as taken:
                error = taken
        raise error or OSError("no ports")

    async def _bounded(self, protocol_factory: Any, local_addr: Any, **options: Any) -> Any:
        made, protocol = await super().create_datagram_endpoint(protocol_factory, local_addr, **options)
        transport: Any = made
        send = transport.sendto

        def send_or_drop(data: bytes, addr: Any = None) -> None:
            if transport.get_write_buffer_size() < MAX_UNSENT:
                send(data, addr)

        transport.sendto = send_or_drop  # asyncio keeps what the socket does not take, without a bound
        return transport, protocol


class MediaThread:
    """Runs a loop until stopped."""

    def __init__(self, ports: range) -> None:
        self.loop = MediaLoop(ports)
        self._thread = threading.Thread(target=self._run, name="sfu", daemon=True)

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._cancel_rest())
            self.loop.close()

    async def _cancel_rest(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CANCEL_TIMEOUT)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Calls a function on the loop, soon. Raises RuntimeError when it is closed."""
        self.loop.call_soon_threadsafe(function, *arguments)

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine on that loop returns, awaited on the caller's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def stop(self) -> None:
        """Ends the loop and waits for the thread, for at most STOP_TIMEOUT."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_TIMEOUT)
