"""The history of calls (row W3, webrtc.postgres): how reports get into it, and who may read it.

A report says one thing of a call, and whatever is needed should it be the first to arrive:

    {"call", "started_at", "room", "room_name", "owner", "ended_at"?, "old"?: the id of a call that this one is,
     "participant"?: {"id", "user_id", "name", "joined_at", "left_at"?, "quality"?}}

Times are unix seconds. The same facts are told to the event stream as the Dashboard's history wants them
(``auralink.call.*``); a stream that is away loses what its buffer cannot hold, the history here does not.
"""

import base64
import binascii
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from resilience import Operation, RowPolicy, Served
from webrtc.model import Call, CallPage, CallUnknown, Invalid, Member, PastCall, Room, checked_page_size
from webrtc.ports import History
from webrtc.usecases.quality import together

KIND = "call.note"
STARTED, JOINED, LEFT, ENDED = "call.started", "call.participant_joined", "call.participant_left", "call.ended"
RENAMED = "call.renamed"
TEXT_LIMIT = 200
MOST_OPEN_CALLS = 10_000
"""Calls whose participants' quality is remembered for the event of their end."""
_LAST_MOMENT = 253_402_300_799.0

Keep = Callable[[Operation], None]
"""Takes a report to be written; never waits."""


class Announce(Protocol):
    """Tells the event stream; never waits."""

    def __call__(self, kind: str, subject: str, data: Mapping[str, object]) -> None: ...


class CallJournal:
    """See ports.CallLog. ``keep`` is None where no history is kept."""

    def __init__(self, keep: Keep | None, announce: Announce) -> None:
        self._keep = keep
        self._announce = announce
        self._qualities: OrderedDict[str, list[Mapping[str, object]]] = OrderedDict()

    def started(self, call: Call, room: Room) -> None:
        """See the port."""
        self._note(call, room)
        self._tell(STARTED, call, room)

    def joined(self, call: Call, room: Room, member: Member, at: float) -> None:
        """See the port."""
        self._note(call, room, participant=_participant(member, at))
        self._tell(JOINED, call, room, **_person(member), joined_at=at)

    def left(self, call: Call, room: Room, member: Member, at: float, quality: Mapping[str, object]) -> None:
        """See the port."""
        joined = min(at, max(member.joined_at, call.started_at))
        self._note(call, room, participant=_participant(member, joined, left_at=at, quality=quality))
        self._remember(call.id, quality)
        self._tell(LEFT, call, room, **_person(member), joined_at=joined, left_at=at, quality=quality or None)

    def ended(self, call: Call, room: Room, at: float) -> None:
        """See the port."""
        self._note(call, room, ended_at=at)
        self._tell(ENDED, call, room, ended_at=at, quality=together(self._qualities.pop(call.id, ())))

    def renamed(self, old: Call, new: Call, room: Room) -> None:
        """See the port."""
        self._note(new, room, old=old.id)
        self._tell(RENAMED, new, room, old=old.id)
        self._qualities.setdefault(new.id, []).extend(self._qualities.pop(old.id, ()))

    def _note(self, call: Call, room: Room, **more: object) -> None:
        if self._keep is None:
            return
        news = {"call": call.id, "started_at": call.started_at, "room": room.id, "owner": room.owner_id}
        news |= {"room_name": _text(room.name)} | more
        self._keep(Operation(str(uuid.uuid4()), KIND, f"call:{call.id}", room.owner_id, news))

    def _tell(self, kind: str, call: Call, room: Room, **more: object) -> None:
        about = {"room_id": room.id, "room_name": room.name, "owner_id": room.owner_id, "started_at": call.started_at}
        self._announce(kind, f"call:{call.id}", {**about, **more})

    def _remember(self, call_id: str, quality: Mapping[str, object]) -> None:
        if quality:
            self._qualities.setdefault(call_id, []).append(quality)
        if len(self._qualities) > MOST_OPEN_CALLS:
            self._qualities.popitem(last=False)


class Calls:
    """Reads of one's own history. There is no fallback: without the database its answer is an error."""

    def __init__(self, history: History, policy: RowPolicy) -> None:
        self._history = history
        self._policy = policy

    async def page(self, user: str, page_size: int = 0, cursor: str = "") -> Served[CallPage]:
        """The user's calls, newest first. Raises Invalid for a size out of range or a foreign cursor."""
        size, after = checked_page_size(page_size), place_of(cursor)
        found = await self._policy.serve(lambda: self._history.page(user, size + 1, after))
        return found.map(lambda calls: _page(calls, size))

    async def get(self, user: str, call_id: str) -> Served[PastCall]:
        """A call that the user took part in. Raises CallUnknown."""
        if not 0 < len(call_id) <= TEXT_LIMIT or "\x00" in call_id or not call_id.isprintable():
            raise CallUnknown
        return await self._policy.serve(lambda: self._history.get(user, call_id))


def quality_of(call: PastCall) -> dict[str, object] | None:
    """A call's quality, from its participants'; None when nothing was measured."""
    return together(one.quality for one in call.participants if one.quality)


def place_of(cursor: str) -> tuple[float, str] | None:
    """The place that a cursor names; None for the empty one. Raises Invalid."""
    if not cursor:
        return None
    try:
        started_at, call_id = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        call_id.encode()
        if isinstance(started_at, float | int) and 0 <= started_at <= _LAST_MOMENT and "\x00" not in call_id:
            return float(started_at), call_id
    except (ValueError, TypeError, AttributeError, binascii.Error):
        pass
    raise Invalid({"cursor": "is not a cursor of this list"})


def _page(found: list[PastCall], size: int) -> CallPage:
    items = found[:size]
    return CallPage(items, _cursor_after(items[-1]) if len(found) > size else "")


def _cursor_after(call: PastCall) -> str:
    return base64.urlsafe_b64encode(json.dumps([call.started_at, call.id]).encode()).decode()


def _person(member: Member) -> dict[str, object]:
    return {"user_id": member.user_id, "display_name": member.name, "participant_id": member.id}


def _participant(member: Member, joined_at: float, **more: Any) -> dict[str, object]:
    return {
        "id": member.id,
        "user_id": member.user_id,
        "name": _text(member.name),
        "joined_at": joined_at,
        **{name: value for name, value in more.items() if value},
    }


def _text(text: str) -> str:
    """What PostgreSQL can hold of a text."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:TEXT_LIMIT]
