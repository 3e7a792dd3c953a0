"""Call history: read for those who took part, and kept up to date from the events of calls.

Events (row D5) come at least once and in any order, so each is merged into what is known in a way that neither order
nor repetition changes: the earliest start, join and the latest leave and end hold, and a name once known stays.

Every event has the subject ``call:<id>``, and any of them may carry ``room_id``, ``room_name``, ``owner_id`` and
``started_at``, as it may be the first to come. Times are unix seconds or RFC 3339; one that is missing is the event's.

| type (``auralink.`` before it)  | ``data``                                                                         |
|---------------------------------|----------------------------------------------------------------------------------|
| ``call.started``                | ``started_at``                                                                   |
| ``call.participant_joined``     | ``user_id``, ``display_name``, ``joined_at``                                     |
| ``call.participant_left``       | ``user_id``, ``left_at``, ``quality`` (an object, e.g. label, rtt_ms, loss)      |
| ``call.ended``                  | ``ended_at``, ``quality`` (an object), ``participants`` (objects as of the above) |
| ``call.renamed``                | ``old``: the id of a call that turned out to be this one                         |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dashboard.model import Call, EventUnreadable, Page, Participant
from dashboard.ports import CallCopies, Event, StoredCalls
from dashboard.usecases.reads import Reads
from resilience import RowPolicy, Served

STARTED = "auralink.call.started"
JOINED = "auralink.call.participant_joined"
LEFT = "auralink.call.participant_left"
ENDED = "auralink.call.ended"
RENAMED = "auralink.call.renamed"
TYPES = frozenset({STARTED, JOINED, LEFT, ENDED, RENAMED})

MAX_PARTICIPANTS = 1000
"""Of one call; a room holds a hundred at a time."""
MAX_TEXT = 200
MAX_QUALITY = 4096
"""Characters of one quality object as JSON."""
_LAST_MOMENT = 253_402_300_799.0


class Calls:
    """Reads of one's own history."""

    def __init__(self, reads: Reads[StoredCalls], copies: CallCopies) -> None:
        self._reads = reads
        self._copies = copies

    async def page(self, user_id: str, limit: int, cursor: str | None) -> Served[Page[Call]]:
        """The user's calls, newest first; without the database the first page alone. Raises CursorInvalid."""
        rungs = self._copies.page(user_id, limit) if cursor is None else ()
        served = await self._reads.serve(lambda calls: calls.page(user_id, limit, cursor), *rungs)
        if cursor is None and not served.degraded:
            self._copies.keep(user_id, served.value)
        return served

    async def get(self, user_id: str, call_id: str) -> Served[Call]:
        """A call that the user took part in. Raises CallUnknown."""
        rungs = self._copies.call(user_id, call_id)
        return await self._reads.serve(lambda calls: calls.get(user_id, call_id), *rungs)


class CallProjection:
    """Brings events into the history, under the database's policy."""

    def __init__(self, history: StoredCalls, policy: RowPolicy) -> None:
        self._history = history
        self._policy = policy

    async def handle(self, event: Event) -> bool:
        """Applies an event; False when it is none of a call.

        Raises EventUnreadable, and what the policy raises while the database is away: deliver it again then.
        """
        if event.type not in TYPES:
            return False
        news = _news(event)
        if event.type == RENAMED:
            old = _old_id(event, news)
            await self._policy.call(self._history.join, old, news.call_id, lambda old, new: _joined(old, new, news))
        else:
            await self._policy.call(self._history.change, news.call_id, lambda call: merged(call, news))
        return True


class CallNews(NamedTuple):
    """What an event says of a call; empty and None: nothing."""

    call_id: str
    room_id: str
    room_name: str
    owner_id: str
    started_at: float
    ended_at: float | None
    participants: tuple[Participant, ...]
    quality: dict[str, Any] | None


def merged(call: Call | None, news: CallNews) -> Call:
    """The call with the news in it, whatever came before."""
    known = call or Call(news.call_id, "", "", "", news.started_at, None)
    ended = _latest(known.ended_at, news.ended_at)
    return replace(
        known,
        room_id=known.room_id or news.room_id,
        room_name=known.room_name or news.room_name,
        owner_id=known.owner_id or news.owner_id,
        started_at=min(known.started_at, news.started_at),
        ended_at=ended,
        participants=_together(known.participants, news.participants),
        quality=news.quality if news.quality is not None and ended == news.ended_at else known.quality,
    )


def _joined(old: Call | None, new: Call | None, news: CallNews) -> Call:
    """Both calls as one."""
    call = merged(new, news)
    if old is None:
        return call
    names = (old.room_id, old.room_name, old.owner_id)
    return merged(call, CallNews(call.id, *names, old.started_at, old.ended_at, old.participants, old.quality))


def _together(known: Iterable[Participant], news: Iterable[Participant]) -> tuple[Participant, ...]:
    found = {one.user_id: one for one in known}
    for one in news:
        if one.user_id in found:
            found[one.user_id] = _same(found[one.user_id], one)
        elif len(found) < MAX_PARTICIPANTS:
            found[one.user_id] = one
    return tuple(sorted(found.values(), key=lambda one: (one.joined_at or math.inf, one.user_id)))


def _same(known: Participant, news: Participant) -> Participant:
    left = _latest(known.left_at, news.left_at)
    joins = [at for at in (known.joined_at, news.joined_at) if at is not None]
    return Participant(
        known.user_id,
        known.display_name or news.display_name,
        min(joins, default=None),
        _latest(known.rejoined_at, news.rejoined_at),
        left,
        news.quality if news.quality is not None and news.left_at == left else known.quality,
    )


def _latest(*moments: float | None) -> float | None:
    return max((moment for moment in moments if moment is not None), default=None)


def _news(event: Event) -> CallNews:
    data, at = event.data, event.time.timestamp()
    kind, _, call_id = event.subject.partition(":")
    if kind != "call" or not call_id or _text(call_id) != call_id:
        raise EventUnreadable("the subject names no call")
    participants = _participants(event.type, data, at)
    ended = _moment(data.get("ended_at"), at) if event.type == ENDED else None
    times = [_moment(data.get("started_at"), at), *(one.joined_at for one in participants), ended]
    return CallNews(
        call_id,
        _text(data.get("room_id")),
        _text(data.get("room_name")),
        _text(data.get("owner_id")),
        min(moment for moment in times if moment is not None),
        ended,
        participants,
        _quality(data.get("quality")) if event.type == ENDED else None,
    )


def _old_id(event: Event, news: CallNews) -> str:
    old = _text(event.data.get("old"))
    if not old or old == news.call_id:
        raise EventUnreadable("it names no other call")
    return old


def _participants(kind: str, data: Mapping[str, Any], at: float) -> tuple[Participant, ...]:
    if kind == ENDED:
        told = data.get("participants")
        found = [_participant(one, None, None) for one in (told if isinstance(told, list) else [])[:MAX_PARTICIPANTS]]
        return tuple(one for one in found if one is not None)
    if kind in (STARTED, RENAMED):
        return ()
    one = _participant(data, at if kind == JOINED else None, at if kind == LEFT else None)
    if one is None:
        raise EventUnreadable("it names no participant")
    return (one,)


def _participant(data: Any, joined: float | None, left: float | None) -> Participant | None:
    fields = data if isinstance(data, Mapping) else {}
    if not (user_id := _text(fields.get("user_id"))):
        return None
    came, went = _moment(fields.get("joined_at"), joined), _moment(fields.get("left_at"), left)
    quality = _quality(fields.get("quality"))
    return Participant(user_id, _text(fields.get("display_name")), came, came, went, quality)


def _text(value: Any) -> str:
    """A text that PostgreSQL can hold."""
    if not isinstance(value, str):
        return ""
    return value.replace("\x00", "").encode("utf-8", "replace").decode()[:MAX_TEXT]


def _moment(value: Any, default: Any = None) -> Any:
    """Unix seconds of a number or of RFC 3339; ``default`` when it is neither, or of a time that cannot be."""
    if isinstance(value, str):
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            return default
        value = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_MOMENT
    return float(value) if good else default


def _quality(value: Any) -> dict[str, Any] | None:
    """An object that PostgreSQL can hold, and not a large one."""
    if not isinstance(value, Mapping):
        return None
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
    except (TypeError, ValueError, RecursionError):
        return None
    return dict(value) if len(written) <= MAX_QUALITY and "\\u0000" not in written else None
