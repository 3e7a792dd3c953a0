"""Row W3 on a real PostgreSQL and Valkey: reports in any order make one call, and outages lose and double none."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from devstack.stack import Stack
from devstack.topology import Topology
from resilience import SYSTEM_CLOCK, CircuitState, Operation, RowPolicy
from service_kit.database import create_engine
from service_kit.migrations import upgrade
from service_kit.redis_client import create_client
from service_kit.runtime import ServiceRuntime
from webrtc.degradation import POSTGRES
from webrtc.model import Call, CallUnknown, Invalid, Member, PastCall, Room, RoomUnknown
from webrtc.outbound.history import PostgresHistory
from webrtc.settings import Settings
from webrtc.usecases import forgotten, scribe
from webrtc.usecases.calls import CallJournal, quality_of
from webrtc.wiring.postgres import MIGRATIONS, HistoryPart
from webrtc.wiring.redis import RedisPart

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGIN = 1_700_000_000.0
ROOM = Room("00000000-0000-4000-8000-000000000001", "Daily", 10, "owner", 0)
GOOD = {"label": "good", "r": 70.0, "rtt_ms": 80.0, "loss": 0.04}
EXCELLENT = {"label": "excellent", "r": 90.0, "rtt_ms": 20.0, "loss": 0.0}


def member(name: str, at: float = BEGIN, id_: str = "") -> Member:
    return Member(id_ or f"p_{name}", name, name.title(), at, "here")


def reports(of: Callable[[CallJournal], None]) -> list[Mapping[str, Any]]:
    """What a journal makes of what it is told."""
    kept: list[Operation] = []
    of(CallJournal(kept.append, lambda *_: None))
    return [operation.payload for operation in kept]


def told(journal: CallJournal, call: Call, alice: str, bob: str) -> None:
    """A call of a minute, of two."""
    one, two = member(alice, call.started_at - 5), member(bob, call.started_at)
    journal.joined(call, ROOM, one, call.started_at)
    journal.started(call, ROOM)
    journal.joined(call, ROOM, two, call.started_at)
    journal.left(call, ROOM, one, call.started_at + 50, GOOD)
    journal.left(call, ROOM, two, call.started_at + 60, EXCELLENT)
    journal.ended(call, ROOM, call.started_at + 60)


def as_expected(found: PastCall, call: Call, alice: str, bob: str) -> None:
    assert (found.id, found.started_at, found.duration) == (call.id, call.started_at, 60)
    assert (found.room_id, found.room_name, found.owner_id) == (ROOM.id, "Daily", "owner")
    assert [(one.user_id, one.name) for one in found.participants] == [(alice, alice.title()), (bob, bob.title())]
    assert [one.left_at for one in found.participants] == [call.started_at + 50, call.started_at + 60]
    assert [one.quality for one in found.participants] == [GOOD, EXCELLENT]
    assert quality_of(found) == {"label": "good", "r": 80.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"postgres", "redis"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("calls"), topology, port_base=None) as stack:
        await upgrade(stack.database_url("webrtc"), MIGRATIONS)
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(servers: Stack) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(servers.database_url("webrtc"))
    yield engine
    await engine.dispose()


@pytest.fixture
def history(engine: AsyncEngine) -> PostgresHistory:
    return PostgresHistory(engine)


@pytest.mark.parametrize("seed", range(4))
async def test_neither_order_nor_repetition_changes_a_call(history: PostgresHistory, seed: int) -> None:
    dice = random.Random(seed)
    call, alice, bob = Call(f"c_order{seed}", BEGIN + seed), f"alice{seed}", f"bob{seed}"
    news = reports(lambda journal: told(journal, call, alice, bob))
    news = news + dice.sample(news, 3)
    dice.shuffle(news)
    for one in news:
        await history.note(one)
    as_expected(await history.get(alice, call.id), call, alice, bob)


@pytest.mark.parametrize("seed", range(4))
async def test_two_calls_that_were_one_become_one(history: PostgresHistory, seed: int) -> None:
    """Two instances that did not see each other began a call each; reports under both ids come in any order."""
    dice = random.Random(seed)
    first, second = Call(f"c_first{seed}", BEGIN), Call(f"c_second{seed}", BEGIN + 10)
    one, two = member(f"one{seed}"), member(f"two{seed}", BEGIN + 10)

    def tell(journal: CallJournal) -> None:
        journal.joined(first, ROOM, one, BEGIN)
        journal.joined(second, ROOM, two, BEGIN + 10)
        journal.renamed(second, first, ROOM)
        journal.left(second, ROOM, two, BEGIN + 30, GOOD)
        journal.left(first, ROOM, one, BEGIN + 40, GOOD)
        journal.ended(first, ROOM, BEGIN + 40)

    news = reports(tell)
    dice.shuffle(news)
    await asyncio.gather(*(history.note(one) for one in news))
    for user, id_ in ((one.user_id, first.id), (two.user_id, first.id), (two.user_id, second.id)):
        found = await history.get(user, id_)
        assert (found.id, found.started_at, found.duration) == (first.id, BEGIN, 40)
        assert [(who.user_id, who.left_at) for who in found.participants] == [
            (one.user_id, BEGIN + 40),
            (two.user_id, BEGIN + 30),
        ]
        assert await history.page(user, 10, None) == [found]


async def test_who_comes_back_is_there_again(history: PostgresHistory) -> None:
    call, one = Call("c_back", BEGIN), member("back")

    def tell(journal: CallJournal) -> None:
        journal.joined(call, ROOM, one, BEGIN)
        journal.left(call, ROOM, one, BEGIN + 10, GOOD)
        journal.ended(call, ROOM, BEGIN + 10)
        journal.joined(call, ROOM, replace(one, joined_at=BEGIN + 20), BEGIN + 20)

    for news in reports(tell):
        await history.note(news)
    found = await history.get("back", call.id)
    assert (found.ended_at, found.participants[0].joined_at, found.participants[0].left_at) == (None, BEGIN, None)
    assert found.duration is None


async def test_a_history_is_read_by_those_who_took_part_page_by_page(history: PostgresHistory) -> None:
    for number in range(5):
        call = Call(f"c_page{number}", BEGIN + number // 2)
        for news in reports(lambda journal, call=call: told(journal, call, "pia", "quentin")):  # type: ignore[misc]
            await history.note(news)
    first = await history.page("pia", 2, None)
    rest = await history.page("pia", 10, (first[-1].started_at, first[-1].id))
    assert [call.id for call in first + rest] == [f"c_page{number}" for number in (4, 3, 2, 1, 0)]
    assert await history.page("nobody", 10, None) == []
    with pytest.raises(CallUnknown):
        await history.get("nobody", "c_page0")


@pytest.mark.parametrize(
    "news",
    [{}, {"call": ""}, {"call": 5}, {"call": "c", "started_at": "x", "room": "", "room_name": "", "owner": ""}],
)
async def test_what_is_no_report_is_refused(history: PostgresHistory, news: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match="not a report"):
        await history.note(news)


class Running:
    """The row as the service puts it together."""

    def __init__(self, runtime: ServiceRuntime, part: HistoryPart, redis: Redis) -> None:
        self.runtime = runtime
        self.part = part
        self.redis = redis
        assert part.policy is not None
        assert part.calls is not None
        self.policy, self.calls = part.policy, part.calls

    @property
    def waiting(self) -> int:
        return int(self.runtime.buffers["calls"]()["depth"])

    async def queued(self) -> int:
        return int(await self.redis.xlen("fallback:queue:webrtc"))

    async def read(self, user: str, call: Call) -> PastCall:
        return (await self.calls.get(user, call.id)).value


@asynccontextmanager
async def running(servers: Stack) -> AsyncIterator[Running]:
    settings = Settings(
        database_url=servers.database_url("webrtc"),
        redis_url=servers.url("redis"),
        jwt_secret=SecretStr("s" * 32),
        admin_token=SecretStr("t" * 16),
        _env_file=None,  # type: ignore[call-arg]
    )
    runtime = ServiceRuntime("webrtc", settings)
    redis = RedisPart(runtime, settings.redis_url or "")
    part = HistoryPart(runtime, settings, redis, lambda *_: None)
    await runtime.start()
    observer = create_client(servers.url("redis"))
    try:
        yield Running(runtime, part, observer)
    finally:
        await runtime.close()
        await observer.aclose()


async def eventually(check: Callable[[], Awaitable[object]], limit: float = 10.0) -> None:
    end = time.monotonic() + limit
    while not await check():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


async def in_history(world: Running, user: str, call: Call) -> bool:
    try:
        return (await world.read(user, call)).ended_at is not None
    except Exception:  # noqa: BLE001 - not yet
        return False


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_without_postgres_reports_wait_in_the_queue(servers: Stack, fault: str) -> None:
    async with running(servers) as world:
        before = Call(f"c_before_{fault}", BEGIN)
        told(world.part.journal, before, f"ann_{fault}", f"ben_{fault}")
        await eventually(lambda: in_history(world, f"ann_{fault}", before))
        await getattr(servers, fault)("postgres")
        begun = time.monotonic()
        during = [Call(f"c_{fault}{number}", BEGIN + number) for number in range(3)]
        for call in during:
            told(world.part.journal, call, f"ann_{fault}", f"ben_{fault}")
        assert time.monotonic() - begun < 0.5, "whoever reports waits for nothing"

        async def all_queued() -> bool:
            is_open = world.policy.breaker.state is CircuitState.OPEN
            return is_open and not world.waiting and await world.queued() > 0

        await eventually(all_queued, 15)
        assert world.policy.status().fallback == "redis-queue"
        await servers.heal("postgres")
        for call in during:
            await eventually(lambda call=call: in_history(world, f"ann_{fault}", call))  # type: ignore[misc]
            as_expected(await world.read(f"ben_{fault}", call), call, f"ann_{fault}", f"ben_{fault}")
        await eventually(lambda: _none_queued(world))
        found = (await world.calls.page(f"ann_{fault}")).value.items
        assert sorted(call.id for call in found) == sorted(call.id for call in [before, *during])


async def _none_queued(world: Running) -> bool:
    return await world.queued() == 0


@pytest.mark.parametrize("first", ["postgres", "redis"])
async def test_without_both_reports_wait_in_memory_until_either_is_back(servers: Stack, first: str) -> None:
    other = {"postgres": "redis", "redis": "postgres"}[first]
    async with running(servers) as world:
        await eventually(lambda: _migrated(world))
        await asyncio.gather(servers.kill("postgres"), servers.kill("redis"))
        call = Call(f"c_both_{first}", BEGIN)
        told(world.part.journal, call, f"cai_{first}", f"dee_{first}")

        async def in_memory() -> bool:
            return world.policy.status().fallback == "memory-buffer" and world.waiting > 0

        await eventually(in_memory, 15)
        await servers.heal(first)

        async def taken() -> bool:
            return world.waiting == 0

        await eventually(taken)
        await servers.heal(other)
        await eventually(lambda: in_history(world, f"cai_{first}", call))
        as_expected(await world.read(f"dee_{first}", call), call, f"cai_{first}", f"dee_{first}")


async def _migrated(world: Running) -> bool:
    try:
        await world.calls.page("nobody")
    except Exception:  # noqa: BLE001 - not yet
        return False
    return True


async def test_what_is_in_memory_is_written_when_the_service_stops(servers: Stack) -> None:
    call = Call("c_stopped", BEGIN)
    async with running(servers) as world:
        await eventually(lambda: _migrated(world))
        told(world.part.journal, call, "eva", "fay")
    async with running(servers) as world:
        as_expected(await world.read("eva", call), call, "eva", "fay")


async def test_an_expired_report_is_applied_all_the_same(servers: Stack) -> None:
    call = Call("c_late", BEGIN)
    async with running(servers) as world:
        await eventually(lambda: _migrated(world))
        world.policy.breaker.force_open()
        told(world.part.journal, call, "gil", "hal")
        await eventually(lambda: _some_queued(world))
        drainer = world.part.way.drainer
        drainer._settings = replace(drainer._settings, ttl=0.0)
        world.policy.breaker.reset()
        await eventually(lambda: in_history(world, "gil", call))
        await eventually(lambda: _none_queued(world))
        assert world.runtime.queue is not None
        assert (await world.runtime.queue.stats()).dead == 0


async def _some_queued(world: Running) -> bool:
    return not world.waiting and await world.queued() > 0


async def test_a_report_that_is_refused_does_not_stop_those_behind_it(
    servers: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "AGAIN_SECONDS", 0.01)
    call = Call("c_behind", BEGIN)
    async with running(servers) as world:
        await eventually(lambda: _migrated(world))
        world.part.journal.joined(Call("c_bad", 1e300), ROOM, member("ida"), 1e300)
        told(world.part.journal, call, "ida", "jon")
        await eventually(lambda: in_history(world, "ida", call))
        assert world.runtime.buffers["calls"]()["refused"] == 1


async def test_the_buffer_is_bounded_and_says_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "LIMIT", 3)
    notes: list[str] = []
    made = scribe.Scribe(None, None, None, None, lambda event, /, **_: notes.append(event))  # type: ignore[arg-type]
    for number in range(5):
        made.keep(Operation(f"o{number}", "call.note", "call:c", "", {}))
    assert (made.stats().depth, made.stats().overflowed, len(notes)) == (3, 2, 1)


@pytest.mark.parametrize("cursor", ["x", "====", "W10=", "WyJ4IiwieSJd", "é"])
async def test_a_foreign_cursor_is_refused(servers: Stack, cursor: str) -> None:
    async with running(servers) as world:
        with pytest.raises(Invalid):
            await world.calls.page("kim", cursor=cursor)
        with pytest.raises(CallUnknown):
            await world.calls.get("kim", "a\x00b")


async def test_calls_that_nobody_ended_are_ended(
    history: PostgresHistory, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.dispose()  # connections to a server that another test has killed
    monkeypatch.setattr(forgotten, "QUIET_SECONDS", -1.0)
    ended: dict[str, float] = {}
    rooms = {name: replace(ROOM, id=f"room {name}") for name in ("empty", "full", "gone", "followed")}

    class Log(CallJournal):
        def ended(self, call: Call, room: Room, at: float) -> None:
            ended[call.id] = at

    def tell(journal: CallJournal) -> None:
        for name, room in rooms.items():
            journal.joined(Call(f"c_{name}", BEGIN), room, member(f"{name}_1"), BEGIN)
            journal.left(Call(f"c_{name}", BEGIN), room, member(f"{name}_2"), BEGIN + 7, {})
        journal.joined(Call("c_later", BEGIN + 50), rooms["followed"], member("later", BEGIN + 50), BEGIN + 50)

    async def members(room_id: str) -> list[Member]:
        if room_id == "room gone":
            raise RoomUnknown
        return [] if room_id == "room empty" else [member("somebody")]

    for news in reports(tell):
        await history.note(news)
    sees_all = True
    policy = RowPolicy(POSTGRES)
    sweeper = forgotten.Forgotten(history, policy, Log(None, lambda *_: None), members, lambda: sees_all, SYSTEM_CLOCK)
    await sweeper.sweep()
    mine = {call: at for call, at in ended.items() if call.removeprefix("c_") in (*rooms, "later")}
    assert mine == {"c_empty": BEGIN + 7, "c_gone": BEGIN + 7, "c_followed": BEGIN + 7}
    ended.clear()
    sees_all = False
    await sweeper.sweep()
    assert "c_empty" not in ended
    assert "c_followed" in ended
