"""What the Dashboard knows of rooms while WebRTC is away: its projection in PostgreSQL, and copies (row D4).

Both are kept up to date behind, best effort and never in a request's way: news waits in a bounded buffer of this
process and is written in batches; what was noted a moment ago and has not changed since costs a look into a table.
What still waits shows in answers, and what this process has seen deleted never does.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple, TypeVar

from dashboard.degradation import ROOMS_DATABASE
from dashboard.model import CursorInvalid, Page, Room, RoomUnknown
from dashboard.outbound.postgres import is_outage
from dashboard.outbound.room_copies import ANSWERS, COPIED_ROOMS, RoomCopies, RoomList, half_of_the_time, page_of
from dashboard.outbound.rooms import Known, Listing, Place, PostgresRooms, Sighting, place_of
from dashboard.usecases.reads import Reads
from resilience import (
    MISSING,
    Clock,
    Missing,
    RowPolicy,
    Rung,
    Served,
)
from resilience.errors import POLICY_FAILURES
from service_kit import logs
from service_kit.copies import CopyStore

T = TypeVar("T")
log = logs.get_logger("rooms")

MAX_NOTED = 10_000
"""Rooms and lists that this process remembers, and news that waits to be written."""
REFRESH_SECONDS = 60.0
"""How often what has not changed is noted again: another instance may have written something else meanwhile."""
BATCH = 50
"""Pieces of news in one transaction: few, as it is held against the database when it takes longer than a call may."""
BATCH_SECONDS = 0.05
RETRY_SECONDS = 1.0
PRUNE_SECONDS = 3600.0


class _Noted(NamedTuple):
    value: object
    moment: float
    due: float


class RoomProjection:
    """See the port. ``store`` is the primary's; it is written under ``policy``."""

    def __init__(
        self, reads: Reads[PostgresRooms], store: PostgresRooms, policy: RowPolicy, copies: CopyStore, clock: Clock
    ) -> None:
        self._reads = reads
        self._store = store
        self._policy = policy
        self._clock = clock
        self._noted: OrderedDict[str, _Noted] = OrderedDict()
        self._gone: OrderedDict[str, float] = OrderedDict()
        self._behind: OrderedDict[str, Sighting | Listing] = OrderedDict()
        self._changed: OrderedDict[str, dict[str, Sighting]] = OrderedDict()
        self._copies = RoomCopies(copies, self._gone.__contains__)
        self._wake = asyncio.Event()

    # -- noting

    def created(self, room: Room) -> None:
        """See the port."""
        now = self._clock.time()
        self.seen(room, now)
        self._change_list(Sighting(room, now))

    def seen(self, room: Room, since: float) -> None:
        """See the port."""
        if self._gone.get(room.id, 0.0) >= since:
            return
        self._gone.pop(room.id, None)
        if self._is_news(_room(room.id), room, since):
            self._wait(_room(room.id), Sighting(room, since))
            self._copies.keep(Sighting(room, since))

    def listed(self, owner_id: str, cursor: str | None, page: Page[Room], since: float) -> None:
        """See the port."""
        for room in page.items:
            self.seen(room, since)
        ids, is_last = tuple(room.id for room in page.items), page.next_cursor is None
        if not self._is_news(_list(owner_id, cursor), (ids, is_last), since):
            return
        if cursor is None:
            self._copies.keep_list(owner_id, RoomList(page.items, is_last, since))
        try:
            below = place_of(cursor)
        except CursorInvalid:  # should WebRTC's cursors change, nothing is known of what lies between
            return
        above = None if is_last or not page.items else page.items[-1].place
        self._wait(_list(owner_id, cursor), Listing(owner_id, ids, since, below, above))

    def deleted(self, room_id: str, owner_id: str) -> None:
        """See the port."""
        now = self._clock.time()
        sighting = Sighting(Room(room_id, "", 0, owner_id, now), now, gone=True)
        _put(self._gone, room_id, now)
        self._noted.pop(_room(room_id), None)
        self._wait(_room(room_id), sighting)
        self._copies.keep(sighting)
        self._change_list(sighting)

    def missing(self, room_id: str) -> None:
        """See the port. Ids that were never seen here are no news: anybody may ask for any."""
        noted = self._noted.get(_room(room_id))
        if noted is not None and isinstance(noted.value, Room):
            self.deleted(room_id, noted.value.owner_id)

    def _is_news(self, key: str, value: object, since: float) -> bool:
        noted, now = self._noted.get(key), self._clock.monotonic()
        known = noted is not None and noted.value == value and now < noted.due
        due = noted.due if noted is not None and known else now + REFRESH_SECONDS
        _put(self._noted, key, _Noted(value, since, due))
        return not known

    def _wait(self, key: str, news: Sighting | Listing) -> None:
        _put(self._behind, key, news)
        self._wake.set()

    def _change_list(self, sighting: Sighting) -> None:
        owner_id = sighting.room.owner_id
        self._noted.pop(_list(owner_id), None)
        _put(self._changed, owner_id, {**self._changed.get(owner_id, {}), sighting.room.id: sighting})
        self._wake.set()

    # -- writing behind

    async def run(self) -> None:
        """Writes behind until cancelled."""
        prune_at = self._clock.monotonic() + PRUNE_SECONDS
        while True:
            await self._wake.wait()
            await self._clock.sleep(BATCH_SECONDS)
            if not await self.flush():
                await self._clock.sleep(RETRY_SECONDS)
            elif self._clock.monotonic() >= prune_at:
                prune_at = self._clock.monotonic() + PRUNE_SECONDS
                await self._policy.call(self._store.prune)

    async def flush(self) -> bool:
        """Writes all that waits; False when the database is away, and the rest is kept for later."""
        self._wake.clear()
        while self._changed:  # made and deleted here: shows in the copy of the owner's list on every instance
            owner_id, changes = self._changed.popitem(last=False)
            await self._copies.change_list(owner_id, changes)
        while self._behind:
            if not await self._write(dict(list(self._behind.items())[:BATCH])):
                self._wake.set()
                return False
        return True

    async def _write(self, batch: dict[str, Sighting | Listing]) -> bool:
        try:
            await self._policy.call(self._store.record, tuple(batch.values()))
        except Exception as error:  # noqa: BLE001 - what cannot be written must not keep the rest from it
            if isinstance(error, POLICY_FAILURES) or is_outage(error):
                return False
            log.warning("rooms not projected", rooms=len(batch), error=type(error).__name__)
        for key, news in batch.items():
            if self._behind.get(key) is news:
                del self._behind[key]
        return True

    # -- reading

    def room(self, room_id: str) -> tuple[Rung[Room], ...]:
        """See the port."""

        async def from_database(_: BaseException) -> Served[Room] | Missing:
            if room_id in self._gone:
                raise RoomUnknown(ROOMS_DATABASE)
            waiting = self._behind.get(_room(room_id))
            if isinstance(waiting, Sighting) and not waiting.gone:
                return Served(waiting.room, as_of=waiting.moment)
            with half_of_the_time():
                served = await self._reads.serve(lambda rooms: rooms.get(room_id))
            if served.value is None:
                return MISSING
            room, seen_at = served.value
            return self._dated(served.map(lambda _: room), _room(room_id), seen_at)

        return (Rung(ROOMS_DATABASE, from_database, ANSWERS), *self._copies.room(room_id))

    def page(self, owner_id: str, limit: int, cursor: str | None) -> tuple[Rung[Page[Room]], ...]:
        """See the port. When nothing is known of an owner, the copies are asked, and then the list is empty, as it was
        when the account was made."""
        asked = limit + 1 + min(len(self._gone), COPIED_ROOMS)  # those deleted here are left out again
        empty: list[Served[Page[Room]]] = []

        async def from_database(_: BaseException) -> Served[Page[Room]] | Missing:
            after = place_of(cursor)
            with half_of_the_time():
                served = await self._reads.serve(lambda rooms: rooms.page(owner_id, asked, after))
            found, complete = self._with_waiting(owner_id, served.value, after), len(served.value.rooms) < asked
            page = served.map(lambda _: page_of(found, limit, complete=complete))
            if found or served.value.latest is not None or _list(owner_id) in self._noted:
                return self._dated(page, _list(owner_id), served.value.latest or 0.0)
            empty.append(self._dated(page, _list(owner_id), served.value.registered))
            return MISSING

        async def nothing_known(_: BaseException) -> Served[Page[Room]] | Missing:
            return empty[0] if empty else MISSING

        database: Rung[Page[Room]] = Rung(ROOMS_DATABASE, from_database, ANSWERS)
        nothing: Rung[Page[Room]] = Rung(ROOMS_DATABASE, nothing_known)
        return (database, *self._copies.page(owner_id, limit, cursor), nothing)

    def _dated(self, served: Served[T], key: str, latest: float) -> Served[T]:
        """As of the newest moment that is known of it; not newer than where the standby has got to."""
        noted = self._noted.get(key)
        as_of = max(latest, noted.moment if noted else 0.0)
        return Served(served.value, served.degradations, as_of if served.as_of is None else min(as_of, served.as_of))

    def _with_waiting(self, owner_id: str, known: Known, after: Place | None) -> list[Room]:
        found = {room.id: room for room in known.rooms if room.id not in self._gone}
        for news in self._behind.values():
            if isinstance(news, Sighting) and not news.gone and news.room.owner_id == owner_id:
                found[news.room.id] = news.room
        rooms = sorted(found.values(), key=lambda room: room.place, reverse=True)
        return [room for room in rooms if after is None or room.place < after]


def _room(room_id: str) -> str:
    return f"room:{room_id}"


def _list(owner_id: str, cursor: str | None = None) -> str:
    return f"rooms:{owner_id}:{cursor or ''}"


def _put(mapping: OrderedDict[str, T], key: str, value: T) -> None:
    mapping[key] = value
    mapping.move_to_end(key)
    if len(mapping) > MAX_NOTED:
        mapping.popitem(last=False)
