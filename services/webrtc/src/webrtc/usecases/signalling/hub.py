"""The hub: everybody whose socket is on this instance, by room; entering, coming back, leaving, and being told.

All of it runs on one event loop and, but for opening a room (``admission``), without waiting. Times are the clock's;
``tick`` is called about twice a second and does whatever is due.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from resilience import Clock
from webrtc.model import Close, Member, NoSuchParticipant, Pass
from webrtc.ports import CallLog, Cluster, Degradations, IceSource, MediaBackend, Note, QualityMeter, TokenSigner
from webrtc.usecases.media import Media
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.admission import Admission, retry_after
from webrtc.usecases.signalling.attendance import Attendance
from webrtc.usecases.signalling.briefing import Briefing
from webrtc.usecases.signalling.limits import Limits
from webrtc.usecases.signalling.neighbours import DRAIN, LOST, Neighbours
from webrtc.usecases.signalling.participant import Participant, Socket
from webrtc.usecases.signalling.room import RoomState

TICK_SECONDS = 0.5
LEFT, REMOVED = "left", "removed"
_FINAL = {Close.KICKED: "kicked", Close.DELETED: "deleted", Close.MALFORMED: REMOVED, Close.FLOODING: REMOVED}
"""Close codes after which a participant cannot come back, and what the others are told."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the hub works with."""

    cluster: Cluster
    tokens: TokenSigner
    ice: IceSource
    meter: Callable[[], QualityMeter]
    calls: CallLog
    degraded: Degradations
    note: Note
    clock: Clock
    media: MediaBackend | None = None
    limits: Limits = field(default_factory=Limits)


class Hub:
    """What belongs to one instance's signalling."""

    def __init__(self, parts: Parts) -> None:
        self.cluster = parts.cluster
        self.limits = parts.limits
        self.clock = parts.clock
        self.rooms: dict[str, RoomState] = {}
        self.connections = 0
        """WebSockets, those of nobody included."""
        self.closes: Counter[int] = Counter()
        """Sockets closed by the service, by code."""
        self.draining = False
        self.media = Media(parts.media, parts.cluster, parts.limits.p2p_participants, parts.note)
        self.attendance = Attendance(parts.cluster, parts.calls, parts.clock)
        self.briefing = Briefing(
            parts.cluster, parts.tokens, parts.ice, parts.degraded, parts.clock, parts.limits.heartbeat
        )
        self._meter = parts.meter
        self._note = parts.note
        self._admission = Admission(self, parts.tokens, parts.note)
        self._neighbours = Neighbours(self)
        self.cluster.attach(self._neighbours)
        self._told = self.briefing.degraded()

    # -- joining

    async def join(self, socket: Socket, token: str, resume: str = "", seq: int = 0) -> Participant | None:
        """A new socket's participant, new or come back; None when it was refused (and told why, and closed).

        ``resume`` is the secret of an earlier ``welcome``, ``seq`` the last number that was seen then.
        """
        return await self._admission.join(socket, token, resume, seq)

    def enter(self, state: RoomState, claims: Pass, member_id: str, socket: Socket) -> Participant:
        """Somebody new, or (with an id) one who was on another instance or too long away."""
        known = state.elsewhere.pop(member_id, None)
        state.gone_at.pop(member_id, None)
        member = self._member(claims, member_id, known)
        now = self.clock.monotonic()
        participant = Participant(member, state, claims.grants, self.limits, self._meter(), self._too_slow, now)
        state.here[member.id] = participant
        participant.attach(socket, now)
        self._note("joined", room=state.id, participant=member.id)
        self.cluster.joined(state.id, member)
        self.attendance.joined(state, member)
        self.briefing.welcome(participant, resumed=False)
        kind = "joined" if known is None else "updated"
        state.tell(messages.server(kind, participant=messages.participant(member)), but=member.id)
        self.media.joined(state, member)
        return participant

    def _member(self, claims: Pass, member_id: str, known: Member | None) -> Member:
        # The newest of two with one id counts, whatever the clocks of their instances say.
        least = known.joined_at + 0.001 if known else 0.0
        return Member(
            id=member_id or f"p_{secrets.token_hex(8)}",
            user_id=claims.user_id,
            name=claims.name,
            joined_at=max(self.clock.time(), least),
            instance=self.cluster.instance,
            publishes=claims.grants.publish,
        )

    def take_back(self, participant: Participant, socket: Socket, seq: int) -> Participant:
        """One who is here has a new connection: the newest one wins, at once."""
        if participant.socket is not None:
            self.close(participant.socket, Close.REPLACED, "replaced")
        participant.attach(socket, self.clock.monotonic())
        missed = participant.outbox.since(seq)
        if missed is None:
            participant.outbox.forget()
        for text in missed or ():
            socket.send(text)
        self.briefing.welcome(participant, resumed=missed is not None)
        if participant.member.away:
            self.update(participant, away=False)
        self._note("came back", room=participant.room.id, participant=participant.member.id, resumed=missed is not None)
        return participant

    # -- changing

    def update(self, participant: Participant, **changes: object) -> None:
        """Changes a participant here and tells everybody."""
        member = participant.change(**changes)
        participant.room.tell(messages.server("updated", participant=messages.participant(member)))
        self.cluster.updated(participant.room.id, member)

    def ice_changed(self, restart: bool) -> None:
        """Everybody gets servers anew: TURN went away or came back."""
        for participant in self.everybody():
            self.briefing.ice(participant, restart=restart)

    def degraded_changed(self) -> None:
        """A row's fallback began or ended to serve: everybody is told, once."""
        message = self.briefing.degraded()
        if message == self._told:
            return
        self._told = message
        for participant in self.everybody():
            participant.tell(message)

    # -- leaving

    def close(self, socket: Socket, code: Close, reason: str = "") -> None:
        """Closes a socket and counts it."""
        self.closes[int(code)] += 1
        socket.close(code, reason)

    def dropped(self, participant: Participant, socket: Socket, code: int) -> None:
        """A socket has ended by itself; ``code`` as the client gave it: 1000 says good-bye, others may come back."""
        if participant.socket is not socket:
            return
        if code == Close.NORMAL:
            self.leave(participant, LEFT)
        else:
            participant.detach(self.clock.monotonic())

    def drop(self, participant: Participant, code: Close) -> None:
        """Closes a participant's socket; whether it may come back depends on the code."""
        socket, reason = participant.socket, _FINAL.get(code)
        participant.detach(self.clock.monotonic())
        if socket is not None:
            self.close(socket, code, code.name.lower())
            self._note("dropped", room=participant.room.id, participant=participant.member.id, code=int(code))
        if reason is not None:
            self.leave(participant, reason)

    def _too_slow(self, participant: Participant) -> None:
        self.drop(participant, Close.SLOW)

    def leave(self, participant: Participant, reason: str) -> None:
        """Ends a participant; everybody else is told. Its socket is the caller's to close."""
        state, member = participant.room, participant.member
        if state.here.pop(member.id, None) is None:
            return
        participant.socket = None
        self._note("left", room=state.id, participant=member.id, reason=reason)
        state.tell(messages.server("left", participant=member.id, reason=reason))
        self.cluster.left(state.id, member, reason)
        self.attendance.left(state, participant)
        self.gone(state, member.id)

    def gone(self, state: RoomState, member_id: str) -> None:
        """What follows when somebody has left, here or elsewhere."""
        self.media.left(state, member_id)
        self.attendance.emptied(state)
        self.end_if_empty(state)

    def end_if_empty(self, state: RoomState) -> None:
        """Forgets a room with nobody here; one whose media goes through here is kept for those elsewhere."""
        if state.here or (state.elsewhere and self.media.is_home(state)) or self.rooms.get(state.id) is not state:
            return
        del self.rooms[state.id]
        self.media.ended(state)
        self.cluster.closed(state.id)

    def drain(self) -> None:
        """The service stops: everybody is told to come back, elsewhere or a little later."""
        self.draining = True
        for participant in self.everybody():
            self._send_away(participant)
        for state in self.rooms.values():
            self.attendance.drained(state)

    def _send_away(self, participant: Participant) -> None:
        socket, text = participant.socket, "The service restarts."
        if socket is not None:
            participant.tell(messages.server("error", error="RESTARTING", message=text, retry_after=retry_after()))
            participant.detach(self.clock.monotonic())
            self.close(socket, Close.RESTART, "restart")
        self.cluster.left(participant.room.id, participant.member, DRAIN)

    # -- what the rooms API asks

    async def members(self, room_id: str) -> list[Member]:
        """Who is in a room. Raises what ``Cluster.members`` does."""
        state = self.rooms.get(room_id)
        return list(state.members()) if state else list(await self.cluster.members(room_id))

    async def remove(self, room_id: str, member_id: str) -> None:
        """Removes a participant, wherever it is (the room's owner asks). Raises NoSuchParticipant."""
        members = await self.members(room_id)
        member = next((one for one in members if one.id == member_id), None)
        if member is None or not self.kick(room_id, member):
            raise NoSuchParticipant

    def kick(self, room_id: str, member: Member) -> bool:
        """False: it is elsewhere and cannot be reached."""
        participant = self.find(room_id, member.id)
        if participant is None:
            return self.cluster.close(room_id, member, Close.KICKED)
        self.drop(participant, Close.KICKED)
        return True

    def delete(self, room_id: str) -> None:
        """The room was deleted here."""
        self.cluster.deleted(room_id)
        self._neighbours.room_deleted(room_id)

    # -- the media server

    def tell(self, room_id: str, member_id: str, data: bytes) -> None:
        """From the SFU here to somebody, wherever (``ports.Tell``)."""
        state = self.rooms.get(room_id)
        if state is None:
            return
        message = messages.signal(messages.SFU, data)
        if (participant := state.here.get(member_id)) is not None:
            participant.tell(message)
        elif (member := state.elsewhere.get(member_id)) is not None:
            self.cluster.send(room_id, member, message)

    # -- looking

    def find(self, room_id: str, member_id: str) -> Participant | None:
        """A participant here."""
        state = self.rooms.get(room_id)
        return state.here.get(member_id) if state else None

    def everybody(self) -> Iterator[Participant]:
        """All participants here."""
        for state in list(self.rooms.values()):
            yield from list(state.here.values())

    @property
    def sizes(self) -> tuple[int, int]:
        """Rooms and participants here."""
        return len(self.rooms), sum(len(state.here) for state in self.rooms.values())

    # -- time

    async def tick_forever(self) -> None:
        """Until cancelled."""
        while True:
            self.tick()
            await self.clock.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Heartbeats, participants that did not come back, clients that do not read, credentials that end."""
        if self.draining:  # nobody is here any more, and what was said of them was the last word
            return
        now = self.clock.monotonic()
        for participant in self.everybody():
            if participant.socket is None:
                self._wait_for(participant, now)
            else:
                self._watch(participant, participant.socket, now)
        for state in list(self.rooms.values()):
            self._neighbours.wait_for_drained(state, now)
            self.end_if_empty(state)

    def _wait_for(self, participant: Participant, now: float) -> None:
        dropped_at = now if participant.dropped_at is None else participant.dropped_at
        if now - dropped_at >= self.limits.resume:
            self.leave(participant, LOST)
        elif now - dropped_at >= self.limits.away_after and not participant.member.away:
            self.update(participant, away=True)

    def _watch(self, participant: Participant, socket: Socket, now: float) -> None:
        limits = self.limits
        if now - participant.heard_at > limits.silence:
            self.drop(participant, Close.HEARTBEAT)
        elif socket.paused_at is not None and now - socket.paused_at > limits.paused_seconds:
            self.drop(participant, Close.SLOW)
        else:
            if now - participant.pinged_at >= limits.heartbeat:
                participant.pinged_at = now
                socket.ping()
            if participant.ice_at is not None and now >= participant.ice_at:
                self.briefing.ice(participant)
