"""What the WebRTC service needs from outside, as interfaces, each kept by one module of ``outbound``, and what the
signalling (``usecases.signalling``) and its neighbours need of each other.

Everything of the second part runs on the service's one event loop. A method that is not ``async`` never waits.
"""

from collections.abc import Mapping
from typing import Protocol

from webrtc.model import (
    Call,
    Close,
    DegradedRow,
    Grants,
    IceGrant,
    Member,
    Opened,
    Pass,
    PastCall,
    QuietCall,
    Report,
    Room,
)


class StoreUnavailable(Exception):
    """Redis could not be used: unreachable, too slow, or still loading its data."""


class StoreDisconnected(StoreUnavailable):
    """A pooled connection turned out to be closed before anything was sent on it: trying again is safe, once."""


class RelayUnavailable(Exception):
    """No TURN server relays: unreachable, too slow, or it refuses our credentials."""


class HistoryUnavailable(Exception):
    """PostgreSQL could not be used: unreachable, too slow, or not migrated yet."""


class HistoryDisconnected(HistoryUnavailable):
    """A pooled connection turned out to be closed before anything was sent on it: trying again is safe, once."""


class History(Protocol):
    """The calls of all instances. Every method may raise HistoryUnavailable."""

    async def note(self, news: Mapping[str, object]) -> None:
        """Brings what a report says (``usecases.calls``) into the history; neither order nor repetition changes what
        comes of several. Raises ValueError for what is none."""
        ...

    async def page(self, user_id: str, limit: int, after: tuple[float, str] | None) -> list[PastCall]:
        """At most ``limit`` of the calls that a user took part in, after a place (start in unix seconds, id), newest
        first."""
        ...

    async def get(self, user_id: str, call_id: str) -> PastCall:
        """Raises CallUnknown, also for a call that the user took no part in."""
        ...

    async def quiet(self, seconds: float) -> list[QuietCall]:
        """Some of the calls that have not ended, and of which nothing was reported for so long."""
        ...


class Relays(Protocol):
    """The configured TURN servers."""

    async def relaying(self) -> tuple[str, ...]:
        """URLs that relay now, by an allocation made and given back on each. Raises RelayUnavailable when none does."""
        ...


class RoomStore(Protocol):
    """Rooms, shared by all instances. Every method may raise StoreUnavailable."""

    async def create(self, room: Room) -> None:
        """Stores a new room. Raises TooManyRooms."""
        ...

    async def get(self, room_id: str) -> Room:
        """Raises RoomUnknown."""
        ...

    async def page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        """At most ``limit`` of the owner's rooms after a place (from the newest if empty), newest first."""
        ...

    async def delete(self, room: Room) -> None:
        """Deletes a room; one that is gone already is none."""
        ...


class TokenSigner(Protocol):
    """Signs what lets its holder join a room's signalling, and come back to it."""

    def sign(
        self, room_id: str, user_id: str, now: float, seconds: int, *, name: str = "", grants: Grants = ...
    ) -> str:
        """A token for one user and one room, valid for ``seconds`` from ``now`` (unix seconds)."""
        ...

    def verify(self, token: str) -> Pass:
        """What a token allows. Raises BadToken."""
        ...

    def resume_secret(self, room_id: str, user_id: str, member_id: str) -> str:
        """What proves, to any instance, that its holder was this participant. It starts with the participant's id."""
        ...

    def resumed(self, secret: str, room_id: str, user_id: str) -> str:
        """The participant's id if the secret is genuine and this user's in this room; else empty."""
        ...


class Cluster(Protocol):
    """All instances, as the signalling sees them. Called by it; tells it (``Local``) what others did."""

    instance: str
    """This instance's own id."""

    @property
    def alone(self) -> bool:
        """Whether row W1 holds: Redis is away, this instance knows only itself."""
        ...

    def attach(self, local: "Local") -> None:
        """Who is told what others did; once, before anything else."""
        ...

    async def open(self, room_id: str) -> Opened:
        """The room, before its first participant joins here. From then on the cluster tells about it until ``closed``.

        Raises RoomUnknown, RoomElsewhere, StoreUnavailable.
        """
        ...

    async def members(self, room_id: str) -> tuple[Member, ...]:
        """The participants elsewhere, for whoever only looks. Raises RoomElsewhere, StoreUnavailable."""
        ...

    def joined(self, room_id: str, member: Member) -> None:
        """A participant has joined here. Projected behind and told to the other instances, in order within a room."""
        ...

    def updated(self, room_id: str, member: Member) -> None:
        """A participant here has changed."""
        ...

    def left(self, room_id: str, member: Member, reason: str) -> None:
        """A participant here has left: "left", "lost", "kicked", "deleted" or "drain"."""
        ...

    def closed(self, room_id: str) -> None:
        """The last participant here has left."""
        ...

    def called(self, room_id: str, call: Call) -> None:
        """A call has begun here; when two instances began one, the earlier counts (``Local.call``)."""
        ...

    def moded(self, room_id: str, mode: str, reason: str) -> None:
        """The room's media goes through the SFU from now on (there is no way back while anybody stays)."""
        ...

    def deleted(self, room_id: str) -> None:
        """The room was deleted here: the other instances close it too."""
        ...

    def send(self, room_id: str, to: Member, message: bytes) -> bool:
        """An encoded message, complete but for its ``seq``, for a participant elsewhere. False: not reachable now."""
        ...

    def close(self, room_id: str, to: Member, code: Close) -> bool:
        """Closes the socket of a participant elsewhere (kicked). False: not reachable now."""
        ...

    def signal_sfu(self, room_id: str, member_id: str, data: bytes) -> bool:
        """What a participant here tells the SFU while that runs elsewhere. False: not reachable now."""
        ...

    async def sfu_home(self, room_id: str) -> str:
        """The instance that carries the room's SFU: the first to claim it, by lease; this one while alone."""
        ...


class Local(Protocol):
    """The signalling of this instance, as the cluster sees it. Called on the loop; never waits."""

    def remote_joined(self, room_id: str, member: Member) -> None:
        """A participant has joined elsewhere; one with the id of a participant here that joined earlier replaces it."""
        ...

    def remote_updated(self, room_id: str, member: Member) -> None:
        """A participant elsewhere has changed; an unknown one has joined, an older version is ignored."""
        ...

    def remote_left(self, room_id: str, member_id: str, reason: str) -> None:
        """A participant elsewhere has left; an unknown or a local one is ignored. One that left by "drain" is kept as
        away for as long as it may take to come back to another instance."""
        ...

    def deliver(self, room_id: str, member_id: str, message: bytes) -> None:
        """What another instance sent to a participant here (``Cluster.send``)."""
        ...

    def close_member(self, room_id: str, member_id: str, code: Close) -> None:
        """Closes the socket of a participant here (``Cluster.close``)."""
        ...

    def sfu_signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """What a participant elsewhere tells the SFU that runs here (``Cluster.signal_sfu``)."""
        ...

    def remote_call(self, room_id: str, call: Call) -> None:
        """The room's call as the cluster knows it: it began elsewhere, or earlier than known here."""
        ...

    def remote_mode(self, room_id: str, mode: str, reason: str) -> None:
        """The room's media mode was changed elsewhere."""
        ...

    def local_members(self, room_id: str) -> list[Member]:
        """The participants whose sockets are here (those away for a moment included)."""
        ...

    def local_rooms(self) -> list[str]:
        """Rooms with participants here."""
        ...

    def room_deleted(self, room_id: str) -> None:
        """The room is gone: closes its sockets here (4410)."""
        ...

    def set_alone(self, alone: bool) -> None:
        """Row W1 began or ended: clients are told."""
        ...


class MediaBackend(Protocol):
    """What forwards media where it does not go from peer to peer. Answers go through ``tell`` (``Tell``)."""

    name: str
    """"sfu" or "livekit"."""

    async def prepare(self) -> None:
        """It may be needed soon: whatever takes time and can be done before."""
        ...

    async def enter(self, room_id: str, member_id: str, publishes: bool) -> None:
        """A participant whose media will go through it."""
        ...

    async def leave(self, room_id: str, member_id: str) -> None:
        """The participant has left; unknown ones are ignored."""
        ...

    async def close(self, room_id: str) -> None:
        """Everybody has left, or the room is gone."""
        ...

    async def signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """What the participant says to "sfu": the JSON of the signal's ``data``. Never raises for bad data."""
        ...


class Tell(Protocol):
    """How a media backend talks to a participant: ``tell(room_id, member_id, data)``, data the JSON of a signal's."""

    def __call__(self, room_id: str, member_id: str, data: bytes) -> None: ...


class CallLog(Protocol):
    """Where the history of calls is written. Never waits, never raises.

    Every instance reports its own participants; who began a call reports ``started``, who saw the last one leave
    ``ended`` (perhaps two instances do: the call's id makes it one).
    """

    def started(self, call: Call, room: Room) -> None:
        """A second participant has joined."""
        ...

    def joined(self, call: Call, room: Room, member: Member, at: float) -> None:
        """A participant here belongs to the call since ``at`` (unix seconds); those before its start, since then."""
        ...

    def left(self, call: Call, room: Room, member: Member, at: float, quality: Mapping[str, object]) -> None:
        """A participant here has left; ``quality`` is the meter's summary."""
        ...

    def ended(self, call: Call, room: Room, at: float) -> None:
        """The last participant has left."""
        ...

    def renamed(self, old: Call, new: Call, room: Room) -> None:
        """What was reported as ``old`` belongs to ``new``, which began earlier elsewhere."""
        ...


class QualityMeter(Protocol):
    """One participant's connection quality."""

    def add(self, report: Report, now: float) -> str:
        """The quality after a report: excellent, good, poor or lost. ``now``: monotonic seconds."""
        ...

    def path(self, peer: str, state: str, relayed: bool) -> None:
        """How a media path does: "connected" or "failed"."""
        ...

    def summary(self) -> Mapping[str, object]:
        """For the history, as plain JSON."""
        ...


class IceSource(Protocol):
    """ICE servers as row W2 has them now."""

    def grant(self, user_id: str) -> IceGrant:
        """Servers with credentials made for the user. Never waits."""
        ...


class Note(Protocol):
    """Where the signalling tells what happens, for the log: never tokens, never what peers say to each other."""

    def __call__(self, event: str, /, **fields: object) -> object: ...


class Degradations(Protocol):
    """What clients are told about rows that are served by a fallback now."""

    def __call__(self) -> list[DegradedRow]: ...
