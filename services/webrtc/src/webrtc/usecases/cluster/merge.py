"""The rule by which two views of a room become one, in whatever order and however often they meet.

An instance alone knows who is on it: its participants are there, and whoever it does not have is not. Of two
participants with one id, who came back elsewhere while the instances could not talk, the one that joined last counts.
Nobody is dropped for any other reason, not even past a room's bound. What a dead instance (its lease has ended) left
behind is removed. A call is the one that began first. A room that its owner deleted stays deleted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from webrtc.model import Call, Member


def rank(member: Member) -> tuple[float, str, int]:
    """Of two members with one id, the greater one counts."""
    return member.joined_at, member.instance, member.version


def join(one: Mapping[str, Member], other: Mapping[str, Member]) -> dict[str, Member]:
    """Everybody of both, by id."""
    merged = dict(one)
    for member in other.values():
        mine = merged.get(member.id)
        if mine is None or rank(member) > rank(mine):
            merged[member.id] = member
    return merged


def earlier(one: Call | None, other: Call | None) -> Call | None:
    """Of two calls in one room, the one that counts."""
    if one is None or other is None:
        return one or other
    return min(one, other, key=lambda call: (call.started_at, call.id))


@dataclass(slots=True)
class Settled:
    """What follows from an instance's own members and what Redis has.

    ``write``: own members that Redis lacks or has older; ``remove``: entries that are not true, with the reason;
    ``replaced``: own members that joined again elsewhere, as they are there; ``elsewhere``: all others, by id.
    """

    write: list[Member] = field(default_factory=list)
    remove: list[tuple[Member, str]] = field(default_factory=list)
    replaced: list[Member] = field(default_factory=list)
    elsewhere: dict[str, Member] = field(default_factory=dict)


def settle(
    instance: str, local: Iterable[Member], stored: Iterable[Member], dead: Callable[[str], bool] = lambda _: False
) -> Settled:
    """Applies the rule, for one room."""
    settled = Settled()
    mine = {member.id: member for member in local}
    known = {member.id: member for member in stored}
    for member in known.values():
        own = mine.get(member.id)
        if member.instance == instance:
            if own is None:
                settled.remove.append((member, "left"))
        elif dead(member.instance):
            if own is None or rank(member) > rank(own):
                settled.remove.append((member, "lost"))
        elif own is None or rank(member) > rank(own):
            settled.elsewhere[member.id] = member
            if own is not None:
                settled.replaced.append(member)
    settled.write = [own for own in mine.values() if own.id not in settled.elsewhere and known.get(own.id) != own]
    return settled
