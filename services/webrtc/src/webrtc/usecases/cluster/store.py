"""What the cluster needs of Redis, as an interface with its values; kept by ``outbound.cluster_redis``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from webrtc.model import Call, Member, Room

Kind = Literal["put", "drop", "call", "mode", "home", "close", "gone", "end"]


class Position(NamedTuple):
    """Of an entry in an inbox: they are ordered."""

    ms: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Something that became different in a room, as written and as read in an inbox.

    put: ``member`` is here; drop: ``member`` is not, for ``text`` the reason; call: it is ``call``; mode: ``key``, for
    ``text`` the reason; home: the SFU's instance is ``key`` (perhaps none); close: the instance ``key`` has nobody in
    the room; gone: deleted; end (of no room): the process of the instance ``key`` is gone.
    """

    kind: Kind
    room_id: str
    key: str = ""
    member: Member | None = None
    call: Call | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Messages for one instance, encoded (``codec``)."""

    instance: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """What is written as one, with the sender's number, which grows: one that comes twice is known by it."""

    number: int
    content: Change | Parcel


@dataclass(frozen=True, slots=True)
class Entry:
    """What was read in the own inbox. ``content`` is None when it could not be understood."""

    position: Position
    sender: str
    number: int
    content: Change | bytes | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A room as Redis has it at one moment, which is after everything up to ``position`` in the own inbox.

    ``room`` is None when there is no definition; ``deleted``: because its owner has deleted it. Another ``era`` than
    before means that Redis has lost its data.
    """

    room: Room | None
    deleted: bool
    members: tuple[Member, ...]
    call: Call | None
    mode: str
    home: str
    position: Position
    era: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a beat finds: whether the own lease had not ended, who else is alive or not, and which rooms they hold.

    ``before``: who had the slot until now, if that was another one; ``era``: see Snapshot.
    """

    kept: bool
    alive: Mapping[str, frozenset[str]]
    dead: frozenset[str]
    before: str
    era: str


class ClusterStore(Protocol):
    """Every method may raise StoreUnavailable; each may be repeated."""

    async def look(self, instance: str, room_ids: Sequence[str], *, watch: bool = True) -> list[Snapshot]:
        """The rooms; ``watch``: from then on changes in those that exist come to the instance's inbox."""
        ...

    async def write(self, instance: str, frames: Sequence[Frame]) -> list[Change | None]:
        """Writes in order, and tells whom it concerns. Where something else counts already, that is returned."""
        ...

    async def read(self, instance: str, after: Position) -> list[Entry]:
        """What came to the inbox; waits for about a second. On a connection of its own."""
        ...

    async def beat(self, instance: str, slot: str) -> Pulse:
        """Renews the lease. ``slot`` is an address that one process at a time can have: whoever had it has ended."""
        ...

    async def held(self, instance: str) -> frozenset[str]:
        """Rooms in which Redis believes the instance to have participants."""
        ...

    async def reap(self, instance: str, dead: str) -> bool:
        """Removes what a dead instance has left, a part at a time; whether all is gone."""
        ...

    async def claim(self, instance: str, room_id: str) -> str:
        """The instance that carries the room's SFU, this one if none did."""
        ...

    async def leave(self, instance: str, room_ids: Collection[str]) -> None:
        """The instance stops."""
        ...
