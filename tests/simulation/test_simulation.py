"""The simulation holds, reaches what it should reach, replays exactly, and catches bugs that are planted by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resilience.queue import Burial, Drainer, Entry, Fate, Operation, Result
from resilience.writer import WriteRefused
from tests.simulation import world as simulation
from tests.simulation.coverage import missing
from tests.simulation.database import Database, Effect, Transaction
from tests.simulation.network import Request
from tests.simulation.scenario import Scenario
from tests.simulation.store import SimStore
from tests.simulation.store_server import StoreServer
from tests.simulation.target import Session
from tests.simulation.world import simulate

SEEDS = range(200)
ENOUGH = range(400)
"""A planted bug must show within these; most do within the first ten."""

Plant = Callable[[pytest.MonkeyPatch], None]


def test_every_promise_is_kept_and_every_situation_reached() -> None:
    counts: Counter[str] = Counter()
    broken: dict[int, Sequence[str]] = {}
    for seed in SEEDS:
        report = simulate(seed)
        counts.update(report.counts)
        if report.violations:
            broken[seed] = report.violations
    assert not broken
    assert not missing(counts)


def test_a_seed_replays_exactly() -> None:
    for seed in (3, 4, 5):
        first, second = simulate(seed), simulate(seed, trace=True)
        assert (first.digest, first.steps, first.counts) == (second.digest, second.steps, second.counts)
        assert len(second.lines) > 100
    assert simulate(3).digest != simulate(4).digest


def test_a_seed_replays_exactly_in_another_process_with_other_hashes() -> None:
    def run(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.simulation", "--seed", "6", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[2]
        return subprocess.run(command, env=environment, cwd=root, check=True, text=True, capture_output=True).stdout

    lines = run("1")
    assert lines == run("2")
    assert simulate(6).digest in lines


# -- planted bugs: each is undone after its test, and stays here so that the simulation keeps its teeth


def with_faults(monkeypatch: pytest.MonkeyPatch, *faults: str) -> None:
    """Only these, in every seed: for a bug that needs several at once."""
    drawn = Scenario.drawn
    monkeypatch.setattr(Scenario, "drawn", lambda random: replace(drawn(random), faults=faults))


def settled_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash or an outage in between loses the write."""
    batch = Drainer._batch

    async def early(self: Drainer, entries: Sequence[Entry], now: float) -> Any:
        await self._store.settle([entry for entry in entries if entry.operation], [])
        return await batch(self, entries, now)

    monkeypatch.setattr(Drainer, "_batch", early)


def direct_without_asking_for_older_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct write overtakes a queued one."""

    async def never(self: SimStore, entity: str) -> bool:
        return False

    monkeypatch.setattr(SimStore, "is_waiting", never)


def fence_in_a_transaction_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a commit whose answer was lost nobody knows that the write was applied."""
    commit = Database.commit

    def late(self: Database, transaction: Transaction, request: Request) -> None:
        commit(self, transaction, request)
        if request.lost or request.future.done():
            for fence in transaction.fences:
                self.fences.pop(fence, None)

    monkeypatch.setattr(Database, "commit", late)


def nothing_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later write of an entity goes before the retry of an earlier one."""
    failed = Drainer._failed

    async def forgetful(self: Drainer, operation: Operation, error: str) -> Sequence[Result]:
        results = await failed(self, operation, error)
        self._held.pop(operation.entity, None)
        return results

    monkeypatch.setattr(Drainer, "_failed", forgetful)


def expired_without_asking_what_became_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was applied by a commit whose answer was lost is buried as well, and applied again when replayed."""

    async def bury(self: Drainer, operations: Sequence[Operation], error: str) -> Sequence[Result]:
        async with self._target.session() as session:
            if session is not None:
                await session.bury(operations, error)
        return [Result(operation, Fate.BURIED, error) for operation in operations]

    monkeypatch.setattr(Drainer, "_bury", bury)


def unanswered_reported_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody answered is told as refused, and takes effect later."""
    init = WriteRefused.__init__

    def sure(self: WriteRefused, *, full: bool, retry_after: float, **_: Any) -> None:
        init(self, full=full, retry_after=retry_after)

    monkeypatch.setattr(WriteRefused, "__init__", sure)


def unordered_writes_stamped_when_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen one that wakes up passes for newer than what was accepted meanwhile."""
    write = Database.write

    def stamped(self: Database, operation: Operation, sent: float, unordered_at: float, request: Request) -> Any:
        return write(self, operation, sent, self.world.clock.time() if unordered_at else 0.0, request)

    monkeypatch.setattr(Database, "write", stamped)
    with_faults(monkeypatch, "database stalls", "store flaky")


def lock_that_outlives_its_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drainer that was killed leaves the target locked."""
    end = Database._end

    def leaky(self: Database, transaction: Transaction) -> None:
        holder = self.holder
        end(self, transaction)
        if transaction.connection.owner is not None and not transaction.connection.owner.alive:
            self.holder = holder

    monkeypatch.setattr(Database, "_end", leaky)


def settling_that_is_not_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two drainers that settle the same entry, the second one buries what the first one has removed."""

    def bury(self: StoreServer, burial: Burial) -> None:
        self.queue.setdefault(burial.entry.position, (0.0, burial.entry.operation))
        original(self, burial)

    original = StoreServer._bury
    monkeypatch.setattr(StoreServer, "_bury", bury)


def batch_that_ignores_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The later writes of an entity are applied although an earlier one was rejected."""
    apply = Session.apply

    async def one_by_one(self: Session, operations: Sequence[Operation]) -> Sequence[Result]:
        results: list[Result] = []
        for operation in operations:
            results += await apply(self, [operation])
        return results

    monkeypatch.setattr(Session, "apply", one_by_one)


PLANTS: list[Plant] = [
    settled_before_the_commit,
    direct_without_asking_for_older_ones,
    fence_in_a_transaction_of_its_own,
    nothing_held_back,
    expired_without_asking_what_became_of_it,
    unanswered_reported_as_refused,
    unordered_writes_stamped_when_they_arrive,
    lock_that_outlives_its_transaction,
    settling_that_is_not_repeatable,
    batch_that_ignores_a_rejection,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert next((seed for seed in ENOUGH if simulate(seed).violations), None) is not None


# -- the simulation itself


def test_a_crash_of_a_check_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[str]:
        raise KeyError("checker")

    monkeypatch.setattr(simulation, "check", broken)
    assert any("the simulation itself failed: KeyError" in text for text in simulate(0).violations)


def test_what_asyncio_would_only_log_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    took_effect = Database._take_effect

    def noisy(self: Database, effect: Effect, row: Any) -> None:
        took_effect(self, effect, row)
        self.loop.call_soon(lambda: 1 / 0)

    monkeypatch.setattr(Database, "_take_effect", noisy)
    assert any("ZeroDivisionError" in text for text in simulate(0).violations)
