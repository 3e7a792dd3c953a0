"""The nemesis is repeatable and keeps its own rules; the verdict finds what is planted."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest

from tests.harness.checker import Database, Row
from tests.harness.history import Event
from tests.soak.nemesis import KINDS, LASTS, PAUSE, Fault, episodes
from tests.soak.soak import Broken, Past
from tests.soak.verdict import Verdict, judge, table

PARTS = ("postgres", "redis", "kafka", "ai-core")
USER = "u"
BEFORE = Database({USER: Row("old", 1)})
FAULT = Broken(Fault("ai-core", "kill", 0.0, 5.0), start=100.0, noticed=101.0, healing=105.0, recovery=1.0)
PAST = [Past((FAULT,), over=107.0, settled=0.5)]
GOOD = [Event("read", "a", float(second), second + 0.01, 200, USER, "old") for second in range(3000)]
RETRY = {"retry-after": "1", "x-retry-after": "1"}
REFUSED = {"error": "DEPENDENCY_UNAVAILABLE", "message": "Later."}


def found(events: list[Event], past: list[Past] = PAST) -> Verdict:
    return judge(events, BEFORE, BEFORE, past)


def broken_lines(verdict: Verdict) -> set[str]:
    return {line.what for line in verdict.lines if not line.kept}


def test_the_same_seed_gives_the_same_faults() -> None:
    first, again = (list(islice(episodes(5, PARTS), 50)) for _ in range(2))
    assert first == again != list(islice(episodes(6, PARTS), 50))


def test_faults_are_bounded_and_of_every_kind() -> None:
    many = list(islice(episodes(1, PARTS), 500))
    assert {len(one.faults) for one in many} == {1, 2}
    assert {(fault.component, fault.kind) for one in many for fault in one.faults} == {
        (part, kind) for part in PARTS for kind in KINDS
    }
    for one in many:
        assert len({fault.component for fault in one.faults}) == len(one.faults)
        assert PAUSE[0] <= one.pause <= PAUSE[1]
        assert all(LASTS[0] <= fault.lasts <= LASTS[1] for fault in one.faults)
        assert all(fault.after <= one.faults[0].lasts for fault in one.faults), "two faults overlap"


def test_a_good_run_keeps_everything() -> None:
    verdict = found(GOOD)
    assert verdict.kept, table(verdict)
    assert not verdict.violations


@pytest.mark.parametrize(
    ("planted", "line"),
    [
        (Event("read", "a", 50.0, 50.1, 200, USER, "old", {"x-degraded-mode": "true"}), "degraded answers without"),
        (Event("translate", "a", 102.0, 102.1, 200, USER), "degraded answers without"),
        (Event("read", "a", 50.0, 53.0, 200, USER, "old"), "answers after their deadline"),
        (Event("read", "a", 50.0, 50.1, 500, USER), "requests without an answer"),
        (Event("read", "a", 50.0, 50.1, None, USER, error="reset"), "requests without an answer"),
        (Event("write", "a", 50.0, 50.1, 200, USER, "lost"), "accepted writes lost"),
    ],
)
def test_one_planted_event_is_enough(planted: Event, line: str) -> None:
    assert any(what.startswith(line) for what in broken_lines(found([*GOOD, planted])))


def test_few_errors_are_within_the_rates_and_more_are_not() -> None:
    refused = [Event("read", "a", 50.0 + n, 50.1 + n, 503, USER, "", RETRY, REFUSED) for n in range(20)]
    assert not broken_lines(found([*GOOD, *refused[:2]])) & {
        "errors among readable requests",
        "useful answers where the matrix promises one",
    }
    assert "useful answers where the matrix promises one" in broken_lines(found([*GOOD, *refused[:8]]))
    assert "errors among readable requests" in broken_lines(found([*GOOD, *refused]))


def test_where_nothing_is_promised_an_error_does_not_count() -> None:
    refused = [Event("chat", "a", 101.0 + n / 10, 101.05 + n / 10, 503, USER, "", RETRY, REFUSED) for n in range(30)]
    assert found([*GOOD, *refused]).kept


@pytest.mark.parametrize("seconds", [5.5, math.inf])
def test_a_slow_recovery_is_found(seconds: float) -> None:
    slow = [replace(PAST[0], broken=(replace(FAULT, recovery=seconds),))]
    assert broken_lines(found(GOOD, slow)) == {"slowest recovery"}
