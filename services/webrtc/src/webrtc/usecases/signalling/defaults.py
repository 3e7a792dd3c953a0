"""What the hub works with where nobody keeps a history or scores connections."""

# ruff: noqa: ARG002 - parameters of the methods are the ports'

from collections.abc import Mapping

from webrtc.model import Call, Member, Report, Room


class NoCalls:
    """No history. Keeps ``ports.CallLog``."""

    def started(self, call: Call, room: Room) -> None:
        """Forgotten."""

    def joined(self, call: Call, room: Room, member: Member, at: float) -> None:
        """Forgotten."""

    def left(self, call: Call, room: Room, member: Member, at: float, quality: Mapping[str, object]) -> None:
        """Forgotten."""

    def ended(self, call: Call, room: Room, at: float) -> None:
        """Forgotten."""

    def renamed(self, old: Call, new: Call, room: Room) -> None:
        """Forgotten."""


class NoMeter:
    """No scores. Keeps ``ports.QualityMeter``."""

    def add(self, report: Report, now: float) -> str:
        """Not known."""
        return ""

    def path(self, peer: str, state: str, relayed: bool) -> None:
        """Forgotten."""

    def summary(self) -> Mapping[str, object]:
        """Nothing."""
        return {}
