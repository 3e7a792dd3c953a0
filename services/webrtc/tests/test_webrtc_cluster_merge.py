"""The rule by which views of a room are merged, the queue of what has to be told, and the memory copy of rooms."""

import asyncio
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import CircuitBreaker, CircuitBreakerOpen, FakeClock, RowPolicy
from services.webrtc.tests.cluster_world import room
from webrtc.degradation import REDIS, classify
from webrtc.model import ROOMS_PER_OWNER, Call, Member, Room, RoomUnknown, TooManyRooms
from webrtc.ports import StoreUnavailable
from webrtc.usecases.cluster import codec
from webrtc.usecases.cluster.merge import earlier, join, rank, settle
from webrtc.usecases.cluster.outbox import Outbox
from webrtc.usecases.cluster.peers import Peers
from webrtc.usecases.cluster.store import Change, Entry, Parcel, Position
from webrtc.usecases.memory_rooms import MemoryRooms
from webrtc.usecases.shared_rooms import SharedRooms

INSTANCES = ("a", "b", "c")


def member(member_id: str, instance: str, joined_at: float = 1.0, version: int = 1) -> Member:
    return Member(member_id, "user", "name", joined_at, instance, version=version)


members = st.builds(
    member,
    st.sampled_from(("p1", "p2", "p3")),
    st.sampled_from(INSTANCES),
    st.integers(1, 5).map(float),
    st.integers(1, 3),
)
views = st.lists(members, max_size=6).map(lambda found: _by_id(found))
calls = st.none() | st.builds(Call, st.sampled_from(("c1", "c2", "c3")), st.integers(1, 3).map(float))


def _by_id(found: Iterable[Member]) -> dict[str, Member]:
    merged: dict[str, Member] = {}
    for one in found:
        merged = join(merged, {one.id: one})
    return merged


@given(views, views, views)
def test_views_are_merged_in_any_order_and_however_often(
    one: dict[str, Member], two: dict[str, Member], three: dict[str, Member]
) -> None:
    assert join(one, two) == join(two, one)
    assert join(join(one, two), three) == join(one, join(two, three))
    assert join(one, one) == one
    assert join(one, two).keys() == one.keys() | two.keys(), "nobody is dropped"
    assert all(
        rank(found) == max(rank(v[found.id]) for v in (one, two) if found.id in v) for found in join(one, two).values()
    )


@given(calls, calls, calls)
def test_the_earlier_call_counts_whoever_asks(one: Call | None, two: Call | None, three: Call | None) -> None:
    assert earlier(one, two) == earlier(two, one)
    assert earlier(earlier(one, two), three) == earlier(one, earlier(two, three))
    assert earlier(one, one) == one


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, list[Member]], list[Member], list[str]]:
    """Who really is where, what Redis has kept from before, and in which order (and how often) instances come back."""
    stored = list(_by_id(draw(st.lists(members, max_size=6))).values())
    truth = {}
    for name in INSTANCES:
        stayed = [one for one in stored if one.instance == name and draw(st.booleans())]
        came = draw(st.dictionaries(st.sampled_from(("p1", "p2", "p3", "p4")), st.integers(6, 9), max_size=3))
        truth[name] = list(_by_id([*stayed, *(member(one, name, float(at)) for one, at in came.items())]).values())
    return truth, stored, [*draw(st.permutations(INSTANCES)), *draw(st.permutations(INSTANCES))]


@given(worlds())
def test_instances_that_come_back_in_any_order_agree_and_nobody_is_dropped(
    world: tuple[dict[str, list[Member]], list[Member], list[str]],
) -> None:
    truth, stored, order = world
    redis = {one.id: one for one in stored}
    present = {one.id for here in truth.values() for one in here}
    winners = _by_id(one for here in truth.values() for one in here)
    for name in order:
        settled = settle(name, truth[name], redis.values())
        for gone, _ in settled.remove:
            del redis[gone.id]
        redis |= {one.id: one for one in settled.write}
        truth[name] = [one for one in truth[name] if one.id not in {moved.id for moved in settled.replaced}]
    assert redis.keys() == present
    assert {one.id: (one.instance, one.joined_at) for one in redis.values()} == {
        one.id: (one.instance, one.joined_at) for one in winners.values()
    }


def test_what_a_dead_instance_left_is_removed_and_nothing_else() -> None:
    stored = [member("p1", "dead"), member("p2", "b"), member("p3", "a"), member("p4", "dead", 9)]
    settled = settle("a", [member("p4", "a", 5)], stored, dead=lambda name: name == "dead")
    assert {(one.id, why) for one, why in settled.remove} == {("p1", "lost"), ("p3", "left"), ("p4", "lost")}
    assert settled.elsewhere.keys() == {"p2"}
    assert [one.id for one in settled.write] == ["p4"]
    assert settled.replaced == []


def deliver(text: bytes) -> codec.Deliver:
    return codec.Deliver("room", "p", text)


def test_a_batch_that_failed_is_the_same_again_and_order_is_kept() -> None:
    outbox = Outbox()
    for number in range(3):
        outbox.message("b", deliver(b"%d" % number), 0.0)
    outbox.change(Change("put", "room", "p", member=member("p", "a")))
    outbox.message("b", deliver(b"3"), 0.0)
    outbox.sync("room")
    outbox.sync("room")
    outbox.message("b", deliver(b"4"), 0.0)
    first = outbox.batch()
    assert outbox.batch() is first
    assert outbox.syncs(10) == [], "not before what was said before"
    assert [type(frame.content) for frame in first] == [Parcel, Change, Parcel]
    assert [text for frame in first for text in _texts(frame.content)] == [b"0", b"1", b"2", b"3"]
    outbox.done()
    assert outbox.batch() == []
    assert outbox.syncs(10) == ["room"]
    (last,) = outbox.batch()
    assert _texts(last.content) == [b"4"]
    assert [frame.number for frame in (*first, last)] == [1, 2, 3, 4]
    outbox.done()
    assert not outbox
    assert outbox.size == 0


def _texts(content: Change | Parcel) -> list[bytes]:
    return [one.message for one in codec.unpack(content.payload)] if isinstance(content, Parcel) else []  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.sampled_from("bc"), st.binary(max_size=40_000)), max_size=12))
def test_parcels_are_small_and_lose_nothing(sent: list[tuple[str, bytes]]) -> None:
    outbox = Outbox(limit=10**9)
    for instance, text in sent:
        assert outbox.message(instance, deliver(text), 0.0)
    parcels = [frame.content for frame in outbox.batch() if isinstance(frame.content, Parcel)]
    for name in "bc":
        assert [text for one in parcels if one.instance == name for text in _texts(one)] == [
            t for n, t in sent if n == name
        ]
    assert all(len(one.payload) < 34_000 or len(_texts(one)) == 1 for one in parcels)


def test_what_is_sent_again_is_known_and_nothing_else_is_taken_for_it() -> None:
    peers = Peers("me", FakeClock(), 3.0, 12.0)
    change = Change("home", "room", "other")

    def new(number: int, content: bytes | Change) -> bool:
        return peers.is_new(Entry(Position(number), "other", number, content))

    assert [new(1, b"a"), new(2, b"b"), new(1, b"a"), new(2, b"b")] == [True, True, False, False]
    assert [new(9, change), new(3, b"waited during an outage"), new(3, b"again")] == [True, True, False]
    assert [new(8, change), new(9, change)] == [False, True], "one change may concern several things"
    assert [new(0, change), new(0, change)] == [True, True], "a claim has no number"


def test_a_message_of_a_newer_version_is_skipped_and_not_the_others() -> None:
    newer = msgspec.msgpack.encode(["x", "room", 1])
    payload = codec.pack([codec.encode(deliver(b"1")), newer, codec.encode(deliver(b"2"))])
    assert codec.unpack(payload) == [deliver(b"1"), deliver(b"2")]


def test_the_queue_is_bounded_and_alone_keeps_only_messages() -> None:
    outbox = Outbox(items=3)
    assert outbox.message("b", deliver(b"old"), 0.0)
    assert outbox.message("b", deliver(b"new"), 50.0)
    assert outbox.change(Change("drop", "left", "p", member=member("p", "a")))
    assert not outbox.message("b", deliver(b"too much"), 50.0)
    outbox.sync("other")
    outbox.keep_messages(10.0)
    assert outbox.syncs(10) == []
    assert [_texts(frame.content) for frame in outbox.batch()] == [[b"new"]]


class Gone:
    """A store that is away, or there."""

    def __init__(self) -> None:
        self.rooms = MemoryRooms()
        self.away = False

    def _there(self) -> None:
        if self.away:
            raise StoreUnavailable

    async def create(self, new: Room) -> None:
        self._there()
        await self.rooms.create(new)

    async def get(self, room_id: str) -> Room:
        self._there()
        return await self.rooms.get(room_id)

    async def page(self, owner_id: str, limit: int, after: str) -> list[Room]:
        self._there()
        return await self.rooms.page(owner_id, limit, after)

    async def delete(self, old: Room) -> None:
        self._there()
        await self.rooms.delete(old)

    async def restore(self, new: Room) -> bool:
        self._there()
        if self.rooms.is_gone(new.id):
            return False
        await self.rooms.create(new)
        return True


@pytest.fixture
def store() -> Gone:
    return Gone()


@pytest.fixture
def memory() -> MemoryRooms:
    return MemoryRooms(copies=2, changes=3)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rooms(store: Gone, memory: MemoryRooms, clock: FakeClock) -> SharedRooms:
    breaker = CircuitBreaker(
        REDIS.id, failure_threshold=3, recovery_timeout=30, success_threshold=1, classify=classify, clock=clock
    )
    return SharedRooms(store, memory, RowPolicy(REDIS, breaker=breaker, clock=clock))


async def test_known_rooms_are_read_from_memory_and_marked(store: Gone, rooms: SharedRooms) -> None:
    for number in range(3):
        await rooms.create(room(number))
    store.away = True
    for _ in range(4):
        found = await rooms.get(room(2).id)
        assert (found.value, [one.fallback for one in found.degradations]) == (room(2), ["memory-rooms"])
    with pytest.raises(CircuitBreakerOpen):
        await rooms.get(room(0).id)  # two copies are kept
    assert (await rooms.page("owner", 10, "")).value == [room(2), room(1)]
    assert (await rooms.page("owner", 10, room(2).place)).value == [room(1)]


async def test_changes_in_memory_show_at_once_and_until_they_are_merged(
    store: Gone, rooms: SharedRooms, memory: MemoryRooms, clock: FakeClock
) -> None:
    await rooms.create(room(1))
    store.away = True
    await rooms.create(room(2))
    await rooms.create(room(3))
    for number in (1, 3):
        await rooms.delete(room(number))
    store.away = False
    clock.move(REDIS.open_seconds + 1)
    assert (await rooms.get(room(2).id)).value == room(2)
    assert (await rooms.page("owner", 1, "")).value == [room(2)]
    for number in (1, 3):
        with pytest.raises(RoomUnknown):
            await rooms.get(room(number).id)
    await rooms.merge()
    await rooms.merge()
    assert (memory.made, memory.gone) == ([], [])
    assert await store.rooms.page("owner", 10, "") == [room(2)]


async def test_a_deletion_wins_over_a_room_that_is_merged_later(
    store: Gone, rooms: SharedRooms, memory: MemoryRooms
) -> None:
    store.away = True
    await rooms.create(room(1))
    await store.rooms.delete(room(1))
    store.away = False
    await rooms.merge()
    with pytest.raises(RoomUnknown):
        await rooms.get(room(1).id)
    assert memory.made == []


async def test_memory_is_bounded_per_owner_and_in_all(store: Gone, rooms: SharedRooms) -> None:
    store.away = True
    for number in range(3):
        await rooms.create(room(number))
    with pytest.raises((StoreUnavailable, CircuitBreakerOpen)):
        await rooms.create(room(3))
    crowded = MemoryRooms()
    for number in range(ROOMS_PER_OWNER):
        crowded.note(room(number))
    with pytest.raises(TooManyRooms):
        await crowded.create(room(ROOMS_PER_OWNER))
    await asyncio.gather(crowded.create(room(ROOMS_PER_OWNER, "another")))


async def test_a_room_that_another_instance_alone_holds_is_not_deleted_here(store: Gone, rooms: SharedRooms) -> None:
    await rooms.create(room(1))
    rooms.elsewhere = lambda _: True
    store.away = True
    with pytest.raises(StoreUnavailable):
        await rooms.delete(room(1))
