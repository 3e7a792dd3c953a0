"""Row D6, dashboard.standby: reading from a real streaming standby, and how old it says that its answers are."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import dashboard
from dashboard.degradation import POSTGRES, STANDBY
from dashboard.model import User, UserUnknown
from dashboard.outbound.postgres import Database, classify
from dashboard.outbound.standby import Position, Standby
from dashboard.outbound.users import PostgresUsers
from dashboard.usecases.accounts import Accounts
from dashboard.usecases.reads import Reads
from devstack.stack import Stack
from devstack.topology import Topology
from resilience import SYSTEM_CLOCK, CircuitBreaker, CircuitBreakerOpen, FakeClock, Operation, RowPolicy, Rung
from resilience.mirror import Pending
from service_kit.migrations import upgrade
from tests.harness.platform import eventually

MIGRATIONS = Path(dashboard.__file__).parent / "migrations"


class Answers:
    """A database that says what it is told to say."""

    def __init__(self) -> None:
        self.row: tuple[Any, ...] | None = None

    async def fetchrow(self, _: str) -> tuple[Any, ...] | None:
        if self.row is None:
            raise ConnectionRefusedError
        return self.row


class Pair:
    """A database and its standby, both made up, and the watch over them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.primary, self.replica = Answers(), Answers()
        self.primary_policy, self.policy = (RowPolicy(row, clock=self.clock) for row in (POSTGRES, STANDBY))
        primary: Any = self.primary
        replica: Any = self.replica
        self.standby = Standby(primary, self.primary_policy, replica, self.policy, self.clock)

    async def look(self, written: int | None, replayed: int, commit: float | None = None) -> float | None:
        """One round of the watch."""
        self.primary.row = None if written is None else (written,)
        self.replica.row = (replayed, commit)
        watching = asyncio.create_task(self.standby.watch())
        await self.clock.advance(0)
        watching.cancel()
        await asyncio.wait([watching])
        return self.standby.as_of


async def test_a_standby_that_has_everything_is_as_new_as_the_last_look_at_the_database() -> None:
    pair = Pair()
    asked = pair.clock.time()
    assert await pair.look(written=100, replayed=100) == asked


async def test_a_standby_behind_is_as_old_as_the_newest_position_it_has_reached() -> None:
    pair = Pair()
    first = await pair.look(100, 100)
    pair.clock.move(5)
    assert await pair.look(written=300, replayed=299) == first
    second = pair.clock.time()
    pair.clock.move(5)
    assert await pair.look(written=500, replayed=300) == second


async def test_without_the_database_it_grows_older() -> None:
    pair = Pair()
    known = await pair.look(100, 100)
    pair.clock.move(60)
    assert await pair.look(written=None, replayed=100) == known


async def test_the_last_commit_it_has_replayed_may_be_newer_than_the_last_look() -> None:
    pair = Pair()
    await pair.look(100, 100)
    pair.clock.move(2)
    commit = pair.clock.time() - 0.5
    assert await pair.look(written=None, replayed=180, commit=commit) == commit


async def test_it_is_never_from_the_future() -> None:
    pair = Pair()
    assert await pair.look(None, 1, commit=pair.clock.time() + 100) == pair.clock.time()


async def test_another_database_in_the_old_one_s_place_makes_the_positions_worthless() -> None:
    pair = Pair()
    await pair.look(1000, 1000)
    pair.clock.move(10)
    assert await pair.look(written=50, replayed=49) == 0


def test_positions_are_bounded() -> None:
    pair = Pair()
    pair.standby._written.extend(Position(float(n), n) for n in range(10_000))
    assert len(pair.standby._written) == 7200


async def test_a_dead_standby_is_known_before_it_is_needed() -> None:
    pair = Pair()
    pair.primary.row = (1,)
    watching = asyncio.create_task(pair.standby.watch())
    await pair.clock.advance(3.5)
    watching.cancel()
    with pytest.raises(CircuitBreakerOpen):
        await pair.policy.call(pair.primary.fetchrow, "")


# --- real servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"postgres", "standby"}), proxied=False, standby=True)
    async with Stack(tmp_path_factory.mktemp("standby"), topology, port_base=None) as stack:
        await upgrade(stack.database_url("dashboard"), MIGRATIONS)
        yield stack


def new_user(name: str) -> Operation:
    user_id = str(uuid.uuid4())
    payload = {"id": user_id, "email": f"{user_id}@example.org", "display_name": name, "password_hash": "x"}
    return Operation(uuid.uuid4().hex, "user.create", f"email:{user_id}", "", payload, "")


def policy_of(row: Any) -> RowPolicy:
    return RowPolicy(row, breaker=CircuitBreaker(row.id, classify=classify))


@pytest.mark.asyncio(loop_scope="module")
async def test_reads_go_to_the_standby_while_the_database_is_dead(stack: Stack) -> None:
    primary = Database(stack.database_url("dashboard"))
    replica = Database(stack.url("standby"))
    await primary.open()
    await replica.open()
    policies = policy_of(POSTGRES), policy_of(STANDBY)
    standby = Standby(primary, policies[0], replica, policies[1], SYSTEM_CLOCK)
    reads: Reads[PostgresUsers] = Reads(policies[0], PostgresUsers(primary), standby, PostgresUsers(replica))
    watching = asyncio.create_task(standby.watch())
    try:
        made = await PostgresUsers(primary).create(new_user("Anna"))
        seen = time.time()

        async def replicated() -> bool:
            return standby.as_of is not None and standby.as_of > seen

        await eventually(replicated, "the standby says that it has the account")
        healthy = await reads.serve(lambda users: users.get(made.id))
        assert not healthy.degraded
        await stack.kill("postgres")
        killed = time.time()
        served = await reads.serve(lambda users: users.get(made.id))
        assert served.value == made
        assert [one.fallback for one in served.degradations] == ["postgres-standby"]
        assert served.as_of is not None
        assert seen < served.as_of <= killed

        async def copy(_: BaseException) -> str:
            return "from a copy"

        missing: Any = await reads.serve(lambda users: users.get(str(uuid.uuid4())), Rung("copy", copy))
        assert missing.value == "from a copy", "what is not on the standby may be too new for it"
        await stack.heal("postgres")

        async def back() -> bool:
            try:
                return not (await reads.serve(lambda users: users.get(made.id))).degraded
            except (OSError, UserUnknown):
                return False

        await eventually(back, "the database is in use again")
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await primary.close()
        await replica.close()


class OneUser:
    """Rows that hold one user, or copies that do."""

    def __init__(self, user: User) -> None:
        self.user = user

    async def get(self, _: str) -> User:
        return self.user

    async def newest(self, _: str) -> User:
        return self.user

    def rungs(self, _: str) -> tuple[()]:
        return ()


class Straight:
    """A standby that is there."""

    def rung(self, read: Any) -> Rung[Any]:
        return Rung("postgres-standby", lambda _: read())


class NothingWaits:
    async def pending(self, _: str) -> Pending:
        return Pending()


@pytest.mark.parametrize(("row", "copy", "shown"), [(1, 2, "copy"), (2, 1, "row"), (2, 2, "row")])
async def test_a_change_that_has_not_reached_the_standby_is_still_shown(row: int, copy: int, shown: str) -> None:
    """A queued write that another instance has just applied must not disappear from its author's eyes."""

    def user(name: str, revision: int) -> User:
        return User("anna", "a@example.org", name, "user", 0.0, 0.0, revision)

    policy = RowPolicy(POSTGRES)
    policy.breaker.force_open()
    replica: Any = OneUser(user("row", row))
    copies: Any = OneUser(user("copy", copy))
    standby: Any = Straight()
    anything: Any = NothingWaits()
    reads: Reads[Any] = Reads(policy, replica, standby, replica)
    accounts = Accounts(anything, reads, copies, policy, anything, anything, key_secret=b"k")
    served = await accounts.read("anna", "anna")
    assert served.value.display_name == shown
    assert served.degraded
