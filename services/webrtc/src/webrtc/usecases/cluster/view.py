"""A room as the other instances have it, kept up to date by what comes in the inbox; the signalling is told of changes.

While the room is being compared with Redis what comes is held back: the answer says up to which place in the inbox it
includes everything, and what came after that place is applied to it. So no change is lost or undone by a slow answer.
"""

from collections.abc import Callable, Mapping

from webrtc.model import Call, Close, Member, Room
from webrtc.ports import Local
from webrtc.usecases.cluster import codec
from webrtc.usecases.cluster.merge import earlier, rank
from webrtc.usecases.cluster.store import Change, Position, Snapshot

LOST, LEFT, MOVED, MERGED = "lost", "left", "moved", "merged"
SFU = "sfu"


class RoomView:
    """``members`` are those elsewhere, by id. ``room`` is its definition."""

    __slots__ = (
        "_held",
        "_holds",
        "_local",
        "_position",
        "call",
        "home",
        "instance",
        "members",
        "mode",
        "room",
        "room_id",
    )

    def __init__(self, room_id: str, instance: str, local: Local) -> None:
        self.room_id = room_id
        self.instance = instance
        self.room: Room | None = None
        self.members: dict[str, Member] = {}
        self.call: Call | None = None
        self.mode = "p2p"
        self.home = ""
        self._local = local
        self._position = Position()
        self._held: list[tuple[Position, Change | codec.Direct]] = []
        self._holds = 0

    # -- what comes in the inbox

    def receive(self, position: Position, content: Change | codec.Direct) -> None:
        """One thing from the inbox, in order."""
        if self._holds:
            self._held.append((position, content))
        elif not isinstance(content, Change):
            self._direct(content)
        elif position > self._position:
            self.apply(content)

    def hold(self) -> None:
        """From now on nothing is applied, until ``release`` was called as often."""
        self._holds += 1

    def release(self) -> None:
        """Applies what was held back, as far as it is newer than the snapshot seen meanwhile."""
        self._holds -= 1
        if not self._holds:
            held, self._held = self._held, []
            for position, content in held:
                self.receive(position, content)

    def _direct(self, message: codec.Direct) -> None:
        match message:
            case codec.Deliver(room_id, member_id, text):
                self._local.deliver(room_id, member_id, text)
            case codec.CloseMember(room_id, member_id, code):
                self._local.close_member(room_id, member_id, Close(code))
            case codec.ToSfu(room_id, member_id, data):
                self._local.sfu_signal(room_id, member_id, data)

    def apply(self, change: Change) -> None:
        """Something changed, now."""
        if change.kind == "put" and change.member is not None:
            self._put(change.member)
        elif change.kind == "drop" and change.member is not None:
            self._drop(change.member, change.text)
        elif change.kind == "call" and change.call is not None:
            self.set_call(change.call)
        elif change.kind == "mode":
            self.set_mode(change.key, change.text)
        elif change.kind == "home":
            self.set_home(change.key)

    # -- single changes

    def _put(self, member: Member) -> None:
        known = self.members.get(member.id)
        if member.instance == self.instance or (known is not None and rank(member) <= rank(known)):
            return
        if known is not None and (known.instance, known.joined_at) == (member.instance, member.joined_at):
            self.members[member.id] = member
            self._local.remote_updated(self.room_id, member)
        elif not any(one.id == member.id and rank(one) > rank(member) for one in self._own()):
            self.members[member.id] = member
            self._local.remote_joined(self.room_id, member)

    def _own(self) -> list[Member]:
        return self._local.local_members(self.room_id)

    def _drop(self, member: Member, reason: str) -> None:
        known = self.members.get(member.id)
        if known is not None and known.instance == member.instance and known.joined_at <= member.joined_at:
            del self.members[member.id]
            self._local.remote_left(self.room_id, member.id, reason)

    def set_call(self, call: Call) -> None:
        """There is a call, as somebody else says."""
        counts = earlier(self.call, call)
        if counts is not None and counts != self.call:
            self.call = counts
            self._local.remote_call(self.room_id, counts)

    def set_mode(self, mode: str, reason: str) -> None:
        """The media mode, as somebody else says; there is no way back from the SFU."""
        if mode == SFU and self.mode != SFU:
            self.mode = mode
            self._local.remote_mode(self.room_id, mode, reason)

    def set_home(self, home: str) -> None:
        """The instance of the room's SFU; when it was another one, media has to move."""
        before, self.home = self.home, home
        if before and before != home and self.mode == SFU:
            self._local.remote_mode(self.room_id, SFU, MOVED)

    # -- all at once

    def settle(
        self, snapshot: Snapshot, elsewhere: Mapping[str, Member], dead: Callable[[str], bool], *, complete: bool = True
    ) -> None:
        """What Redis has, with who of it is elsewhere (``merge.settle``); ``complete``: who is not there has left."""
        self._position = max(self._position, snapshot.position)
        self.room = snapshot.room or self.room
        own = {member.id for member in self._own()}
        for member in list(self.members.values()):
            if member.id not in elsewhere and (complete or member.id in own):
                del self.members[member.id]
                if member.id not in own:
                    self._local.remote_left(self.room_id, member.id, LOST if dead(member.instance) else LEFT)
        for member in elsewhere.values():
            self._put(member)
        if snapshot.call is not None:
            self.set_call(snapshot.call)
        self.set_mode(snapshot.mode, MERGED)
        if snapshot.home:
            self.set_home(snapshot.home)

    def lost(self, instance: str) -> None:
        """The instance is dead: whoever was on it is lost."""
        for member in list(self.members.values()):
            if member.instance == instance:
                self._drop(member, LOST)
        if self.home == instance:
            self.set_home("")
