"""Who may join: the order of the checks from a new socket to a participant, and what those are told who may not."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from resilience.deadline import hard_timeout
from webrtc.model import BadToken, Close, Pass, RoomElsewhere, RoomUnknown
from webrtc.ports import Note, TokenSigner
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.limits import TokenBucket
from webrtc.usecases.signalling.neighbours import LOST
from webrtc.usecases.signalling.participant import Participant, Socket
from webrtc.usecases.signalling.room import RoomState

if TYPE_CHECKING:
    from webrtc.usecases.signalling.hub import Hub

RETRY_SECONDS = (0.5, 3.0)
"""Clients that are turned away come back after a time in between, so that they do not all come at once."""


def retry_after() -> float:
    """Seconds, another number each time."""
    least, most = RETRY_SECONDS
    return round(least + (most - least) * secrets.randbelow(1_000) / 1_000, 2)


class Refused(Exception):
    """Why somebody cannot join: the error's name, a sentence, the close code, and when to try again (seconds)."""

    def __init__(self, error: str, message: str, code: Close, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.code = code
        self.retry_after = retry_after


class Admission:
    """The hub's door."""

    def __init__(self, hub: Hub, tokens: TokenSigner, note: Note) -> None:
        self._hub = hub
        self._tokens = tokens
        self._note = note
        self._opening: dict[str, asyncio.Task[RoomState]] = {}
        limits = hub.limits
        self._bucket = TokenBucket(limits.join_rate, limits.join_burst, hub.clock.monotonic())

    async def join(self, socket: Socket, token: str, resume: str, seq: int) -> Participant | None:
        """See ``Hub.join``."""
        try:
            self._admit()
            return await self._join(socket, self._verified(token), resume, seq)
        except Refused as refused:
            self._refuse(socket, refused)
            return None

    def _admit(self) -> None:
        hub = self._hub
        if hub.draining:
            raise Refused("RESTARTING", "The service restarts.", Close.RESTART, retry_after())
        crowded = hub.connections > hub.limits.connections
        if crowded or not self._bucket.take(hub.clock.monotonic()):
            raise Refused("BUSY", "Too many are joining.", Close.UNAVAILABLE, retry_after())

    def _verified(self, token: str) -> Pass:
        try:
            return self._tokens.verify(token)
        except BadToken as error:
            raise Refused("TOKEN", f"The token is {error}.", Close.TOKEN) from None

    async def _join(self, socket: Socket, claims: Pass, resume: str, seq: int) -> Participant:
        hub = self._hub
        member_id = self._tokens.resumed(resume, claims.room_id, claims.user_id) if resume else ""
        while True:
            state = await self._state(claims.room_id)
            if member_id in state.here:
                return hub.take_back(state.here[member_id], socket, seq)
            if not state.full or member_id in state.elsewhere:
                return hub.enter(state, claims, member_id, socket)
            if not self._make_room(state, claims.user_id):
                hub.end_if_empty(state)
                raise Refused("ROOM_FULL", "The room is full.", Close.FULL)

    async def _state(self, room_id: str) -> RoomState:
        """The room, which may end before it is our turn, and is opened again then. Raises Refused."""
        rooms = self._hub.rooms
        state = rooms.get(room_id)
        while state is None or rooms.get(room_id) is not state:
            state = await self._open(room_id)
        return state

    def _make_room(self, state: RoomState, user_id: str) -> bool:
        """Whoever closed the page and opened it again is not kept out by the connection that was lost."""
        gone = [one for one in state.here.values() if one.socket is None and one.member.user_id == user_id]
        for participant in gone[:1]:
            self._hub.leave(participant, LOST)
        return bool(gone)

    async def _open(self, room_id: str) -> RoomState:
        """The room's state; one request to the cluster for all who wait for it. Raises Refused."""
        task = self._opening.get(room_id)
        if task is None:
            task = self._opening[room_id] = asyncio.create_task(self._opened(room_id))
            task.add_done_callback(lambda _: self._opening.pop(room_id, None))
        try:
            return await hard_timeout(asyncio.shield(task), self._hub.limits.open_seconds, name="open room")
        except RoomUnknown:
            raise Refused("NO_ROOM", "There is no such room.", Close.NO_ROOM) from None
        except RoomElsewhere as error:
            text = "The room is on another instance, which cannot be reached now."
            raise Refused("ROOM_ELSEWHERE", text, Close.UNAVAILABLE, error.retry_after) from None
        except Exception as error:  # noqa: BLE001 - whatever failed behind the port: this join cannot be
            self._note("room not opened", room=room_id, error=type(error).__name__)
            raise Refused("UNAVAILABLE", "Joining is not possible now.", Close.UNAVAILABLE, retry_after()) from None

    async def _opened(self, room_id: str) -> RoomState:
        opened = await self._hub.cluster.open(room_id)
        state = self._hub.rooms[room_id] = RoomState(opened)
        if opened.mode == "sfu":
            self._hub.media.switch(state, "size", told=True)
        return state

    def _refuse(self, socket: Socket, refused: Refused) -> None:
        extra = {} if refused.retry_after is None else {"retry_after": refused.retry_after}
        socket.send(messages.server("refused", error=refused.error, message=refused.message, **extra))
        self._hub.close(socket, refused.code, refused.error)
        self._note("refused", error=refused.error, code=int(refused.code))
