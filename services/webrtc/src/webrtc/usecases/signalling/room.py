"""One room as this instance knows it: participants here, members elsewhere, the call, and the way of its media."""

from collections.abc import Iterator

from webrtc.model import Member, Opened
from webrtc.usecases.signalling.participant import Participant


class RoomState:
    """Lives while a participant is here, or the media of others goes through here."""

    __slots__ = ("call", "elsewhere", "gone_at", "here", "home", "id", "mode", "room", "switching")

    def __init__(self, opened: Opened) -> None:
        self.room = opened.room
        self.id = opened.room.id
        self.here: dict[str, Participant] = {}
        self.elsewhere: dict[str, Member] = {member.id: member for member in opened.members}
        self.gone_at: dict[str, float] = {}
        """Since when (monotonic) members whose instance drained are away."""
        self.call = opened.call
        self.mode = "p2p"
        """How media goes, as clients were told."""
        self.switching = False
        """The SFU is being asked to take over."""
        self.home = ""
        """The instance that carries the room's SFU, once there is one."""

    def __len__(self) -> int:
        return len(self.here) + len(self.elsewhere)

    def members(self) -> Iterator[Member]:
        """Everybody."""
        for participant in self.here.values():
            yield participant.member
        yield from self.elsewhere.values()

    def find(self, member_id: str) -> Member | None:
        """A participant, wherever it is."""
        participant = self.here.get(member_id)
        return participant.member if participant else self.elsewhere.get(member_id)

    @property
    def full(self) -> bool:
        """Whether nobody else may join."""
        return len(self) >= self.room.max_participants

    def tell(self, message: bytes, *, but: str = "") -> None:
        """Tells everybody here, one of them excepted."""
        for member_id, participant in self.here.items():
            if member_id != but:
                participant.tell(message)
