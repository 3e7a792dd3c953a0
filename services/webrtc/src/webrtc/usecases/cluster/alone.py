"""The cluster of one instance: nobody elsewhere, so nothing to tell."""

# ruff: noqa: ARG002 - parameters of the methods are the port's

from collections.abc import Awaitable, Callable

from webrtc.model import Call, Close, Member, Opened, Room
from webrtc.ports import Local


class Alone:
    """``find`` reads a room's definition."""

    alone = False

    def __init__(self, find: Callable[[str], Awaitable[Room]], instance: str = "only") -> None:
        self.instance = instance
        self._find = find

    def attach(self, local: Local) -> None:
        """Nobody will ever be told."""

    async def open(self, room_id: str) -> Opened:
        """The room; nobody is in it elsewhere."""
        return Opened(await self._find(room_id))

    async def members(self, room_id: str) -> tuple[Member, ...]:
        """Nobody."""
        return ()

    def joined(self, room_id: str, member: Member) -> None:
        """Nobody else to tell."""

    def updated(self, room_id: str, member: Member) -> None:
        """Nobody else to tell."""

    def left(self, room_id: str, member: Member, reason: str) -> None:
        """Nobody else to tell."""

    def closed(self, room_id: str) -> None:
        """Nobody else to tell."""

    def called(self, room_id: str, call: Call) -> None:
        """Nobody else to tell."""

    def moded(self, room_id: str, mode: str, reason: str) -> None:
        """Nobody else to tell."""

    def deleted(self, room_id: str) -> None:
        """Nobody else to tell."""

    def send(self, room_id: str, to: Member, message: bytes) -> bool:
        """Nobody is elsewhere."""
        return False

    def close(self, room_id: str, to: Member, code: Close) -> bool:
        """Nobody is elsewhere."""
        return False

    def signal_sfu(self, room_id: str, member_id: str, data: bytes) -> bool:
        """The SFU is here."""
        return False

    async def sfu_home(self, room_id: str) -> str:
        """Here."""
        return self.instance
