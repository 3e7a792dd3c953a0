"""The SFU as the service's media backend: the border between its loop and the SFU's."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from webrtc.outbound.sfu.fanout import Counts
from webrtc.outbound.sfu.signals import Reply, encode
from webrtc.outbound.sfu.thread import MediaThread
from webrtc.ports import Tell

if TYPE_CHECKING:
    from webrtc.outbound.sfu.rooms import Rooms

MAX_UNDER_WAY = 1_000  # signals handed over that the SFU's loop has not taken
ANY_PORT = range(0)

log = logging.getLogger("webrtc.sfu")


class Sfu:
    """Forwards encoded frames, on a thread of its own that starts with the first call."""

    name = "sfu"

    def __init__(self, tell: Tell, addresses: Sequence[str] = (), ports: range = ANY_PORT) -> None:
        """``addresses``: see ``inside.Address.parse``; none: those of all interfaces but loopback. ``ports``: for UDP;
        none: any. Two ports a participant are used.
        """
        self.counts = Counts()
        self._tell = tell
        self._addresses = addresses
        self._ports = ports
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: MediaThread | None = None
        self._rooms: asyncio.Future[Rooms] | None = None
        self._handed = 0  # signals; written on the service's loop
        self._taken = 0  # and on the SFU's
        self._closed = False

    async def prepare(self) -> None:
        """Starts the thread and loads aiortc, which takes a part of a second. Raises what that does."""
        if not self._closed:
            await self._started()

    async def enter(self, room_id: str, member_id: str, publishes: bool) -> None:
        """Asks the participant to publish, if it may, and offers it what others publish."""
        if self._closed:
            return
        try:
            rooms = await self._started()
        except Exception:  # an installation without aiortc's libraries, no memory: the rest of the service goes on
            log.exception("sfu: cannot start")
            self._unavailable(room_id, member_id, "the SFU cannot start")
        else:
            self._post(rooms.enter, room_id, member_id, publishes)

    async def leave(self, room_id: str, member_id: str) -> None:
        """Ends its media; others are offered what is left."""
        if self._rooms is not None:
            self._post((await asyncio.shield(self._rooms)).leave, room_id, member_id)

    async def close(self, room_id: str) -> None:
        """Ends all media of the room."""
        if self._rooms is not None:
            self._post((await asyncio.shield(self._rooms)).close, room_id)

    async def signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """Hands a participant's signal over; answers come through ``tell``. Never raises for bad data."""
        if self._rooms is None or self._handed - self._taken >= MAX_UNDER_WAY:
            self._unavailable(room_id, member_id, "the SFU is not running, or behind")
        else:
            rooms = await asyncio.shield(self._rooms)
            self._handed += 1
            self._post(self._signal, rooms, room_id, member_id, data)

    async def aclose(self) -> None:
        """Ends everything, the thread as well."""
        self._closed = True
        if self._rooms is None or self._thread is None:
            return
        await self._thread.run((await self._rooms).aclose())
        await asyncio.to_thread(self._thread.stop)

    def _unavailable(self, room_id: str, member_id: str, message: str) -> None:
        self._tell(room_id, member_id, encode(Reply("pub", error="unavailable", message=message)))

    # -- the border

    async def _started(self) -> "Rooms":
        """The rooms on the thread; the first call starts it, and waits until aiortc is imported there."""
        if self._rooms is None:
            self._loop = asyncio.get_running_loop()
            self._thread = MediaThread(self._ports)
            self._thread.start()
            self._rooms = asyncio.ensure_future(self._thread.run(self._open()))
        opening = self._rooms
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._rooms is opening and self._thread is not None:  # the next participant tries again
                self._rooms = None
                await asyncio.to_thread(self._thread.stop)
            raise

    async def _open(self) -> "Rooms":
        from webrtc.outbound.sfu.inside import Address
        from webrtc.outbound.sfu.rooms import Rooms

        return Rooms(self._tell_there, [Address.parse(text) for text in self._addresses], self.counts)

    def _signal(self, rooms: "Rooms", room_id: str, member_id: str, data: bytes) -> None:
        self._taken += 1
        rooms.signal(room_id, member_id, data)

    def _tell_there(self, room_id: str, member_id: str, data: bytes) -> None:
        """Called on the SFU's loop."""
        if self._loop is not None and not self._closed:
            self._loop.call_soon_threadsafe(self._tell, room_id, member_id, data)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        if self._thread is not None and not self._closed:
            self._thread.call(function, *arguments)
