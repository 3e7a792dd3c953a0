"""Call history from events and for those who took part, on a real PostgreSQL and Valkey."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from dashboard.degradation import MEMORY_CACHE, POSTGRES, REDIS_CACHE
from dashboard.model import Call, CallUnknown, CursorInvalid, EventUnreadable, Page, Participant
from dashboard.outbound import postgres
from dashboard.outbound.calls import CopiesOfCalls, PostgresCalls
from dashboard.outbound.postgres import Database
from dashboard.ports import StoredCalls
from dashboard.usecases.calls import ENDED, JOINED, LEFT, RENAMED, STARTED, CallProjection, Calls
from dashboard.usecases.reads import Reads
from resilience import CircuitBreaker, CircuitBreakerOpen, FakeClock, MemoryCache, RowPolicy, Served
from service_kit.copies import CopyStore

pytestmark = pytest.mark.asyncio(loop_scope="session")

BEGUN = 1_700_000_000.0
AT_FIRST = datetime.fromtimestamp(BEGUN, UTC)


@dataclass(frozen=True)
class Event:
    type: str
    subject: str = "call:c1"
    data: Mapping[str, Any] = field(default_factory=dict)
    time: datetime = AT_FIRST
    id: str = "event"


def at(seconds: float) -> float:
    return BEGUN + seconds


STORY = [
    Event(STARTED, data={"room_id": "r1", "room_name": "Kitchen", "owner_id": "ann", "started_at": at(0)}),
    Event(JOINED, data={"user_id": "ann", "display_name": "Ann", "joined_at": at(0)}),
    Event(JOINED, data={"user_id": "bob", "display_name": "Bob", "joined_at": at(5)}),
    Event(LEFT, data={"user_id": "bob", "left_at": at(10), "quality": {"label": "poor"}}),
    Event(JOINED, data={"user_id": "bob", "joined_at": at(15)}),
    Event(LEFT, data={"user_id": "bob", "left_at": at(20), "quality": {"label": "good", "rtt_ms": 40}}),
    Event(ENDED, data={"ended_at": at(60), "quality": {"label": "good"}}, time=datetime.fromtimestamp(at(60), UTC)),
]


class Instance:
    def __init__(self, database: Database, client: Redis) -> None:
        self.redis_is_away = False
        self.policy = RowPolicy(POSTGRES, breaker=CircuitBreaker(POSTGRES.id, classify=postgres.classify))
        clock = FakeClock()
        self.copies = CopyStore(client, self._redis, MemoryCache(1_000_000, 300, clock), clock)
        store = PostgresCalls(database)
        reads: Reads[StoredCalls] = Reads(self.policy, store)
        self.calls = Calls(reads, CopiesOfCalls(self.copies))
        self.projection = CallProjection(store, self.policy)

    async def _redis(self, action: Callable[[], Awaitable[Any]]) -> Any:
        if self.redis_is_away:
            raise OSError
        return await action()

    async def tell(self, *events: Event) -> None:
        for event in events:
            assert await self.projection.handle(event)

    async def page(self, user: str, limit: int = 50, cursor: str | None = None) -> Page[Call]:
        return (await self.calls.page(user, limit, cursor)).value

    async def lose_database(self) -> None:
        await self.copies.flush_all()
        self.policy.breaker.force_open()


@pytest.fixture
def one(database: Database, redis_client: Redis) -> Instance:
    return Instance(database, redis_client)


@pytest.fixture
def other(database: Database, redis_client: Redis) -> Instance:
    return Instance(database, redis_client)


def fallbacks(served: Served[Any]) -> list[str]:
    return [one.fallback for one in served.degradations]


async def joined(one: Instance, number: int, *users: str) -> None:
    """A call of that number, in which the users take part."""
    subject = f"call:c{number}"
    for user in users:
        await one.tell(Event(JOINED, subject, {"user_id": user, "joined_at": at(number)}, _stamp(at(number))))


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def check_story(call: Call) -> None:
    assert (call.id, call.room_id, call.room_name, call.owner_id) == ("c1", "r1", "Kitchen", "ann")
    assert (call.started_at, call.ended_at, call.duration) == (at(0), at(60), 60.0)
    ann, bob = call.participants
    assert (ann.user_id, ann.display_name, ann.joined_at, call.left_at(ann)) == ("ann", "Ann", at(0), at(60))
    assert (bob.user_id, bob.display_name, bob.joined_at, call.left_at(bob)) == ("bob", "Bob", at(5), at(20))
    assert bob.quality == {"label": "good", "rtt_ms": 40}
    assert call.quality == {"label": "good"}


@pytest.mark.parametrize("seed", range(8))
async def test_events_in_any_order_and_repeated_tell_the_same_story(one: Instance, seed: int) -> None:
    events = [*STORY, *STORY]
    random.Random(seed).shuffle(events)
    await one.tell(*(events if seed else STORY))
    check_story((await one.page("bob")).items[0])
    check_story((await one.calls.get("ann", "c1")).value)


@pytest.mark.parametrize("seed", range(8))
async def test_two_calls_that_were_one_become_one(one: Instance, other: Instance, seed: int) -> None:
    """Two instances of the WebRTC service that did not see each other began a call each."""
    dice = random.Random(seed)
    second = [Event(event.type, "call:c9", {**event.data, "user_id": "eve"}) for event in STORY[1:2]]
    second += [Event(LEFT, "call:c9", {"user_id": "eve", "left_at": at(30)})]
    events = [*STORY, *second, Event(RENAMED, data={"old": "c9"})]
    events += dice.sample(events, 3)
    dice.shuffle(events)
    half = len(events) // 2
    await asyncio.gather(one.tell(*events[:half]), other.tell(*events[half:]))
    for user in ("ann", "bob", "eve"):
        page = await one.page(user)
        assert [call.id for call in page.items] == ["c1"]
        assert {who.user_id for who in page.items[0].participants} == {"ann", "bob", "eve"}
        assert (page.items[0].started_at, page.items[0].ended_at) == (at(0), at(60))
    with pytest.raises(CallUnknown):
        await one.calls.get("eve", "c9")


async def test_who_came_back_is_in_the_call_until_it_ends(one: Instance) -> None:
    await one.tell(*STORY[:5])
    call = (await one.calls.get("bob", "c1")).value
    assert (call.ended_at, call.duration, call.left_at(call.participants[1])) == (None, None, None)


async def test_what_is_known_already_writes_nothing(one: Instance, database: Database) -> None:
    await one.tell(*STORY)
    before = await database.fetch(
        "SELECT xmin::text, ctid::text FROM calls UNION ALL SELECT xmin::text, ctid::text FROM call_members"
    )
    await one.tell(*STORY)
    assert before == await database.fetch(
        "SELECT xmin::text, ctid::text FROM calls UNION ALL SELECT xmin::text, ctid::text FROM call_members"
    )


async def test_two_instances_tell_the_same_call_at_once(one: Instance, other: Instance) -> None:
    await asyncio.gather(*(instance.tell(event) for event in STORY for instance in (one, other)))
    check_story((await one.calls.get("ann", "c1")).value)


@pytest.mark.parametrize(
    "event",
    [
        Event(STARTED, subject=""),
        Event(STARTED, subject="call:"),
        Event(STARTED, subject="room:c1"),
        Event(STARTED, subject="call:a\x00b"),
        Event(STARTED, subject="call:" + "x" * 201),
        Event(JOINED),
        Event(LEFT, data={"user_id": 5}),
        Event(JOINED, data={"user_id": "\x00"}),
    ],
)
async def test_an_event_that_names_nobody_is_unreadable(one: Instance, event: Event) -> None:
    with pytest.raises(EventUnreadable):
        await one.projection.handle(event)


async def test_other_events_are_not_for_the_history(one: Instance) -> None:
    assert not await one.projection.handle(Event("auralink.room.created", "room:1"))
    assert not await one.projection.handle(Event("auralink.call.quality", "call:c1"))


async def test_odd_values_are_taken_as_missing(one: Instance) -> None:
    odd = {"user_id": "ann", "display_name": "A\x00\ud800", "joined_at": "soon", "quality": {"a": "\x00"}, "room_id": 5}
    await one.tell(Event(JOINED, data=odd))
    await one.tell(
        Event(LEFT, data={"user_id": "ann", "left_at": "2023-11-14T22:13:30Z", "quality": {"x": "y" * 5000}})
    )
    await one.tell(
        Event(ENDED, data={"ended_at": float("inf"), "participants": [1, {}, {"user_id": "bob"}], "quality": 7})
    )
    call = (await one.calls.get("ann", "c1")).value
    ann, bob = sorted(call.participants, key=lambda one: one.user_id)
    assert (ann.display_name, ann.joined_at, ann.left_at, ann.quality) == ("A?", at(0), at(10), None)
    assert (bob.user_id, call.ended_at, call.quality, call.room_id) == ("bob", at(0), None, "")


async def test_while_the_database_is_away_an_event_is_not_taken(one: Instance) -> None:
    one.policy.breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await one.projection.handle(STORY[0])


async def test_pages_are_newest_first_and_go_on(one: Instance) -> None:
    for number in range(5):
        await joined(one, number, "ann")
    seen, cursor = [], None
    while True:
        page = await one.page("ann", 2, cursor)
        seen += [call.id for call in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == ["c4", "c3", "c2", "c1", "c0"]


@pytest.mark.parametrize("cursor", ["nonsense", "ÿ", "e30=", "WzFlOTk5LCAiYSJd", "WzEsIDVd", "WzEsICJcdTAwMDAiXQ=="])
async def test_a_cursor_of_nobody_is_refused(one: Instance, cursor: str) -> None:
    with pytest.raises(CursorInvalid):
        await one.page("ann", cursor=cursor)


async def test_a_call_is_shown_to_those_who_took_part_alone(one: Instance) -> None:
    await joined(one, 1, "ann", "bob")
    assert (await one.page("eve")).items == []
    with pytest.raises(CallUnknown):
        await one.calls.get("eve", "c1")
    with pytest.raises(CallUnknown):
        await one.calls.get("ann", "c2")


@pytest.mark.parametrize("memory", [False, True])
async def test_without_the_database_the_copy_of_ones_own_first_page_serves(
    one: Instance, other: Instance, memory: bool
) -> None:
    for number in range(3):
        await joined(one, number, "ann")
    await joined(one, 9, "bob")
    for user in ("ann", "bob"):
        await one.page(user)
    await one.lose_database()
    await other.lose_database()
    reader = one if memory else other
    reader.redis_is_away = memory
    served = await reader.calls.page("ann", 2, None)
    assert [call.id for call in served.value.items] == ["c2", "c1"]
    assert served.value.next_cursor
    assert fallbacks(served) == [MEMORY_CACHE if memory else REDIS_CACHE]
    assert served.as_of is not None
    assert (await reader.calls.get("ann", "c0")).value.id == "c0"
    for work in (
        lambda: reader.page("ann", cursor=served.value.next_cursor),
        lambda: reader.calls.get("ann", "c9"),
        lambda: reader.page("eve"),
        lambda: reader.calls.get("eve", "c1"),
    ):
        with pytest.raises(CircuitBreakerOpen):
            await work()


async def test_a_short_page_does_not_shorten_the_copy(one: Instance) -> None:
    for number in range(3):
        await joined(one, number, "ann")
    await one.page("ann")
    await one.page("ann", limit=1)
    await one.lose_database()
    assert len((await one.page("ann")).items) == 3


async def test_rows_of_any_shape_do_not_fail_a_list(one: Instance, database: Database) -> None:
    shapes: list[Any] = [None, 1, "x", {}, [1, None, {}, {"user_id": 1}], [{"user_id": "u", "joined_at": "x"}], [[]]]
    for number, shape in enumerate(shapes):
        await joined(one, number, "ann")
        await database.fetch(
            "UPDATE calls SET participants = $2::jsonb, quality = $2::jsonb WHERE id = $1",
            f"c{number}",
            orjson.dumps(shape).decode(),
        )
    calls = (await one.page("ann")).items
    assert len(calls) == len(shapes)
    assert [call.participants for call in calls if call.participants] == [(Participant("u"),)]
    await joined(one, 3, "bob")  # goes on where nothing can be read
