"""How a room's media goes: from peer to peer while that is enough, through a media server (SFU) from then on.

A room changes to the SFU when it has more participants than a mesh should carry, or when a direct path failed and no
relay can help; it does not change back while anybody stays, so that nobody's media is torn down twice.

What the backend is told of one room is told in order, one call at a time, each within a limit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from resilience.deadline import hard_timeout
from webrtc.model import Member
from webrtc.ports import Cluster, MediaBackend, Note
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.room import RoomState

P2P = "p2p"
SFU = "sfu"
WORK_LIMIT = 512
"""Calls to the backend that may wait, per room."""
WORK_SECONDS = 5.0

Work = Callable[[], Awaitable[object]]


class InOrder:
    """Runs what is added, per room one after the other."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._waiting: dict[str, deque[Work]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, room_id: str, work: Work) -> bool:
        """False when too much waits already."""
        waiting = self._waiting.get(room_id)
        if waiting is None:
            waiting = self._waiting[room_id] = deque()
            task = asyncio.get_running_loop().create_task(self._run(room_id, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if len(waiting) >= WORK_LIMIT:
            return False
        waiting.append(work)
        return True

    async def _run(self, room_id: str, waiting: deque[Work]) -> None:
        try:
            while waiting:
                await self._one(room_id, waiting.popleft())
        finally:
            del self._waiting[room_id]

    async def _one(self, room_id: str, work: Work) -> None:
        try:
            await hard_timeout(work(), WORK_SECONDS, name="media")
        except Exception as error:  # noqa: BLE001 - one participant's media must not stop the others'
            self._note("media backend failed", room=room_id, error=type(error).__name__)

    async def close(self) -> None:
        """Gives up what waits."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Media:
    """The rule, and the way to the backend; without a backend media is always from peer to peer."""

    def __init__(self, backend: MediaBackend | None, cluster: Cluster, p2p_participants: int, note: Note) -> None:
        self._backend = backend
        self._cluster = cluster
        self._most = p2p_participants
        self._work = InOrder(note)
        self._note = note
        self.close = self._work.close

    def is_home(self, state: RoomState) -> bool:
        """Whether the room's SFU is here."""
        return state.home == self._cluster.instance

    def joined(self, state: RoomState, member: Member) -> None:
        """Somebody has joined, here or elsewhere."""
        if state.mode == SFU or state.switching:
            self._work.add(state.id, lambda: self._enter(state, member))
        elif len(state) > self._most and state.here:
            self.switch(state, "size")
        elif len(state) > 1 and self._backend is not None:  # the next one, or a path that fails, should not wait for it
            self._work.add(state.id, self._backend.prepare)

    def left(self, state: RoomState, member_id: str) -> None:
        """Somebody has left, here or elsewhere."""
        backend = self._backend
        if backend is not None and self.is_home(state):
            self._work.add(state.id, lambda: backend.leave(state.id, member_id))

    def ended(self, state: RoomState) -> None:
        """The room is not needed here any more."""
        backend = self._backend
        if backend is not None and self.is_home(state):
            self._work.add(state.id, lambda: backend.close(state.id))

    def path_failed(self, state: RoomState, *, relay_tried: bool) -> None:
        """A direct path failed; where a relay could not help either, the SFU does."""
        if relay_tried and state.mode == P2P:
            self.switch(state, "path")

    def switch(self, state: RoomState, reason: str, *, told: bool = False) -> None:
        """From now on through the SFU; ``told``: the cluster knows already."""
        if self._backend is None or state.switching or state.mode == SFU:
            return
        state.switching = True
        if not self._work.add(state.id, lambda: self._settle(state, reason)):
            state.switching = False
        elif not told:
            self._cluster.moded(state.id, SFU, reason)

    def resettle(self, state: RoomState, reason: str) -> None:
        """Where the room's SFU is may have changed."""
        if state.mode == SFU:
            self._work.add(state.id, lambda: self._move(state, reason))

    def signal(self, state: RoomState, member_id: str, data: bytes) -> bool:
        """From a participant here to the SFU. False: there is none for this room, or it is too busy."""
        if state.mode != SFU and not state.switching:
            return False
        return self._work.add(state.id, lambda: self._signal(state, member_id, data))

    def remote_signal(self, state: RoomState, member_id: str, data: bytes) -> None:
        """From a participant elsewhere to the SFU that is here."""
        backend = self._backend
        if backend is not None and member_id in state.elsewhere:
            self._work.add(state.id, lambda: backend.signal(state.id, member_id, data))

    async def _settle(self, state: RoomState, reason: str) -> None:
        try:
            state.home = await self._find_home(state)
            state.mode = SFU
        finally:
            state.switching = False
        # First, because the media server talks to everybody as soon as they have entered.
        state.tell(messages.server("media", mode=SFU, reason=reason))
        await self._enter_all(state)
        self._note("media through the SFU", room=state.id, reason=reason, home=state.home)

    async def _find_home(self, state: RoomState) -> str:
        try:
            return await self._cluster.sfu_home(state.id)
        except Exception as error:  # noqa: BLE001 - whatever is away: the media server here is not
            self._note("home of the SFU not known, using our own", room=state.id, error=type(error).__name__)
            return self._cluster.instance

    async def _enter_all(self, state: RoomState) -> None:
        for member in list(state.members()):
            await self._enter(state, member)

    async def _enter(self, state: RoomState, member: Member) -> None:
        if self._backend is not None and self.is_home(state) and state.find(member.id):
            await self._backend.enter(state.id, member.id, member.publishes)

    async def _signal(self, state: RoomState, member_id: str, data: bytes) -> None:
        if self._backend is not None and self.is_home(state):
            await self._backend.signal(state.id, member_id, data)
        elif not self._cluster.signal_sfu(state.id, member_id, data):
            await self._move(state, "alone" if self._cluster.alone else "moved")

    async def _move(self, state: RoomState, reason: str) -> None:
        """Another home for the room's SFU: everybody here builds media anew."""
        before, home = state.home, await self._find_home(state)
        if home == before:
            return
        if self._backend is not None and self.is_home(state):
            await self._backend.close(state.id)
        state.home = home
        state.tell(messages.server("media", mode=SFU, reason=reason))
        await self._enter_all(state)
