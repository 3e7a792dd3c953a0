"""The write queue without servers: its values, its rules, and the drain and the writer around them on fakes.

What servers, crashes and interleavings do to it is the business of tests/simulation and of the service that uses it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.breaker import CircuitBreaker, Verdict
from resilience.clock import FakeClock
from resilience.errors import CallTimeout, MalformedOperation, QueueFull, QueueUnavailable
from resilience.matrix import Priority, Row
from resilience.mirror import Mirror
from resilience.queue import (
    Burial,
    Drainer,
    DrainSettings,
    Entry,
    Fate,
    Operation,
    OperationRecord,
    OperationStatus,
    Plan,
    QueueStats,
    QueueUnanswered,
    Result,
    WalkEnd,
    decode,
    next_batch_size,
    plan,
    replayed,
    retry_wait,
    settlement,
    still_held,
    walk_pause,
)
from resilience.row_policy import RowPolicy
from resilience.writer import Accepted, DurableWriter, WriteRefused, Written

texts = st.text(min_size=1, max_size=8)
operations = st.builds(
    Operation,
    id=texts,
    kind=texts,
    entity=texts,
    owner=st.text(max_size=8),
    payload=st.dictionaries(texts, st.none() | st.integers() | st.text(max_size=8), max_size=3),
    fingerprint=st.text(max_size=8),
    generation=st.integers(0, 3),
)


def operation(number: int, entity: str = "e", accepted_at: float = 0.0, **fields: Any) -> Operation:
    return Operation(f"o{number}", "change", entity, "me", {}, accepted_at=accepted_at, **fields)


def entry(number: int, entity: str = "e", accepted_at: float = 0.0, **fields: Any) -> Entry:
    return Entry(f"{number:04d}", b"", operation(number, entity, accepted_at, **fields))


# -- values


@given(operations, st.floats(0, 2e9))
def test_what_is_stored_is_read_back(stored: Operation, accepted_at: float) -> None:
    read = decode(stored.encode(), accepted_at)
    assert read.accepted_at == accepted_at
    read.accepted_at = stored.accepted_at
    assert read == stored


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"{}",
        b'{"id": "", "kind": "k", "entity": "e", "owner": "", "payload": {}}',
        b'{"id": 1, "kind": "k", "entity": "e", "owner": "", "payload": {}}',
        b'{"id": "i", "kind": "k", "entity": "e", "owner": "", "payload": []}',
        b'{"id": "i", "kind": "k", "entity": "e", "owner": "", "payload": {}, "generation": "1"}',
    ],
)
def test_what_is_no_operation_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedOperation):
        decode(body, 0.0)


def test_every_replay_has_a_fence_of_its_own() -> None:
    first = operation(1, accepted_at=5.0)
    again = replayed(first)
    assert (first.fence, again.fence, replayed(again).fence) == ("o1", "o1#1", "o1#2")
    assert again.accepted_at == 0.0


# -- rules


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 90.0]), st.booleans())),
    st.sets(st.sampled_from("abc")),
)
def test_a_plan_sorts_everything_keeps_the_order_and_leaves_blocked_entities_alone(
    what: list[tuple[str, float, bool]], blocked: set[str]
) -> None:
    entries = [entry(n, e, at) if good else Entry(f"{n:04d}", b"", None) for n, (e, at, good) in enumerate(what)]
    result = plan(entries, now=100.0, ttl=50.0, blocked=blocked)
    due = [one for one in entries if one.operation and one.operation.entity not in blocked]
    assert result.apply == [one for one in due if one.operation and one.operation.accepted_at == 90.0]
    assert result.expired == [one for one in due if one.operation and one.operation.accepted_at == 0.0]
    assert result.malformed == [one for one in entries if one.operation is None]


def test_settlement_follows_what_the_target_said_not_what_was_planned() -> None:
    again = entry(1, generation=1)
    work = Plan(apply=[entry(1), again, entry(2)], expired=[entry(3), entry(4)], malformed=[Entry("0005", b"", None)])
    results = [
        Result(operation(1), Fate.BURIED, "NOT_FOUND"),
        Result(operation(1, generation=1), Fate.APPLIED),
        Result(operation(3), Fate.BURIED, "expired"),
        Result(operation(4), Fate.APPLIED),  # by a commit whose answer was lost: no dead letter
    ]
    applied, buried = settlement(work, results)
    assert applied == [again, entry(4)]
    assert [(burial.entry.position, burial.reason) for burial in buried] == [
        ("0005", "malformed"),
        ("0001", "failed"),
        ("0003", "expired"),
    ]


def test_an_operation_is_retried_after_each_wait_and_then_buried() -> None:
    waits = (0.1, 0.2)
    assert [retry_wait(attempts, waits) for attempts in (0, 1, 2, 3, 9)] == [0.1, 0.1, 0.2, None, None]
    assert (retry_wait(0, ()), retry_wait(1, ())) == (0.0, None)


def test_held_entities_and_the_pause_until_the_next_walk() -> None:
    held = {"a": 5.0, "b": 7.5}
    assert still_held(held, 5.0) == {"b": 7.5}
    assert walk_pause(held, 3.0, 0.2) == 2.0
    assert walk_pause(held, 6.0, 0.2) == 0.01
    assert walk_pause({}, 6.0, 0.2) == 0.2


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_batch_that_timed_out_is_halved_down_to_one(size: int, full: int) -> None:
    smaller = next_batch_size(size, full, timed_out=True)
    assert 1 <= smaller <= size
    assert smaller < size or size == 1
    assert next_batch_size(smaller, full, timed_out=False) == full


def test_another_walk_follows_unless_all_is_done_or_the_target_is_gone() -> None:
    assert {end for end in WalkEnd if end.again} == {WalkEnd.LEFT, WalkEnd.BUSY, WalkEnd.TIMED_OUT}


# -- fakes


class Store:
    """A queue in a list. ``broken`` maps a method to what it raises."""

    name = "fake"

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.buried: list[Burial] = []
        self.attempts = 0
        self.broken: dict[str, Exception] = {}
        self.records: list[OperationRecord | None] = []

    def _check(self, method: str) -> None:
        if method in self.broken:
            raise self.broken[method]

    async def append(self, operation: Operation) -> OperationRecord:
        self._check("append")
        self.entries.append(Entry(f"{len(self.entries):04d}", b"", operation))
        return OperationRecord(operation, OperationStatus.QUEUED)

    async def read(self, limit: int, after: str = "", *, claim: bool = False) -> tuple[Sequence[Entry], float]:
        self._check("read" if not after else "read ahead")
        return [one for one in self.entries if one.position > after][:limit], 100.0

    async def settle(self, applied: Sequence[Entry], buried: Sequence[Burial]) -> None:
        self._check("settle")
        gone = {one.position for one in applied} | {burial.entry.position for burial in buried}
        self.entries = [one for one in self.entries if one.position not in gone]
        self.buried += buried

    async def note_failure(self, operation_id: str, error: str) -> int:
        self.attempts += 1
        return self.attempts

    async def record(self, operation_id: str) -> OperationRecord | None:
        self._check("record")
        return self.records.pop(0)

    async def is_waiting(self, entity: str) -> bool:
        self._check("is_waiting")
        return any(one.operation and one.operation.entity == entity for one in self.entries)

    async def waiting(self, entity: str) -> Sequence[Operation]:
        self._check("waiting")
        return [one.operation for one in self.entries if one.operation and one.operation.entity == entity]

    async def stats(self) -> QueueStats:
        self._check("stats")
        return QueueStats(len(self.entries), 0.0, len(self.buried))

    async def list(self, limit: int, after: str = "") -> Any: ...
    async def dead(self, limit: int, after: str = "") -> Any: ...
    async def replay(self, operation_id: str) -> Any: ...
    async def discard(self, operation_id: str) -> Any: ...
    async def clear(self) -> Any: ...


class Target:
    """Applies to a list, whole batches or nothing; ``fates`` are the fences that it knows, None for applied."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.fates: dict[str, str | None] = {}
        self.rejected: set[str] = set()
        self.refused: set[str] = set()
        self.broken: Exception | None = None
        self.busy = 0
        self.batches: list[int] = []

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Target | None]:
        if self.broken is not None:
            raise self.broken
        self.busy -= 1
        yield None if self.busy >= 0 else self

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        self.batches.append(len(operations))
        if any(one.fence in self.refused and one.fence not in self.fates for one in operations):
            raise ValueError("bad value")
        return [self._apply(one) for one in operations]

    def _apply(self, one: Operation) -> Result:
        if one.fence in self.fates:
            error = self.fates[one.fence]
            return Result(one, Fate.APPLIED) if error is None else Result(one, Fate.BURIED, error)
        if one.fence in self.rejected:
            return Result(one, Fate.REJECTED, "NOT_FOUND")
        self.fates[one.fence] = None
        self.applied.append(one.fence)
        return Result(one, Fate.APPLIED)

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        for one in operations:
            self.fates.setdefault(one.fence, error)

    def is_outage(self, error: BaseException) -> bool:
        return isinstance(error, OSError)


async def plain(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


class World:
    def __init__(self, *entries: Entry, **settings: Any) -> None:
        self.store, self.target, self.clock = Store(), Target(), FakeClock()
        self.store.entries = list(entries)
        self.seen: list[str] = []
        self.drainer = Drainer(
            self.store,
            self.target,
            call=plain,
            settings=DrainSettings(**{"ttl": 1000.0, **settings}),
            clock=self.clock,
            on_applied=self._note,
        )

    async def _note(self, results: Sequence[Result]) -> None:
        self.seen += [result.operation.fence for result in results]

    async def drain(self, seconds: float = 10.0) -> int:
        task = asyncio.create_task(self.drainer.drain())
        await self.clock.advance(seconds)
        return await task


# -- the drain


async def test_batches_are_applied_in_order_and_settled() -> None:
    world = World(*(entry(number) for number in range(7)), batch_size=3)
    assert await world.drain() == 7
    assert world.target.applied == world.seen == [f"o{number}" for number in range(7)]
    assert world.target.batches == [3, 3, 1]
    assert world.store.entries == []


async def test_a_rejected_operation_is_retried_holds_its_entity_back_and_is_buried() -> None:
    world = World(entry(1, "a"), entry(2, "b"), entry(3, "a"), batch_size=1, retry_waits=(0.5, 1.0))
    world.target.rejected = {"o1"}
    task = asyncio.create_task(world.drainer.drain())
    await world.clock.advance(1.4)
    assert world.target.applied == ["o2"]
    await world.clock.advance(5.0)
    assert await task == 3
    assert world.target.applied == ["o2", "o3"]
    assert [(burial.reason, burial.error) for burial in world.store.buried] == [("failed", "NOT_FOUND")]
    assert world.clock.pending == 0


async def test_a_refused_batch_is_halved_until_the_bad_one_stands_alone() -> None:
    world = World(*(entry(number, f"e{number}") for number in range(4)), retry_waits=())
    world.target.refused = {"o2"}
    assert await world.drain() == 4
    assert world.target.applied == ["o0", "o1", "o3"]
    assert [burial.error for burial in world.store.buried] == ["ValueError"]


async def test_expired_and_malformed_ones_are_buried_but_not_what_was_applied_before() -> None:
    world = World(entry(1), entry(2), Entry("0003", b"?", None), ttl=50.0)
    world.target.fates["o1"] = None  # committed long ago; the answer was lost, and then everything was away for an hour
    assert await world.drain() == 3
    assert world.target.applied == []
    assert world.seen == ["o1"]
    assert [(burial.entry.position, burial.reason) for burial in world.store.buried] == [
        ("0003", "malformed"),
        ("0002", "expired"),
    ]


@pytest.mark.parametrize("accepted_at", [0.0, -5000.0], ids=["due", "expired"])
async def test_another_drainer_has_the_target_and_then_has_not(accepted_at: float) -> None:
    world = World(entry(1, accepted_at=accepted_at), contended_wait=2.0)
    world.target.busy = 2
    task = asyncio.create_task(world.drainer.drain())
    await world.clock.advance(3.9)
    assert world.store.entries
    await world.clock.advance(0.2)
    assert await task == 1


async def test_a_timeout_halves_the_batch_and_a_success_restores_it() -> None:
    world = World(*(entry(number) for number in range(10)), batch_size=4)
    world.target.broken = CallTimeout("target", 1.0)
    task = asyncio.create_task(world.drainer.drain())
    await world.clock.advance(0.1)
    world.target.broken = None
    await world.clock.advance(5.0)
    assert await task == 10
    assert world.target.batches == [2, 2, 4, 2]  # the second one was read before the first one had succeeded
    assert world.store.entries == []


async def test_an_outage_ends_the_drain_and_nothing_is_lost() -> None:
    world = World(entry(1))
    world.target.broken = ConnectionResetError()
    assert await world.drain() == 0
    assert len(world.store.entries) == 1


@pytest.mark.parametrize("method", ["read", "read ahead", "settle"])
async def test_without_its_store_a_drain_ends_quietly(method: str) -> None:
    world = World(entry(1), batch_size=1)
    world.store.broken[method] = QueueUnavailable("away")
    assert await world.drain() == 0 or method == "settle"


async def test_a_settlement_that_fails_during_an_outage_is_not_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    world = World(entry(1), entry(2), batch_size=1)
    world.store.broken["settle"] = QueueUnavailable("away")

    async def outage_at_the_second(results: Sequence[Result]) -> None:
        await asyncio.sleep(0)
        world.target.broken = ConnectionResetError()

    world.drainer._on_applied = outage_at_the_second
    await world.drain()
    gc.collect()
    assert not caplog.records  # asyncio would log an exception that nobody retrieved


async def test_an_unexpected_error_is_raised_wherever_it_happens() -> None:
    for method in ("read", "settle"):
        world = World(entry(1))
        world.store.broken[method] = LookupError(method)
        with pytest.raises(LookupError):
            await world.drain()


async def test_runs_on_every_kick_and_every_interval_until_cancelled() -> None:
    world = World(interval=30.0)
    running = asyncio.create_task(world.drainer.run())
    world.store.entries = [entry(1)]
    await world.clock.advance(29.9)
    assert world.store.entries
    await world.clock.advance(0.1)
    assert not world.store.entries
    world.store.entries = [entry(2)]
    world.drainer.kick()
    await world.clock.advance(0.0)
    assert not world.store.entries
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.clock.pending == 0


# -- the writer

ROW = Row(
    id="test.database",
    label="T1",
    service="test",
    dependency="database",
    title="Database",
    priority=Priority.P0,
    impact="high",
    max_failures=5,
    open_seconds=60.0,
    call_timeout=1.0,
    fallbacks=("queue",),
    promise="",
    recovery="",
    data_loss="",
    user_text="",
)


def verdict(error: BaseException) -> Verdict:
    return Verdict.FAILURE if isinstance(error, OSError | TimeoutError) else Verdict.SUCCESS


class Writing(World):
    def __init__(self) -> None:
        super().__init__()
        breaker = CircuitBreaker(ROW.id, success_threshold=1, classify=verdict, clock=self.clock)
        self.policy = RowPolicy(ROW, breaker=breaker, clock=self.clock)
        self.writer = DurableWriter(self.policy, self.store, self.drainer, fallback="queue", clock=self.clock)
        self.unordered: list[bool] = []

    async def write(self, failure: BaseException | None = None) -> Any:
        async def direct(unordered: bool) -> str:
            self.unordered.append(unordered)
            if failure is not None:
                raise failure
            return "done"

        return (await self.writer.write(operation(1), direct)).value


async def test_direct_when_nothing_waits() -> None:
    world = Writing()
    assert await world.write() == Written("done")
    assert world.unordered == [False]


async def test_direct_and_unordered_when_the_queue_cannot_be_asked() -> None:
    world = Writing()
    world.store.broken["is_waiting"] = QueueUnavailable("away")
    assert await world.write() == Written("done")
    assert world.unordered == [True]


async def test_queued_when_the_database_fails() -> None:
    world = Writing()
    accepted = await world.write(ConnectionResetError())
    assert isinstance(accepted, Accepted)
    assert accepted.record.status is OperationStatus.QUEUED


async def test_an_answer_of_the_database_is_not_queued() -> None:
    world = Writing()
    with pytest.raises(KeyError):
        await world.write(KeyError("taken"))
    assert world.store.entries == []


@pytest.mark.parametrize(
    ("database", "queue", "certain", "full"),
    [
        (ConnectionRefusedError(), QueueUnavailable("away"), True, False),
        (ConnectionRefusedError(), QueueFull("full"), True, True),
        (ConnectionResetError(), QueueUnavailable("away"), False, False),
        (ConnectionResetError(), QueueFull("full"), False, True),
        (ConnectionRefusedError(), QueueUnanswered("?"), False, False),
        (None, QueueUnavailable("away"), True, False),
        (None, QueueUnanswered("?"), False, False),
    ],
)
async def test_a_refusal_is_certain_only_if_nobody_was_asked_in_vain(
    database: Exception | None, queue: Exception, certain: bool, full: bool
) -> None:
    """Without an error of the database: its circuit is open."""
    world = Writing()
    world.store.broken["append"] = queue
    if database is None:
        world.policy.breaker.force_open()
    with pytest.raises(WriteRefused) as refused:
        await world.write(database)
    assert (refused.value.certain, refused.value.full) == (certain, full)
    assert str(refused.value) == ("the write was not accepted" if certain else "the write was not answered")


async def test_behind_an_older_write_and_told_when_it_is_applied() -> None:
    world = Writing()
    world.store.entries = [entry(0)]
    done = OperationRecord(operation(1), OperationStatus.APPLIED)
    world.store.records = [OperationRecord(operation(1), OperationStatus.APPLYING), None, done]
    task = asyncio.create_task(world.write())
    await world.clock.advance(1.0)
    assert (await task).record is done
    assert world.unordered == []


async def test_behind_an_older_write_and_told_that_it_is_queued_when_that_takes_too_long() -> None:
    world = Writing()
    world.store.entries = [entry(0)]
    world.store.broken["record"] = QueueUnavailable("away")
    task = asyncio.create_task(world.write())
    await world.clock.advance(1.1)
    assert (await task).record.status is OperationStatus.QUEUED


async def test_behind_an_older_write_with_the_circuit_open_nobody_waits() -> None:
    world = Writing()
    world.store.entries = [entry(0)]
    world.policy.breaker.force_open()
    assert (await world.write()).record.status is OperationStatus.QUEUED


@pytest.mark.parametrize(("error", "certain"), [(QueueUnavailable("away"), True), (QueueUnanswered("?"), False)])
async def test_behind_an_older_write_but_the_queue_does_not_take_it(error: Exception, certain: bool) -> None:
    world = Writing()
    world.store.entries = [entry(0)]
    world.store.broken["append"] = error
    with pytest.raises(WriteRefused) as refused:
        await world.write()
    assert refused.value.certain is certain


async def test_pending_writes_are_looked_up_only_when_there_may_be_some() -> None:
    world = Writing()
    world.store.broken["waiting"] = LookupError("asked")
    assert list(await world.writer.pending("e")) == []
    await world.write(ConnectionResetError())
    del world.store.broken["waiting"]
    assert [one.id for one in await world.writer.pending("e")] == ["o1"]
    world.store.broken["waiting"] = QueueUnavailable("away")
    assert [one.id for one in await world.writer.pending("e")] == ["o1"]
    assert not (await world.writer.pending("e")).certain
    assert list(await world.writer.pending("another")) == []


async def test_a_queue_that_cannot_be_asked_is_remembered_as_it_was_last_seen() -> None:
    """Also what other instances queued; until the queue was seen empty."""
    world = Writing()
    world.policy.breaker.force_open()
    world.store.entries = [entry(0), entry(1)]
    watch = asyncio.create_task(world.writer.watch())
    await world.clock.advance(0.5)
    world.store.entries.append(entry(2))
    await world.clock.advance(1.0)
    world.store.broken["waiting"] = QueueUnavailable("away")
    seen = await world.writer.pending("e")
    assert [one.id for one in seen] == ["o0", "o1", "o2"]
    assert not seen.certain
    world.store.entries.clear()
    await world.clock.advance(1.0)
    assert list(await world.writer.pending("e")) == []
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


def test_what_is_remembered_of_the_queue_is_bounded() -> None:
    mirror = Mirror()
    for number in range(Mirror.LIMIT + 10):
        mirror.add(Operation(str(number), "kind", "e", "owner", {}))
        mirror.add(Operation("0", "kind", "e", "owner", {}))
    assert len(mirror.of("e")) == Mirror.LIMIT


async def test_the_watch_has_waiting_writes_drained_while_the_circuit_is_closed() -> None:
    world = Writing()
    watch = asyncio.create_task(world.writer.watch())
    drain = asyncio.create_task(world.drainer.run())
    await world.clock.advance(0.5)
    world.store.entries = [entry(1)]
    world.store.broken["stats"] = QueueUnavailable("away")
    await world.clock.advance(1.0)
    assert world.store.entries
    world.policy.breaker.force_open()
    del world.store.broken["stats"]
    await world.clock.advance(1.0)
    assert world.store.entries
    world.policy.breaker.reset()
    await world.clock.advance(1.0)
    assert not world.store.entries
    for task in (watch, drain):
        task.cancel()
    await asyncio.gather(watch, drain, return_exceptions=True)
    assert world.clock.pending == 0


async def test_while_the_target_is_away_what_another_instance_has_queued_is_seen_at_once() -> None:
    world = Writing()
    world.store.entries = [entry(0)]
    world.policy.breaker.force_open()
    assert [one.id for one in await world.writer.pending("e")] == ["o0"]
