"""What the WebRTC service needs from outside, as interfaces, each kept by one module of ``outbound``."""

from typing import Protocol

from webrtc.model import Room


class StoreUnavailable(Exception):
    """Redis could not be used: unreachable, too slow, or still loading its data."""


class StoreDisconnected(StoreUnavailable):
    """A pooled connection turned out to be closed before anything was sent on it: trying again is safe, once."""


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
    """Signs what lets its holder join a room's signalling."""

    def sign(self, room_id: str, user_id: str, now: float, seconds: int) -> str:
        """A token for one user and one room, valid for ``seconds`` from ``now`` (unix seconds)."""
        ...
