"""Who took part in which call, as the history is told: from the second participant's join until the last one leaves."""

import secrets

from resilience import Clock
from webrtc.model import Call, Member
from webrtc.ports import CallLog, Cluster
from webrtc.usecases.signalling.participant import Participant
from webrtc.usecases.signalling.room import RoomState


class Attendance:
    """Each instance reports its own participants; who sees a call begin or end says so too."""

    def __init__(self, cluster: Cluster, log: CallLog, clock: Clock) -> None:
        self._cluster = cluster
        self._log = log
        self._clock = clock

    def joined(self, state: RoomState, member: Member) -> None:
        """A participant has joined here: it enters the call, or is the second one."""
        now = self._clock.time()
        if state.call is not None:
            self._log.joined(state.call, state.room, member, now)
        elif len(state) > 1:
            state.call = call = Call(f"call_{secrets.token_hex(8)}", now)
            self._cluster.called(state.id, call)
            self._log.started(call, state.room)
            self._all_joined(state, call)

    def _all_joined(self, state: RoomState, call: Call) -> None:
        for participant in state.here.values():
            member = participant.member
            self._log.joined(call, state.room, member, max(member.joined_at, call.started_at))

    def left(self, state: RoomState, participant: Participant) -> None:
        """A participant has left here."""
        if state.call is not None:
            quality = participant.meter.summary()
            self._log.left(state.call, state.room, participant.member, self._clock.time(), quality)

    def lost(self, state: RoomState, member: Member) -> None:
        """A participant's instance has died, and cannot say so any more."""
        if state.call is not None:
            self._log.left(state.call, state.room, member, self._clock.time(), {})

    def emptied(self, state: RoomState) -> None:
        """Somebody has left; perhaps it was the last one."""
        if state.call is not None and not len(state):
            self._log.ended(state.call, state.room, self._clock.time())
            state.call = None

    def drained(self, state: RoomState) -> None:
        """Everybody is sent away; whoever comes back, to any instance, is in the call again."""
        for participant in state.here.values():
            self.left(state, participant)
        if state.call is not None and not state.elsewhere:
            self._log.ended(state.call, state.room, self._clock.time())

    def settled(self, state: RoomState, call: Call) -> None:
        """The call as the cluster has it: begun elsewhere, or earlier than known here."""
        mine, state.call = state.call, call
        if mine is None:
            self._all_joined(state, call)
        elif mine.id != call.id:
            self._log.renamed(mine, call, state.room)
