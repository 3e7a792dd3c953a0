"""Rooms while WebRTC is away (row D4, dashboard.webrtc), on a real gRPC server, PostgreSQL and Valkey."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

import webrtc.model
from dashboard.degradation import MEMORY_CACHE, POSTGRES, REDIS, REDIS_CACHE, ROOMS_DATABASE, WEBRTC
from dashboard.model import CursorInvalid, Page, Room, RoomUnknown
from dashboard.outbound import postgres
from dashboard.outbound.postgres import Database
from dashboard.outbound.room_projection import MAX_NOTED, REFRESH_SECONDS, RoomProjection
from dashboard.outbound.rooms import PostgresRooms, cursor_after, place_of
from dashboard.outbound.webrtc import GrpcRooms
from dashboard.usecases.reads import Reads
from dashboard.usecases.rooms import RoomDirectory
from resilience import (
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    Events,
    FakeClock,
    MemoryCache,
    RowPolicy,
    Served,
    deadline_scope,
)
from service_kit import context
from service_kit.copies import CopyStore
from service_kit.errors import DependencyUnavailable, ServiceError
from service_kit.rpc_client import channel, is_dependency_failure
from services.dashboard.tests.room_server import RoomServer, act_as

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOST = (ServiceError, CircuitBreakerOpen)


class Instance:
    """One Dashboard's rooms; the test holds the circuits and the clock of its memory in its hand."""

    def __init__(self, server: RoomServer, database: Database, client: Redis, clock: FakeClock) -> None:
        self.redis_is_away = False
        self.clock = clock
        self.told: list[tuple[Any, ...]] = []
        breaker = CircuitBreaker(WEBRTC.id, failure_threshold=3, classify=is_dependency_failure, success_threshold=1)
        self.webrtc = RowPolicy(WEBRTC, breaker=breaker)
        self.database = RowPolicy(POSTGRES, breaker=CircuitBreaker(POSTGRES.id, classify=postgres.classify))
        self.store = PostgresRooms(database)
        self.copies = CopyStore(client, self._redis, MemoryCache(1_000_000, 300, clock), clock)
        reads = Reads(self.database, self.store)
        self.projection = RoomProjection(reads, self.store, self.database, self.copies, clock)
        self.channel = channel(f"127.0.0.1:{server.port}")
        self.rooms = RoomDirectory(
            GrpcRooms(self.channel, self.webrtc, Events()),
            self.projection,
            clock,
            announce=lambda kind, subject, data, event_id=None: self.told.append((kind, subject)),
            joined=lambda *demand: self.told.append(demand),
        )

    async def _redis(self, action: Callable[[], Awaitable[Any]]) -> Any:
        if self.redis_is_away:
            raise OSError
        return await action()

    async def settle(self) -> None:
        """What waits is written, if it can be."""
        await self.projection.flush()
        await self.copies.flush_all()

    def forget_memory(self) -> None:
        self.copies._memory.clear()

    async def names(self, user: str, limit: int = 50, cursor: str | None = None) -> list[str]:
        return [room.name for room in (await self.page(user, limit, cursor)).value.items]

    async def page(self, user: str, limit: int = 50, cursor: str | None = None) -> Served[Page[Room]]:
        act_as(user)
        return await self.rooms.page(user, limit, cursor)

    async def create(self, user: str, name: str) -> Room:
        act_as(user)
        self.clock.move(0.001)
        return (await self.rooms.create(user, name, 5)).value


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[RoomServer]:
    server = RoomServer()
    await server.start()
    yield server
    server.thawed.set()
    await server.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(server: RoomServer, database: Database, redis_client: Redis) -> AsyncIterator[tuple[Instance, Instance]]:
    clock = FakeClock(wall=time.time())
    pair = (Instance(server, database, redis_client, clock), Instance(server, database, redis_client, clock))
    yield pair
    for instance in pair:
        await instance.channel.close()


@pytest.fixture
def one(pair: tuple[Instance, Instance]) -> Instance:
    return pair[0]


@pytest.fixture
def other(pair: tuple[Instance, Instance]) -> Instance:
    return pair[1]


def fallbacks(served: Served[Any]) -> list[str]:
    return [one.fallback for one in served.degradations]


async def test_with_webrtc_nothing_is_marked(one: Instance) -> None:
    room = await one.create("ann", "Kitchen")
    served = await one.page("ann")
    assert served.value.items == [room]
    assert not served.degraded
    assert served.as_of is None
    assert one.told == [("room.created", f"room:{room.id}")]


async def test_rooms_stay_readable_from_the_database(server: RoomServer, one: Instance, other: Instance) -> None:
    first, second = await one.create("ann", "First"), await one.create("ann", "Second")
    await one.settle()
    await server.kill()
    served = await other.page("ann")
    assert served.value == Page([second, first])
    assert fallbacks(served) == [ROOMS_DATABASE]
    assert served.as_of == pytest.approx(one.clock.time(), abs=1)
    act_as("ann")
    got = await other.rooms.get(first.id)
    assert (got.value, fallbacks(got)) == (first, [ROOMS_DATABASE])
    assert got.as_of == pytest.approx(one.clock.time(), abs=1)


async def test_a_room_is_shown_before_it_is_written(server: RoomServer, one: Instance) -> None:
    room = await one.create("ann", "Just made")
    await server.kill()
    assert (await one.page("ann")).value.items == [room]
    act_as("bob")
    assert (await one.rooms.get(room.id)).value == room


@pytest.mark.parametrize("memory", [False, True])
async def test_without_the_database_as_well_copies_serve(
    server: RoomServer, one: Instance, other: Instance, memory: bool
) -> None:
    old = await one.create("ann", "Old")
    await one.page("ann")
    new = await one.create("ann", "New")
    await one.settle()
    await server.kill()
    one.database.breaker.force_open()
    other.database.breaker.force_open()
    reader = one if memory else other
    reader.redis_is_away = memory
    served = await reader.page("ann")
    assert served.value.items == [new, old]
    assert fallbacks(served) == [MEMORY_CACHE if memory else REDIS_CACHE]
    assert served.as_of is not None
    act_as("ann")
    assert (await reader.rooms.get(new.id)).value == new


async def test_a_room_made_without_a_known_list_is_shown_as_one_of_maybe_more(
    server: RoomServer, one: Instance
) -> None:
    room = await one.create("ann", "Only known")
    await one.settle()
    await server.kill()
    one.database.breaker.force_open()
    page = (await one.page("ann")).value
    assert page == Page([room], cursor_after(room))
    with pytest.raises(DependencyUnavailable, match="Video calling temporarily unavailable"):
        await one.page("ann", cursor=page.next_cursor)


async def test_own_rooms_are_private_in_every_fallback(server: RoomServer, one: Instance, other: Instance) -> None:
    await one.create("ann", "Secret")
    await one.page("ann")
    await one.page("bob")
    await one.settle()
    await server.kill()
    for reader in (one, other):
        assert await reader.names("bob") == []
        reader.database.breaker.force_open()
        assert await reader.names("bob") == []
        assert await reader.names("ann") == ["Secret"]
        reader.redis_is_away = True
    assert await one.names("bob") == []
    assert await one.names("ann") == ["Secret"]
    with pytest.raises(LOST):
        await one.page("nobody")


async def test_of_an_owner_of_whom_nothing_is_known_the_list_is_empty_as_it_was_at_first(
    server: RoomServer, one: Instance, database: Database
) -> None:
    await server.kill()
    owner = str(uuid.uuid4())
    await database.fetch(
        "INSERT INTO users (id, email, display_name, password_hash, created_at) VALUES ($1, 'a@b', '', '', $2)",
        owner,
        datetime.fromtimestamp(1_700_000_000, UTC),
    )
    for user, as_of in ((owner, 1_700_000_000.0), ("nobody", 0.0)):
        served = await one.page(user)
        assert (served.value, fallbacks(served), served.as_of) == (Page([]), [ROOMS_DATABASE], as_of)


async def test_a_deleted_room_stays_deleted_everywhere(server: RoomServer, one: Instance, other: Instance) -> None:
    kept, room = await one.create("ann", "Kept"), await one.create("ann", "Deleted")
    for instance in (one, other):
        await instance.page("ann")
        await instance.rooms.get(room.id)
        await instance.settle()
    since = one.clock.time()
    one.clock.move(0.1)
    await one.rooms.delete("ann", room.id)
    await one.settle()
    other.projection._noted.clear()
    other.projection.seen(room, since)  # an answer that was under way when it was deleted
    await other.settle()
    other.forget_memory()
    await server.kill()
    for _ in range(2):
        for reader in (one, other):
            assert await reader.names("ann") == [kept.name]
            act_as("ann")
            with pytest.raises(RoomUnknown):
                await reader.rooms.get(room.id)
            assert context.degradations(), "that it is gone is said by a fallback, and says so"
            reader.database.breaker.force_open()
    assert ("room.deleted", f"room:{room.id}") in one.told


async def test_a_room_that_another_deleted_is_gone_after_the_next_list(
    server: RoomServer, one: Instance, other: Instance
) -> None:
    rooms = [await one.create("ann", f"{number}") for number in range(4)]
    await one.settle()
    one.clock.move(1)
    del server.rooms[rooms[2].id]
    assert await one.names("ann", limit=2) == ["3", "1"]
    await one.settle()
    await server.kill()
    assert await other.names("ann") == ["3", "1", "0"]
    assert await one.names("ann") == ["3", "1", "0"]


async def test_a_list_of_a_degraded_webrtc_deletes_nothing(server: RoomServer, one: Instance, other: Instance) -> None:
    room = await one.create("ann", "Held by another instance")
    await one.settle()
    one.clock.move(1)
    server.degraded = True
    del server.rooms[room.id]
    assert (await one.page("ann")).value.items == []
    await one.settle()
    await server.kill()
    assert (await other.page("ann")).value.items == [room]


async def test_a_room_that_webrtc_does_not_know_any_more_is_gone(server: RoomServer, one: Instance) -> None:
    room = await one.create("ann", "Gone")
    del server.rooms[room.id]
    act_as("bob")
    with pytest.raises(RoomUnknown):
        await one.rooms.get(room.id)
    with pytest.raises(RoomUnknown):
        await one.rooms.ticket("bob", "never-seen", "eu")
    await one.settle()
    await server.kill()
    assert await one.names("ann") == []


async def test_pages_go_on_with_either_sides_cursor(server: RoomServer, one: Instance, other: Instance) -> None:
    for number in range(5):
        await one.create("ann", str(number))
    await one.settle()
    first = await one.page("ann", limit=2)
    await server.kill()
    second = await other.page("ann", 2, first.value.next_cursor)
    assert [room.name for room in second.value.items] == ["2", "1"]
    await server.start()
    other.webrtc.breaker.reset()

    async def last() -> list[str]:
        try:
            return await other.names("ann", 2, second.value.next_cursor)
        except LOST:
            return []

    limit = time.monotonic() + 5
    while (found := await last()) != ["0"]:
        assert time.monotonic() < limit, found


async def test_cursors_are_those_of_webrtc() -> None:
    theirs = webrtc.model.Room(str(uuid.uuid4()), "Room", 2, "ann", 1_700_000_000_123_457)
    ours = Room(theirs.id, theirs.name, 2, "ann", theirs.created_at)
    assert webrtc.model.cursor_after(theirs) == cursor_after(ours)
    assert place_of(webrtc.model.cursor_after(theirs)) == ours.place


@pytest.mark.parametrize("cursor", ["nonsense", "ÿ", "e30="])
async def test_a_cursor_of_nobody_is_refused(server: RoomServer, one: Instance, cursor: str) -> None:
    await server.kill()
    with pytest.raises(CursorInvalid):
        await one.page("ann", cursor=cursor)


async def test_making_deleting_and_joining_fail_at_once(server: RoomServer, one: Instance) -> None:
    room = await one.create("ann", "Room")
    await server.kill()
    for work in (
        lambda: one.rooms.create("ann", "Another", 2),
        lambda: one.rooms.delete("ann", room.id),
        lambda: one.rooms.ticket("ann", room.id, "eu"),
    ):
        begun = time.monotonic()
        with pytest.raises(DependencyUnavailable, match="Video calling temporarily unavailable"):
            await work()
        assert time.monotonic() - begun < WEBRTC.call_timeout + 0.3
    assert one.webrtc.breaker.state is CircuitState.OPEN
    assert await one.names("ann") == ["Room"], "a deletion that failed is none"


async def test_a_frozen_webrtc_is_waited_for_no_longer_than_its_row_says(server: RoomServer, one: Instance) -> None:
    await one.create("ann", "Room")
    server.thawed.clear()
    begun = time.monotonic()
    with deadline_scope(2.0):
        served = await one.page("ann")
    assert fallbacks(served) == [ROOMS_DATABASE]
    assert time.monotonic() - begun < WEBRTC.call_timeout + 0.3


async def test_with_all_frozen_at_once_memory_serves_in_time(
    server: RoomServer, one: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def frozen(*_: Any) -> Any:
        await asyncio.sleep(60)

    room = await one.create("ann", "Room")
    await one.page("ann")
    await one.settle()
    server.thawed.clear()
    monkeypatch.setattr(PostgresRooms, "page", frozen)
    monkeypatch.setattr(one.copies, "_call", RowPolicy(REDIS).call)
    monkeypatch.setattr(one.copies._client, "get", frozen)
    begun = time.monotonic()
    with deadline_scope(1.9):
        served = await one.page("ann")
    assert (served.value.items, fallbacks(served)) == ([room], [MEMORY_CACHE])
    assert time.monotonic() - begun < 1.9


async def test_a_webrtc_without_its_redis_is_read_past(server: RoomServer, one: Instance) -> None:
    room = await one.create("ann", "Room")
    server.unable = True
    served = await one.page("ann")
    assert (served.value.items, fallbacks(served)) == ([room], [ROOMS_DATABASE])
    assert served.degradations[0].circuit == "closed"
    assert one.webrtc.breaker.state is CircuitState.CLOSED
    with pytest.raises(DependencyUnavailable, match="Video calling temporarily unavailable"):
        await one.rooms.create("ann", "Another", 2)


async def test_a_list_of_what_webrtc_alone_has_seen_is_completed(server: RoomServer, one: Instance) -> None:
    rooms = [await one.create("ann", name) for name in ("First", "Second")]
    server.forgetful = True
    served = await one.page("ann")
    assert (served.value.items, fallbacks(served)) == (rooms[::-1], [ROOMS_DATABASE])
    assert (await one.page("bob")).value.items == []


async def test_a_ticket_says_when_webrtc_is_degraded_and_counts_as_demand(server: RoomServer, one: Instance) -> None:
    room = await one.create("ann", "Room")
    server.degraded = True
    served = await one.rooms.ticket("ann", room.id, "eu-west")
    assert fallbacks(served) == ["stun-only"]
    assert ("eu-west", "ann", room.id) in one.told


async def test_what_has_not_changed_is_not_written_again(one: Instance) -> None:
    await one.create("ann", "Room")
    await one.page("ann")
    await one.settle()
    await one.page("ann")
    await one.page("ann")
    assert not one.projection._behind
    one.clock.move(REFRESH_SECONDS + 1)
    await one.page("ann")
    assert one.projection._behind


async def test_what_waits_for_the_database_is_bounded_and_written_later(
    server: RoomServer, one: Instance, other: Instance
) -> None:
    one.database.breaker.force_open()
    first = await one.create("ann", "Waited")
    assert not await one.projection.flush()
    one.database.breaker.reset()
    await one.settle()
    await server.kill()
    assert (await other.page("ann")).value.items == [first]
    now = one.clock.time()
    for number in range(MAX_NOTED + 10):
        one.projection.seen(Room(str(number), "", 2, "bob", now), now)
    assert len(one.projection._behind) == len(one.projection._noted) == MAX_NOTED


async def test_rows_and_copies_of_another_version_do_not_fail_a_list(
    server: RoomServer, one: Instance, database: Database, redis_client: Redis
) -> None:
    room = await one.create("ann", "Room")
    await one.settle()
    await database.fetch("INSERT INTO rooms VALUES ('', '', '', -1, 'infinity'), ('x', 'ann', '', -1, '-infinity')")
    await server.kill()
    served = await one.page("ann")
    assert [found.id for found in served.value.items] == [room.id, "x"]
    one.database.breaker.force_open()
    one.forget_memory()
    for copy in (b"1 [1, null]", b'1 [1, {"rooms": 1}]', b'1 [1, {"rooms": [1, {}, {"id": "y"}]}]', b"nonsense"):
        await redis_client.set("copy:rooms:ann", copy)
        try:
            assert await one.names("ann") == []
        except LOST:
            continue


async def test_the_writer_ends_when_it_is_told(one: Instance) -> None:
    task = asyncio.create_task(one.projection.run())
    room = await one.create("ann", "Room")
    await asyncio.sleep(0)
    for _ in range(50):
        await one.clock.advance(0.1)
        if not one.projection._behind:
            break
        await asyncio.sleep(0.01)
    assert await one.store.get(room.id)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
