"""Who gets what: each participant's publication goes to everybody else in its room. Runs on the SFU's loop."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from webrtc.outbound.sfu.fanout import Counts, Feed
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.participant import Participant
from webrtc.outbound.sfu.peer import Peer
from webrtc.outbound.sfu.signals import Reply, encode

Tell = Callable[[str, str, bytes], None]


class Room:
    """The participants of one room."""

    def __init__(self, rooms: "Rooms", room_id: str) -> None:
        self._rooms = rooms
        self._id = room_id
        self.members: dict[str, Participant] = {}
        self.addresses = rooms.addresses
        self.counts = rooms.counts
        self.discard = rooms.discard
        self.recount = rooms.recount

    def tell(self, member_id: str, data: bytes) -> None:
        """A message for a participant."""
        self._rooms.tell(self._id, member_id, data)

    def feeds_for(self, participant: Participant) -> list[Feed]:
        """What the others publish."""
        return [feed for one in self.members.values() if one is not participant for feed in one.feeds]

    def refresh(self) -> None:
        """What somebody publishes has changed."""
        for one in self.members.values():
            one.refresh()


class Rooms:
    """All rooms whose media goes through this SFU."""

    def __init__(self, tell: Tell, addresses: Sequence[Address], counts: Counts) -> None:
        self.tell = tell
        self.addresses = addresses
        self.counts = counts
        self._rooms: dict[str, Room] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def enter(self, room_id: str, member_id: str, publishes: bool) -> None:
        """A participant, asked to publish if it may. One who is in already begins anew, too."""
        room = self._rooms.get(room_id)
        if room is None:
            room = self._rooms[room_id] = Room(self, room_id)
        participant = room.members.get(member_id)
        if participant is None:
            participant = room.members[member_id] = Participant(room, member_id, publishes=publishes)
        participant.begin()

    def leave(self, room_id: str, member_id: str) -> None:
        """Takes a participant out; unknown ones are ignored."""
        room = self._rooms.get(room_id)
        participant = room.members.pop(member_id, None) if room is not None else None
        if room is None or participant is None:
            return
        if not room.members:
            del self._rooms[room_id]
        self._finish(participant.close())
        room.refresh()
        self.recount()

    def close(self, room_id: str) -> None:
        """Takes everybody out."""
        room = self._rooms.get(room_id)
        for member_id in list(room.members) if room is not None else ():
            self.leave(room_id, member_id)

    def signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """What a participant says."""
        room = self._rooms.get(room_id)
        participant = room.members.get(member_id) if room is not None else None
        if participant is not None:
            participant.take(data)
        else:
            reply = Reply("pub", error="unavailable", message="not in a room whose media goes through this SFU")
            self.tell(room_id, member_id, encode(reply))

    def discard(self, peer: Peer) -> None:
        """Closes a PeerConnection behind everybody's back."""
        peer.over = True
        self._finish(peer.close())

    def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def recount(self) -> None:
        """Keeps the gauges."""
        everybody = [one for room in self._rooms.values() for one in room.members.values()]
        self.counts.tracks = sum(len(one.feeds) for one in everybody)
        self.counts.subscribers = sum(one.subscription is not None for one in everybody)

    async def aclose(self) -> None:
        """Everybody leaves; waits for the PeerConnections (each has its own limit)."""
        for room_id in list(self._rooms):
            self.close(room_id)
        while self._closing:
            await asyncio.wait(self._closing)
