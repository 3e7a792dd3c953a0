"""What happens on other instances, as this one's participants see it (``ports.Local``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from webrtc.model import Call, Close, Member
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.participant import Participant
from webrtc.usecases.signalling.room import RoomState

if TYPE_CHECKING:
    from webrtc.usecases.signalling.hub import Hub

DRAIN, LOST = "drain", "lost"


class Neighbours:
    """The cluster tells it; see ``ports.Local`` for each method."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._rooms = hub.rooms

    # -- the roster

    def remote_joined(self, room_id: str, member: Member) -> None:
        """Somebody joined elsewhere, perhaps one who was here before."""
        state = self._rooms.get(room_id)
        if state is None:
            return
        mine = state.here.get(member.id)
        if mine is not None:
            if mine.member.joined_at >= member.joined_at:
                return
            self._moved_away(state, mine)
        known = mine is not None or member.id in state.elsewhere
        state.gone_at.pop(member.id, None)
        state.elsewhere[member.id] = member
        self._tell_of(state, "updated" if known else "joined", member)
        if not known:
            self._hub.media.joined(state, member)

    def _moved_away(self, state: RoomState, participant: Participant) -> None:
        socket, participant.socket = participant.socket, None
        del state.here[participant.member.id]
        if socket is not None:
            self._hub.close(socket, Close.REPLACED, "replaced")

    def remote_updated(self, room_id: str, member: Member) -> None:
        """Somebody elsewhere changed."""
        state = self._rooms.get(room_id)
        if state is None:
            return
        known = state.elsewhere.get(member.id)
        if known is None:
            self.remote_joined(room_id, member)
        elif (member.joined_at, member.version) > (known.joined_at, known.version):
            state.elsewhere[member.id] = member
            state.gone_at.pop(member.id, None)
            self._tell_of(state, "updated", member)

    def _tell_of(self, state: RoomState, kind: str, member: Member) -> None:
        state.tell(messages.server(kind, participant=messages.participant(member)))

    def remote_left(self, room_id: str, member_id: str, reason: str) -> None:
        """Somebody elsewhere left, or its instance drains and it may come back."""
        state = self._rooms.get(room_id)
        member = state.elsewhere.get(member_id) if state else None
        if state is None or member is None:
            return
        if reason == DRAIN:
            state.gone_at[member_id] = self._hub.clock.monotonic()
            return
        del state.elsewhere[member_id]
        state.gone_at.pop(member_id, None)
        state.tell(messages.server("left", participant=member_id, reason=reason))
        if reason == LOST:
            self._hub.attendance.lost(state, member)
        self._hub.gone(state, member_id)

    def wait_for_drained(self, state: RoomState, now: float) -> None:
        """Those whose instance drained: away after a while, and gone after a longer one."""
        for member_id, since in list(state.gone_at.items()):
            if now - since >= self._hub.limits.resume:
                self.remote_left(state.id, member_id, LOST)
            elif now - since >= self._hub.limits.away_after:
                self._show_away(state, state.elsewhere[member_id])

    def _show_away(self, state: RoomState, member: Member) -> None:
        if not member.away:
            state.elsewhere[member.id] = gone = messages.away(member)
            self._tell_of(state, "updated", gone)

    # -- what is sent here

    def deliver(self, room_id: str, member_id: str, message: bytes) -> None:
        """A message from elsewhere."""
        if (participant := self._hub.find(room_id, member_id)) is not None:
            participant.tell(message)

    def close_member(self, room_id: str, member_id: str, code: Close) -> None:
        """Another instance closes somebody here."""
        if (participant := self._hub.find(room_id, member_id)) is not None:
            self._hub.drop(participant, code)

    def sfu_signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """From somebody elsewhere to the SFU here."""
        if (state := self._rooms.get(room_id)) is not None:
            self._hub.media.remote_signal(state, member_id, data)

    # -- the room

    def remote_call(self, room_id: str, call: Call) -> None:
        """The call as the cluster has it; the earlier one counts."""
        state = self._rooms.get(room_id)
        if state is not None and state.call != call:
            self._hub.attendance.settled(state, call)

    def remote_mode(self, room_id: str, mode: str, reason: str) -> None:
        """The media mode was changed elsewhere, or the room's SFU is to be found elsewhere."""
        state = self._rooms.get(room_id)
        if state is not None and mode == "sfu":
            self._hub.media.resettle(state, reason)
            self._hub.media.switch(state, reason, told=True)

    def room_deleted(self, room_id: str) -> None:
        """The room is gone."""
        state = self._rooms.get(room_id)
        if state is None:
            return
        state.elsewhere.clear()
        for participant in list(state.here.values()):
            self._hub.drop(participant, Close.DELETED)
        self._hub.end_if_empty(state)

    def set_alone(self, alone: bool) -> None:
        """Row W1 began or ended."""
        self._hub.degraded_changed()
        if not alone:
            for state in list(self._rooms.values()):
                self._hub.media.resettle(state, "merged")

    # -- what is here

    def local_members(self, room_id: str) -> list[Member]:
        """Those here."""
        state = self._rooms.get(room_id)
        return [participant.member for participant in state.here.values()] if state else []

    def local_rooms(self) -> list[str]:
        """Rooms with somebody here."""
        return [room_id for room_id, state in self._rooms.items() if state.here]
