"""Sessions of two instances on one Valkey and one PostgreSQL (row D2, dashboard.redis), which are killed and frozen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sized
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

import dashboard
from dashboard.degradation import MEMORY_SESSIONS, POSTGRES, REDIS
from dashboard.model import Session, SessionUnknown
from dashboard.outbound import ended_sessions, postgres
from dashboard.outbound import sessions as module
from dashboard.outbound.ended_sessions import EndedSessions, hash_of
from dashboard.outbound.postgres import Database
from dashboard.outbound.sessions import RedisSessions
from devstack.stack import Stack
from devstack.topology import Topology
from resilience import RowPolicy
from resilience.breaker import CircuitBreaker
from resilience.testing import FakeClock
from service_kit import redis_client as kit
from service_kit.migrations import upgrade

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIFETIME = 3600.0
ids = (f"session-{number}" for number in count())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Servers of its own, to be broken."""
    topology = Topology(only=frozenset({"postgres", "redis"}), proxied=False)
    async with Stack(tmp_path_factory.mktemp("sessions"), topology, port_base=None) as stack:
        await upgrade(stack.database_url("dashboard"), Path(dashboard.__file__).parent / "migrations")
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def whole(stack: Stack) -> AsyncIterator[Stack]:
    """The servers, mended afterwards."""
    yield stack
    for component in ("redis", "postgres"):
        await stack.heal(component)


def policy(row: object, classify: object) -> RowPolicy:
    """Of a row, with a circuit that tries again soon."""
    chosen = replace(row, open_seconds=0.05)  # type: ignore[type-var]
    breaker = CircuitBreaker(chosen.id, failure_threshold=3, recovery_timeout=0.05, classify=classify)  # type: ignore[attr-defined, arg-type]
    return RowPolicy(chosen, breaker=breaker)  # type: ignore[arg-type]


class Instance:
    """A Dashboard's sessions, and what it needs for them."""

    def __init__(self, stack: Stack, clock: FakeClock) -> None:
        self.client: Redis = kit.create_client(stack.url("redis"))
        self.database = Database(stack.database_url("dashboard"))
        self.redis = policy(REDIS, kit.classify)
        self.postgres = policy(POSTGRES, postgres.classify)
        self.ended = EndedSessions(self.database, self.postgres)
        self.sessions = RedisSessions(self.client, self.redis, clock, self.ended, lifetime=LIFETIME)

    async def login(self, user_id: str = "alice") -> str:
        session = Session(next(ids), user_id, "user")
        await self.sessions.create(session, LIFETIME)
        return session.id

    async def knows(self, session_id: str, user_id: str = "alice") -> bool:
        try:
            await self.sessions.check(session_id, user_id)
        except SessionUnknown:
            return False
        return True

    async def catch_up(self) -> None:
        """Until both stores have heard of everything."""
        async with asyncio.timeout(10):
            while self.sessions.behind:
                await self.sessions.catch_up()
                await asyncio.sleep(0.02)

    async def in_redis(self, session_id: str) -> bytes | str | None:
        return await self.client.get(f"session:{hash_of(session_id)}")

    async def close(self) -> None:
        await self.ended.close()
        await self.client.aclose()
        await self.database.close()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(whole: Stack, clock: FakeClock) -> AsyncIterator[tuple[Instance, Instance]]:
    """Two instances."""
    instances = Instance(whole, clock), Instance(whole, clock)
    for instance in instances:
        await instance.database.open()
    yield instances
    for instance in instances:
        await instance.close()


@pytest.fixture
def clock() -> FakeClock:
    """The instances' monotonic time."""
    return FakeClock()


def later(clock: FakeClock) -> None:
    """The second is over in which an instance does not ask again."""
    clock.move(module.CHECK_SECONDS + 0.1)


async def test_a_logout_ends_the_session_everywhere(pair: tuple[Instance, Instance], clock: FakeClock) -> None:
    here, there = pair
    session = await here.login()
    assert await there.knows(session)
    assert not (await here.sessions.end(session)).degraded
    assert not await here.knows(session)
    later(clock)
    assert not await there.knows(session)
    assert not here.sessions.behind
    assert await here.ended.any([session])


async def test_postgresql_and_redis_hold_no_session_that_could_be_used(pair: tuple[Instance, Instance]) -> None:
    here, _ = pair
    session = await here.login()
    await here.sessions.end(session)
    rows = await here.database.fetch("SELECT * FROM ended_sessions")
    assert hash_of(session) in {row["id_hash"] for row in rows}
    assert session not in repr(rows)
    assert not await here.client.keys(f"*{session}*")


async def test_a_logout_without_redis_is_known_to_the_other_instance(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    session, kept = await here.login(), await here.login()
    assert await there.knows(session)
    assert await there.knows(kept)
    await whole.kill("redis")
    ended = await here.sessions.end(session)
    assert [one.fallback for one in ended.degradations] == [MEMORY_SESSIONS]
    assert not await here.knows(session)
    later(clock)
    assert not await there.knows(session)
    assert await there.knows(kept)
    assert (await there.sessions.check(kept)).degraded


async def test_redis_dies_right_after_the_logout(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    session = await here.login()
    assert await there.knows(session)
    await here.sessions.end(session)
    await whole.kill("redis")
    later(clock)
    assert not await there.knows(session)


async def test_redis_comes_back_without_a_logout_whose_instance_is_gone(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    session = await here.login()
    assert await there.knows(session)
    await whole.kill("redis")
    await here.sessions.end(session)  # and this instance is never heard of again
    await whole.heal("redis")
    await there.client.set(f"session:{hash_of(session)}", "alice")
    there.sessions.doubt_redis()
    later(clock)
    assert not await there.knows(session)
    await there.catch_up()
    assert await there.in_redis(session) == b""


async def test_an_instance_that_starts_later_asks_postgresql_once_for_what_redis_says_is_open(
    pair: tuple[Instance, Instance], clock: FakeClock
) -> None:
    here, there = pair
    session = await here.login()
    await here.sessions.end(session)
    await here.client.set(f"session:{hash_of(session)}", "alice")  # restored from an older copy
    assert not await there.knows(session)


async def test_a_login_without_redis_is_everywhere_when_redis_is_back(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    await whole.kill("redis")
    session, left = await here.login(), await here.login()
    assert (await here.sessions.check(session)).degraded
    assert not await there.knows(session)
    await here.sessions.end(left)
    await whole.heal("redis")
    here.sessions.doubt_redis()
    await here.catch_up()
    assert await there.knows(session)
    assert not await there.knows(left)
    assert await here.in_redis(left) == b""
    assert 0 < await here.client.ttl(f"session:{hash_of(session)}") <= LIFETIME


async def test_what_was_logged_out_elsewhere_meanwhile_is_not_written_again(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    """The first late write arrived, its answer did not; the session was used and ended on the other instance."""
    here, there = pair
    await whole.kill("redis")
    session = await here.login()
    await whole.heal("redis")
    await there.client.set(f"session:{hash_of(session)}", "alice")
    assert await there.knows(session)
    await there.sessions.end(session)
    await here.catch_up()
    assert await here.in_redis(session) == b""
    later(clock)
    assert not await here.knows(session)
    assert not await there.knows(session)


async def test_a_login_that_a_frozen_redis_stores_after_the_logout_stays_ended(
    pair: tuple[Instance, Instance], clock: FakeClock
) -> None:
    here, there = pair
    session = Session(next(ids), "alice", "user")
    await here.sessions.end(session.id)
    await there.sessions.create(session, LIFETIME)
    assert await there.in_redis(session.id) == b""


async def test_with_postgresql_away_as_well_memory_alone_decides(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    session, ended = await here.login(), await here.login()
    await there.login()
    await whole.kill("redis")
    await whole.kill("postgres")
    later(clock)
    assert await here.knows(session)
    assert not await there.knows(session), "never seen there"
    await here.sessions.end(ended)
    assert not await here.knows(ended)
    clock.move(module.REMEMBER_SECONDS)
    assert not await here.knows(session)
    await whole.heal("postgres")
    await whole.heal("redis")
    await here.catch_up()
    assert await there.ended.any([ended])
    assert await here.in_redis(ended) == b""


async def test_a_frozen_postgresql_costs_a_check_a_quarter_of_a_second(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack
) -> None:
    here, there = pair
    session = await here.login()
    await there.database.ping()
    await whole.freeze("postgres")
    begun = time.monotonic()
    assert await there.knows(session)
    assert time.monotonic() - begun < ended_sessions.ASK_SECONDS + 0.2
    await whole.heal("postgres")


async def test_a_session_in_use_costs_postgresql_one_question_a_minute(
    pair: tuple[Instance, Instance], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    session = await here.login()
    asked = 0
    ask = there.ended._ask

    async def counting(names: tuple[str, ...]) -> bool | None:
        nonlocal asked
        asked += 1
        return await ask(names)

    monkeypatch.setattr(there.ended, "_ask", counting)
    for _ in range(100):
        assert await there.knows(session)
        later(clock)
    assert asked == 2


async def test_all_sessions_of_a_deleted_account_end(pair: tuple[Instance, Instance], clock: FakeClock) -> None:
    here, there = pair
    mine, other, theirs = await here.login("bob"), await there.login("bob"), await here.login("carol")
    await here.sessions.end_all("bob")
    later(clock)
    for instance in pair:
        assert not await instance.knows(mine, "bob")
        assert not await instance.knows(other, "bob")
        assert await instance.knows(theirs, "carol")


async def test_the_sessions_of_an_account_whose_queued_deletion_is_applied_end_soon(
    pair: tuple[Instance, Instance], clock: FakeClock
) -> None:
    here, there = pair
    session = await there.login("dave")
    here.sessions.end_all_later("dave")
    assert not await here.knows(session, "dave")
    await here.catch_up()
    later(clock)
    assert not await there.knows(session, "dave")


async def test_what_is_remembered_is_bounded_and_forgets_towards_logged_out(
    pair: tuple[Instance, Instance], clock: FakeClock, whole: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    here, _ = pair
    first = await here.login()
    await whole.kill("redis")
    for _ in range(15):
        await here.sessions.end(await here.login())
        await here.login()
    sessions = here.sessions
    tables: tuple[Sized, ...] = (
        sessions._seen,
        sessions._ended,
        sessions._unwritten,
        sessions._unmarked,
        sessions._unrecorded,
    )
    assert max(len(table) for table in tables) == 10
    later(clock)
    assert not await here.knows(first)


async def test_old_ends_are_pruned_and_others_stay(pair: tuple[Instance, Instance]) -> None:
    here, _ = pair
    await here.ended.add(["old"], -1.0)
    await here.ended.add(["new"], 60.0)
    assert not await here.ended.any(["old"])
    await here.ended.prune()
    left = {row["id_hash"] for row in await here.database.fetch("SELECT id_hash FROM ended_sessions")}
    assert hash_of("old") not in left
    assert hash_of("new") in left
